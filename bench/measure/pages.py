"""Memory that is touched for the first time: how often a call does that, what it costs, and how to do without.

The C library returns large blocks to the system, which hands them out page by page when they are next written to: each
first touch stops the processor in a page fault, and the system fills the page with zeros. A call that allocates many
megabytes can spend most of its time in that.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP_ALL = 2**31 - 1
STRETCH_BYTES = 4 * 2**20
REPETITIONS = 7


@dataclass(frozen=True, slots=True)
class PageCost:
    """What one first touch costs.

    Attributes:
        touch_s: seconds of writing to a page for the first time, beyond writing to it again.
        return_s: seconds of giving it back to the system.
    """

    touch_s: float
    return_s: float


def num_faults() -> int | None:
    """Page faults of this process so far that no file had to be read for; None where the system does not tell."""
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def fresh_memory(num_bytes: int) -> mmap.mmap:
    """Memory that nobody has touched, of the kind that the C library hands out: private, and of no file."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, num_bytes)


def page_cost() -> PageCost | None:
    """Measured here and now with torch's current number of threads; None where page faults are not told."""
    import torch  # the rest of this file needs none

    if num_faults() is None:
        return None
    touched, returned = [], []
    for _ in range(REPETITIONS):
        stretch = fresh_memory(STRETCH_BYTES)
        values = torch.frombuffer(stretch, dtype=torch.float32)
        before = num_faults() or 0
        begin_s = time.perf_counter()
        values.zero_()
        first_s = time.perf_counter()
        values.zero_()
        again_s = time.perf_counter()
        faults = max(1, (num_faults() or 0) - before)
        del values
        close_s = time.perf_counter()
        stretch.close()
        returned.append((time.perf_counter() - close_s) / faults)
        touched.append(max(0.0, (first_s - begin_s) - (again_s - first_s)) / faults)
    return PageCost(statistics.median(touched), statistics.median(returned))


def can_keep_pages() -> bool:
    """Whether the C library is one that can be told to keep what is given back."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def keep_pages() -> bool:
    """From now on, keep what is given back; whether the C library took that. It cannot be undone."""
    if not can_keep_pages():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP_ALL))
