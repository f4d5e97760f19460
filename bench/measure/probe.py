"""What this machine can measure, found without torch and without initialising CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure.disturbance import PROC, cpu_pressure_s, steal_s
from bench.measure.energy.errors import MeterError
from bench.measure.energy.nvml import NvmlGpu, find_gpu, list_uuids, session
from bench.measure.energy.powercap import POWERCAP_ROOT, find_packages
from bench.measure.proc import os_peak_gap

COARSE_CLOCK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a run could measure here.

    Attributes:
        name: what.
        ok: whether it can be measured.
        code: reason code where it cannot (``not_supported``, ``no_permission``, ``library_absent`` ...), else empty.
        detail: what was found, and what to do about it.
    """

    name: str
    ok: bool
    code: str
    detail: str


def probe(proc: Path = PROC, powercap_root: Path = POWERCAP_ROOT) -> list[Capability]:
    """Every capability, present or absent."""
    return [_timer(), _allocator(), *_system(proc), _cpu_energy(powercap_root), *_gpus()]


def _timer() -> Capability:
    resolution_s = time.get_clock_info("perf_counter").resolution
    fine = resolution_s <= COARSE_CLOCK_S
    return Capability("timer", fine, "" if fine else "below_resolution", f"resolution {resolution_s * 1e9:.3g} ns")


def _allocator() -> Capability:
    return Capability("allocator memory", True, "", "exact, from torch's own record of allocations")


def _system(proc: Path) -> list[Capability]:
    gap = os_peak_gap(proc / "self")
    code, _, sentence = gap.partition(": ")
    steal, pressure = steal_s(proc), cpu_pressure_s(proc)
    return [
        Capability("system memory", not gap, code, sentence or "peak of resident memory can be reset and read"),
        _told("steal time", steal, f"{proc}/stat", "the hypervisor's share since boot: {:.3g} s"),
        _told("CPU pressure", pressure, f"{proc}/pressure/cpu", "tasks waited for a processor since boot: {:.3g} s"),
    ]


def _told(name: str, value: float | None, where: str, found: str) -> Capability:
    if value is None:
        return Capability(name, False, "not_supported", f"{where} does not tell")
    return Capability(name, True, "", found.format(value))


def _cpu_energy(root: Path) -> Capability:
    try:
        zones = find_packages(root)
    except MeterError as error:
        return Capability("CPU energy", False, error.code, error.detail)
    return Capability("CPU energy", True, "", f"{len(zones)} package{'s' * (len(zones) != 1)} under {root}")


def _gpus() -> list[Capability]:
    """Presence, energy counter, power and clocks of every card; one absent line of each where there is none."""
    names = ("GPU", "GPU energy counter", "GPU power", "GPU clocks")
    try:
        with session():
            uuids = list_uuids()
            found = [capability for uuid in uuids for capability in _one_gpu(names, uuid)]
    except MeterError as error:
        return [Capability(name, False, error.code, error.detail) for name in names]
    return found or [Capability(name, False, "not_supported", "the driver sees no GPU") for name in names]


def _one_gpu(names: tuple[str, ...], uuid: str) -> list[Capability]:
    presence, *meters = names
    found = [Capability(presence, True, "", uuid)]
    try:
        gpu = find_gpu(uuid)
    except MeterError as error:
        return found + [Capability(name, False, error.code, error.detail) for name in meters]
    asks: list[Callable[[NvmlGpu], str]] = [
        lambda gpu: f"{gpu.energy_counter()():.6g} J since the driver was loaded",
        lambda gpu: f"{gpu.power_sensor()().value:.4g} W now",
        lambda gpu: f"{gpu.state()['sm_clock_hz'] * 1e-6:.0f} MHz now",
    ]
    for name, ask in zip(meters, asks, strict=True):
        try:
            found.append(Capability(name, True, "", ask(gpu)))
        except MeterError as error:
            found.append(Capability(name, False, error.code, error.detail))
        except KeyError:
            found.append(Capability(name, False, "not_supported", "the driver does not tell this GPU's clocks"))
    return found
