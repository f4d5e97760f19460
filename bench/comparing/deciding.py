"""From estimated log-ratios to corrected intervals and words: one rule for both kinds of comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.comparisons import BAND, verdict_of
from bench.analysis.interval import Estimate
from bench.analysis.model import Verdict
from bench.analysis.statistics import Floats, false_coverage_level


@dataclass(frozen=True, slots=True)
class Effects:
    """Log-ratios of several cases with their uncertainty, as parallel arrays.

    Attributes:
        mean: log(NEW / BASE).
        error: its standard error; infinite where it is not known.
        freedom: degrees of freedom of that.
        judged: whether a verdict may be given; only these are corrected for.
    """

    mean: Floats
    error: Floats
    freedom: Floats
    judged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decision:
    """What may be said of one case.

    Attributes:
        ratio: with its corrected interval.
        p_value: two-sided, uncorrected.
        verdict: ``inconclusive`` wherever no verdict may be given.
        negligible: whether a ``faster`` or ``slower`` lies inside the band.
        level: of the interval.
    """

    ratio: Estimate
    p_value: float
    verdict: Verdict
    negligible: bool
    level: float


def decide(effects: Effects) -> list[Decision]:
    """Corrected interval and word of every case, by Benjamini and Hochberg's correction over all that are judged."""
    if effects.mean.size == 0:
        return []
    # No error at all (made-up data, a clock too coarse) is certainty, not an undefined quotient.
    exact = np.where(effects.mean == 0, 0.0, np.inf)
    statistic = np.divide(np.abs(effects.mean), effects.error, out=exact, where=effects.error > 0)
    p_values = np.asarray(2 * stats.t.sf(statistic, effects.freedom))
    level = false_coverage_level(p_values[effects.judged])
    half_width = t_quantile(effects.freedom, level) * effects.error
    return [
        _decision(*numbers, level=level)
        for numbers in zip(
            effects.mean.tolist(), half_width.tolist(), p_values.tolist(), effects.judged.tolist(), strict=True
        )
    ]


def t_quantile(freedom: Floats, level: float) -> Floats:
    """How many standard errors the two-sided t interval reaches to either side."""
    return np.asarray(stats.t.isf((1 - level) / 2, freedom))


def _decision(mean: float, half_width: float, p_value: float, judged: bool, *, level: float) -> Decision:
    low, high = mean - half_width, mean + half_width
    verdict = verdict_of(low, high) if judged else Verdict.INCONCLUSIVE
    decided = verdict in (Verdict.FASTER, Verdict.SLOWER)
    return Decision(
        ratio=Estimate(_exp(mean), _exp(low), _exp(high)),
        p_value=p_value,
        verdict=verdict,
        negligible=decided and low > -BAND and high < BAND,
        level=level,
    )


def _exp(log_ratio: float) -> float:
    return math.exp(log_ratio) if log_ratio < 700 else math.inf
