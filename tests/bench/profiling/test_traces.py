"""The files that others' tools open, held to these formats' own rules."""

import gzip
import json
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch.cuda._memory_viz as memory_viz  # the viewer itself, which torch keeps here
from profiled_layers import layer_step

from bench.profiling.export import write_memory_snapshot, write_perfetto
from bench.profiling.measure import Counted, Profiled, profile_step

PHASES = {"X", "C", "M"}
# times are written in microseconds; the profiler's have three digits after the point
ROUNDING_US = 0.01


@pytest.fixture(scope="module", params=["loop forward", "grouped train"])
def profiled(request: pytest.FixtureRequest) -> Profiled:
    name, direction = request.param.split()
    return profile_step(layer_step(name, train=direction == "train"), {"weights": 1, "input": 1}, 0.01)


@pytest.fixture(scope="module")
def counted(profiled: Profiled) -> Counted:
    assert profiled.counted is not None
    return profiled.counted


def events_of(path: Path) -> list[dict[str, Any]]:
    document = json.loads(gzip.decompress(path.read_bytes()))
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


def test_the_trace_keeps_the_rules_of_the_trace_event_format(profiled: Profiled, tmp_path: Path) -> None:
    write_perfetto(tmp_path / "trace.json.gz", "title", profiled.call, profiled.kernels, profiled.profile.timeline)
    events = events_of(tmp_path / "trace.json.gz")
    assert {event["ph"] for event in events} == PHASES
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert isinstance(event["cat"], str)
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int | float) for value in event["args"].values())


def test_what_runs_in_one_thread_is_nested(profiled: Profiled, tmp_path: Path) -> None:
    write_perfetto(tmp_path / "trace.json.gz", "title", profiled.call, profiled.kernels, profiled.profile.timeline)
    threads: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events_of(tmp_path / "trace.json.gz"):
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert threads
    for spans in threads.values():
        open_ends: list[float] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ends and open_ends[-1] <= begin + ROUNDING_US:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + ROUNDING_US
            open_ends.append(end)


def test_counters_end_at_what_the_timeline_says(profiled: Profiled, tmp_path: Path) -> None:
    timeline = profiled.profile.timeline
    assert timeline is not None
    write_perfetto(tmp_path / "trace.json.gz", "title", profiled.call, profiled.kernels, timeline)
    counters = [event for event in events_of(tmp_path / "trace.json.gz") if event["ph"] == "C"]
    assert max(sum(event["args"].values()) for event in counters) == timeline.peak_bytes


def test_equal_profiles_are_equal_files(profiled: Profiled, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_perfetto(tmp_path / f"{name}.gz", "title", profiled.call, profiled.kernels, profiled.profile.timeline)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_the_memory_snapshot_balances_and_names_no_address_twice(
    profiled: Profiled, counted: Counted, tmp_path: Path
) -> None:
    write_memory_snapshot(tmp_path / "memory.pickle", counted)
    (trace,) = pickle.loads((tmp_path / "memory.pickle").read_bytes())["device_traces"]
    alive: dict[int, int] = {}
    peak = 0
    times = [event["time_us"] for event in trace]
    assert times == sorted(times)
    for event in trace:
        if event["action"] == "alloc":
            assert event["addr"] not in alive
            alive[event["addr"]] = event["size"]
        elif event["action"] == "free_completed":
            assert alive.pop(event["addr"]) == event["size"]
        peak = max(peak, sum(alive.values()))
    timeline = profiled.profile.timeline
    assert timeline is not None
    assert peak == timeline.peak_bytes
    assert len(alive) == sum(one.died is None for one in counted.ledger.allocations)


def test_torchs_own_viewer_opens_the_memory_snapshot(counted: Counted, tmp_path: Path) -> None:
    write_memory_snapshot(tmp_path / "memory.pickle", counted)
    snapshot = pickle.loads((tmp_path / "memory.pickle").read_bytes())
    page = memory_viz.trace_plot(snapshot)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert page.startswith("\n<!DOCTYPE html>") or "<html" in page
    words = memory_viz.trace(snapshot)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert f"{len(snapshot['device_traces'][0])} entries" in words
