"""Whether what a profile names as a case's limit is its limit, by pulling levers, without a profiler.

Each lever changes one thing and leaves the others (:data:`bench.store.levers.LEVERS`), so a share of the time can be
read off what the call's time does then:

* **first touch**: what goes with ``pages``, where memory that was given back is kept. The other levers are pulled
  beside the case as it is then, and divide what is left;
* **host**: what stays with ``tiny``, where the operators have next to nothing to do;
* **memory**: what goes with ``one_expert``, where all experts have the first one's weights, which fit a cache. An
  implementation that packs weights would pack these again: there it is nothing where all that the call touches is known
  to fit the cache, and else what the call takes beyond ``few_experts``, as many times as it has more of them;
* what **follows the work**: what comes with ``tokens``, less what more reading adds, over the growth of the arithmetic.
  It is compute as far as it is near the matrix peak (:func:`~bench.analysis.divisions.nearness`), memory as far as the
  bytes made are near memory's bandwidth, whichever needs more, and else below the roof;
* **the rest** follows nothing. It is the cache's as far as reading the weights from there is near the cache's
  bandwidth, memory's as far as writing what does not grow with tokens (gradients) is near memory's, and else below the
  roof.

So the same time is accounted for twice, once by the profiler and once by levers. The named limit, or one of those that
are named together, *agrees* where the levers' share of it is surely the largest, *disagrees* where another is surely
larger, and else nothing can be said; surely is by a t interval over processes, its error rate divided among the
declared looks. Where a lever cannot be pulled, its share may be anything between nothing and all that the others leave,
and what is said must hold at both ends.

Beside the shares stands what the profile's division predicts of every lever, with what the lever did. Time below the
roof may follow its work or not, so predictions are ranges. ``threads`` has only these.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np

from bench.analysis.divisions import Division, Limit, nearness
from bench.analysis.interval import Estimate
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
    """What the machine can do with one number of threads: operations, and bytes from memory and cache, per second.

    Attributes:
        cache_bytes: what is known to stay in the cache from call to call; 0 where it is flushed.
    """

    peak: float
    memory: float
    cache: float
    cache_bytes: int = 0


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
        by_levers: the same without a profiler, with intervals; empty where ``tokens`` was not pulled.
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


LOOKS = (6, 12, 18)
"""After so many processes a case is looked at; one of which nothing can be said yet goes on to the next number.

Six are as few as a t interval is still of use with: a share has to be told from another, not from itself within 1 %. A
verdict may fall at every look, so each has its part of the error rate.
"""
MIN_PROCESSES = 2
"""Fewer have no spread."""
COPIES = 1.02
"""With one expert's weights for all, so many times as many bytes are moved at most, unless somebody copies weights."""
OPEN: Mapping[Limit, tuple[Lever, ...]] = {
    Limit.FIRST_TOUCH: ("pages",),
    Limit.MEMORY: ("one_expert", "few_experts"),
    Limit.HOST: ("tiny",),
}
"""Shares that are not known where all of these levers are missing."""


def responses(lever: Lever, work: Mapping[Lever, Work], roofs: Roofs, other: Roofs | None) -> dict[Limit, Range]:
    """By what factor a time changes with a lever, by what limits it: the lowest and the highest."""
    factors = dict.fromkeys((Limit.COMPUTE, Limit.MEMORY, Limit.CACHE, Limit.HOST), 1.0)
    same = dict.fromkeys(Limit, (1.0, 1.0))
    if lever == "pages":
        return same | {Limit.FIRST_TOUCH: (0.0, 0.0)}
    if lever == "one_expert":
        base = work["base"]
        # what is read of weights goes; what is read and written of other tensors stays
        return same | {Limit.MEMORY: (0.0, 1 - _ratio(base.existing_bytes, base.moved_bytes))}
    if lever == "few_experts":
        part = _ratio(work[lever].flops, work["base"].flops)
        # fewer operators where members run one by one, the same in one product of all
        return dict.fromkeys(Limit, (part, part)) | {Limit.HOST: (part, 1.0), Limit.MEMORY: (0.0, part)}
    if lever == "threads":
        if other is not None:
            factors[Limit.COMPUTE] = roofs.peak / other.peak
            factors[Limit.MEMORY], factors[Limit.CACHE] = roofs.memory / other.memory, roofs.cache / other.cache
    elif lever in work:
        base, changed = work["base"], work[lever]
        factors[Limit.COMPUTE] = _ratio(changed.flops, base.flops)
        factors[Limit.MEMORY] = factors[Limit.CACHE] = _ratio(changed.moved_bytes, base.moved_bytes)
    known = factors.values()
    return same | {limit: (one, one) for limit, one in factors.items()} | {Limit.BELOW_ROOF: (min(known), max(known))}


def predict(lever: Lever, shares: Mapping[Limit, float], answers: Mapping[Limit, Range]) -> Range:
    """The ratio of times that shares of the time give, from what each answers a lever with.

    All but ``pages`` are pulled where nothing is touched for the first time, so they divide what is left without that.
    """
    if lever != "pages":
        shares = {limit: share for limit, share in shares.items() if limit is not Limit.FIRST_TOUCH}
    whole = sum(shares.values()) or 1.0
    low, high = (sum(share * answers[limit][end] for limit, share in shares.items()) / whole for end in (0, 1))
    return low, high


def shares_by_levers(
    ratios: Mapping[Lever, float],
    base_s: float,
    work: Mapping[Lever, Work],
    roofs: Roofs,
    unknown: Mapping[Limit, float] | None = None,
) -> dict[Limit, float]:
    """The shares of a call's time that follow from what levers did to it; they add up to about 1.

    Args:
        ratios: time with a lever over the time without.
        base_s: the time without, where memory is kept.
        work: what every variant has to do.
        roofs: of the machine.
        unknown: which part of what the others leave those shares are taken to be for which no lever was pulled.
    """
    unknown = unknown or {}
    base, doubled = work["base"], work["tokens"]
    growth = _ratio(doubled.flops, base.flops) - 1
    grown = (ratios["tokens"] - 1) / growth if growth > 0 else 0.0
    host = _hosts(ratios, work) if "tiny" in ratios else unknown[Limit.HOST] * _share(1 - grown)
    if "one_expert" in ratios:
        memory = _share(1 - ratios["one_expert"])
    elif base.moved_bytes <= roofs.cache_bytes:
        memory = 0.0
    elif "few_experts" in ratios:
        times = _ratio(base.flops, work["few_experts"].flops)
        memory = _share(1 - host - times * (ratios["few_experts"] - host))
    else:
        memory = unknown[Limit.MEMORY] * _share(1 - host - grown)
    more_reading = memory * (_ratio(doubled.existing_bytes, base.existing_bytes) - 1)
    following = _share(grown - more_reading / growth) if growth > 0 else 0.0
    rest = max(0.0, 1 - host - memory - following)
    touched = unknown.get(Limit.FIRST_TOUCH, 0.0) * rest
    rest -= touched
    made, made_more = base.moved_bytes - base.existing_bytes, doubled.moved_bytes - doubled.existing_bytes
    growing = min(made, max(0, made_more - made))
    shares = dict.fromkeys(Limit, 0.0)
    shares[Limit.HOST], shares[Limit.MEMORY], shares[Limit.FIRST_TOUCH] = host, memory, touched
    follows = {Limit.COMPUTE: base.flops / roofs.peak, Limit.MEMORY: growing / roofs.memory}
    stays = {Limit.CACHE: base.existing_bytes / roofs.cache, Limit.MEMORY: (made - growing) / roofs.memory}
    for needs_s, share in ((follows, following), (stays, rest)):
        limit = max(needs_s, key=lambda one: needs_s[one])
        near = nearness(needs_s[limit] / (share * base_s)) if share * base_s > 0 else 0.0
        shares[limit] += near * share
        shares[Limit.BELOW_ROOF] += (1 - near) * share
    kept = _share(ratios.get("pages", 1.0))
    shares = {limit: kept * share for limit, share in shares.items()}
    shares[Limit.FIRST_TOUCH] += 1 - kept
    return shares


def _hosts(ratios: Mapping[Lever, float], work: Mapping[Lever, Work]) -> float:
    """The host's share: what stays with next to no work, less what is left of the work."""
    base, tiny = work["base"], work["tiny"]
    left = max(_ratio(tiny.flops, base.flops), _ratio(tiny.moved_bytes, base.moved_bytes))
    return _share((ratios["tiny"] - left) / (1 - left)) if left < 1 else 0.0


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
    work = next((record.work for record in good if record.work), None)
    if work is None:
        return "what the variants have to do was not counted"
    ratios = [_ratios(record) for record in good]
    gaps = _gaps(good, ratios, work)
    pulled = [{lever: ratio for lever, ratio in one.items() if lever not in gaps} for one in ratios]
    total = sum(division.seconds.values())
    by_profile = {limit: seconds / total for limit, seconds in division.by_resource().items()} if total else {}
    levers = [
        Pulled(lever, predict(lever, by_profile, responses(lever, work, roofs, other)), _ratio_estimate(pulled, lever))
        for lever in pulled[0]
        if any(lever in record.arms for record in good)
    ]
    by_levers: dict[Limit, Estimate] = {}
    agreement = Agreement.CANNOT_TELL
    if "tokens" in pulled[0]:
        base_s = [statistics.median(record.arms[record.reference].latency_s) for record in good]
        ends = [
            _units([shares_by_levers(one, s, work, roofs, unknown) for one, s in zip(pulled, base_s, strict=True)])
            for unknown in _unknowns(pulled[0], by_profile)
        ]
        by_levers = {limit: _hull([_interval(units[limit], 1 - ERROR_RATE) for units in ends]) for limit in Limit}
        agreement = judge(division.limits, ends)
    return LimitCheck(division.limits, by_profile, by_levers, levers, agreement, gaps)


def _gaps(
    records: Sequence[LimitCheckRecord], ratios: Sequence[Mapping[Lever, float]], work: Mapping[Lever, Work]
) -> dict[Lever, str]:
    """Levers that were not pulled in every process, or are other work, and why."""
    gaps = {lever: reason for record in records for lever, reason in record.gaps.items()}
    for lever in {lever for one in ratios for lever in one}:
        missing = sum(lever not in one for one in ratios)
        if missing:
            gaps.setdefault(lever, f"it was not pulled in {missing} of {len(records)} processes")
    base, one, few = work["base"], work.get("one_expert"), work.get("few_experts")
    if one is not None and one.moved_bytes > COPIES * base.moved_bytes:
        gaps["one_expert"] = "the implementation first copies weights that are not one block, which is other work"
    if few is not None and few.flops == base.flops:
        gaps["few_experts"] = "the implementation uses no more experts than that anyway"
    return gaps


def _unknowns(pulled: Mapping[Lever, float], by_profile: Mapping[Limit, float]) -> list[dict[Limit, float]]:
    """The ends of what the shares of missing levers may be; one that says nothing where none is missing.

    First touches are no question where the profile saw none, as on a device.
    """
    missing = [
        limit
        for limit, levers in OPEN.items()
        if not any(lever in pulled for lever in levers)
        if limit is not Limit.FIRST_TOUCH or by_profile.get(limit)
    ]
    return [dict(zip(missing, parts, strict=True)) for parts in product((0.0, 1.0), repeat=len(missing))]


def _units(shares: Sequence[Mapping[Limit, float]]) -> dict[Limit, np.ndarray]:
    return {limit: np.array([one[limit] for one in shares]) for limit in Limit}


def _hull(estimates: Sequence[Estimate]) -> Estimate:
    low, high = min(one.low for one in estimates), max(one.high for one in estimates)
    return Estimate(statistics.mean(one.value for one in estimates), low, high)


def judge(named: Sequence[Limit], ends: Sequence[Mapping[Limit, np.ndarray]]) -> Agreement:
    """Whether the largest of the named shares is surely larger than all others.

    Args:
        named: by the profile.
        ends: one share a process and limit, for each end of what is not known; all must say the same.
    """
    found = {_judge_one(named, units) for units in ends}
    return found.pop() if len(found) == 1 else Agreement.CANNOT_TELL


def _judge_one(named: Sequence[Limit], units: Mapping[Limit, np.ndarray]) -> Agreement:
    rivals = [limit for limit in Limit if limit not in named]
    if not rivals:
        return Agreement.CANNOT_TELL
    largest = max(named, key=lambda limit: units[limit].mean())
    error_rate = ERROR_RATE / len(LOOKS)
    leads = [units[largest] - units[rival] for rival in rivals]
    # it has to lead all of them, so each may be asked at the full rate; to trail any one of them is as many chances
    if all(_interval(lead, 1 - error_rate).low > 0 for lead in leads):
        return Agreement.AGREES
    trails = any(_interval(lead, 1 - error_rate / len(rivals)).high < 0 for lead in leads)
    return Agreement.DISAGREES if trails else Agreement.CANNOT_TELL


def _ratios(record: LimitCheckRecord) -> dict[Lever, float]:
    """What every lever did to the time in one process: paired by rounds, but ``pages`` by the time before it."""
    logs = {lever: np.log(arm.latency_s) for lever, arm in record.arms.items()}
    reference = record.reference
    found = {
        lever: float(np.exp(np.median(log - logs[reference])))
        for lever, log in logs.items()
        if lever not in ("base", reference)
    }
    if reference == "base" and "pages" not in record.gaps:
        found["pages"] = 1.0  # it touches hardly anything for the first time, so there was nothing to keep
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


def _ratio(changed: int, base: int) -> float:
    return changed / base if base else 1.0


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
