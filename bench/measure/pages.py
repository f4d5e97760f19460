"""Keeps the memory that a process gives back, so that it is not touched for the first time again.

The C library returns large blocks to the system, which hands them out page by page when they are next written to. A
call that allocates many megabytes spends much of its time in that.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP_ALL = 2**31 - 1


def keep_pages() -> bool:
    """From now on, keep what is given back; whether the C library is one that can be told so. It cannot be undone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP_ALL))
