"""Writes traces for the tools that people have: Chrome's format, which Perfetto opens, and PyTorch's memory viewer's.

Both are written from what was profiled and hold names of operators, shapes and times; no file's path, no host's name.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.profiling.measure import Counted
from bench.profiling.spans import Kernel, Span, is_operator, tree
from bench.profiling.stages import shapes_of
from bench.store.profiles import Timeline

HOST, DEVICE, MEMORY = 1, 2, 3


def write_perfetto(
    path: Path, title: str, call: Sequence[Span], kernels: Sequence[Kernel], timeline: Timeline | None
) -> None:
    """One call as gzipped Chrome trace events: ranges and operators of the host, kernels when they ran, bytes alive.

    The format is Google's Trace Event Format: complete events ``X``, counters ``C``, names ``M``; microseconds.
    """
    begin_us = call[0].event.time_range.start
    events = [
        _name("process_name", HOST, title),
        _name("thread_name", HOST, "host"),
        *_on_host(call, begin_us),
        *_on_device(kernels, begin_us),
    ]
    if timeline is not None:
        for number, at_s in enumerate(timeline.at_s):
            alive = {category: values[number] for category, values in timeline.bytes_alive.items()}
            events.append({"ph": "C", "pid": MEMORY, "tid": 0, "name": "bytes alive", "ts": at_s * 1e6, "args": alive})
        events.append(_name("process_name", MEMORY, "memory"))
    document = {"traceEvents": events, "displayTimeUnit": "ms"}
    # the header of a gzip file has a place for a name and a time; left empty, equal traces are equal files
    with path.open("wb") as plain, gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0) as file:
        file.write(json.dumps(document).encode())


def _name(kind: str, process: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": 0, "name": kind, "args": {"name": name}}


def _on_host(call: Sequence[Span], begin_us: float) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for span in call:
        for event in [span.event] if span.is_range else tree(span.event):
            # not the profiler's own number: those of library calls may be those of operators
            if id(event) in seen:
                continue
            seen.add(id(event))
            arguments: dict[str, Any] = {"stage": span.place.stage, "phase": span.place.phase}
            if shapes := shapes_of(event):
                arguments["shapes"] = shapes
            category = "stage" if span.is_range else "operator" if is_operator(event) else "library"
            yield {
                "ph": "X", "pid": HOST, "tid": event.thread, "name": event.name, "cat": category, "args": arguments,
                "ts": event.time_range.start - begin_us, "dur": event.time_range.end - event.time_range.start,
            }  # fmt: skip


def _on_device(kernels: Sequence[Kernel], begin_us: float) -> Iterator[dict[str, Any]]:
    """One row a stream, on the host's clock, as the profiler gives it."""
    for stream in sorted({kernel.event.device_resource_id for kernel in kernels}):
        yield {**_name("thread_name", DEVICE, f"stream {stream}"), "tid": stream}
    for kernel in kernels:
        begin, end = kernel.event.time_range.start, kernel.event.time_range.end
        yield {
            "ph": "X", "pid": DEVICE, "tid": kernel.event.device_resource_id, "name": kernel.event.name,
            "ts": begin - begin_us, "dur": end - begin, "cat": "kernel",
            "args": {"stage": kernel.place.stage, "phase": kernel.place.phase},
        }  # fmt: skip
    if kernels:
        yield _name("process_name", DEVICE, "device")


def write_memory_snapshot(path: Path, counted: Counted) -> None:
    """Every allocation of one call, as the file that pytorch.org/memory_viz and ``torch.cuda._memory_viz`` open.

    The format is that of ``torch.cuda.memory._dump_snapshot``, with the operator and its stage in place of Python's
    frames; time is the number of the operator.
    """
    changes: list[tuple[int, int, dict[str, Any]]] = []
    for allocation in counted.ledger.allocations:
        entry, place = counted.ledger.entries[allocation.born], counted.places[allocation.born]
        frames = [
            {"name": f"{entry.name} {list(allocation.shape)} {allocation.dtype}", "filename": "operator", "line": 0},
            {"name": f"{place.phase} {place.stage}", "filename": "stage", "line": 0},
        ]
        common = {"addr": allocation.pointer, "size": allocation.num_bytes, "stream": 0, "frames": frames}
        changes.append((allocation.born, 1, {**common, "action": "alloc", "time_us": allocation.born}))
        if allocation.died is not None:
            for order, action in enumerate(("free_requested", "free_completed")):
                changes.append((allocation.died, order - 2, {**common, "action": action, "time_us": allocation.died}))
    # what an operator gives back when it begins comes before what it makes: an address may be used again at once
    trace = [change for _, _, change in sorted(changes, key=lambda change: change[:2])]
    snapshot = {"segments": [], "device_traces": [trace], "allocator_settings": {}, "external_annotations": []}
    with path.open("wb") as file:
        pickle.dump(snapshot, file)
