"""Intervals for paired latencies: what one run can say about two implementations, and how surely.

Calls in one process share its address-space layout, its clock speed and its neighbours, so a thousand of them are far
from a thousand independent facts. The process is the unit here: each gives *one* number, the median over its rounds of
``log(a_i / b_i)``, and everything after that is inference over processes. Records with the same replicate number come
from one server and are one unit, the mean of theirs.

The interval is Student's t. On recorded noise (``tests/data/noise``: identical code, arms swapped at random) it
excludes 1 in 4.5 % of trials with 6 processes and 4.9 % with 12, at a nominal 5 %; the exact sign-flip test in 2.8 %
and 5.6 %. So the sign-flip test is no more honest here, and it cannot report a p-value below ``2 / 2**12`` from 12
processes, which is too coarse for a correction over more than a hundred comparisons.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from bench.store.schema import Arm, SamplesRecord

Floats = NDArray[np.float64]

ERROR_RATE = 0.05
"""Share of false discoveries that is accepted over all comparisons of a run."""
MOST_PROCESSES = 10_000
"""A forecast of more processes than this is no forecast."""
FORECAST_CHANCE = 0.8
"""How probable it is that as many processes as were forecast bring a verdict, if mean and spread are what they seem."""


class Rounds(Protocol):
    """What :class:`SamplesRecord` and ``ControlRecord`` have in common: the samples of named arms."""

    @property
    def replicate(self) -> int:
        """Number of the independent replicate."""

    @property
    def arms(self) -> Mapping[Any, Arm]:
        """Samples by name; round ``i`` is entry ``i`` of every arm, unless each had a process of its own."""

    @property
    def isolated(self) -> bool:
        """Whether each had a process of its own."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation and number of the units behind each of several comparisons, as parallel arrays."""

    mean: Floats
    deviation: Floats
    count: Floats

    @classmethod
    def of(cls, units: Sequence[Floats]) -> Spread:
        """Summarise one array of units a comparison; the deviation of fewer than two is infinite."""
        return cls(
            mean=np.array([unit.mean() for unit in units]),
            deviation=np.array([unit.std(ddof=1) if unit.size > 1 else np.inf for unit in units]),
            count=np.array([unit.size for unit in units], dtype=float),
        )

    def half_width(self, level: float) -> Floats:
        """Half the length of the two-sided t interval at ``level``; infinite for fewer than two units."""
        return t_factor(self.count, level) * self.deviation

    def p_values(self) -> Floats:
        """Two-sided p-values of the t test that the mean is zero; 1 for fewer than two units."""
        error = self.deviation / np.sqrt(self.count)
        # Units without any spread (made up, or a clock too coarse) are certain, not undefined.
        exact = np.where(self.mean == 0, 0.0, np.inf)
        statistic = np.divide(np.abs(self.mean), error, out=exact, where=error > 0)
        return np.asarray(2 * stats.t.sf(statistic, np.maximum(self.count - 1, 1)))


def t_factor(count: Floats, level: float) -> Floats:
    """Half-width of the t interval of ``count`` units, in standard deviations of one unit."""
    return np.asarray(stats.t.isf((1 - level) / 2, np.maximum(count - 1, 1)) / np.sqrt(count))


def paired_units(records: Iterable[Rounds], allowed: Iterable[str] | None = None) -> dict[tuple[str, str], Floats]:
    """Log-ratios of every pair of arms, one number a replicate in ascending order.

    Args:
        records: processes of one workload, in any order.
        allowed: arms that count; None is all.

    Returns:
        ``(a, b)`` with ``a < b`` -> array of median ``log(a / b)``, for every pair that met in at least one round. Of
        arms that had processes of their own, the ratio of those processes' medians.
    """
    keep = None if allowed is None else set(allowed)
    found: defaultdict[tuple[str, str], defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        names = sorted(name for name, arm in record.arms.items() if arm.latency_s and (keep is None or name in keep))
        if len(names) < 2:
            continue
        if record.isolated:
            logs = np.log([[np.median(record.arms[name].latency_s)] for name in names])
        else:
            logs = np.log([record.arms[name].latency_s for name in names])
        first, second = np.triu_indices(len(names), k=1)
        medians = np.median(logs[first] - logs[second], axis=1)
        for pair, median in zip(combinations(names, 2), medians.tolist(), strict=True):
            found[pair][record.replicate].append(median)
    return {pair: _one_each(by_replicate) for pair, by_replicate in found.items()}


def latency_units(records: Iterable[Rounds], allowed: Iterable[str] | None = None) -> dict[str, Floats]:
    """Median latency of every arm in seconds, one number a replicate in ascending order."""
    return {name: np.array(list(units.values())) for name, units in latency_by_replicate(records, allowed).items()}


def latency_by_replicate(
    records: Iterable[Rounds], allowed: Iterable[str] | None = None
) -> dict[str, dict[int, float]]:
    """The same, under the number of the replicate, so that cases of several workloads can be matched."""
    keep = None if allowed is None else set(allowed)
    found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, arm in record.arms.items():
            if arm.latency_s and (keep is None or name in keep):
                found[name][record.replicate].append(statistics.median(arm.latency_s))
    return {
        name: dict(zip(sorted(by_replicate), _one_each(by_replicate).tolist(), strict=True))
        for name, by_replicate in found.items()
    }


def _one_each(by_replicate: Mapping[int, list[float]]) -> Floats:
    # fmean rounds once, at the end, so no digit depends on the order of records
    return np.array([statistics.fmean(by_replicate[replicate]) for replicate in sorted(by_replicate)])


def false_coverage_level(p_values: Floats, rate: float = ERROR_RATE) -> float:
    """Level of the intervals that go with Benjamini and Hochberg's correction of ``p_values``.

    Of ``m`` comparisons the correction rejects the R with the smallest p-values, all at most ``R * rate / m``. An
    interval at level ``1 - R * rate / m`` excludes zero exactly where p is below that bound, so the corrected interval
    and the corrected test cannot contradict each other. Where nothing is rejected, R is taken as 1.

    Source: Benjamini and Yekutieli, False discovery rate-adjusted multiple confidence intervals for selected
    parameters, JASA 100 (2005): the expected share of intervals of rejected comparisons that miss is at most ``rate``.
    """
    if p_values.size == 0:
        return 1 - rate
    rejected = int((stats.false_discovery_control(p_values) <= rate).sum())
    return 1 - max(1, rejected) * rate / p_values.size


def processes_needed(need: Floats, deviation: Floats, level: float, chance: float) -> NDArray[np.int64]:
    """Processes after which an interval at ``level`` probably no longer reaches a point ``need`` away from the truth.

    The interval's middle is off by its own error as well, so a half-width of just ``need`` would do in one case of two;
    the error that is exceeded with probability ``1 - chance`` is added to it.

    Returns:
        Counts from 2; ``MOST_PROCESSES + 1`` where that many would not be enough.
    """
    counts = np.arange(2, MOST_PROCESSES + 1, dtype=float)
    falling = t_factor(counts, level) + stats.t.isf(1 - chance, counts - 1) / np.sqrt(counts)
    # -falling ascends; the first count whose factor is strictly below need / deviation. No spread: any count will do.
    target = np.divide(need, deviation, out=np.full(np.shape(need), np.inf), where=deviation > 0)
    return np.asarray(np.searchsorted(-falling, -target, side="right") + 2, dtype=np.int64)


def smallest_effect(deviation: float, count: int, *, chance: float, level: float = 1 - ERROR_RATE) -> float:
    """The smallest true log-ratio whose interval from ``count`` processes excludes 0, on its side, with ``chance``.

    Args:
        deviation: standard deviation of one process's log-ratio.
        count: processes, at least 2.
        chance: the power, between 0.5 and 1.
        level: of the interval; one comparison's by default, a sweep's corrected one is wider.

    Source: the power of Student's t test, whose statistic follows the noncentral t distribution.
    """
    threshold = stats.t.isf((1 - level) / 2, count - 1)

    def lack(noncentrality: float) -> float:
        return float(stats.nct.sf(threshold, count - 1, noncentrality)) - chance

    # At twice the threshold and a few more, few statistics fall below the threshold, however few the processes.
    return float(optimize.brentq(lack, 0.0, 2 * threshold + 10)) * deviation / math.sqrt(count)


def deviation_interval(deviation: float, count: int, level: float = 0.9) -> tuple[float, float]:
    """Interval of a standard deviation that was estimated from ``count`` normal units."""
    squares = (count - 1) * deviation**2
    most, least = (float(stats.chi2.isf(tail, count - 1)) for tail in ((1 - level) / 2, (1 + level) / 2))
    return math.sqrt(squares / most), math.sqrt(squares / least)


def median_interval(units: Floats, level: float = 0.95) -> tuple[float, float, float]:
    """Median of units with its distribution-free interval between two order statistics.

    The narrowest symmetric pair of ranks whose coverage, a binomial probability, is at least ``level``. Fewer than six
    units cannot reach 95 %: their whole range is returned.
    """
    ordered = np.sort(units)
    rank = _lower_rank(ordered.size, level)
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[ordered.size - rank])


@cache
def _lower_rank(count: int, level: float) -> int:
    return max(1, int(stats.binom.ppf((1 - level) / 2, count, 0.5)))


def half_widths(records: Sequence[SamplesRecord]) -> dict[str, float]:
    """Relative half-width of every case's 95 % interval, for the rule that stops sampling.

    A case is compared with the fastest of its workload, because that ratio is what decides who wins. The fastest itself
    takes the widest of the others, so it is sampled until the last of them is done. A case that is alone on its
    workload has nothing to be paired with: its figure is that of its latency. Not corrected over the sweep, which is
    not known while it runs. Fewer than two processes: infinite.
    """
    by_workload: defaultdict[str, list[SamplesRecord]] = defaultdict(list)
    for record in records:
        by_workload[record.workload_id].append(record)
    widths: dict[str, float] = {}
    for group in by_workload.values():
        latencies = latency_units(group)
        if not latencies:
            continue
        fastest = min(sorted(latencies), key=lambda case_id: float(np.median(latencies[case_id])))
        units = {(b if a == fastest else a): unit for (a, b), unit in paired_units(group).items() if fastest in (a, b)}
        if len(latencies) == 1:
            units = {fastest: np.log(latencies[fastest])}
        relative = np.sinh(Spread.of(list(units.values())).half_width(1 - ERROR_RATE))
        found = dict(zip(units, relative.tolist(), strict=True))
        # A case that never met the fastest in a round cannot be judged yet.
        widths |= {case_id: found.get(case_id, np.inf) for case_id in latencies if case_id != fastest}
        widths[fastest] = max(found.values(), default=np.inf)
    return widths
