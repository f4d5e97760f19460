"""From a run's folder to everything that is known of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median, median_low

import numpy as np

from bench.analysis.comparisons import against, compare
from bench.analysis.control import judge
from bench.analysis.findings import gather
from bench.analysis.frame import Timing, build_frame, percentiles
from bench.analysis.limit_checks import check_limits, find_limits
from bench.analysis.model import Analysis
from bench.analysis.roofline import Ceilings
from bench.analysis.scaling import fit_exponents
from bench.analysis.statistics import latency_units
from bench.analysis.unreached import not_run
from bench.analysis.warnings import collect_warnings
from bench.analysis.winners import find_winners
from bench.store.log import read_run
from bench.store.schema import (
    AnyRecord,
    Arm,
    CaseRecord,
    CeilingRecord,
    ControlRecord,
    EnergyRecord,
    NoteRecord,
    ProfileRecord,
    RunInfo,
    SamplesRecord,
    Status,
)

SESSION_EVENTS = ("started", "resumed", "interrupted", "finished")


def load(run_folder: Path) -> Analysis:
    """Analyse a run, finished or not.

    Raises:
        ResultsError: the folder holds no run that can be read.
    """
    info, records, faults = read_run(run_folder)
    return replace(analyse(info, records, faults), folder=run_folder)


def analyse(info: RunInfo, records: Sequence[AnyRecord], faults: Sequence[str] = ()) -> Analysis:
    """Analyse records in the order of the log.

    Args:
        info: ``run.json``.
        records: of the run; the last :class:`CaseRecord` of a case is the one that counts.
        faults: what was found wrong with the log when it was read.
    """
    cases = {record.case_id: record for record in records if isinstance(record, CaseRecord)}
    finished = _finished(records)
    if not finished:
        cases |= {
            lack.case_id: lack for lack in not_run(info, cases, max((r.unix_time_s for r in records), default=0.0))
        }
    ok = {case_id: record for case_id, record in cases.items() if record.status is Status.OK}
    samples: defaultdict[str, list[SamplesRecord]] = defaultdict(list)
    for record in records:
        if isinstance(record, SamplesRecord):
            samples[record.workload_id].append(record)
    control = judge([record for record in records if isinstance(record, ControlRecord)])
    ceilings = Ceilings.of(record for record in records if isinstance(record, CeilingRecord))
    comparisons = compare(samples, ok, withheld="" if control.passed else "the control of this run did not pass")
    timings = {case_id: timing for group in samples.values() for case_id, timing in _timings(group, ok).items()}
    winners = find_winners(_rankable(cases.values(), timings), comparisons)
    frame = build_frame(
        cases,
        timings,
        energy={record.case_id: record for record in records if isinstance(record, EnergyRecord)},
        ceilings=ceilings,
        winners=winners,
        sides=against(comparisons),
        model=info.label,
    )
    profiles = {r.case_id: r.profile for r in records if isinstance(r, ProfileRecord) and r.profile is not None}
    limits = find_limits(profiles, cases, ceilings)
    checks = check_limits(records, limits, cases, ceilings)
    return Analysis(
        info=info,
        frame=frame,
        comparisons=comparisons,
        winners=winners,
        control=control,
        ceilings=dict(ceilings.peaks),
        exponents=fit_exponents(frame, samples.values()),
        warnings=collect_warnings(
            info, records, frame=frame, timings=timings, comparisons=comparisons, control=control, finished=finished,
            faults=faults,
        ),
        finished=finished,
        in_samples_fraction=in_samples_fraction(records) if finished else None,
        profiles=profiles,
        not_profiled={r.case_id: r.reason for r in records if isinstance(r, ProfileRecord) and r.profile is None},
        limits={case_id: limit for case_id, limit in limits.items() if not isinstance(limit, str)},
        not_limited={case_id: reason for case_id, reason in limits.items() if isinstance(reason, str)},
        limit_checks={case_id: check for case_id, check in checks.items() if not isinstance(check, str)},
        not_checked={case_id: check for case_id, check in checks.items() if isinstance(check, str)},
        routings={
            record.case.workload.id: record.qualified.routing
            for record in ok.values()
            if record.qualified is not None and record.qualified.routing is not None
        },
        cache_bytes=dict(ceilings.cache_bytes),
        findings=gather(cases.values()),
    )  # fmt: skip


def _timings(records: Sequence[SamplesRecord], ok: Iterable[str]) -> dict[str, Timing]:
    found = {}
    for case_id, units in latency_units(records, allowed=ok).items():
        arms = [record.arms[case_id] for record in records if case_id in record.arms]
        host_s = [arm.host_s for arm in arms if arm.host_s is not None]
        found[case_id] = Timing(
            units=units,
            num_samples=sum(len(arm.latency_s) for arm in arms),
            num_judged=sum(arm.steady is not None for arm in arms),
            num_unsteady=sum(arm.steady is False for arm in arms),
            inner_calls=median_low(arm.inner_calls for arm in arms),
            host_s=median(host_s) if host_s else None,
            percentiles=percentiles(
                list(chain.from_iterable(arm.latency_s for arm in arms)),
                single_calls=all(arm.inner_calls == 1 for arm in arms),
            ),
        )
    return found


def _rankable(cases: Iterable[CaseRecord], timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Latencies of the exact implementations of every workload, by workload id and implementation."""
    rankable: dict[str, dict[str, float]] = {}
    for record in sorted(cases, key=lambda record: (record.case.workload.id, record.case.label)):
        latencies = rankable.setdefault(record.case.workload.id, {})
        if record.case_id in timings and record.exact and record.semantics == "moe":
            latencies[record.case.label] = float(np.median(timings[record.case_id].units))
    return rankable


def _finished(records: Iterable[AnyRecord]) -> bool:
    last = [record.event for record in records if isinstance(record, NoteRecord) and record.event in SESSION_EVENTS]
    return bool(last) and last[-1] == "finished"


def in_samples_fraction(records: Sequence[AnyRecord]) -> float | None:
    """Share of the wall time of all sessions of a run that was spent inside samples.

    Inside are the calls of layers and of the control, warm-up included, and the windows of the energy meter; ceilings,
    checks and everything else are not. The first samples of a warm-up, which find how many calls a sample needs, count
    as one call each. Logs of version 1 do not tell them apart: there, no process counts for more than its wall time. A
    session lasts from its ``started`` or ``resumed`` note to the last record before the next.
    """
    inside_s = wall_s = 0.0
    start_s: float | None = None
    end_s = 0.0
    for record in records:
        if isinstance(record, NoteRecord) and record.event in ("started", "resumed"):
            wall_s += 0.0 if start_s is None else end_s - start_s
            start_s = record.unix_time_s - record.wall_s
            end_s = record.unix_time_s
        end_s = max(end_s, record.unix_time_s)
        if isinstance(record, SamplesRecord | ControlRecord):
            inside_s += min(record.wall_s, sum(_seconds(arm) for arm in record.arms.values()))
        elif isinstance(record, EnergyRecord):
            inside_s += record.window_s or 0.0
    if start_s is None:
        return None
    wall_s += end_s - start_s
    return inside_s / wall_s if wall_s > 0 else None


def _seconds(arm: Arm) -> float:
    if arm.warmup_rounds is None:
        return arm.inner_calls * (sum(arm.latency_s) + sum(arm.warmup_s))
    num_trials = len(arm.warmup_s) - arm.warmup_rounds
    return arm.inner_calls * (sum(arm.latency_s) + sum(arm.warmup_s[num_trials:])) + sum(arm.warmup_s[:num_trials])
