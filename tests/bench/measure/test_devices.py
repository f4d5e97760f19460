from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import RequestError
from bench.measure import ceilings, control, cuda
from bench.measure.cpu import CpuDevice, read_caches
from bench.measure.opening import open_device
from bench.runner.jobs import perform
from bench.runner.protocol import ControlJob


def write_cache(root: Path, cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}.items():
        (folder / name).write_text(f"{value}\n")


def test_caches_are_those_of_the_processors_in_use(tmp_path: Path) -> None:
    for cpu in range(4):
        write_cache(tmp_path, cpu, 0, 1, "Data", "48K", str(cpu))
        write_cache(tmp_path, cpu, 1, 1, "Instruction", "64K", str(cpu))
        write_cache(tmp_path, cpu, 2, 2, "Unified", "1M", str(cpu))
        write_cache(tmp_path, cpu, 3, 3, "Unified", "32768K", "0-1" if cpu < 2 else "2-3")
    one_half = read_caches(tmp_path, frozenset({0, 1}))
    assert (one_half.l2_bytes, one_half.llc_bytes, one_half.num_llcs) == (2**20, 2**25, 1)
    assert read_caches(tmp_path, frozenset({1, 2})).num_llcs == 2


def test_unknown_caches_are_null(tmp_path: Path) -> None:
    caches = read_caches(tmp_path, frozenset({0}))
    assert caches.l2_bytes is None
    assert caches.llc_bytes is None


def test_cpu_sets_threads_and_flushes_twice_the_cache() -> None:
    before = torch.get_num_threads()
    try:
        device = open_device("cpu", 1)
        assert isinstance(device, CpuDevice)
        assert torch.get_num_threads() == 1
        assert device.identity()["threads"] == 1
        device.flush_cache()
        buffer = device._flush_buffer
        assert buffer.numel() * buffer.element_size() >= 2 * device.llc_total_bytes
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["tpu", "cuda0", ""])
def test_unknown_device(name: str) -> None:
    with pytest.raises(RequestError, match="unknown device"):
        open_device(name, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_absent_cuda_is_a_request_that_cannot_be_honoured() -> None:
    with pytest.raises(RequestError, match="finds no CUDA device"):
        open_device("cuda", torch.get_num_threads())


class FakeEvent:
    log: list[str]

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing

    def record(self) -> None:
        self.log.append("event")

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.enable_timing
        assert end.enable_timing
        return 2.5  # milliseconds

    def query(self) -> bool:
        return True


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CUDA with one device, whose every use is logged."""
    log: list[str] = []
    FakeEvent.log = log

    class Properties:
        name = "Fake GPU"
        uuid = "01234567-89ab-cdef-0123-456789abcdef"
        L2_cache_size = 1024

    def logged(name: str, value: Any) -> Any:
        def use(*_: object) -> Any:
            log.append(name)
            return value

        return use

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", logged("set_device", None))
    monkeypatch.setattr(torch.cuda, "synchronize", logged("synchronize", None))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return log


def test_cuda_sample_is_events_around_the_calls_and_does_not_synchronise(fake_cuda: list[str]) -> None:
    device = open_device("cuda", torch.get_num_threads())
    reader = device.sample(lambda: fake_cuda.append("call"), 2)
    assert fake_cuda == ["set_device", "event", "call", "call", "event"]
    device.synchronize()
    assert reader().device_s == 0.0025
    assert reader().host_s is not None
    assert device.issue(lambda: None)()


@pytest.mark.usefixtures("fake_cuda")
def test_cuda_events_are_used_again_but_never_by_two_samples_at_once() -> None:
    device = cuda.CudaDevice("cuda")
    made: list[FakeEvent] = []

    class Counted(FakeEvent):
        def __init__(self, enable_timing: bool = False) -> None:
            super().__init__(enable_timing)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", Counted)
        first, second = (device.sample(lambda: None, 1) for _ in range(2))
        assert len(made) == 4, "both are still to be read"
        assert first() == first()
        second()
        for _ in range(2):
            readers = [device.sample(lambda: None, 1) for _ in range(2)]
            assert len(made) == 4
            for read in readers:
                read()
        device.sample(lambda: None, 1)
        device.sample(lambda: None, 1)
        device.sample(lambda: None, 1)
        assert len(made) == 6


def test_cuda_identity_is_spelled_as_nvml_does(fake_cuda: list[str]) -> None:
    identity = open_device("cuda:0", torch.get_num_threads()).identity()
    assert identity["uuid"] == "GPU-01234567-89ab-cdef-0123-456789abcdef"
    with pytest.raises(RequestError, match="there are 1"):
        open_device("cuda:3", torch.get_num_threads())
    assert fake_cuda == ["set_device"]


def test_cuda_flushes_twice_its_cache_and_does_not_synchronise(
    fake_cuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    empty = torch.empty

    def on_cpu(size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        asked.append((size * dtype.itemsize, device))
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", on_cpu)
    device = open_device("cuda", torch.get_num_threads())
    device.flush_cache()
    device.flush_cache()
    assert asked == [(2 * 1024, torch.device("cuda", 0))], "one buffer, made once"
    assert fake_cuda == ["set_device"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_real_cuda_times_and_flushes() -> None:
    device = cuda.CudaDevice("cuda")
    x = torch.randn(2048, 2048, device="cuda")
    device.flush_cache()
    reader = device.sample(lambda: x @ x, 3)
    device.synchronize()
    assert 0 < reader().device_s < 10


@pytest.mark.parametrize(("slowdown", "blocks"), [(0.05, (20, 21)), (0.02, (50, 51)), (0.3, (20, 26)), (1.0, (20, 40))])
def test_planted_slowdown_is_exact(slowdown: float, blocks: tuple[int, int]) -> None:
    assert control.blocks_for(slowdown) == blocks


def test_planted_slowdown_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least"):
        control.blocks_for(0.0)


def test_control_arms_do_the_work_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice(torch.get_num_threads())
    arms = control.control_arms(device, 0.05)
    products = 0
    mm = torch.mm

    def counted(*args: Any) -> torch.Tensor:
        nonlocal products
        products += 1
        return mm(*args)

    monkeypatch.setattr(torch, "mm", counted)
    seen = {}
    for name, arm in arms.items():
        products = 0
        arm()
        seen[name] = products
    assert seen == {"base": 40, "twin": 40, "slowed": 42}


def test_the_control_of_a_machine_that_stalls_runs_few_of_the_calls_that_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = 0
    mm = torch.mm

    def stalling(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal stalled
        if len(a) > control.BLOCKS[-1][0]:  # what threads share
            stalled += 1
            time.sleep(0.002)
        return mm(a, b)

    monkeypatch.setattr(torch, "mm", stalling)
    job = ControlJob(
        device="cpu",
        threads=torch.get_num_threads(),
        planted_slowdown=0.05,
        order_seed=0,
        time_budget_s=0.4,
    )
    answer = perform(job, lambda _: None)
    assert answer.arms is not None
    assert answer.arms.keys() == {"base", "twin", "slowed"}
    assert stalled == 2 * 2 * 40  # two calls of base, of each larger size


def test_the_matmul_ceiling_multiplies_as_a_linear_layer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[torch.Tensor] = []
    mm = torch.mm

    def seen(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        weights.append(b)
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", seen)
    ceilings.measure_ceiling("matmul", CpuDevice(torch.get_num_threads()), "float32", 0.01)
    assert weights
    assert all(weight.t().is_contiguous() for weight in weights)


def test_ceilings_have_values_and_working_sets() -> None:
    device = CpuDevice(torch.get_num_threads())
    per_s, num_bytes = ceilings.measure_ceiling("matmul", device, "float32", 0.1)
    size = (num_bytes / 3 / 4) ** 0.5
    assert size == int(size) >= ceilings.MIN_MATRIX
    assert len(per_s) >= ceilings.MIN_REPETITIONS
    assert min(per_s) > 1e6
    per_s, num_bytes = ceilings.measure_ceiling("cache", device, "float32", 0.1)
    assert len(per_s) >= ceilings.MIN_REPETITIONS
    assert num_bytes < device.llc_total_bytes
    assert ceilings.buffer_bytes("memory", device) >= 4 * device.llc_total_bytes
