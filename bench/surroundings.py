"""What on this machine would disturb a measurement, each with the evidence and what to do about it.

Read from the system's own files and asked of the NVIDIA driver; nothing is measured here and nothing is changed. What
the system does not tell is said to be unknown, never taken to be fine.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bench
from bench import control_groups, environment, units
from bench.control_groups import read
from bench.gpus import find_gpus
from bench.measure.thermal import find_sensors, throttle_count

IDLE_LOAD = 0.5
PRESSURE_SHARE = 0.01
STEAL_SHARE = 0.005
ROOM_BYTES = 2 * 2**30
FEW_CORES = 4
HOT_MARGIN_C = 10.0
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SETTINGS = re.compile(r"(MALLOC|OMP|GOMP|KMP)_\w+|GLIBC_TUNABLES|LD_PRELOAD|PYTORCH(_CUDA)?_ALLOC_CONF")
PRESSURES = {"cpu": "a processor", "memory": "memory", "io": "a disk"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that may disturb measurements.

    Attributes:
        name: what was looked at.
        disturbs: whether it would disturb; None where the system does not tell.
        evidence: what was found.
        next_step: what to do about it; empty where there is nothing to do.
    """

    name: str
    disturbs: bool | None
    evidence: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look.

    Attributes:
        proc, sys: the kernel's file systems.
        cores: numbers of the processors that this process may use.
        variables: the environment.
        module_path: folders in which Python looks for packages.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    cores: frozenset[int] = field(default_factory=environment.usable_core_numbers)
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    module_path: Sequence[str] = field(default_factory=lambda: ["", *sys.path])

    @property
    def cpu(self) -> Path:
        """Folder of the processors."""
        return self.sys / "devices/system/cpu"


def look_around(machine: Machine | None = None) -> list[Finding]:
    """Everything that was looked at, disturbing or not."""
    here = machine or Machine()
    return [finding for check in CHECKS for finding in check(here)]


def _load(machine: Machine) -> Iterator[Finding]:
    text = read(machine.proc / "loadavg")
    if text is None:
        yield Finding("load", None, "the system does not tell its load")
        return
    load = float(text.split()[0])
    busy = load > IDLE_LOAD
    step = "Wait for other work to end, or stop it (`top` shows it)" if busy else ""
    yield Finding("load", busy, f"load average over the last minute is {load:.2f}", step)


def _pressure(machine: Machine) -> Iterator[Finding]:
    for what, thing in PRESSURES.items():
        found = re.search(r"^some .*\bavg60=([\d.]+)", read(machine.proc / "pressure" / what) or "", re.MULTILINE)
        if found is None:
            yield Finding(f"{what} pressure", None, f"the kernel does not tell whether tasks wait for {thing}")
            continue
        share = float(found[1]) / 100
        waits = share > PRESSURE_SHARE
        evidence = f"in the last minute some task waited for {thing} {units.percent(share)} of the time"
        step = f"Find what else needs {thing} (`top`, `iotop`) and let it end" if waits else ""
        yield Finding(f"{what} pressure", waits, evidence, step)


def _cores(machine: Machine) -> Iterator[Finding]:
    usable = len(machine.cores)
    few = usable < FEW_CORES
    step = "Leave the machine alone while it measures: the system's own work has no core of its own" if few else ""
    logical = len(list(machine.cpu.glob("cpu[0-9]*")))
    evidence = f"{usable} of {logical} processors may be used" if logical else f"{usable} processors may be used"
    yield Finding("cores", few, evidence, step)
    for name in THREAD_SETTINGS:
        value = machine.variables.get(name, "")
        if value.isdigit() and int(value) > usable:
            yield Finding("threads", True, f"{name}={value} with {usable} usable cores", f"Set {name}={usable} or less")


def _siblings(machine: Machine) -> Iterator[Finding]:
    """Processors that are threads of one core: what one does slows the other."""
    told = {
        core: _numbers(text)
        for core in machine.cores
        if (text := read(machine.cpu / f"cpu{core}/topology/thread_siblings_list")) is not None
    }
    if not told:
        yield Finding("hyperthreads", None, "the system does not tell which processors share a core")
        return
    sharing = sorted(core for core, siblings in told.items() if len(siblings) > 1)
    evidence = f"{len(sharing)} of the {len(told)} usable processors share their core with another"
    step = "Use one thread a core: `taskset` with one of each pair, or switch SMT off" if sharing else ""
    yield Finding("hyperthreads", bool(sharing), evidence if sharing else "no usable processor shares its core", step)


def _quota(machine: Machine) -> Iterator[Finding]:
    groups = read(machine.proc / "self/cgroup")
    if groups is None:
        yield Finding("quota", None, "the system does not tell the control group")
        return
    cores = min(_quotas(machine.sys / "fs/cgroup", groups), default=None)
    if cores is None:
        yield Finding("quota", False, "no quota on processor time")
        return
    short = cores < len(machine.cores)
    step = "Raise the container's quota: what exceeds it is stopped in the middle of a sample" if short else ""
    yield Finding("quota", short, f"the control group may use {cores:.3g} processors' worth of time", step)


def _quotas(root: Path, groups: str) -> Iterator[float]:
    """Processors' worth of time that each level of the control groups allows (versions 1 and 2)."""
    for folder in control_groups.levels(root, groups, "cpu"):
        limit, _, period = (read(folder / "cpu.max") or "").partition(" ")
        if not limit:
            limit, period = (read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if limit.isdigit() and period.isdigit():  # "max" and -1 are no limit
            yield int(limit) / int(period)


def _hypervisor(machine: Machine) -> Iterator[Finding]:
    virtual = environment.is_virtual(machine.proc / "cpuinfo")
    if virtual is None:
        yield Finding("hypervisor", None, "the processor's flags are not told")
    else:
        step = "Expect neighbours' work to show in the samples; counters of power are usually absent" if virtual else ""
        yield Finding("hypervisor", virtual, "a virtual machine" if virtual else "no hypervisor is underneath", step)
    # proc(5): cpu user nice system idle iowait irq softirq steal guest guest_nice; guests' time is in user's
    ticks = [int(word) for word in (read(machine.proc / "stat") or "").partition("\n")[0].split()[1:9]]
    if len(ticks) < 8 or not sum(ticks):
        yield Finding("steal", None, "the system does not tell what the hypervisor gives to others")
        return
    share = ticks[7] / sum(ticks)
    stolen = share > STEAL_SHARE
    step = "Use a machine or a time of day with less competition; every run records its steal time" if stolen else ""
    yield Finding("steal", stolen, f"the hypervisor gave {units.percent(share)} of the time since boot to others", step)


def _clocks(machine: Machine) -> Iterator[Finding]:
    governor = environment.governor(machine.cpu)
    if governor is None:
        yield Finding("governor", None, "the system does not tell the frequency governor")
    else:
        scaled = governor != "performance"
        step = "`cpupower frequency-set -g performance` holds the clock" if scaled else ""
        yield Finding("governor", scaled, f"the frequency governor is {governor}", step)
    turbo = environment.turbo(machine.cpu)
    if turbo is None:
        yield Finding("turbo", None, "the system does not tell whether clocks may rise above the nominal one")
    else:
        step = "Absolute times depend on heat; comparisons inside a run are interleaved and bear it" if turbo else ""
        yield Finding("turbo", turbo, "turbo is on" if turbo else "turbo is off", step)


def _heat(machine: Machine) -> Iterator[Finding]:
    sensors = find_sensors(machine.sys)
    if not sensors:
        yield Finding("temperature", None, "the system shows no sensor")
    else:
        hottest = min(sensors, key=lambda sensor: (sensor.margin_c, -sensor.celsius))
        hot = hottest.margin_c < HOT_MARGIN_C
        limit = "" if hottest.limit_c is None else f", its limit is {hottest.limit_c:.0f} °C"
        step = "Let it cool, or cool it better: near its limit the clock falls" if hot else ""
        yield Finding("temperature", hot, f"{hottest.name} is at {hottest.celsius:.0f} °C{limit}", step)
    count = throttle_count(machine.cpu)
    if count is not None:
        step = "Cool it better: the clock falls while it is too hot" if count else ""
        yield Finding("throttling", count > 0, f"heat has lowered the clock {count} times since boot", step)


def _memory(machine: Machine) -> Iterator[Finding]:
    found = re.findall(r"^(\w+):\s*(\d+) kB", read(machine.proc / "meminfo") or "", re.MULTILINE)
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in found}
    if "MemAvailable" not in sizes:
        yield Finding("memory", None, "the system does not tell how much memory is available")
    else:
        tight = sizes["MemAvailable"] < ROOM_BYTES
        step = "Close what uses it, or sweep smaller layers" if tight else ""
        yield Finding("memory", tight, f"{units.bytes_(sizes['MemAvailable'])} of memory are available", step)
    if "SwapTotal" not in sizes or "SwapFree" not in sizes:
        yield Finding("swap", None, "the system does not tell how much swap is in use")
        return
    used = sizes["SwapTotal"] - sizes["SwapFree"]
    step = "Pages may come back from disk inside a sample: free memory, then `swapoff -a`" if used else ""
    yield Finding("swap", used > 0, f"{units.bytes_(used)} of swap are in use", step)


def _gpus(_machine: Machine) -> Iterator[Finding]:
    for gpu in find_gpus().devices:
        name = f"GPU {gpu.index}"
        if gpu.num_processes is None:
            yield Finding(name, None, f"{gpu.name}: the driver does not tell who else uses it")
        else:
            used = gpu.num_processes > 0
            step = "Choose another with CUDA_VISIBLE_DEVICES (`nvidia-smi` shows who uses it)" if used else ""
            yield Finding(name, used, f"{gpu.name}: {gpu.num_processes} processes compute on it", step)


def _settings(machine: Machine) -> Iterator[Finding]:
    """Variables that change allocation and threads; the numbers of threads are judged with the cores."""
    chosen = {name: machine.variables[name] for name in sorted(machine.variables) if SETTINGS.fullmatch(name)}
    found = ", ".join(
        f"{name}={environment.without_folders(value)}" for name, value in chosen.items() if name not in THREAD_SETTINGS
    )
    step = "They change what is measured, and every run records them: unset what you do not mean" if found else ""
    yield Finding("settings", bool(found), found or "no variable changes the allocator or the thread pool", step)


def _shadows(machine: Machine) -> Iterator[Finding]:
    """Other packages of our names, which Python may import instead of ours."""
    own = Path(bench.__file__).resolve().parent.parent
    folders = {Path(entry or ".").resolve() for entry in machine.module_path} - {own}
    found = [
        f"{name} in {folder}"
        for folder in sorted(folders)
        for name in ("bench", "impls")
        if (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()
    ]
    step = "`python -c 'import bench'` may find that one: start Python elsewhere or with -P" if found else ""
    yield Finding("names", bool(found), "; ".join(found) or "no other package is called bench or impls", step)


def _numbers(text: str) -> set[int]:
    """A kernel's list of numbers, ``0-2,8``."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


CHECKS: Sequence[Callable[[Machine], Iterator[Finding]]] = (
    _load, _pressure, _cores, _siblings, _quota, _hypervisor, _clocks, _heat, _memory, _gpus, _settings, _shadows,
)  # fmt: skip
