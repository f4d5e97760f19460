"""What a profile does on a GPU only, on a made-up one: marks for NVIDIA's tools, and snapshots of torch's allocator."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.cuda._memory_viz as memory_viz  # the viewer itself, which torch keeps here
from profiled_layers import layer_step

from bench.measure.cpu import CpuDevice
from bench.profiling.allocator import MAX_EVENTS, allocator_snapshot, write_allocator_snapshot
from bench.profiling.measure import profile_step
from bench.profiling.step import Step

BASE = 0x7F0000000000
MIB = 2**20


class Gpu(CpuDevice):
    """A processor that calls itself a GPU."""

    def __init__(self) -> None:
        super().__init__(1)
        self.torch_device = torch.device("cuda", 0)


@pytest.fixture
def step() -> Step:
    return replace(layer_step("grouped", train=False), device=Gpu())


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", said.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("end"))
    return said


def test_marked_calls_show_nvidias_tools_the_call_and_its_stages(step: Step, ranges: list[str]) -> None:
    profiled = profile_step(replace(step, nvtx=True), {}, 0.01)
    begun = ranges.index("moebench:route") - 1  # plain calls before it show only themselves
    stages = [word for name in ("route", "dispatch", "experts", "combine") for word in (f"moebench:{name}", "end")]
    assert ranges[begun : begun + 10] == ["moebench:call", *stages, "end"]
    assert ranges.count("end") == len(ranges) / 2
    # the device is left to that tool: no time of it is told, rather than none at all
    assert not profiled.profile.on_device


def test_calls_that_are_not_marked_say_nothing(step: Step, ranges: list[str]) -> None:
    step()
    assert ranges == []
    assert step.profiled_device == "cuda"
    assert replace(step, nvtx=True).profiled_device is None
    assert layer_step("grouped", train=False).profiled_device is None


def frames(name: str) -> list[dict[str, Any]]:
    return [
        {"filename": "/home/somebody/layers/mine.py", "line": 12, "name": name},
        {"filename": "??", "line": 0, "name": "torch::autograd"},
    ]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch would record of two tensors, one given back, in the format of ``torch.cuda.memory._snapshot``."""
    said: list[object] = []
    shared = frames("forward")  # torch uses one object for the block and its event
    common = {"stream": 0, "segment_pool_id": (0, 0)}
    event = {**common, "time_us": 1, "frames": shared}
    blocks = [
        {"address": BASE, "size": MIB, "requested_size": MIB - 24, "state": "active_allocated", "frames": shared},
        {"address": BASE + MIB, "size": MIB, "requested_size": 0, "state": "inactive", "frames": []},
    ]
    segment = {
        **common, "device": 0, "address": BASE, "total_size": 2 * MIB, "allocated_size": MIB, "active_size": MIB,
        "requested_size": MIB - 24, "segment_type": "large", "is_expandable": False, "frames": frames("segment"),
        "blocks": blocks,
    }  # fmt: skip
    trace = [
        {**event, "action": "segment_alloc", "addr": BASE, "size": 2 * MIB},
        {**event, "action": "alloc", "addr": BASE, "size": MIB},
        {**event, "action": "alloc", "addr": BASE + MIB, "size": MIB, "frames": frames("gather"), "time_us": 2},
        {**event, "action": "free_requested", "addr": BASE + MIB, "size": MIB, "time_us": 3, "frames": []},
        {**event, "action": "free_completed", "addr": BASE + MIB, "size": MIB, "time_us": 3, "frames": []},
    ]
    snapshot = {
        "segments": [segment], "device_traces": [trace], "allocator_settings": {}, "external_annotations": [],
    }  # fmt: skip
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda enabled, **options: said.append((enabled, options)))

    def take() -> dict[str, Any]:
        said.append("snapshot")
        return snapshot

    monkeypatch.setattr(memory, "_snapshot", take)
    return said


def test_a_snapshot_is_of_one_call_and_recording_ends_with_it(step: Step, recorded: list[object]) -> None:
    def call() -> torch.Tensor:
        recorded.append("call")
        return step.forward()

    allocator_snapshot(replace(step, forward=call))
    begin, *rest = recorded
    assert begin == ("all", {"context": "all", "stacks": "python", "max_entries": MAX_EVENTS})
    assert rest == ["call", "snapshot", (None, {})]


def test_recording_ends_where_the_call_fails(step: Step, recorded: list[object]) -> None:
    def fail() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        allocator_snapshot(replace(step, forward=fail))
    assert recorded[-1] == (None, {})


@pytest.mark.usefixtures("recorded")
def test_torchs_own_viewer_opens_the_snapshot_of_the_allocator(step: Step, tmp_path: Path) -> None:
    file = tmp_path / "allocator.pickle"
    write_allocator_snapshot(file, allocator_snapshot(step))
    snapshot = pickle.loads(file.read_bytes())
    viewer: Any = memory_viz  # torch leaves it untyped
    assert "1.0MiB" in viewer.segsum(snapshot)
    assert "5 entries" in viewer.trace(snapshot)
    for page in (viewer.trace_plot(snapshot), viewer.segment_plot(snapshot)):
        assert "<html" in page or "<!DOCTYPE html>" in page
    flames: list[str] = []
    viewer.memory(snapshot, format_flamegraph=flames.append)
    assert "mine.py:12:forward" in flames[0]
    assert b"somebody" not in file.read_bytes(), "a frame's folders tell whose machine it is"


def test_the_functions_that_torch_keeps_private_are_still_as_they_are_called() -> None:
    expected = {"enabled", "context", "stacks", "max_entries"}
    assert expected <= set(inspect.signature(torch.cuda.memory._record_memory_history).parameters)
    assert all(
        parameter.default is not inspect.Parameter.empty
        for parameter in inspect.signature(torch.cuda.memory._snapshot).parameters.values()
    )
