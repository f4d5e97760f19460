"""Two runs made one after the other: what can be said of them, which is less than one would like.

Latency is judged over processes *and* over runs: the standard error of a difference has the part of the processes
(Welch's) and twice the variance from run to run (:mod:`bench.comparing.spread`), with Satterthwaite's degrees of
freedom. Memory is counted, not sampled, and is compared as it is. An energy reading is an interval, widened by the
run-to-run spread. The relative error depends on seeds and code alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.analysis.comparisons import BAND, MIN_PROCESSES
from bench.analysis.control import judge
from bench.analysis.interval import Estimate
from bench.analysis.model import Verdict
from bench.analysis.statistics import MOST_PROCESSES, Floats, latency_units
from bench.comparing.deciding import Decision, Effects, decide, t_quantile
from bench.comparing.likeness import Differences, find_differences, matching_key, nearest_difference
from bench.comparing.model import CaseComparison, Change, Comparison, Metric
from bench.comparing.spread import DEFAULT, Spread, known_spread, past_run, read_past_runs
from bench.errors import RequestError
from bench.runs import run_folder
from bench.store.log import read_run
from bench.store.pytest_benchmark import read_pytest_benchmark
from bench.store.schema import (
    AnyRecord,
    CaseRecord,
    ControlRecord,
    EnergyRecord,
    RunInfo,
    SamplesRecord,
    Status,
)
from bench.units import percent, signed_percent

WORSE_ERROR = 2.0
"""A relative error must grow by more than this factor to be called worse: roundings differ by less."""
UNIT_ROUNDOFF = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}


@dataclass(frozen=True)
class _Side:
    """One run, as far as it is compared."""

    info: RunInfo
    cases: Mapping[str, CaseRecord]
    units: Mapping[str, Floats]
    energy: Mapping[str, EnergyRecord]
    withheld: str

    @classmethod
    def of(cls, name: str, info: RunInfo, records: Sequence[AnyRecord]) -> _Side:
        cases = {record.case_id: record for record in records if isinstance(record, CaseRecord)}
        ok = [case_id for case_id, record in cases.items() if record.status is Status.OK]
        control = judge([record for record in records if isinstance(record, ControlRecord)])
        return cls(
            info,
            cases,
            latency_units([record for record in records if isinstance(record, SamplesRecord)], allowed=ok),
            {record.case_id: record for record in records if isinstance(record, EnergyRecord)},
            "" if control.passed else f"the control of {name} did not pass",
        )


def compare_two_runs(base: str, new: str, *, results: Path, force: bool = False) -> Comparison:
    """Compare two runs by their id, folder, ``latest``, or file of pytest-benchmark.

    Raises:
        ResultsError: there is no such run, or it cannot be read.
        RequestError: they are not comparable, and ``force`` is not given; or they have no case in common.
    """
    places = [run_folder(run, results) for run in (base, new)]
    (base_info, base_records, base_faults), (new_info, new_records, new_faults) = (
        read_pytest_benchmark(place) if place.is_file() else read_run(place) for place in places
    )
    # a baseline may be kept apart from the results: its neighbours know the machine too
    folders = [results, *(place.parent for place in places if place.is_dir())]
    others = read_past_runs(folders, new_info, but=(base_info.run_id, new_info.run_id))
    spread = known_spread(past_run(base_info, base_records), past_run(new_info, new_records), others)
    comparison = compare_records((base_info, base_records), (new_info, new_records), spread=spread, force=force)
    faults = [
        f"{name}: {Path(fault.partition(': ')[0]).name}: {fault.partition(': ')[2]}"
        for name, found in (("BASE", base_faults), ("NEW", new_faults))
        for fault in found
    ]
    return Comparison(
        comparison.base,
        comparison.new,
        interleaved=False,
        cases=comparison.cases,
        forced=comparison.forced,
        caveats=[*comparison.caveats, *faults],
    )


def compare_records(
    base: tuple[RunInfo, Sequence[AnyRecord]],
    new: tuple[RunInfo, Sequence[AnyRecord]],
    *,
    spread: Spread = DEFAULT,
    force: bool = False,
) -> Comparison:
    """The same from records in memory."""
    sides = _Side.of("BASE", *base), _Side.of("NEW", *new)
    ours, theirs = ([record.case for record in side.cases.values()] for side in sides)
    differences = find_differences(sides[0].info, sides[1].info, ours, theirs)
    if differences.blocking and not force:
        raise RequestError(
            "these runs are not comparable:\n"
            + "\n".join(f"  {difference}" for difference in differences.blocking)
            + "\n--force compares them all the same and says so; `moebench compare --interleave` measures both here"
        )
    matched, alone = _match(*sides, differences)
    if not matched:
        hint = next((found for case in theirs if (found := nearest_difference(case, ours))), "")
        raise RequestError("the runs have no case in common" + (f"; {hint}" if hint else ""))
    cases = _compared(matched, *sides, spread)
    return Comparison(
        base=sides[0].info.run_id,
        new=sides[1].info.run_id,
        interleaved=False,
        cases=[*cases, *alone],
        forced=differences.blocking,
        caveats=_caveats(sides, differences, spread),
    )


def _match(
    base: _Side, new: _Side, differences: Differences
) -> tuple[list[tuple[CaseRecord, CaseRecord]], list[CaseComparison]]:
    """Pairs of cases, in NEW's order, and the cases that only one run has."""
    ignored = differences.settings
    keyed = [
        {matching_key(record.case, ignored): record for record in reversed(list(side.cases.values()))}
        for side in (base, new)
    ]
    matched = [(keyed[0][key], record) for key, record in reversed(list(keyed[1].items())) if key in keyed[0]]
    paired = {record.case_id for pair in matched for record in pair}
    alone = []
    for side, other in ((base, new), (new, base)):
        cases = [record.case for record in other.cases.values()]
        for case_id, record in side.cases.items():
            if case_id not in paired:
                status, reason = record.status, nearest_difference(record.case, cases)
                alone.append(
                    CaseComparison(record.case, status, None, reason_base=reason)
                    if side is base
                    else CaseComparison(record.case, None, status, reason_new=reason)
                )
    return matched, alone


def _compared(
    matched: Sequence[tuple[CaseRecord, CaseRecord]], base: _Side, new: _Side, spread: Spread
) -> list[CaseComparison]:
    timed = [index for index, (b, n) in enumerate(matched) if b.case_id in base.units and n.case_id in new.units]
    units = [(np.log(base.units[matched[i][0].case_id]), np.log(new.units[matched[i][1].case_id])) for i in timed]
    withheld = base.withheld or new.withheld
    decisions = dict(zip(timed, decide(_effects(units, spread, withheld)), strict=True))
    logs = dict(zip(timed, units, strict=True))
    found = []
    for index, (b, n) in enumerate(matched):
        changes: dict[Metric, Change] = {
            "memory": _memory(b, n),
            "energy": _energy(base.energy.get(b.case_id), new.energy.get(n.case_id), spread),
            "accuracy": _accuracy(b, n),
        }
        more = None
        if index in decisions:
            changes["latency"], more = _latency(decisions[index], *logs[index], spread, withheld)
        else:
            changes["latency"] = Change(reason="not timed in both runs")
        found.append(
            CaseComparison(
                n.case,
                b.status,
                n.status,
                b.reason,
                n.reason,
                changes,
                num_processes_base=logs[index][0].size if index in logs else 0,
                num_processes_new=logs[index][1].size if index in logs else 0,
                p_value=decisions[index].p_value if index in decisions else None,
                negligible=index in decisions and decisions[index].negligible,
                more_processes=more,
            )
        )
    return found


def _effects(units: Sequence[tuple[Floats, Floats]], spread: Spread, withheld: str = "") -> Effects:
    """Differences of mean logs with Welch's error, and the spread from run to run on both sides."""
    means, errors, freedoms, judged = [], [], [], []
    between = 2 * spread.deviation**2
    for base, new in units:
        parts = [(float(side.var(ddof=1)) / side.size, side.size - 1.0) for side in (base, new) if side.size > 1]
        parts.append((between, spread.freedom))
        variance = sum(part for part, _ in parts)
        means.append(float(new.mean() - base.mean()))
        errors.append(math.sqrt(variance) if len(parts) == 3 else math.inf)
        below = sum(part**2 / freedom for part, freedom in parts)
        freedoms.append(variance**2 / below if below > 0 else spread.freedom)
        judged.append(min(base.size, new.size) >= MIN_PROCESSES and not withheld)
    return Effects(np.array(means), np.array(errors), np.array(freedoms), np.array(judged, dtype=bool))


def _latency(decision: Decision, base: Floats, new: Floats, spread: Spread, withheld: str) -> tuple[Change, int | None]:
    reason, more = "", None
    if decision.verdict is Verdict.INCONCLUSIVE:
        more = None if withheld else _more_processes(decision, base, new, spread)
        fewest = min(base.size, new.size)
        if withheld:
            reason = withheld
        elif fewest < MIN_PROCESSES:
            reason = f"{fewest} independent processes, and a verdict needs {MIN_PROCESSES}"
        else:
            reach = math.expm1(abs(math.log(decision.ratio.high / decision.ratio.value)))
            reason = (
                f"runs made one after the other show differences beyond about {percent(reach)} here, "
                f"found {signed_percent(decision.ratio.value - 1)}"
            )
    base_s, new_s = (math.exp(float(np.median(side))) for side in (base, new))
    return Change(base_s, new_s, decision.ratio, decision.verdict.value, reason), more


def _more_processes(decision: Decision, base: Floats, new: Floats, spread: Spread) -> int | None:
    """More processes in each run that would decide; None where the spread between runs alone is too large."""
    if min(base.size, new.size) < 2:
        return None
    distance = abs(math.log(decision.ratio.value))
    need = max(distance, BAND - distance)
    counts = np.arange(MIN_PROCESSES, MOST_PROCESSES + 1, dtype=float)
    variance = (float(base.var(ddof=1)) + float(new.var(ddof=1))) / counts + 2 * spread.deviation**2
    # the spread's few degrees of freedom are what is left with many processes
    enough = t_quantile(np.full(counts.size, spread.freedom), decision.level) * np.sqrt(variance) < need
    return max(1, int(counts[enough.argmax()]) - min(base.size, new.size)) if enough.any() else None


def _memory(base: CaseRecord, new: CaseRecord) -> Change:
    values = [record.qualified.allocator_peak_bytes if record.qualified else None for record in (base, new)]
    if values[0] is None or values[1] is None:
        gaps = [record.qualified.gaps.get("allocator_peak_bytes", "") for record in (base, new) if record.qualified]
        return Change(reason=next((gap for gap in gaps if gap), "not measured in both runs"))
    ratio = _quotient(values[1], values[0])
    word = "same" if ratio == 1 else "less" if ratio < 1 else "more"
    return Change(float(values[0]), float(values[1]), Estimate(ratio, ratio, ratio), word)


def _energy(base: EnergyRecord | None, new: EnergyRecord | None, spread: Spread) -> Change:
    for name, reading in (("BASE", base), ("NEW", new)):
        if reading is None:
            return Change(reason=f"not measured in {name}")
        if reading.energy_j is None or not reading.calls:
            return Change(reason=f"{name}: {reading.reason or 'no call in the window'}")
        if reading.energy_low_j is None or reading.energy_high_j is None:
            return Change(reason=f"{name}: the meter gave no interval")
    assert base is not None
    assert new is not None
    (b, b_low, b_high), (n, n_low, n_high) = (
        tuple((value or 0.0) / (reading.calls or 1.0) for value in (
            reading.energy_j, reading.energy_low_j, reading.energy_high_j,
        ))
        for reading in (base, new)
    )  # fmt: skip
    widened = float(t_quantile(np.array([spread.freedom]), 0.95)[0]) * math.sqrt(2) * spread.deviation
    factor = math.exp(min(widened, 700))
    ratio = Estimate(_quotient(n, b), _quotient(n_low, b_high) / factor, _quotient(n_high, b_low) * factor)
    word = "less" if ratio.high < 1 else "more" if ratio.low > 1 else "inconclusive"
    reason = "the readings and the run-to-run spread leave both directions open" if word == "inconclusive" else ""
    return Change(b, n, ratio, word, reason)


def _accuracy(base: CaseRecord, new: CaseRecord) -> Change:
    if base.relative_error is None or new.relative_error is None:
        return Change(reason="not known in both runs")
    if base.qualified and new.qualified and base.qualified.checked_tokens != new.qualified.checked_tokens:
        return Change(
            base.relative_error, new.relative_error, reason="checked against the truth of different numbers of tokens"
        )
    return accuracy_change(base.relative_error, new.relative_error, new.case.workload.dtype)


def accuracy_change(base: float, new: float, dtype: str) -> Change:
    """Relative errors; those below the rounding of one number count as that."""
    floor = UNIT_ROUNDOFF[dtype]
    ratio = max(new, floor) / max(base, floor)
    word = "worse" if ratio > WORSE_ERROR else "better" if ratio < 1 / WORSE_ERROR else "same"
    return Change(base, new, Estimate(ratio, ratio, ratio), word)


def _quotient(new: float, base: float) -> float:
    return new / base if base else 1.0 if new == base else math.inf


def _caveats(sides: tuple[_Side, _Side], differences: Differences, spread: Spread) -> list[str]:
    caveats = [f"{spread.sentence}."] if spread.sentence else []
    caveats += [f"{side.withheld}, so no latency has a verdict." for side in sides if side.withheld]
    caveats += [f"Also different: {told}." for told in differences.told]
    if sides[0].info.git_commit and sides[0].info.git_commit == sides[1].info.git_commit:
        caveats.append(f"Both runs are of the same commit, {sides[0].info.git_commit[:10]}.")
    return caveats
