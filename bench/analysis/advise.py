"""Which implementation to use: the decisions of a run, asked for one workload and under limits of memory and time.

Nothing is interpolated. A size that was not measured is answered from its two measured neighbours, and only where both
give the same answer; outside of what was measured there is none. Who may be recommended is decided among the exact
implementations within the limits, by the same verdicts as everywhere (:mod:`bench.analysis.winners`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench import units
from bench.analysis.comparisons import against
from bench.analysis.frame import LAYER_COLUMNS, WORKLOAD_COLUMNS
from bench.analysis.interval import Estimate
from bench.analysis.model import Analysis, Comparison
from bench.analysis.winners import find_winners
from bench.errors import RequestError

AXES = (*LAYER_COLUMNS, *WORKLOAD_COLUMNS)
SIZES = ("num_tokens", "num_experts", "top_k")
"""Axes on which a value between two measured ones can be asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an implementation may take at most; None is no limit.

    Attributes:
        memory_bytes: weights, what ``prepare()`` made of them, and the peak of a call, together.
        latency_s: upper end of the latency's interval.
    """

    memory_bytes: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An exact implementation on a workload.

    Attributes:
        impl: its name.
        latency: with the interval over processes; None where it was not timed.
        memory_bytes: as limited by :class:`Limits`; None where it was not measured.
        ruled_out: why it cannot be recommended; empty where it can.
    """

    impl: str
    latency: Estimate | None
    memory_bytes: float | None
    ruled_out: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer for one measured workload.

    Attributes:
        workload_id: the workload.
        workload: its axes by name.
        impl: what to use; None where nobody wins.
        contenders: where nobody wins, those within the limits that nobody is faster than, fastest estimate first.
        why: how sure that is, as a sentence.
        candidates: every exact implementation, the fastest first and those that were not timed last.
        others: how the others within the limits compare with ``impl`` (or the first contender), the fastest first.
    """

    workload_id: str
    workload: Mapping[str, Any]
    impl: str | None
    contenders: Sequence[str]
    why: str
    candidates: Sequence[Candidate]
    others: Sequence[Comparison]

    @property
    def reference(self) -> str | None:
        """Whom the others are compared with; None where nothing is within the limits."""
        return self.impl or next(iter(self.contenders), None)


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer to one question.

    Attributes:
        between: the axes whose wanted value was not measured, with that value; empty where the workload was measured.
        choices: the answer for the workload, or those for its measured neighbours.
        impl: what to use; None where nobody wins, or the neighbours disagree.
    """

    between: Mapping[str, Any]
    choices: Sequence[Choice]
    impl: str | None


def advise(analysis: Analysis, asked: Mapping[str, Any], limits: Limits) -> list[Advice]:
    """Answer for every workload of the run that fits what was asked.

    Args:
        analysis: of the run.
        asked: wanted values by the name of their axis; axes that are left out may have any value.
        limits: what an implementation may take.

    Raises:
        RequestError: nothing fits what was asked, or lies on both sides of it.
    """
    frame = analysis.frame
    frame = frame[frame["exact"].astype(bool) & (frame["semantics"] == "moe")]
    timed = set(frame.loc[frame["latency_s"].notna(), "workload_id"])
    frame = frame[frame["workload_id"].isin(timed)]
    if frame.empty:
        raise RequestError(f"run {analysis.info.run_id} timed no exact implementation, so it cannot advise")
    for axis, value in asked.items():
        if axis not in SIZES:
            frame = _only(frame, axis, value)
    around = {axis: _around(frame, axis, value) for axis, value in asked.items() if axis in SIZES}
    between = {axis: asked[axis] for axis, values in around.items() if len(values) > 1}
    sides = against(analysis.comparisons)
    answers = [
        _join(between, [_choose(analysis, rows, limits, sides) for rows in neighbours])
        for neighbours in _neighbourhoods(frame, around)
    ]
    if not answers:
        raise RequestError(f"the workloads around {_named(asked)} were not all measured; {_measure(analysis, asked)}")
    return answers


def _only(frame: pd.DataFrame, axis: str, value: Any) -> pd.DataFrame:
    found = frame[frame[axis].astype(str) == str(value)]
    if found.empty:
        known = ", ".join(dict.fromkeys(frame[axis].astype(str)))
        raise RequestError(f"{axis} {value} was not measured in this run; measured were: {known}")
    return found


def _around(frame: pd.DataFrame, axis: str, value: int) -> list[int]:
    """The value itself where it was measured, else its two measured neighbours."""
    known = sorted({int(number) for number in frame[axis]})
    if value in known:
        return [value]
    below, above = [k for k in known if k < value], [k for k in known if k > value]
    if not below or not above:
        raise RequestError(
            f"{axis} {value} lies outside of what this run measured ({', '.join(map(str, known))}), and nothing is"
            " extrapolated; measure it with `moebench run`"
        )
    return [below[-1], above[0]]


def _neighbourhoods(frame: pd.DataFrame, around: Mapping[str, Sequence[int]]) -> Iterator[list[pd.DataFrame]]:
    """The rows of one measured workload, or of all its neighbours, for every setting of the other axes."""
    for axis, values in around.items():
        frame = frame[frame[axis].isin(values)]
    workloads = dict(list(frame.groupby("workload_id", sort=False)))
    others = [axis for axis in AXES if axis not in around]
    settings: dict[tuple[str, ...], dict[tuple[int, ...], pd.DataFrame]] = {}
    for rows in workloads.values():
        first = rows.iloc[0]
        corner = tuple(int(first[axis]) for axis in around)
        settings.setdefault(tuple(str(first[axis]) for axis in others), {})[corner] = rows
    wanted = list(itertools.product(*around.values()))
    for corners in settings.values():
        if all(corner in corners for corner in wanted):
            yield [corners[corner] for corner in wanted]


def _choose(
    analysis: Analysis, rows: pd.DataFrame, limits: Limits, sides: Mapping[tuple[str, str, str], Comparison]
) -> Choice:
    records = rows.to_dict("records")
    candidates = sorted(
        (_candidate(record, limits) for record in records),
        key=lambda candidate: candidate.latency.value if candidate.latency else math.inf,
    )
    within = {c.impl: c.latency.value for c in candidates if not c.ruled_out and c.latency is not None}
    workload_id = str(records[0]["workload_id"])
    workload = {axis: records[0][axis] for axis in AXES}
    if not within:
        return Choice(workload_id, workload, None, (), "Nothing is within the limits.", candidates, ())
    if len(within) == 1:
        (only,) = within
        return Choice(workload_id, workload, only, (), f"{only} is the only one that is left.", candidates, ())
    (winner,) = find_winners({workload_id: within}, analysis.comparisons)
    first = winner.impl or next(iter(winner.contenders), next(iter(within)))
    others = [sides[key] for impl in within if (key := (workload_id, impl, first)) in sides]
    return Choice(workload_id, workload, winner.impl, winner.contenders, winner.sentence, candidates, others)


def _candidate(record: Mapping[Any, Any], limits: Limits) -> Candidate:
    impl, latency_s = str(record["impl"]), float(record["latency_s"])
    if math.isnan(latency_s):
        reason = f"{record['status']}: {record['reason']}" if record["reason"] else "it was not timed"
        return Candidate(impl, None, None, reason)
    low_s, high_s = float(record["latency_low_s"]), float(record["latency_high_s"])
    latency = Estimate(latency_s, low_s, high_s)
    parts = [float(record[name]) for name in ("weight_bytes", "prepared_bytes", "peak_memory_bytes")]
    memory_bytes = None if any(map(math.isnan, parts)) else sum(parts)
    reasons = []
    if limits.memory_bytes is not None:
        if memory_bytes is None:
            reasons.append("its peak memory was not measured")
        elif memory_bytes > limits.memory_bytes:
            reasons.append(f"needs {units.bytes_(memory_bytes)}, the limit is {units.bytes_(limits.memory_bytes)}")
    if limits.latency_s is not None and not high_s <= limits.latency_s:
        takes = "takes" if latency_s > limits.latency_s else "may take more:"
        reasons.append(f"{takes} {interval(latency)}, the limit is {units.latency(limits.latency_s)}")
    return Candidate(impl, latency, memory_bytes, " and ".join(reasons))


def _join(between: Mapping[str, Any], choices: Sequence[Choice]) -> Advice:
    answers = {choice.impl for choice in choices}
    return Advice(between, choices, answers.pop() if len(answers) == 1 else None)


def interval(latency: Estimate) -> str:
    """A latency with its interval, where it has one."""
    if not latency.low < latency.high:  # one process knows no interval
        return units.latency(latency.value)
    return f"{units.latency(latency.value)} ({units.latency(latency.low)} to {units.latency(latency.high)})"


def _named(asked: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in asked.items())


def _measure(analysis: Analysis, asked: Mapping[str, Any]) -> str:
    tables = {axis: "workload" if axis in WORKLOAD_COLUMNS else "layer" for axis in asked}
    options = " ".join(f"--set {tables[axis]}.{axis}={value}" for axis, value in asked.items())
    return f"`moebench run {analysis.info.source} {options}` measures it"
