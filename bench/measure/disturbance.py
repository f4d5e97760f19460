"""What else happened on the machine while something was measured: steal, lost processors, load, GPU throttling."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure.device import Device
from bench.store.schema import Disturbance

PROC = Path("/proc")


@dataclass(slots=True)
class Watched:
    """Filled when :func:`watch` ends.

    Attributes:
        disturbance: what happened meanwhile.
    """

    disturbance: Disturbance


@contextmanager
def watch(device: Device, proc: Path = PROC) -> Iterator[Watched]:
    """Compare the counters of the system and the device before and after a ``with`` block.

    The result is in the ``disturbance`` of what it yields, once the block has ended. Nothing is polled in between.
    """
    watched = Watched(Disturbance())
    before_gpu = _gpu_state(device)
    before = _Counters.read(proc)
    yield watched
    after = _Counters.read(proc)
    watched.disturbance = Disturbance(
        steal_s=_difference(after.steal_s, before.steal_s),
        involuntary_switches=after.involuntary_switches - before.involuntary_switches,
        load_1min=os.getloadavg()[0],
        cpu_pressure_s=_difference(after.cpu_pressure_s, before.cpu_pressure_s),
        gpu=_gpu_change(before_gpu, _gpu_state(device)),
    )


def steal_s(proc: Path = PROC) -> float | None:
    """Seconds that the hypervisor gave to others since boot, summed over processors; None where it is not told."""
    try:
        fields = (proc / "stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    # proc(5): cpu user nice system idle iowait irq softirq steal ...
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else None


def cpu_pressure_s(proc: Path = PROC) -> float | None:
    """Seconds since boot in which some task waited for a processor; None where the kernel does not keep it."""
    try:
        lines = (proc / "pressure" / "cpu").read_text().splitlines()
    except OSError:
        return None
    totals = [field.partition("=")[2] for line in lines if line.startswith("some ") for field in line.split()[-1:]]
    return int(totals[0]) * 1e-6 if totals else None


@dataclass(frozen=True, slots=True)
class _Counters:
    steal_s: float | None
    involuntary_switches: int
    cpu_pressure_s: float | None

    @classmethod
    def read(cls, proc: Path) -> _Counters:
        return cls(steal_s(proc), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, cpu_pressure_s(proc))


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _gpu_state(device: Device) -> dict[str, float]:
    if device.torch_device.type != "cuda":
        return {}
    from bench.measure.energy.nvml import gpu_state

    return gpu_state(str(device.identity()["uuid"]))


def _gpu_change(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """States (clocks, temperature) before and after; counters as what they grew by."""
    change: dict[str, float] = {}
    for name in before.keys() & after.keys():
        if name.endswith("_total_s"):
            change[name.replace("_total_s", "_s")] = after[name] - before[name]
        else:
            change[f"{name}_before"] = before[name]
            change[f"{name}_after"] = after[name]
    return change
