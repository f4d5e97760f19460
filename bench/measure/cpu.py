"""The CPU as a device: a monotonic clock, a number of threads, and caches that can be flushed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from bench.measure.device import Call, Timing

ASSUMED_LLC_BYTES = 128 * 2**20
CPU_ROOT = Path("/sys/devices/system/cpu")
SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Caches:
    """Sizes of the data caches that this process can reach.

    Attributes:
        l2_bytes: second-level cache of one core; None where the system does not say.
        llc_bytes: one instance of the last-level cache; None where the system does not say.
        num_llcs: instances that this process may run on.
    """

    l2_bytes: int | None
    llc_bytes: int | None
    num_llcs: int


def read_caches(root: Path = CPU_ROOT, cpus: frozenset[int] | None = None) -> Caches:
    """The caches of the processors that this process may use, from Linux's sysfs."""
    if cpus is None:
        cpus = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
    found: dict[int, dict[str, int]] = {}  # level -> {processors sharing an instance: its bytes}
    for cpu in sorted(cpus):
        for index in sorted((root / f"cpu{cpu}" / "cache").glob("index*")):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
            num_bytes = int(size[:-1]) * SIZE_UNITS[size[-1]] if size[-1] in SIZE_UNITS else int(size)
            level = int((index / "level").read_text())
            found.setdefault(level, {})[(index / "shared_cpu_list").read_text().strip()] = num_bytes
    if not found:
        return Caches(l2_bytes=None, llc_bytes=None, num_llcs=1)
    last = found[max(found)]
    return Caches(
        l2_bytes=max(found[2].values()) if 2 in found else None,
        llc_bytes=max(last.values()),
        num_llcs=len(last),
    )


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class CpuDevice:
    """The processor of this process.

    Args:
        threads: intra-operator threads of torch from now on.
        clock_ns: a monotonic clock; tests bring their own.
    """

    def __init__(self, threads: int, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        torch.set_num_threads(threads)
        self.torch_device = torch.device("cpu")
        self.threads = threads
        self.caches = read_caches()
        self._clock_ns = clock_ns
        resolution_s = time.get_clock_info("perf_counter").resolution
        # A hundred ticks of the clock keep its rounding below 1 %; 20 us do the same for the cost of asking it.
        self.min_sample_s = max(100 * resolution_s, 20e-6)

    def now_s(self) -> float:
        """Seconds on the monotonic clock."""
        return self._clock_ns() * 1e-9

    def synchronize(self) -> None:
        """Nothing to wait for: a call is finished when it returns."""

    @property
    def llc_total_bytes(self) -> int:
        """All last-level caches within reach; a generous assumption where the system does not say."""
        return (self.caches.llc_bytes or ASSUMED_LLC_BYTES) * self.caches.num_llcs

    @cached_property
    def _flush_buffer(self) -> torch.Tensor:
        return torch.ones(2 * self.llc_total_bytes // 4, dtype=torch.float32)

    def flush_cache(self) -> None:
        """Read twice the last-level caches' size with all threads.

        Reading, because large writes may bypass the caches; all threads, because each core has a cache of its own.
        """
        self._flush_buffer.sum()

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        """Time ``num_calls`` calls; the result is known at once."""
        clock_ns = self._clock_ns
        if num_calls == 1:  # no loop overhead inside the sample
            start_ns = clock_ns()
            call()
            end_ns = clock_ns()
        else:
            repeats = range(num_calls)
            start_ns = clock_ns()
            for _ in repeats:
                call()
            end_ns = clock_ns()
        timing = Timing((end_ns - start_ns) * 1e-9, None)
        return lambda: timing

    def issue(self, call: Call) -> Callable[[], bool]:
        """Run one call; it is finished."""
        call()
        return lambda: True

    def idle(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def identity(self) -> dict[str, str | int]:
        """Model, threads, and the cache size that flushing assumes."""
        return {"kind": "cpu", "name": _model_name(), "threads": self.threads, "llc_bytes": self.llc_total_bytes}
