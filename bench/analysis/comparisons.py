"""Verdicts: every pair of timed implementations on every workload, corrected over all pairs of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.interval import Estimate
from bench.analysis.model import Comparison, Verdict
from bench.analysis.statistics import (
    FORECAST_CHANCE,
    MOST_PROCESSES,
    Floats,
    Spread,
    false_coverage_level,
    paired_units,
    processes_needed,
)
from bench.store.schema import CaseRecord, SamplesRecord

MIN_PROCESSES = 6
"""Below this there are no verdicts: the t interval leans on a normality that so few processes cannot bear out."""
BAND = math.log(1.01)
"""The equivalence band, plus and minus 1 %, as a log-ratio."""

FLIPPED = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}


@dataclass(frozen=True, slots=True)
class _Pair:
    workload_id: str
    impl: CaseRecord
    base: CaseRecord
    units: Floats


def compare(
    samples: Mapping[str, Sequence[SamplesRecord]], cases: Mapping[str, CaseRecord], *, withheld: str = ""
) -> list[Comparison]:
    """Compare every two implementations that met in a round.

    Args:
        samples: the processes of each workload, by workload id.
        cases: the cases that count, by case id; arms of others are left out.
        withheld: why no verdict may be given on this run; empty where they may.

    Returns:
        Each pair once, ``impl`` alphabetically before ``base``; :func:`flipped` looks from the other side.
    """
    pairs = sorted(
        _pairs(samples, cases), key=lambda pair: (pair.workload_id, pair.impl.case.label, pair.base.case.label)
    )
    if not pairs:
        return []
    spread = Spread.of([pair.units for pair in pairs])
    p_values = spread.p_values()
    # Pairs that get no verdict however clear they look are no part of the family that is corrected for.
    level = false_coverage_level(p_values[spread.count >= MIN_PROCESSES])
    half_width = spread.half_width(level)
    more = more_processes(spread, level)
    return [
        _comparison(pair, *numbers, withheld=withheld)
        for pair, *numbers in zip(
            pairs, spread.mean.tolist(), half_width.tolist(), p_values.tolist(), more, strict=True
        )
    ]


def flipped(comparison: Comparison) -> Comparison:
    """The same comparison with ``impl`` and ``base`` exchanged."""
    ratio = comparison.ratio
    return replace(
        comparison,
        impl=comparison.base,
        base=comparison.impl,
        ratio=Estimate(_inverse(ratio.value), low=_inverse(ratio.high), high=_inverse(ratio.low)),
        verdict=FLIPPED.get(comparison.verdict, comparison.verdict),
    )


def against(comparisons: Iterable[Comparison]) -> dict[tuple[str, str, str], Comparison]:
    """Both sides of every comparison, by ``(workload_id, impl, base)``."""
    found = {}
    for comparison in comparisons:
        for side in (comparison, flipped(comparison)):
            found[side.workload_id, side.impl, side.base] = side
    return found


def _pairs(samples: Mapping[str, Sequence[SamplesRecord]], cases: Mapping[str, CaseRecord]) -> Iterable[_Pair]:
    for workload_id, records in samples.items():
        for (first, second), units in paired_units(records, allowed=cases).items():
            impl, base, sign = cases[first], cases[second], 1.0
            if impl.case.label > base.case.label:
                impl, base, sign = base, impl, -1.0
            yield _Pair(workload_id, impl, base, sign * units)


def _comparison(
    pair: _Pair, mean: float, half_width: float, p_value: float, more: int | None, *, withheld: str
) -> Comparison:
    low, high = mean - half_width, mean + half_width
    reason = withheld
    if not reason and pair.units.size < MIN_PROCESSES:
        reason = f"{pair.units.size} independent processes, and a verdict needs {MIN_PROCESSES}"
    verdict = Verdict.INCONCLUSIVE if reason else verdict_of(low, high)
    if verdict is Verdict.INCONCLUSIVE and not reason:
        reason = "the interval contains 1 and reaches outside the band of ±1 %"
    decided = verdict in FLIPPED
    return Comparison(
        workload_id=pair.workload_id,
        impl=pair.impl.case.label,
        base=pair.base.case.label,
        ratio=Estimate(_exp(mean), _exp(low), _exp(high)),
        p_value=p_value,
        num_processes=pair.units.size,
        verdict=verdict,
        negligible=decided and low > -BAND and high < BAND,
        more_processes=more if verdict is Verdict.INCONCLUSIVE and not withheld else None,
        same_semantics=_same_semantics(pair.impl, pair.base),
        reason=reason,
    )


def verdict_of(low: float, high: float) -> Verdict:
    """The word for a corrected interval of a log-ratio."""
    if high < 0:
        return Verdict.FASTER
    if low > 0:
        return Verdict.SLOWER
    if low > -BAND and high < BAND:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def more_processes(spread: Spread, level: float) -> list[int | None]:
    """About how many more processes each comparison needs for a verdict, four times in five.

    If its mean and its spread are what they seem. Two things decide: an interval that no longer reaches 1, or one that
    reaches neither edge of the band; whichever comes first.
    """
    distance = np.abs(spread.mean)
    apart = processes_needed(distance, spread.deviation, level, FORECAST_CHANCE)
    # Two edges can be reached, so each has half of what is left of the chance.
    inside = processes_needed(BAND - distance, spread.deviation, level, (1 + FORECAST_CHANCE) / 2)
    needed = np.minimum(apart, inside)
    counts = spread.count.astype(int)
    return [
        None if count < 2 or total > MOST_PROCESSES else max(1, max(total, MIN_PROCESSES) - count)
        for count, total in zip(counts.tolist(), needed.tolist(), strict=True)
    ]


def _same_semantics(impl: CaseRecord, base: CaseRecord) -> bool:
    return impl.semantics == base.semantics == "moe" and impl.exact == base.exact and _drops(impl) == _drops(base)


def _drops(record: CaseRecord) -> bool:
    routing = record.qualified.routing if record.qualified else None
    return routing is not None and routing.dropped_fraction > 0


def _exp(log_ratio: float) -> float:
    # The interval of one process is the whole line, and two far apart can come close to it.
    return math.exp(log_ratio) if log_ratio < 700 else math.inf


def _inverse(ratio: float) -> float:
    return 1 / ratio if ratio else math.inf
