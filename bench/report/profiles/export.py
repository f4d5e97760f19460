"""What goes along with the page: every number of the profiles as CSV, and the traces that it links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from bench.report.profiles.cases import Profiled
from bench.report.view import View
from bench.store.profiles import OperatorTime, StageTime

TRACES = "traces"
"""Folder of the traces, beside the log and in the report."""
MAX_TRACE_BYTES = 24 * 2**20
COLUMNS = (
    "case_id", "impl", "workload", "what", "phase", "stage", "expert", "name", "shapes", "calls", "host_s", "idle_s",
    "device_s", "flops", "moved_bytes", "existing_bytes", "allocated_bytes", "near_s", "follows_s", "first_touches",
    "events",
)  # fmt: skip
"""``what`` is ``call`` (``name`` is ``plain`` or ``profiled``), ``cause``, ``stage``, ``expert`` or ``operator``.

Times of stages, experts and operators are the profiled call's, as recorded. Those of causes are of a call less what the
profiler took, as far as that can be told.
"""

COUNTS = ("expert", "calls", "flops", "moved_bytes", "existing_bytes", "allocated_bytes", "first_touches", "events")


@dataclass(frozen=True)
class TraceFile:
    """A trace that the report carries: of which case, what kind, where it lies and its name in the report."""

    case_id: str
    kind: str
    source: Path
    name: str
    num_bytes: int


def find_traces(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> list[TraceFile]:
    """The traces that are there, in the order of the cases, as many as :data:`MAX_TRACE_BYTES` allow."""
    if view.analysis.folder is None:
        return []
    room, found = MAX_TRACE_BYTES, []
    for case in cases:
        for kind, recorded in case.profile.traces.items():
            name = PurePath(recorded).name  # a log may come from anybody: nothing outside the folder is copied
            source = view.analysis.folder / TRACES / name
            if not name or not source.is_file() or source.is_symlink():
                continue
            num_bytes = source.stat().st_size
            if num_bytes <= room:
                room -= num_bytes
                found.append(TraceFile(case.case_id, kind, source, f"{TRACES}/{slug_prefix}{name}", num_bytes))
    return found


def profile_table(cases: Sequence[Profiled]) -> pd.DataFrame:
    """Every recorded time of the profiles, one row each, with :data:`COLUMNS`."""
    rows = [
        {"case_id": case.case_id, "impl": case.impl, "workload": case.workload, **row}
        for case in cases
        for row in _rows(case)
    ]
    return pd.DataFrame.from_records(rows, columns=list(COLUMNS)).astype(dict.fromkeys(COUNTS, "Int64"))


def _rows(case: Profiled) -> Iterator[dict[str, Any]]:
    profile = case.profile
    touches = round(profile.pages.num_pages) if profile.pages is not None else None
    yield {"what": "call", "name": "plain", "host_s": profile.plain_s, "first_touches": touches}
    yield {
        "what": "call",
        "name": "profiled",
        "calls": profile.calls,
        "host_s": profile.whole_s,
        "events": profile.events,
    }
    if case.limit is not None:
        for cause, seconds in case.limit.whole.seconds.items():
            yield {"what": "cause", "name": str(cause), "host_s": seconds}
    for stage in profile.stages:
        yield {"what": "stage", **_stage(stage)}
    for expert in profile.experts:
        yield {"what": "expert", **_stage(expert)}
    for operator in profile.operators:
        yield {"what": "operator", **_operator(operator)}


def _stage(part: StageTime) -> dict[str, Any]:
    row = part.model_dump()
    row["calls"] = row.pop("launches")
    return row


def _operator(part: OperatorTime) -> dict[str, Any]:
    return part.model_dump()
