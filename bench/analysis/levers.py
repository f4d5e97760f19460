"""Whether what a profile names as a case's limit is its limit, by pulling levers, without a profiler.

Each lever changes one thing and leaves the others (:data:`bench.store.levers.LEVERS`), so a share of the time can be
read off what the call's time does then:

* **host**: what stays with ``tiny``, where the operators have next to nothing to do;
* **memory**: what goes with ``one_expert``, where weights come from a cache, over what goes where all the time is
  memory's: the cache reads that much faster, not infinitely fast;
* what **follows the work**: what comes with ``tokens``, less what more reading adds, over the growth of the arithmetic.
  It is compute where the arithmetic needs at least :data:`~bench.analysis.limits.NEAR` of it at the matrix peak, memory
  where the bytes made do so at memory's bandwidth, and else below the roof;
* **the rest** follows nothing: below the roof, unless it is writing what does not grow with tokens (gradients).

These are shares of the time in which memory is kept (``pages``), and the levers are timed so; what that took away were
first touches of pages, which are below the roof.

So the same time is accounted for twice, once by the profiler and once by levers. The named limit, or one of those that
are named together, *agrees* where the levers' share of it is surely the largest, *disagrees* where another is surely
larger, and else nothing can be said; surely is by a t interval over processes. The cache cannot be told from the
arithmetic in this way.

Beside the shares stands what the profile's division predicts of every lever, with what the lever did. Time below the
roof may follow its work or not, so predictions are ranges. ``threads`` and ``pages`` have only these.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bench.analysis.divisions import Division, Limit
from bench.analysis.limits import NEAR
from bench.analysis.model import Estimate
from bench.analysis.statistics import ERROR_RATE, Spread
from bench.store.levers import Lever, Work
from bench.store.schema import LimitCheckRecord

Range = tuple[float, float]


class Agreement(StrEnum):
    """What a check says of the limit that a profile names."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Roofs:
    """What the machine can do with one number of threads: operations, and bytes from memory and cache, per second."""

    peak: float
    memory: float
    cache: float


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one lever did to the time of a call.

    Attributes:
        lever: which.
        predicted: lowest and highest ratio of times that the profile's division allows.
        measured: the ratio, with its interval over processes.
    """

    lever: Lever
    predicted: Range
    measured: Estimate

    @property
    def as_predicted(self) -> bool:
        """Whether the interval reaches into what was predicted."""
        return self.measured.low <= self.predicted[1] and self.measured.high >= self.predicted[0]


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """A profile's account of a case beside the levers' one.

    Attributes:
        named: the limits that the profile names.
        by_profile: shares of the time by what limits it.
        by_levers: the same without a profiler, with intervals; empty where a lever is missing.
        levers: what each did.
        agreement: whether the two name the same limit.
        gaps: which levers could not be pulled, and why.
    """

    named: Sequence[Limit]
    by_profile: Mapping[Limit, float]
    by_levers: Mapping[Limit, Estimate]
    levers: Sequence[Pulled]
    agreement: Agreement
    gaps: Mapping[Lever, str]


MIN_PROCESSES = 2
"""Fewer have no spread."""
COPIES = 1.02
"""With one expert's weights for all, so many times as many bytes are moved at most, unless somebody copies weights."""
CLEARLY = 1.5
"""The cache reads so many times as fast as memory at least, where a lever is to tell the two apart."""
NEEDED: tuple[Lever, ...] = ("tokens", "one_expert", "tiny")


def responses(lever: Lever, work: Mapping[Lever, Work], roofs: Roofs, other: Roofs | None) -> dict[Limit, Range]:
    """By what factor a time changes with a lever, by what limits it: the lowest and the highest."""
    factors = dict.fromkeys((Limit.COMPUTE, Limit.MEMORY, Limit.CACHE, Limit.HOST), 1.0)
    if lever == "pages":
        return dict.fromkeys(factors, (1.0, 1.0)) | {Limit.BELOW_ROOF: (0.0, 1.0)}
    if lever == "threads":
        if other is not None:
            factors[Limit.COMPUTE] = roofs.peak / other.peak
            factors[Limit.MEMORY], factors[Limit.CACHE] = roofs.memory / other.memory, roofs.cache / other.cache
    elif lever == "one_expert":
        base = work["base"]
        read = base.existing_bytes / base.moved_bytes if base.moved_bytes else 0.0
        factors[Limit.MEMORY] = 1 - read * (1 - _cached(roofs))
    elif lever in work:
        base, changed = work["base"], work[lever]
        factors[Limit.COMPUTE] = _ratio(changed.flops, base.flops)
        factors[Limit.MEMORY] = factors[Limit.CACHE] = _ratio(changed.moved_bytes, base.moved_bytes)
    known = factors.values()
    return {limit: (factor, factor) for limit, factor in factors.items()} | {Limit.BELOW_ROOF: (min(known), max(known))}


def predict(shares: Mapping[Limit, float], answers: Mapping[Limit, Range]) -> Range:
    """The ratio of times that shares of the time give, from what each answers a lever with."""
    low, high = (sum(share * answers[limit][end] for limit, share in shares.items()) for end in (0, 1))
    return low, high


def shares_by_levers(
    ratios: Mapping[Lever, float], base_s: float, work: Mapping[Lever, Work], roofs: Roofs
) -> dict[Limit, float]:
    """The shares of a call's time that follow from what :data:`NEEDED` levers did to it; they add up to about 1.

    Args:
        ratios: time with a lever over the time without.
        base_s: the time without, where memory is kept.
        work: what every variant has to do.
        roofs: of the machine.
    """
    base, doubled, tiny = work["base"], work["tokens"], work["tiny"]
    left = max(_ratio(tiny.flops, base.flops), _ratio(tiny.moved_bytes, base.moved_bytes))
    host = _share((ratios["tiny"] - left) / (1 - left)) if left < 1 else 0.0
    memory = _share((1 - ratios["one_expert"]) / (1 - _cached(roofs)))
    more_reading = memory * (_ratio(doubled.existing_bytes, base.existing_bytes) - 1)
    growth = _ratio(doubled.flops, base.flops) - 1
    following = _share((ratios["tokens"] - 1 - more_reading) / growth) if growth > 0 else 0.0
    rest = max(0.0, 1 - host - memory - following)
    made, made_more = base.moved_bytes - base.existing_bytes, doubled.moved_bytes - doubled.existing_bytes
    growing = min(made, max(0, made_more - made))
    shares = dict.fromkeys(Limit, 0.0)
    shares[Limit.HOST], shares[Limit.MEMORY] = host, memory
    needs = {Limit.COMPUTE: base.flops / roofs.peak, Limit.MEMORY: growing / roofs.memory}
    shares[_booked(needs, following * base_s)] += following
    shares[_booked({Limit.MEMORY: (made - growing) / roofs.memory}, rest * base_s)] += rest
    kept = _share(ratios.get("pages", 1.0))
    shares = {limit: kept * share for limit, share in shares.items()}
    shares[Limit.BELOW_ROOF] += 1 - kept
    return shares


def check_limit(
    division: Division, records: Sequence[LimitCheckRecord], roofs: Roofs, other: Roofs | None
) -> LimitCheck | str:
    """The check of one case, or the reason why there is none.

    Args:
        division: the case's time by cause, from its profile.
        records: of the processes in which levers were pulled.
        roofs: of the machine with the case's number of threads.
        other: of the machine with the lever's number of threads.
    """
    good = [record for record in records if record.arms]
    if len(good) < MIN_PROCESSES:
        failed = [record.reason for record in records if record.reason]
        return failed[0] if failed else f"levers were pulled in {len(good)} processes, and {MIN_PROCESSES} are needed"
    work = good[0].work
    gaps = {lever: reason for record in good for lever, reason in record.gaps.items()}
    ratios = [_ratios(record) for record in good]
    for lever in {lever for one in ratios for lever in one}:
        missing = sum(lever not in one for one in ratios)
        if missing:
            gaps.setdefault(lever, f"it was not pulled in {missing} of {len(good)} processes")
    if roofs.cache < CLEARLY * roofs.memory:
        gaps["one_expert"] = "no cache is known here that is clearly faster than memory"
    if "one_expert" in work and work["one_expert"].moved_bytes > COPIES * work["base"].moved_bytes:
        gaps["one_expert"] = "the implementation first copies weights that are not one block, which is other work"
    total = sum(division.seconds.values())
    by_profile = {limit: seconds / total for limit, seconds in division.by_resource().items()} if total else {}
    levers = [
        Pulled(lever, predict(by_profile, responses(lever, work, roofs, other)), _ratio_estimate(ratios, lever))
        for lever in ratios[0]
        if lever not in gaps
    ]
    by_levers: dict[Limit, Estimate] = {}
    agreement = Agreement.CANNOT_TELL
    if not any(lever in gaps for lever in NEEDED):
        base_s = [statistics.median(record.arms[record.reference].latency_s) for record in good]
        found = [shares_by_levers(one, s, work, roofs) for one, s in zip(ratios, base_s, strict=True)]
        units = {limit: np.array([shares[limit] for shares in found]) for limit in Limit}
        by_levers = {limit: _interval(unit, 1 - ERROR_RATE) for limit, unit in units.items()}
        agreement = judge(division.limits, units)
    return LimitCheck(division.limits, by_profile, by_levers, levers, agreement, gaps)


def judge(named: Sequence[Limit], units: Mapping[Limit, np.ndarray]) -> Agreement:
    """Whether the largest of the named shares is surely larger than all others, from one share a process and limit."""
    rivals = [limit for limit in Limit if limit not in (*named, Limit.CACHE)]
    if Limit.CACHE in named or not rivals:
        return Agreement.CANNOT_TELL
    largest = max(named, key=lambda limit: units[limit].mean())
    leads = [_interval(units[largest] - units[rival], 1 - ERROR_RATE / len(rivals)) for rival in rivals]
    if all(lead.low > 0 for lead in leads):
        return Agreement.AGREES
    return Agreement.DISAGREES if any(lead.high < 0 for lead in leads) else Agreement.CANNOT_TELL


def _ratios(record: LimitCheckRecord) -> dict[Lever, float]:
    """What every lever did to the time in one process: paired by rounds, but ``pages`` by the time before it."""
    logs = {lever: np.log(arm.latency_s) for lever, arm in record.arms.items()}
    reference = record.reference
    found = {
        lever: float(np.exp(np.median(log - logs[reference])))
        for lever, log in logs.items()
        if lever not in ("base", reference)
    }
    if reference != "base":
        found[reference] = float(np.exp(np.median(logs[reference]) - np.median(logs["base"])))
    return found


def _ratio_estimate(ratios: Sequence[Mapping[Lever, float]], lever: Lever) -> Estimate:
    logs = _interval(np.log([one[lever] for one in ratios]), 1 - ERROR_RATE)
    return Estimate(*(float(np.exp(end)) for end in (logs.value, logs.low, logs.high)))


def _interval(unit: np.ndarray, level: float) -> Estimate:
    half = float(Spread.of([unit]).half_width(level)[0])
    mean = float(unit.mean())
    return Estimate(mean, mean - half, mean + half)


def _cached(roofs: Roofs) -> float:
    """What is left of the time of reading from memory where the same comes from the cache."""
    return min(1.0, roofs.memory / roofs.cache)


def _booked(needs_s: Mapping[Limit, float], time_s: float) -> Limit:
    """The roof that a time is near to, or that it is far from all."""
    most = max(needs_s, key=lambda limit: needs_s[limit])
    return most if needs_s[most] >= NEAR * time_s > 0 else Limit.BELOW_ROOF


def _ratio(changed: int, base: int) -> float:
    return changed / base if base else 1.0


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
