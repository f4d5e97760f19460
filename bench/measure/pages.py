"""Memory that is touched for the first time: how often a call does that, what it costs, and how to do without.

The C library returns large blocks to the system, which hands them out page by page when they are next written to: each
first touch stops the processor in a page fault, and the system fills the page with zeros. A call that allocates many
megabytes can spend most of its time in that.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.control_groups import available_bytes, read
from bench.measure.proc import resident_bytes

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1
SPARE = 3
"""Times what calls need; with twice as much, 2 of 144 calls still met new memory."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
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


@dataclass(frozen=True, slots=True)
class TimedCall:
    """One call that nobody watches.

    Attributes:
        seconds: by the clock.
        faults: pages that it touched for the first time; None where the system does not tell.
    """

    seconds: float
    faults: int | None

    def touching_s(self, cost: PageCost | None) -> float:
        """Seconds of these first touches; 0 where they or their cost are not known."""
        return 0.0 if cost is None or self.faults is None else self.faults * cost.touch_s


def timed(call: Callable[[], object]) -> TimedCall:
    """Make a call that is over when it returns."""
    before, begin_s = num_faults(), time.perf_counter()
    call()
    end_s, after = time.perf_counter(), num_faults()
    return TimedCall(end_s - begin_s, None if before is None or after is None else after - before)


def fresh_memory(num_bytes: int) -> mmap.mmap:
    """Memory that nobody has touched, of the kind that the C library hands out: private, and of no file."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, num_bytes)


def why_no_cost() -> str:
    """Why first touches have no one cost on this system; empty where they have."""
    if num_faults() is None:
        return "the system does not tell page faults"
    if "[always]" in (read(HUGE_PAGES) or ""):
        return "transparent huge pages are always on, so a first touch may be of 4 KiB or of 2 MiB"
    return ""


def page_cost() -> PageCost | None:
    """Measured here and now with torch's current number of threads; None where :func:`why_no_cost` says why.

    Of a few repetitions the quickest: what disturbs one makes it longer.
    """
    import torch  # the rest of this file needs none

    if why_no_cost():
        return None
    first_s, again_s, return_s = [], [], []
    for _ in range(REPETITIONS):
        stretch = fresh_memory(STRETCH_BYTES)
        values = torch.frombuffer(stretch, dtype=torch.float32)
        first, again = timed(values.zero_), timed(values.zero_)
        faults = max(1, first.faults or 0)
        del values
        first_s.append(first.seconds / faults)
        again_s.append(again.seconds / faults)
        return_s.append(timed(stretch.close).seconds / faults)
    return PageCost(max(0.0, min(first_s) - min(again_s)), min(return_s))


def can_keep_pages() -> bool:
    """Whether the C library is one that can be told to keep what is given back."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def keep_pages(calls: Iterable[Callable[[], object]]) -> bool:
    """From now on, keep what is given back, and more than these calls need; whether the C library took that order.

    It cannot be undone. Every call is made once to learn what it needs, which one that fails does not disturb. To have
    just that is not enough: torch wants blocks at multiples of 64 bytes, the splinters that this leaves at their ends
    lie between the blocks that are given back, and the next block of the same size fits into none of them. No more
    than half of what is available is set aside.
    """
    if not can_keep_pages():
        return False
    library = ctypes.CDLL(None)
    library.malloc_trim(0)  # else what is free already would not be seen to be needed
    before_bytes = resident_bytes()
    if not (library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, NEVER)):
        return False
    for call in calls:
        with contextlib.suppress(Exception):
            call()
    _touch(library, min(SPARE * (resident_bytes() - before_bytes), available_bytes() // 2))
    return True


def _touch(library: ctypes.CDLL, num_bytes: int) -> None:
    """Take one block, write to all of it, and give it back."""
    import torch  # with all its threads: a page lies near the processor that touches it first

    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    block = library.malloc(num_bytes) if num_bytes > 0 else None
    if block:
        torch.frombuffer((ctypes.c_char * num_bytes).from_address(block), dtype=torch.uint8).zero_()
        library.free(block)
