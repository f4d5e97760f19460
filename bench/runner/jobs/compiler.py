"""Loads torch's compiler without the pool of processes that it would start, and says where its kernels are kept.

A fork server imports this module once, so that its workers do not each spend seconds on it (see
:meth:`bench.runner.session.Session.new_server`). A pool would outlive the worker that it belongs to, and would compile
on cores that are being measured.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch._inductor.config as inductor

inductor.compile_threads = 1  # before the next import, which starts the pool

import torch._dynamo  # noqa: E402 - after the setting above
import torch._inductor.compile_fx  # noqa: E402, F401 - the same


def keep_kernels_in(folder: Path) -> None:
    """Have this process make its kernels in ``folder``, and find those there that others have made."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
