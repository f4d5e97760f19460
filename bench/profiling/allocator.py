"""What torch's CUDA allocator did during one call, as the file that pytorch.org/memory_viz opens.

The ledger knows every tensor and its operator; this knows the memory itself: segments that the driver gave, blocks in
them, what was split, rounded up and kept. Written in the format of ``torch.cuda.memory._dump_snapshot``, in which a
frame's file keeps its name and loses its folders: they tell whose machine it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch

from bench.profiling.step import Step

MAX_EVENTS = 100_000
"""A call has thousands; each is some kilobytes with its Python frames."""

Snapshot = dict[str, Any]


def allocator_snapshot(step: Step) -> Snapshot:
    """Every allocation and free of one call, and what the allocator held when it was over.

    torch has no public function for this; these are those of its documentation on understanding CUDA memory usage.
    """
    memory = torch.cuda.memory
    memory._record_memory_history(enabled="all", context="all", stacks="python", max_entries=MAX_EVENTS)  # noqa: SLF001
    try:
        step()
        found: Snapshot = memory._snapshot()  # noqa: SLF001
    finally:
        memory._record_memory_history(enabled=None)  # noqa: SLF001
    for frame in _frames(found):
        frame["filename"] = PurePath(frame["filename"]).name
    return found


def write_allocator_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write what the viewer opens."""
    with path.open("wb") as file:
        pickle.dump(snapshot, file)


def _frames(snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every frame; torch uses one object for several events."""
    holders = [event for trace in snapshot["device_traces"] for event in trace]
    for segment in snapshot["segments"]:
        holders += [segment, *segment["blocks"]]
    for holder in holders:
        yield from holder.get("frames", ())
