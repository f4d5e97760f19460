"""The growth of this process's resident memory at its worst moment of a call (Linux).

Two things make the plain reading wrong, and both are met here:

* **What malloc keeps.** Freed tensors below malloc's growing threshold stay resident, and the next tensor often lands
  in other pages: relu(x·up)·down then reads half as much again as is ever alive at once. So the call runs with an
  allocator that gives freed pages back at once: each tensor from 64 KiB is a mapping of its own (``mallopt``), in a
  new thread, whose arena has no holes of earlier work to fill. This is the memory that the call needs, not what a
  long-lived process with another allocator holds.
* **What the kernel rounds.** The high-water mark is kept from counters that each core adds to 32 pages at a time (more
  on large machines), so it can miss that much on every core. ``VmRSS`` is their exact sum on recent kernels; it is
  read after every operator, while its inputs still live. The mark stays for what operators take inside themselves,
  and alone where torch's compiler is loaded: an observer of operators would make it compile the call anew.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure.proc import peak_resident_bytes, reset_peak, resident_bytes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
OWN_MAPPING_BYTES = 2**16
LARGEST_THRESHOLD_BYTES = 2**25
"""As far as glibc lets the threshold grow by itself, which it does with the first large tensors that are freed."""


def resident_growth_bytes(call: Callable[[], object]) -> int:
    """Resident bytes at the worst moment of ``call()`` above those before it; it is called twice."""
    libc = ctypes.CDLL(None)
    _tune(libc, OWN_MAPPING_BYTES)
    try:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(_growth_bytes, call, libc, torch.get_num_threads()).result()
    finally:
        _tune(libc, LARGEST_THRESHOLD_BYTES)


def _growth_bytes(call: Callable[[], object], libc: ctypes.CDLL, num_threads: int) -> int:
    torch.set_num_threads(num_threads)  # OpenMP keeps the number by thread: a new one has the machine's default
    watch = _ResidentWatch()
    watching = nullcontext() if "torch._dynamo" in sys.modules else watch
    with watching:
        call()  # what a thread's first call takes for good: its workers, and the matrix library's buffers
    gc.collect()
    if hasattr(libc, "malloc_trim"):  # glibc only: freed memory that the process still holds would hide the growth
        libc.malloc_trim(0)
    reset_peak()
    before_bytes = watch.peak_bytes = resident_bytes()
    with watching:
        result = call()
    peak_bytes = max(watch.peak_bytes, peak_resident_bytes())
    del result
    return max(0, peak_bytes - before_bytes)


def _tune(libc: ctypes.CDLL, threshold_bytes: int) -> None:
    if not hasattr(libc, "mallopt"):
        return
    for option, value in ((M_MMAP_THRESHOLD, threshold_bytes), (M_TRIM_THRESHOLD, threshold_bytes), (M_TOP_PAD, 0)):
        libc.mallopt(option, value)


class _ResidentWatch(TorchDispatchMode):
    """Reads resident memory after every operator, before its inputs can be freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.peak_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler to keep it away from here: a second in every fresh process.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.peak_bytes = max(self.peak_bytes, resident_bytes())
        return result
