"""Measures the fake NVML's GPU in scenarios read from stdin as JSON, and prints what the real code made of them.

A program of its own, because the dynamic loader finds the fake library through the environment of a new process.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from unittest import mock

from bench.measure.device import Call, Timing
from bench.measure.energy import gpu as gpu_energy
from bench.measure.energy import measure_energy
from bench.measure.energy.errors import MeterError
from bench.measure.energy.nvml import find_gpu, gpu_state, session
from bench.measure.probe import probe


def load() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None


LIBRARY = load()


class TorchDevice:
    type = "cuda"


class VirtualGpu:
    """An asynchronous device on the fake library's clock: time passes only when the host waits."""

    def __init__(self, call_s: float, uuid: str) -> None:
        self.torch_device = TorchDevice()
        self.min_sample_s = 50e-6
        self.call_s = call_s
        self.uuid = uuid
        self.time_s = 0.0
        self.busy_until_s = 0.0
        self.num_calls = 0

    def call(self) -> None:
        self.busy_until_s = max(self.busy_until_s, self.time_s) + self.call_s
        self.num_calls += 1

    def now_s(self) -> float:
        return self.time_s

    def idle(self, seconds: float) -> None:
        self.advance_to(self.time_s + seconds)

    def advance_to(self, time_s: float) -> None:
        self.time_s = time_s
        if LIBRARY is not None:
            ctypes.c_double.in_dll(LIBRARY, "fake_now_s").value = time_s

    def synchronize(self) -> None:
        self.advance_to(max(self.time_s, self.busy_until_s))

    def issue(self, call: Call) -> Callable[[], bool]:
        call()
        end_s = self.busy_until_s
        return lambda: self.time_s >= end_s

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        for _ in range(num_calls):
            call()
        return lambda: Timing(self.call_s * num_calls, 0.0)

    def identity(self) -> dict[str, str | int]:
        return {"uuid": self.uuid}


def set_knobs(knobs: dict[str, float]) -> None:
    assert LIBRARY is not None
    defaults = {"low_w": 100.0, "high_w": 300.0, "period_s": 1.0, "phase_s": 0.0, "tick_s": 0.1, "now_s": 0.0}
    defaults |= {"lost_at_s": 1e9, "reset_at_s": 1e9}
    switches = ["shape", "part_time", "mig", "virtualization", "stuck", "slice", "pid", "hides_memory"]
    switches += [f"{name}_error" for name in ("init", "energy", "instant", "average", "usage", "processes")]
    for name, default in (defaults | dict.fromkeys(switches, 0)).items():
        kind = ctypes.c_int if name in switches else ctypes.c_double
        kind.in_dll(LIBRARY, f"fake_{name}").value = knobs.get(name, default)
    assert knobs.keys() <= defaults.keys() | set(switches)


def memory_of(process: int, used_bytes: int) -> dict[str, Any]:
    """What the driver says of a process' memory, or why it does not."""
    if LIBRARY is not None:
        ctypes.c_ulonglong.in_dll(LIBRARY, "fake_process_bytes").value = used_bytes
    try:
        with session():
            return {"bytes": find_gpu("GPU-fake").process_bytes(process)}
    except MeterError as error:
        return {"code": error.code, "detail": error.detail}


def play(scenario: dict[str, Any]) -> dict[str, Any]:
    if LIBRARY is not None:
        set_knobs(scenario.get("knobs", {}))
    if "process" in scenario:
        return memory_of(scenario["process"], scenario["used_bytes"])
    device: Any = VirtualGpu(scenario.get("call_s", 0.001), scenario.get("uuid", "GPU-fake"))
    windows: list[gpu_energy.Window] = []

    def remember(observe: Callable[..., gpu_energy.Window]) -> Callable[..., gpu_energy.Window]:
        def observed(*args: Any) -> gpu_energy.Window:
            windows.append(observe(*args))
            return windows[-1]

        return observed

    with (
        mock.patch.object(gpu_energy, "count", remember(gpu_energy.count)),
        mock.patch.object(gpu_energy, "integrate", remember(gpu_energy.integrate)),
    ):
        reading = measure_energy(device.call, device, scenario.get("window_s", 1.0))
    result: dict[str, Any] = {"reading": reading.model_dump(), "state": gpu_state("GPU-fake")}
    if LIBRARY is not None and reading.energy_j is not None:
        window = windows[-2]  # idle, the window, idle
        energy_j = LIBRARY.fake_energy_j
        energy_j.restype, energy_j.argtypes = ctypes.c_double, [ctypes.c_double]
        result["true_j"] = energy_j(window.end_s) - energy_j(window.start_s)
    if scenario.get("probe"):
        result["probe"] = [asdict(capability) for capability in probe()]
    return result


if __name__ == "__main__":
    print(json.dumps([play(scenario) for scenario in json.load(sys.stdin)]))
    assert "torch" not in sys.modules
