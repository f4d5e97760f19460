"""What the replicates of two interleaved versions say: intervals and words for every case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.analysis.comparisons import MIN_PROCESSES, more_processes
from bench.analysis.control import estimate, interval, twins_differ
from bench.analysis.model import Verdict
from bench.analysis.statistics import Spread, smallest_effect
from bench.cases import Case
from bench.comparing.deciding import Decision, Effects, decide
from bench.comparing.model import CaseComparison, Change, Comparison, Metric
from bench.comparing.two_runs import accuracy_change
from bench.comparing.versions import Version
from bench.store.schema import Status
from bench.units import percent, signed_percent

OPEN = "the interval contains 1 and reaches outside the band of ±1 %"
NOT_MEASURED = "not measured while versions are interleaved"
POWER = 0.9


@dataclass
class Row:
    """What is known of one case so far; index 0 is BASE, 1 is NEW.

    Attributes:
        case: the case.
        status, reason: of each version.
        error: relative error of each against the truth.
        difference: norm of the difference of the outputs over the norm of BASE's; None where one has none.
        units: median log(NEW / BASE), one a replicate.
        medians: median latency in seconds of each version, one a replicate.
        rough_s: about what a call of BASE takes.
    """

    case: Case
    status: list[Status] = field(default_factory=lambda: [Status.OK, Status.OK])
    reason: list[str] = field(default_factory=lambda: ["", ""])
    error: list[float | None] = field(default_factory=lambda: [None, None])
    difference: float | None = None
    units: list[float] = field(default_factory=list)
    medians: list[list[float]] = field(default_factory=lambda: [[], []])
    rough_s: float = math.inf

    @property
    def ok(self) -> bool:
        """Whether both versions can be timed on it."""
        return self.status == [Status.OK, Status.OK]

    def fail(self, side: int, status: Status, reason: str) -> None:
        """Note that one version cannot."""
        self.status[side], self.reason[side] = status, reason


def judge_twin(units: Sequence[float]) -> tuple[str, str]:
    """What BASE against its own twin says, in a sentence, and why verdicts are withheld; empty where they are not.

    Judged as the twins of a run's self-test are; ``units`` are log(twin / BASE), one a replicate. No slowdown is
    planted: a version's code is its own, so how large one would have had to be follows from the twin's spread.
    """
    if len(units) < 2:
        return "", ""
    found = np.array(units)
    ratio = estimate(found)
    seen = f"{signed_percent(ratio.value - 1)} (95 % interval {interval(ratio)})"
    if len(units) < MIN_PROCESSES:
        return f"Control: BASE against a twin of itself differed by {seen}, in too few pairs to judge.", ""
    if twins_differ(found):
        withheld = "the control failed"
        return (
            f"The control failed, so no latency has a verdict: BASE against a twin of itself differed by {seen}, so "
            "something else than the code decides here; close other programs and compare again."
        ), withheld
    least = math.expm1(smallest_effect(float(found.std(ddof=1)), len(units), chance=POWER))
    return (
        f"Control: BASE against a twin of itself, in the same rounds of the shortest case, differed by {seen}; a "
        f"slowdown of {percent(least)} would have been found there nine times in ten."
    ), ""


def conclude(
    versions: Sequence[Version], rows: Sequence[Row], control: Sequence[float], caveats: Sequence[str]
) -> Comparison:
    """The comparison of BASE and NEW, corrected over all cases that were timed; withheld where the control failed."""
    said, withheld = judge_twin(control)
    timed = [row for row in rows if row.ok and row.units]
    spread = Spread.of([np.array(row.units) for row in timed])
    decisions = decide(
        Effects(
            spread.mean,
            spread.deviation / np.sqrt(spread.count),
            np.maximum(spread.count - 1, 1),
            (spread.count >= MIN_PROCESSES) & (not withheld),
        )
    )
    needed = more_processes(spread, decisions[0].level) if decisions else []
    found = {row.case.id: (word, more) for row, word, more in zip(timed, decisions, needed, strict=True)}
    cases = []
    for row in rows:
        decision, more = found.get(row.case.id, (None, None))
        cases.append(_case(row, _label(row.case, versions), decision, more, withheld))
    differences = [row.difference for row in rows if row.difference is not None]
    sentences = [*([said] if said else []), *caveats]
    if differences:
        far = max(differences)
        sentences.append(
            f"The outputs of both versions are equal to the bit in {sum(not found for found in differences)} of "
            f"{len(differences)} cases" + (f"; elsewhere they differ by up to {far:.1g} of their norm." if far else ".")
        )
    return Comparison(versions[0].label, versions[1].label, interleaved=True, cases=cases, caveats=sentences)


def _case(row: Row, label: Case, decision: Decision | None, more: int | None, withheld: str) -> CaseComparison:
    num = len(row.units)
    changes: dict[Metric, Change] = {"memory": Change(reason=NOT_MEASURED), "energy": Change(reason=NOT_MEASURED)}
    if row.error[0] is not None and row.error[1] is not None:
        changes["accuracy"] = accuracy_change(row.error[0], row.error[1], row.case.workload.dtype)
    undecided = decision is not None and decision.verdict is Verdict.INCONCLUSIVE
    if decision is not None:
        few = f"{num} pair{'s' * (num != 1)} of processes, and a verdict needs {MIN_PROCESSES}"
        reason = (withheld or (few if num < MIN_PROCESSES else OPEN)) if undecided else ""
        base_s, new_s = (float(np.median(found)) for found in row.medians)
        changes["latency"] = Change(base_s, new_s, decision.ratio, decision.verdict.value, reason)
    elif row.ok:
        changes["latency"] = Change(reason="not timed: the budget was spent")
    return CaseComparison(
        label,
        row.status[0],
        row.status[1],
        row.reason[0],
        row.reason[1],
        changes,
        num_processes_base=num,
        num_processes_new=num,
        p_value=decision.p_value if decision else None,
        negligible=decision is not None and decision.negligible,
        more_processes=more if undecided and not withheld else None,
    )


def _label(case: Case, versions: Sequence[Version]) -> Case:
    """The case under a name that fits: two files have no implementation's name in common."""
    if all(version.layer is not None for version in versions):
        return Case(impl=versions[1].label, workload=case.workload)
    return case
