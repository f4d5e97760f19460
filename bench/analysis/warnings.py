"""What a reader of the numbers must know before believing them: the evidence, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

import pandas as pd

from bench.analysis.carryover import carry_over
from bench.analysis.comparisons import MIN_PROCESSES
from bench.analysis.findings import gather
from bench.analysis.frame import Timing
from bench.analysis.model import Comparison, Control, Verdict
from bench.plain_text import one_line
from bench.store.schema import AnyRecord, CaseRecord, NoteRecord, RunInfo, SamplesRecord
from bench.units import percent

MAX_STEAL = 0.02
"""Share of a processor that may go to other tenants before it is worth a warning."""
MAX_PRESSURE = 0.1
"""Share of the time in which some task waited for a processor, likewise."""
MAX_THROTTLED = 0.05
"""Share of the time in which a GPU's clock may be held down, likewise."""
MAX_ROOFLINE = 1.05
"""Ceilings and latencies are both measured; a few per cent above the ceiling is noise."""

ISOLATED = (
    "Timed with --isolate: every implementation in processes of its own, which take turns. None is measured right after"
    " another one; what drifts between two processes is in the intervals, which are wider than those of rounds."
)


def collect_warnings(
    info: RunInfo,
    records: Sequence[AnyRecord],
    *,
    frame: pd.DataFrame,
    timings: Mapping[str, Timing],
    comparisons: Sequence[Comparison],
    control: Control,
    finished: bool,
    faults: Sequence[str],
) -> tuple[str, ...]:
    """All warnings of a run, the gravest first."""
    samples = [record for record in records if isinstance(record, SamplesRecord)]
    notes = [record for record in records if isinstance(record, NoteRecord)]
    found = list(faults)
    if not control.passed:
        found.append(control.sentence)
    if not finished:
        spent = notes[-1].text if notes and notes[-1].event == "budget_spent" else ""
        found.append(spent or f"The run did not finish; `moebench run --resume {info.run_id}` goes on with it.")
    found += [note.text for note in notes if note.event == "warning" and note.text]
    found += [
        record.qualified.routing.note
        for record in records
        if isinstance(record, CaseRecord) and record.qualified and record.qualified.routing
        if record.qualified.routing.note
    ]
    found += [str(note) for note in info.config.get("notes") or ()]
    if info.isolated:
        found.append(ISOLATED)
    found += _environments(info, records)
    found += _table(info, frame)
    found += _processes(timings)
    found += _steadiness(frame, timings)
    found += _disturbances(samples)
    found += _throttled(samples)
    cases = {record.case_id: record for record in records if isinstance(record, CaseRecord)}
    found += [one.sentence for one in gather(cases.values())]
    found += _numerics({record.case_id: record for record in records if isinstance(record, CaseRecord)}.values())
    found += _carried_over(frame, samples)
    found += _undecided(comparisons)
    return tuple(dict.fromkeys(map(one_line, found)))


def _environments(info: RunInfo, records: Iterable[AnyRecord]) -> Iterator[str]:
    others = {record.environment_hash for record in records} - {info.environment_hash}
    if others:
        yield (
            f"Parts of the run were made in {len(others)} other environment{'s' * (len(others) != 1)} (a package, a"
            " driver or the machine changed before it was resumed); run again if the difference matters."
        )


def _table(info: RunInfo, frame: pd.DataFrame) -> Iterator[str]:
    too_fast = frame[frame["roofline_fraction"] > MAX_ROOFLINE]
    if len(too_fast):
        worst = too_fast.nlargest(1, "roofline_fraction").iloc[0]
        yield (
            f"{_cases(len(too_fast))} faster than the measured ceilings allow (most: {worst['impl']},"
            f" {worst['roofline_fraction']:.2f} of the limit). That is a fault of the ceiling or of the case, for"
            ' example weights that stayed in a cache; measure with cache = "cold", or on a quieter machine.'
        )
    sampled = frame[frame["checked_tokens"] < frame["num_tokens"]]
    if len(sampled):
        yield (
            f"{_cases(len(sampled))} checked against the truth on a sample of their tokens only (at least"
            f" {int(sampled['checked_tokens'].min())}); a larger budget checks more."
        )
    cpu = info.environment.get("cpu")
    cores = cpu.get("usable_cores") if isinstance(cpu, dict) else None
    above = frame[frame["threads"] > cores] if isinstance(cores, int) else frame[:0]
    if len(above):
        yield (
            f"{_cases(len(above))} run with up to {above['threads'].max()} threads on {cores} cores: threads then wait"
            " for each other; set threads to the number of cores."
        )
    bound = frame[frame["launch_bound"].eq(True)]
    if len(bound):
        yield (
            f"{_cases(len(bound))} launch-bound: the host takes longer to issue a call than the device to do it, so the"
            " time says little about the device; more tokens, or CUDA graphs, would."
        )
    untimed = frame[(frame["status"] == "ok") & frame["latency_s"].isna()]
    if len(untimed):
        yield f"{_cases(len(untimed))} right but not timed; resume the run, or give it a larger budget."


def _processes(timings: Mapping[str, Timing]) -> Iterator[str]:
    few = [timing.units.size for timing in timings.values() if timing.units.size < MIN_PROCESSES]
    if few:
        yield (
            f"{_cases(len(few))} timed in too few independent processes for a verdict (the fewest: {min(few)}, needed:"
            f" {MIN_PROCESSES}); give a larger budget, or fewer cases."
        )


def _steadiness(frame: pd.DataFrame, timings: Mapping[str, Timing]) -> Iterator[str]:
    restless = {case_id: timing for case_id, timing in timings.items() if timing.steady is False}
    if restless:
        worst = max(sorted(restless), key=lambda case_id: restless[case_id].num_unsteady / restless[case_id].num_judged)
        impl = frame.loc[frame["case_id"] == worst, "impl"].iloc[0]
        yield (
            f"{_cases(len(restless))} not steady in most of their processes (most: {impl}, in"
            f" {restless[worst].num_unsteady} of {restless[worst].num_judged}); give a larger budget."
        )


def _disturbances(samples: Sequence[SamplesRecord]) -> Iterator[str]:
    for name, limit, what in (
        ("steal_s", MAX_STEAL, "The hypervisor gave processor time to others: {share} of a processor"),
        ("cpu_pressure_s", MAX_PRESSURE, "Tasks waited for a processor in {share} of the time"),
    ):
        told = [
            (seconds, record.wall_s) for record in samples if (seconds := getattr(record.disturbance, name)) is not None
        ]
        wall_s = sum(wall for _, wall in told)
        share = sum(seconds for seconds, _ in told) / wall_s if wall_s > 0 else 0.0
        if share > limit:
            evidence = what.format(share=percent(share))
            yield f"{evidence} while samples were taken; close other programs, or use a quieter machine."


def _throttled(samples: Sequence[SamplesRecord]) -> Iterator[str]:
    """The driver's counters of the time in which it held a GPU's clock down."""
    for name, why in (("power_throttle_s", "its power limit"), ("thermal_throttle_s", "heat")):
        told = [(gpu[name], record.wall_s) for record in samples if name in (gpu := record.disturbance.gpu)]
        wall_s = sum(wall for _, wall in told)
        share = sum(seconds for seconds, _ in told) / wall_s if wall_s > 0 else 0.0
        if share > MAX_THROTTLED:
            yield (
                f"The driver held the GPU's clock down for {why} in {percent(share)} of the time in which samples were"
                " taken: absolute times are those of a slower clock; cool the card, or lock a clock that it can hold"
                " (`nvidia-smi --lock-gpu-clocks`)."
            )


def _numerics(cases: Iterable[CaseRecord]) -> Iterator[str]:
    """Settings in which implementations on the same device computed differently from each other."""
    used: dict[tuple[str, str], dict[str, set[str]]] = {}
    for record in cases:
        conduct = record.qualified.conduct if record.qualified else None
        for name, value in (conduct.numerics if conduct else {}).items():
            values = used.setdefault((record.case.workload.device, name), {})
            values.setdefault(value, set()).add(record.case.label)
    for (device, name), values in used.items():
        if len(values) > 1:
            words = ", ".join(f"{value} in {' and '.join(sorted(impls))}" for value, impls in sorted(values.items()))
            yield (
                f"Not all computed under the same setting on {device}: {name} was {words}. A layer changes it for its"
                " process; what it gains by that is precision that the others still give."
            )


def _carried_over(frame: pd.DataFrame, samples: Sequence[SamplesRecord]) -> Iterator[str]:
    ok = frame[frame["status"] == "ok"]
    impls = dict(zip(ok["case_id"], ok["impl"], strict=True))
    if pairs := carry_over(samples, impls):
        worst = pairs[0]
        yield (
            f"{_cases(len({pair.case_id for pair in pairs}))} timed differently after different predecessors (most:"
            f" {impls[worst.case_id]} takes {percent(abs(worst.effect))} {'more' if worst.effect > 0 else 'less'} time"
            f" right after {impls.get(worst.after, worst.after)}, in {worst.num_processes} processes); what runs before"
            " a call is part of its time here: measure it without the other, or run again with --isolate, which gives"
            ' each a process of its own, or with cache = "cold".'
        )


def _undecided(comparisons: Sequence[Comparison]) -> Iterator[str]:
    open_ones = [
        comparison
        for comparison in comparisons
        if comparison.same_semantics and comparison.verdict is Verdict.INCONCLUSIVE
    ]
    more = [comparison.more_processes for comparison in open_ones if comparison.more_processes is not None]
    ranked = sum(comparison.same_semantics for comparison in comparisons)
    if more:
        yield (
            f"{len(open_ones)} of {ranked} comparisons are inconclusive; about {int(median(more))} more processes would"
            " decide half of them. Give a larger budget and more processes."
        )


def _cases(number: int) -> str:
    return "1 case was" if number == 1 else f"{number} cases were"
