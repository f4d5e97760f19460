from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure.cpu import CpuDevice
from bench.measure.memory import PeakMemory, cpu_allocator_peak_bytes, measure_peak
from bench.measure.proc import os_peak_gap

SIZES = [(7, 5, 3), (64, 128, 256), (3, 300, 1000), (1024, 32, 16)]  # T, D, F


class FeedForward:
    """relu(x @ up) @ down, whose allocations can be counted by hand."""

    def __init__(self, T: int, D: int, F: int) -> None:
        self.sizes = T, D, F
        self.x_TD = torch.randn(T, D, requires_grad=True)
        self.up_DF = torch.randn(D, F, requires_grad=True)
        self.down_FD = torch.randn(F, D, requires_grad=True)
        self.grad_TD = torch.randn(T, D)

    def forward(self) -> torch.Tensor:
        with torch.inference_mode():
            return torch.mm(torch.relu(torch.mm(self.x_TD, self.up_DF)), self.down_FD)

    def train(self) -> torch.Tensor:
        for tensor in (self.x_TD, self.up_DF, self.down_FD):
            tensor.grad = None
        y_TD = torch.mm(torch.relu(torch.mm(self.x_TD, self.up_DF)), self.down_FD)
        y_TD.backward(self.grad_TD)  # type: ignore[no-untyped-call]  # torch's own
        return y_TD

    @property
    def forward_bytes(self) -> int:
        T, D, F = self.sizes
        return 4 * max(2 * T * F, T * F + T * D)

    @property
    def train_bytes(self) -> int:
        T, D, F = self.sizes
        through_relu = T * D + 3 * T * F + F * D  # y; hidden, its gradient before and after the relu; down's gradient
        through_up = T * D + T * F + 2 * F * D + T * D  # y; hidden's gradient; both weights' gradients; x's gradient
        return 4 * max(through_relu, through_up)


@pytest.mark.parametrize("sizes", SIZES)
def test_allocator_peak_is_exact_to_the_byte(sizes: tuple[int, int, int]) -> None:
    layer = FeedForward(*sizes)
    layer.train()
    assert cpu_allocator_peak_bytes(layer.forward) == layer.forward_bytes


@pytest.mark.parametrize("sizes", SIZES)
def test_allocator_peak_of_a_training_step_is_exact_to_the_byte(sizes: tuple[int, int, int]) -> None:
    layer = FeedForward(*sizes)

    def step() -> None:
        layer.train()

    for tensor in (layer.x_TD, layer.up_DF, layer.down_FD):
        tensor.grad = None
    # The first step frees nothing of an earlier one.
    assert cpu_allocator_peak_bytes(step) == layer.train_bytes


def test_what_existed_before_does_not_count() -> None:
    held = torch.zeros(1000)
    assert cpu_allocator_peak_bytes(lambda: held + torch.ones(1000)) == 2 * 4000


KNOWN_SIZES = [(64, 128, 256), (512, 256, 1024), (300, 1000, 3000), (2048, 512, 2048), (4096, 512, 256)]


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """As a run measures it: in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result(timeout=100)


def peaks_of_feed_forwards(num_threads: int, after_other_work: bool) -> list[tuple[int, PeakMemory]]:
    """Known bytes and measured ones, forward and train of each size."""
    if after_other_work:
        holes = [torch.ones(2**power) for power in range(14, 23)]
        del holes[::2]
    found = []
    for sizes in KNOWN_SIZES:
        layer, device = FeedForward(*sizes), CpuDevice(num_threads)
        leaves = (layer.x_TD, layer.up_DF, layer.down_FD)

        def step(layer: FeedForward = layer, leaves: tuple[torch.Tensor, ...] = leaves) -> list[object]:
            kept: list[object] = [layer.train(), [leaf.grad for leaf in leaves]]
            for leaf in leaves:
                leaf.grad = None
            return kept

        found.append((layer.forward_bytes, measure_peak(layer.forward, device)))
        found.append((layer.train_bytes, measure_peak(step, device)))
    return found


def peak_of_elementwise(num_bytes: int) -> PeakMemory:
    def call() -> torch.Tensor:  # two are alive at once; the heap would keep a third
        with torch.inference_mode():
            return torch.tanh(torch.sigmoid(torch.relu(torch.ones(num_bytes // 4))))

    return measure_peak(call, CpuDevice(1))


def within_target(measured_bytes: int | None, known_bytes: int) -> bool:
    assert measured_bytes is not None
    return abs(measured_bytes - known_bytes) <= max(64 * 1024, 0.03 * known_bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("after_other_work", [False, True])
def test_system_peak_of_feed_forwards_is_their_known_bytes(after_other_work: bool) -> None:
    for known_bytes, peak in in_fresh_process(peaks_of_feed_forwards, 1, after_other_work):
        assert peak.allocator_peak_bytes == known_bytes
        assert within_target(peak.os_peak_bytes, known_bytes), (peak, known_bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_scratch_that_a_library_takes_for_its_threads_is_in_the_systems_peak_only() -> None:
    # Products on several threads may take packing buffers, which no tensor holds: never less than the known bytes.
    for known_bytes, peak in in_fresh_process(peaks_of_feed_forwards, 2, False):
        assert peak.allocator_peak_bytes == known_bytes
        assert peak.os_peak_bytes - known_bytes >= -max(64 * 1024, 0.03 * known_bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("num_mebibytes", [1, 8, 64])
def test_system_peak_of_what_frees_tensors_is_that_of_the_tensors_alive(num_mebibytes: int) -> None:
    num_bytes = num_mebibytes * 2**20
    peak = in_fresh_process(peak_of_elementwise, num_bytes)
    assert peak.allocator_peak_bytes == 2 * num_bytes
    assert within_target(peak.os_peak_bytes, 2 * num_bytes), peak


def peak_of_a_filled_library_buffer(num_bytes: int) -> PeakMemory:
    def call() -> int:  # taken and given back inside one call, as a library's scratch is
        return len(bytearray(num_bytes))

    return measure_peak(call, CpuDevice(1))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_of_no_tensor_is_in_the_systems_peak() -> None:
    num_bytes = 64 * 2**20
    peak = in_fresh_process(peak_of_a_filled_library_buffer, num_bytes)
    assert peak.allocator_peak_bytes == 0
    assert within_target(peak.os_peak_bytes, num_bytes), peak


def peak_of_a_compiled_call() -> tuple[int, PeakMemory]:
    graphs, device = [], CpuDevice(1)  # first: another number of threads is another compilation

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: torch.relu(x) * 2, backend=backend)
    x = torch.ones(2**22)
    compiled(x)
    peak = measure_peak(lambda: compiled(x), device)
    return len(graphs), peak


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_is_compiled_is_measured_as_it_is_compiled() -> None:
    num_graphs, peak = in_fresh_process(peak_of_a_compiled_call)
    assert num_graphs == 1
    assert within_target(peak.os_peak_bytes, 2 * 4 * 2**22), peak


def test_nulls_have_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    peak = measure_peak(lambda: torch.zeros(10), CpuDevice(1))
    assert peak.allocator_peak_bytes == 40
    assert peak.os_peak_bytes is None
    assert peak.gaps["os_peak_bytes"].startswith("not_supported: ")
    assert peak.gaps["reserved_peak_bytes"].startswith("not_supported: ")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_reasons_for_no_system_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os_peak_gap(tmp_path).startswith("not_supported: ")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert os_peak_gap(tmp_path).startswith("no_permission: ")
