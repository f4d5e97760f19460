"""Carry-over: whether an implementation's latency depends on which one ran just before it.

The order within a round is random and its seed is recorded, so who came before whom can be found again. In every
process, the median log latency of A right after B is held against that of A after all others; inference is over
processes, corrected over all pairs of the run. Random order keeps carry-over from favouring anybody systematically,
but not from being part of the figures: a caller who runs A alone may see another time.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from bench.analysis.comparisons import BAND, MIN_PROCESSES
from bench.analysis.statistics import ERROR_RATE, Spread, false_coverage_level
from bench.store.schema import SamplesRecord

MIN_SAMPLES = 3
"""Of A after B, and of A after others, in one process: the median of fewer says nothing."""


@dataclass(frozen=True, slots=True)
class CarryOver:
    """One implementation that is measurably slower or faster after a certain other.

    Attributes:
        workload_id: on which workload.
        case_id: whose latency it is.
        after: case that ran just before; the same one for A after A.
        effect: relative change against all other predecessors, 0.03 for 3 % longer.
        num_processes: independent processes behind it.
    """

    workload_id: str
    case_id: str
    after: str
    effect: float
    num_processes: int


def predecessors(record: SamplesRecord) -> list[dict[str, str]]:
    """By round: what ran just before each arm; empty where the log does not tell, or where each ran by itself.

    The very first arm of all rounds has none where there was no warm-up round before it.
    """
    first = next(iter(record.arms.values()), None)
    if first is None or first.warmup_rounds is None or record.isolated:
        return []
    order, before = random.Random(record.order_seed), ""
    found: list[dict[str, str]] = []
    for _ in range(first.warmup_rounds + len(first.latency_s)):
        names = list(record.arms)
        order.shuffle(names)
        found.append({name: one for name, one in zip(names, [before, *names], strict=False) if one})
        before = names[-1]
    return found[first.warmup_rounds :]


def carry_over(samples: Iterable[SamplesRecord], allowed: Iterable[str]) -> list[CarryOver]:
    """The pairs whose effect is certain, after correction, and larger than the equivalence band; the largest first.

    Args:
        samples: of the whole run.
        allowed: cases that count.
    """
    keep = set(allowed)
    units: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in samples:
        for (name, after), effect in _effects(record).items():
            if name in keep:
                units[record.workload_id, name, after].append(effect)
    pairs = [pair for pair, values in units.items() if len(values) >= MIN_PROCESSES]
    if not pairs:
        return []
    spread = Spread.of([np.array(units[pair]) for pair in pairs])
    p_values = spread.p_values()
    certain = p_values <= 1 - false_coverage_level(p_values, ERROR_RATE)
    found = [
        CarryOver(*pair, effect=math.expm1(mean), num_processes=len(units[pair]))
        for pair, mean, sure in zip(pairs, spread.mean.tolist(), certain.tolist(), strict=True)
        if sure and abs(mean) > BAND
    ]
    return sorted(found, key=lambda one: -abs(one.effect))


def _effects(record: SamplesRecord) -> Mapping[tuple[str, str], float]:
    """By arm and predecessor: log of the median latency after it over that after all others, in one process."""
    rounds = predecessors(record)
    found = {}
    for name, arm in record.arms.items():
        before = [came.get(name, "") for came in rounds]
        logs = np.log(arm.latency_s).tolist()
        for other in record.arms if rounds else ():
            after = [log for log, came in zip(logs, before, strict=True) if came == other]
            rest = [log for log, came in zip(logs, before, strict=True) if came != other]
            if min(len(after), len(rest)) >= MIN_SAMPLES:
                # of so few numbers, numpy's median takes ten times as long
                found[name, other] = median(after) - median(rest)
    return found
