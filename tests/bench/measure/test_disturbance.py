from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fake_device import VirtualDevice

from bench.measure import disturbance
from bench.measure.disturbance import cpu_pressure_s, steal_s, watch

TICKS = os.sysconf("SC_CLK_TCK")


class Somewhere:
    def __init__(self, kind: str) -> None:
        self.type = kind


def device_on(kind: str) -> Any:
    device = VirtualDevice()
    device.torch_device = Somewhere(kind)
    device.identity = lambda: {"uuid": "GPU-x"}  # type: ignore[method-assign]  # a GPU, as far as watching goes
    return device


def write_proc(proc: Path, steal_ticks: int, pressure_us: int) -> None:
    (proc / "pressure").mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text(f"cpu  10 0 20 30 40 0 5 {steal_ticks} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    lines = (
        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={pressure_us}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    )
    (proc / "pressure" / "cpu").write_text(lines)


def test_counters_are_differences(tmp_path: Path) -> None:
    write_proc(tmp_path, 100, 5_000_000)
    with watch(device_on("cpu"), tmp_path) as seen:
        write_proc(tmp_path, 100 + 3 * TICKS, 5_250_000)
    assert seen.disturbance.steal_s == pytest.approx(3.0)
    assert seen.disturbance.cpu_pressure_s == pytest.approx(0.25)
    assert seen.disturbance.involuntary_switches is not None
    assert seen.disturbance.involuntary_switches >= 0
    assert seen.disturbance.gpu == {}


def test_what_the_system_does_not_tell_is_null(tmp_path: Path) -> None:
    assert steal_s(tmp_path) is None
    assert cpu_pressure_s(tmp_path) is None
    with watch(device_on("cpu"), tmp_path) as seen:
        pass
    assert seen.disturbance.steal_s is None
    assert seen.disturbance.cpu_pressure_s is None


def test_gpu_states_before_and_after_and_counters_by_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(
        [
            {"temperature_c": 40.0, "power_throttle_total_s": 10.0, "sm_clock_hz": 1e9},
            {"temperature_c": 60.0, "power_throttle_total_s": 10.5},
        ]
    )
    monkeypatch.setattr(disturbance, "_gpu_state", lambda _: next(states))
    with watch(device_on("cuda"), tmp_path) as seen:
        pass
    assert seen.disturbance.gpu == {"temperature_c_before": 40.0, "temperature_c_after": 60.0, "power_throttle_s": 0.5}


def test_a_gpu_without_nvml_has_no_state(tmp_path: Path) -> None:
    with watch(device_on("cuda"), tmp_path) as seen:
        pass
    assert seen.disturbance.gpu == {}
