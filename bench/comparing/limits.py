"""``--fail-if 'latency > 5%'``: limits for CI that only a verdict can break, never a point estimate.

A case breaks a limit where its whole corrected interval lies beyond it *and* it has the verdict that goes with it
(``slower``, ``more``, ``worse``). An inconclusive case breaks none. A case that was ok and is not any more fails
whatever the limits are, and so does one that BASE cannot run and NEW runs wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.comparing.model import METRICS, NOT_COMPARED, CaseComparison, Comparison, Metric
from bench.errors import Exit, RequestError
from bench.faults import nearest
from bench.store.schema import Status

LIMIT = re.compile(r"\s*(?P<metric>[A-Za-z_]+)\s*(?P<sign>[<>=]*)\s*(?P<number>[-+]?[\d.]*)\s*(?P<unit>\S*)\s*")
LOSING: dict[Metric, str] = {"latency": "slower", "memory": "more", "energy": "more", "accuracy": "worse"}


@dataclass(frozen=True, slots=True)
class Limit:
    """How much worse a quantity may get: ``share`` 0.05 is 5 %."""

    metric: Metric
    share: float

    def __str__(self) -> str:
        return f"{self.metric} > {100 * self.share:g}%"


def parse_limit(text: str) -> Limit:
    """A limit such as ``latency > 5%``.

    Raises:
        RequestError: saying what is wrong and what a limit looks like.
    """
    found = LIMIT.fullmatch(text)
    example = "as in --fail-if 'latency > 5%'"
    if found is None:
        raise RequestError(f"--fail-if {text!r} is no limit; give METRIC > N%, {example}")
    name = found["metric"].lower()
    metric = next((metric for metric in METRICS if metric == name), None)
    if metric is None:
        raise RequestError(
            f"--fail-if {text!r}: there is no metric {found['metric']!r}, only {', '.join(METRICS)}"
            f"{nearest(name, METRICS)}"
        )
    if found["sign"] != ">":
        raise RequestError(
            f"--fail-if {text!r}: a limit is broken by what is larger, so its sign is '>', found "
            f"{found['sign'] or 'none'!r}; {example}"
        )
    if found["unit"] != "%":
        raise RequestError(f"--fail-if {text!r}: the limit is a percentage of BASE's value and ends in %, {example}")
    try:
        share = float(found["number"]) / 100
    except ValueError:
        raise RequestError(f"--fail-if {text!r}: {found['number']!r} is no number, {example}") from None
    if share < 0:
        raise RequestError(f"--fail-if {text!r}: a limit below 0 % would fail what has got better, {example}")
    return Limit(metric, share)


def judge_limits(comparison: Comparison, limits: Sequence[Limit]) -> Comparison:
    """The comparison with what each case fails, and a caveat for every limit that nothing could break."""
    if not limits:
        return comparison
    cases = [replace(case, fails=_fails(case, limits)) for case in comparison.cases]
    caveats = list(comparison.caveats)
    for limit in limits:
        changes = [case.change(limit.metric) for case in cases]
        if all(change.verdict == NOT_COMPARED for change in changes):
            why = next((change.reason for change in changes if change.reason), "no case has it on both sides")
            caveats.append(f"'{limit}' could not be judged: {limit.metric} is compared in no case ({why}).")
    return replace(comparison, cases=cases, caveats=caveats, limits=[str(limit) for limit in limits])


def exit_code(comparison: Comparison) -> Exit:
    """3 where a limit is broken or a case does not run any more, 4 where one now computes something wrong.

    Without limits a comparison only informs: 0.
    """
    failing = [case for case in comparison.cases if case.fails]
    if any(_spoiled(case) and case.status_new is Status.WRONG_RESULT for case in failing):
        return Exit.WRONG_NUMERICS
    return Exit.REGRESSION if failing else Exit.OK


def _spoiled(case: CaseComparison) -> bool:
    """Whether its status got worse: it was ok and is not, or is new in NEW (BASE cannot run it) and fails at once."""
    harmless = (Status.OK, Status.UNSUPPORTED, None)
    return case.broken or (case.status_base is Status.UNSUPPORTED and case.status_new not in harmless)


def _fails(case: CaseComparison, limits: Iterable[Limit]) -> list[str]:
    found = [f"was {case.status_base}, is {case.status_new}"] if _spoiled(case) else []
    for limit in limits:
        change = case.change(limit.metric)
        if change.verdict == LOSING[limit.metric] and change.ratio is not None and change.ratio.low > 1 + limit.share:
            found.append(str(limit))
    return found
