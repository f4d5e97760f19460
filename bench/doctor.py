"""``moebench doctor``: what this machine can measure, and what would disturb it, each with evidence and a next step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import bench
from bench import environment, units
from bench.errors import Exit
from bench.gpus import find_gpus
from bench.measure.probe import Capability, probe

IDLE_LOAD = 0.5
STEAL_SHARE = 0.005
ROOM_BYTES = 2 * 2**30
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def doctor_command(*, as_json: bool) -> int:
    """Print the findings; disturbances are advice, so the exit code is 0."""
    capabilities, findings = probe(), disturbances()
    if as_json:
        document = {
            "machine": environment.machine_key(),
            "capabilities": [asdict(capability) for capability in capabilities],
            "disturbances": [asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=1))
        return Exit.OK
    print(f"{environment.machine_key()}\n")
    print("What can be measured here:")
    print("\n".join(_capability_line(capability) for capability in capabilities))
    print("\nWhat would disturb it:")
    print("\n".join(_finding_line(finding) for finding in findings))
    return Exit.OK


def disturbances() -> list[Finding]:
    """Everything that was looked at, disturbing or not."""
    return [finding for check in CHECKS for finding in check()]


def _capability_line(capability: Capability) -> str:
    if capability.ok:
        return f"  yes      {capability.name}: {capability.detail}"
    return f"  no       {capability.name}: {capability.code}: {capability.detail}"


def _finding_line(finding: Finding) -> str:
    mark = {True: "disturbs", False: "fine", None: "unknown"}[finding.disturbs]
    step = f". {finding.next_step}" if finding.next_step else ""
    return f"  {mark:8} {finding.name}: {finding.evidence}{step}"


def _load() -> Iterator[Finding]:
    load = os.getloadavg()[0]
    busy = load > IDLE_LOAD
    yield Finding(
        "load",
        busy,
        f"load average over the last minute is {load:.2f}",
        "Wait for other work to end, or stop it (`top` shows it)" if busy else "",
    )


def _cores() -> Iterator[Finding]:
    usable, logical = environment.usable_cores(), psutil.cpu_count() or 1
    few = usable < 4
    step = "Leave the machine alone while it measures: the system's own work has no core of its own" if few else ""
    yield Finding("cores", few, f"{usable} of {logical} cores may be used", step)
    for name in THREAD_SETTINGS:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > usable:
            yield Finding("threads", True, f"{name}={value} with {usable} usable cores", f"Set {name}={usable} or less")


def _hypervisor() -> Iterator[Finding]:
    virtual = environment.is_virtual()
    if virtual is None:
        yield Finding("hypervisor", None, "the processor's flags are not told")
        return
    step = "Expect neighbours' work to show in the samples; counters of power are usually absent" if virtual else ""
    yield Finding("hypervisor", virtual, "a virtual machine" if virtual else "no hypervisor is underneath", step)
    times = psutil.cpu_times()
    steal_s = getattr(times, "steal", None)
    if steal_s is not None:
        share = steal_s / sum(times)
        stolen = share > STEAL_SHARE
        yield Finding(
            "steal",
            stolen,
            f"the hypervisor gave {units.percent(share)} of the time since boot to others",
            "Use a machine or a time of day with less competition; every run records its steal time" if stolen else "",
        )


def _clocks() -> Iterator[Finding]:
    governor = environment.governor()
    if governor is None:
        yield Finding("governor", None, "the system does not tell the frequency governor")
    else:
        scaled = governor != "performance"
        step = "`cpupower frequency-set -g performance` holds the clock" if scaled else ""
        yield Finding("governor", scaled, f"the frequency governor is {governor}", step)
    turbo = environment.turbo()
    if turbo is None:
        yield Finding("turbo", None, "the system does not tell whether clocks may rise above the nominal one")
    else:
        step = "Absolute times depend on heat; comparisons inside a run are interleaved and bear it" if turbo else ""
        yield Finding("turbo", turbo, "turbo is on" if turbo else "turbo is off", step)


def _memory() -> Iterator[Finding]:
    free_bytes, swap = psutil.virtual_memory().available, psutil.swap_memory()
    tight = free_bytes < ROOM_BYTES
    evidence = f"{units.bytes_(free_bytes)} of memory are available"
    yield Finding("memory", tight, evidence, "Close what uses it, or sweep smaller layers" if tight else "")
    swapped = swap.used > 0
    yield Finding(
        "swap",
        swapped,
        f"{units.bytes_(swap.used)} of swap are in use",
        "Pages may come back from disk inside a sample: free memory, then `swapoff -a`" if swapped else "",
    )


def _gpus() -> Iterator[Finding]:
    for gpu in find_gpus().devices:
        name = f"GPU {gpu.index}"
        if gpu.num_processes is None:
            yield Finding(name, None, f"{gpu.name}: the driver does not tell who else uses it")
        else:
            used = gpu.num_processes > 0
            step = "Choose another with CUDA_VISIBLE_DEVICES (`nvidia-smi` shows who uses it)" if used else ""
            yield Finding(name, used, f"{gpu.name}: {gpu.num_processes} processes compute on it", step)


def _shadows() -> Iterator[Finding]:
    """Other packages of our names, which Python may import instead of ours."""
    own = Path(bench.__file__).resolve().parent.parent
    folders = {Path(entry or ".").resolve() for entry in ["", *sys.path]} - {own}
    found = [
        f"{name} in {folder}"
        for folder in sorted(folders)
        for name in ("bench", "impls")
        if (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()
    ]
    step = "`python -c 'import bench'` may find that one: start Python elsewhere or with -P" if found else ""
    yield Finding("names", bool(found), "; ".join(found) or "no other package is called bench or impls", step)


CHECKS: Sequence[Callable[[], Iterator[Finding]]] = (_load, _cores, _hypervisor, _clocks, _memory, _gpus, _shadows)
