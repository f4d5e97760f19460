from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.surroundings import CHECKS, Finding, Machine, look_around

QUIET = {
    "proc/loadavg": "0.10 0.20 0.30 1/100 4242",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.20 avg300=0.00 total=1\nfull avg10=0 avg60=0 avg300=0 total=0",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1",
    "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1",
    "proc/self/cgroup": "0::/box",
    "proc/cpuinfo": "processor : 0\nflags : fpu sse2\n",
    "proc/stat": "cpu 500 0 100 400 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1",
    "proc/meminfo": "MemTotal: 32000000 kB\nMemAvailable: 16000000 kB\nSwapTotal: 100 kB\nSwapFree: 100 kB",
    "sys/fs/cgroup/box/cpu.max": "max 100000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "sys/devices/system/cpu/cpufreq/boost": "0",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0",
    "sys/class/thermal/thermal_zone0/temp": "45000",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000",
    "sys/class/hwmon/hwmon1/name": "k10temp",
    "sys/class/hwmon/hwmon1/temp1_input": "51500",
    **{f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list": str(core) for core in range(8)},
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A quiet machine of eight cores."""
    return change(Machine(tmp_path / "proc", tmp_path / "sys", frozenset(range(8)), {}, []), QUIET)


def change(machine: Machine, files: Mapping[str, str | None], **fields: Any) -> Machine:
    """Write files of the machine, or take them away."""
    for name, text in files.items():
        path = machine.proc.parent / name
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    known = {name: getattr(machine, name) for name in ("proc", "sys", "cores", "variables", "module_path")}
    return Machine(**known | fields)


def found(machine: Machine) -> dict[str, Finding]:
    return {finding.name: finding for finding in look_around(machine)}


def test_nothing_disturbs_on_a_quiet_machine(machine: Machine) -> None:
    findings = found(machine)
    assert {name: finding.disturbs for name, finding in findings.items() if finding.disturbs is not False} == {}
    assert {
        "load", "cpu pressure", "memory pressure", "io pressure", "cores", "hyperthreads", "quota", "hypervisor",
        "steal", "governor", "turbo", "temperature", "throttling", "memory", "swap", "settings", "names",
    } <= set(findings)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files", "evidence"),
    [
        ("load", {"proc/loadavg": "1.75 0 0 1/1 1"}, "1.75"),
        ("cpu pressure", {"proc/pressure/cpu": "some avg10=0 avg60=12.50 avg300=0 total=1"}, "12.5 %"),
        ("memory pressure", {"proc/pressure/memory": "some avg10=0 avg60=2.00 avg300=0 total=1"}, "2.00 %"),
        ("hypervisor", {"proc/cpuinfo": "flags : fpu hypervisor sse2"}, "virtual"),
        ("steal", {"proc/stat": "cpu 500 0 100 300 0 0 0 100 77 77"}, "10.0 %"),
        ("governor", {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"}, "powersave"),
        ("turbo", {"sys/devices/system/cpu/cpufreq/boost": "1"}, "turbo is on"),
        ("turbo", {"sys/devices/system/cpu/intel_pstate/no_turbo": "0"}, "turbo is on"),
        ("temperature", {"sys/class/thermal/thermal_zone0/temp": "91000"}, "91 °C, its limit is 95 °C"),
        ("temperature", {"sys/class/hwmon/hwmon1/temp1_crit": "55000"}, "k10temp temp1 is at 52 °C"),
        ("throttling", {"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "12"}, "12 times"),
        ("quota", {"sys/fs/cgroup/box/cpu.max": "150000 100000"}, "1.5 processors"),
        ("quota", {"sys/fs/cgroup/cpu.max": "400000 100000"}, "4 processors"),
        (
            "quota",
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/box\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            "0.5 processors",
        ),
        ("hyperthreads", {"sys/devices/system/cpu/cpu3/topology/thread_siblings_list": "3,11"}, "1 of the 8"),
        ("memory", {"proc/meminfo": "MemAvailable: 1000 kB"}, "1000 KiB"),
        ("swap", {"proc/meminfo": "MemAvailable: 9000000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB"}, "1.00 MiB"),
    ],
)  # fmt: skip
def test_what_disturbs_is_named_with_evidence_and_a_next_step(
    machine: Machine, name: str, files: dict[str, str | None], evidence: str
) -> None:
    finding = found(change(machine, files))[name]
    assert finding.disturbs
    assert evidence in finding.evidence
    assert finding.next_step


def test_a_system_that_tells_nothing_is_unknown_and_not_fine(tmp_path: Path) -> None:
    findings = found(Machine(tmp_path / "proc", tmp_path / "sys", frozenset(range(8)), {}, []))
    told = {name for name, finding in findings.items() if finding.disturbs is not None and not name.startswith("GPU")}
    assert told == {"cores", "settings", "names"}
    assert all(finding.evidence for finding in findings.values())


def test_no_quota_is_no_limit(machine: Machine) -> None:
    files: dict[str, str | None] = {
        "proc/self/cgroup": "4:cpu:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert found(change(machine, files))["quota"].disturbs is False
    assert (
        found(change(machine, {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "max 100000"}))[
            "quota"
        ].disturbs
        is False
    )


def test_a_sensor_without_a_limit_is_shown_and_not_judged(machine: Machine) -> None:
    bare = change(machine, {"sys/class/thermal/thermal_zone0/temp": None})
    finding = found(bare)["temperature"]
    assert finding.disturbs is False
    assert finding.evidence == "k10temp temp1 is at 52 °C"


def test_few_cores_and_more_threads_than_cores_are_named(machine: Machine) -> None:
    findings = found(change(machine, {}, cores=frozenset({0, 1}), variables={"OMP_NUM_THREADS": "4"}))
    assert findings["cores"].disturbs
    assert "2 of 8" in findings["cores"].evidence
    assert findings["threads"].disturbs
    assert "OMP_NUM_THREADS=4" in findings["threads"].evidence
    assert "threads" not in found(change(machine, {}, variables={"OMP_NUM_THREADS": "4"}))


def test_variables_of_the_allocator_and_the_thread_pool_are_named_without_folders(machine: Machine) -> None:
    variables = {
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "/home/somebody/libjemalloc.so",
        "OMP_NUM_THREADS": "1",
        "A": "b",
    }
    finding = found(change(machine, {}, variables=variables))["settings"]
    assert finding.disturbs
    assert finding.evidence == "LD_PRELOAD=…/libjemalloc.so, MALLOC_ARENA_MAX=2"


@pytest.mark.parametrize("name", ["bench.py", "impls/__init__.py"])
def test_a_package_that_hides_ours_is_named(machine: Machine, tmp_path: Path, name: str) -> None:
    other = tmp_path / "elsewhere" / name
    other.parent.mkdir(parents=True)
    other.touch()
    finding = found(change(machine, {}, module_path=[str(tmp_path / "elsewhere")]))["names"]
    assert finding.disturbs
    assert f"{name.partition('/')[0].removesuffix('.py')} in " in finding.evidence


def test_every_finding_of_this_machine_has_a_next_step_exactly_where_it_disturbs() -> None:
    findings = look_around()
    assert len(findings) >= len(CHECKS) - 1, "only the GPUs may have nothing to say"
    assert all(bool(finding.next_step) == bool(finding.disturbs) for finding in findings)
