"""What limits a case: arithmetic, memory, cache, the host, first touches, or kernels that run far below every roof.

A profile's time is divided among six causes:

* **compute**: what the matrix products need at this machine's measured matrix peak;
* **memory** and **cache**: where an operator's bytes need longer than its arithmetic, what they need at the measured
  bandwidths. What was there before the call (weights, tokens) comes from the cache only where all of it, and the
  call's peak, are known to fit; what the call itself made, where the operator's own bytes do. A product on a CPU was
  also timed with what it multiplies in the cache, and with twice the arithmetic (:mod:`bench.profiling.replay`): if
  something of it came from memory, what it took longer in the call is memory's; what is left is divided into what
  follows the arithmetic, which may be compute's, and what does not, which may be the cache's;
* **first touch**: writing to pages for the first time because their memory was given back to the system, and giving it
  back: their number in a plain call times what one costs, measured beside it;
* **host**: time in which no operator ran (Python, autograd, waiting for the next call); what it costs to call an
  operator at all, which is read off those that move nothing; and operators whose work needs less than that;
* **below the roof**: what is left. A kernel ran, and the machine could have done its work faster: products too small,
  shapes that fit the processor badly.

The case is limited by the resource whose kernels take the most time. A kernel, or the part of one, that spends half of
its time at its roof is limited by that roof as a whole, because twice the threads or half the work help all of it; one
that spends an eighth there is limited by none; between them the time beyond the roof is divided
(:func:`~bench.analysis.divisions.nearness`). Resources with nearly the same time are named together: within a tenth of
the call's, and more where the profiler itself took much that had to be taken off again.

The profiler itself costs time with every event that it writes down. How much is known (``whole_s - plain_s``), and it
is taken from where the events are: those inside of an operator from its time, the others from the host's.

On a device that works on its own, the host runs ahead: what it does meanwhile costs nothing. There the host's share is
the time in which the device had nothing to do, and a stage's part of it is in proportion to the time by which the host
was slower there than the device.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.analysis.divisions import ALIKE, ATTRIBUTED, MOST_ALIKE, CaseLimit, Division, Limit, nearness
from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.store.profiles import FirstTouches, OperatorTime, Profile

UNKNOWN = 0.1
"""Where more of the time than this is in operators of unknown work, nothing is said of the whole."""
ADVICE = {
    Limit.COMPUTE: "Less arithmetic helps: a shorter number format, fewer or smaller experts per token.",
    Limit.MEMORY: "Fewer bytes help: a shorter number format, weights that are read once for more tokens.",
    Limit.CACHE: "Fewer passes over the tokens help: operators that do more at once, or larger experts.",
    Limit.HOST: "Fewer operators help: batched or grouped products instead of one an expert, compilation, more tokens.",
    Limit.FIRST_TOUCH: "Memory that is kept helps: buffers that are used again, gradients that are not set to None, or "
    "an allocator that gives nothing back (with glibc, MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_).",
    Limit.BELOW_ROOF: "Other shapes help: more tokens an expert, fewer and larger experts, another implementation.",
}


def find_limit(profile: Profile, workload: Workload, ceilings: Ceilings) -> CaseLimit | str:
    """What limits a profiled case, or the reason why that cannot be said."""
    if "work" in profile.gaps:
        return profile.gaps["work"]
    if workload.device != "cpu" and not profile.on_device:
        return profile.gaps.get("device_s", "the time of the device is not known")
    roofs = ceilings.roofs(workload)
    if isinstance(roofs, str):
        return roofs
    peak, memory, cache, cache_bytes = roofs
    if reason := _unknown_work(profile):
        return reason
    watching = _Watching.of(profile)
    calling_s = 0.0 if profile.on_device else _calling_s(profile.operators, watching)
    speeds = _Speeds(peak, memory, cache, cache_bytes, existing_fit=False, calling_s=calling_s)
    if workload.cache == "warm":
        speeds = replace(speeds, existing_fit=bytes_to_keep(profile) <= cache_bytes)
    else:
        speeds = replace(speeds, cache=None)
    stages: dict[tuple[str, str], Division] = {
        (stage.phase, stage.stage): Division(stage.stage, stage.phase) for stage in profile.stages
    }
    for row in profile.operators:
        into = stages.setdefault((row.phase, row.stage), Division(row.stage, row.phase))
        _divide(row, into, speeds, watching)
    if profile.on_device:
        _add_gaps(profile, stages)
    else:
        _add_idle(profile, stages, watching)
    whole = Division("", "", alike=_alike(profile))
    for division in stages.values():
        for limit in Limit:
            whole.seconds[limit] += division.seconds[limit]
            whole.below[limit] += division.below[limit]
    whole.seconds[Limit.HOST] = max(0.0, whole.seconds[Limit.HOST] - watching.outside_s)
    _move_touches(profile, whole)
    return CaseLimit(whole, list(stages.values()), _sentence(whole, profile, peak))


def _unknown_work(profile: Profile) -> str:
    """Why nothing can be said where much of the time is in operators of which nobody knows what they had to do."""
    rows = [row for row in profile.operators if row.flops is None and row.moved_bytes is None]
    unknown_s = sum(row.seconds for row in rows)
    if unknown_s <= UNKNOWN * profile.whole_s:
        return ""
    names = ", ".join(dict.fromkeys(row.name for row in rows[:3]))
    return f"what {names} had to do is not known, and they take {unknown_s / profile.whole_s:.0%} of the time"


@dataclass(frozen=True, slots=True)
class _Watching:
    """What the profiler's own work cost, and which operators touched how much memory for the first time.

    Attributes:
        event_s: seconds that an event costs.
        outside_s: of all events that are in no operator.
        pages: of a plain call; None where they are not known.
        seen: the part that counts of the pages which the ledger saw operators touch first: a plain call may have fewer.
        unseen: the part that counts of the others which they allocated: a plain call may have more.
    """

    event_s: float
    outside_s: float
    pages: FirstTouches | None
    seen: float
    unseen: float

    @classmethod
    def of(cls, profile: Profile) -> _Watching:
        spent_s = max(0.0, profile.whole_s - profile.plain_s)
        inside = sum(row.events for row in profile.operators)
        event_s = spent_s / profile.events if profile.events and not profile.on_device else 0.0
        pages, seen, unseen = profile.pages, 0.0, 0.0
        if pages is not None:
            touched = sum(row.first_touches or 0 for row in profile.operators)
            others = sum(_others(row, pages) for row in profile.operators)
            seen = min(1.0, pages.num_pages / touched) if touched else 0.0
            unseen = min(1.0, max(0.0, pages.num_pages - touched) / others) if others else 0.0
        return cls(event_s, spent_s - event_s * min(inside, profile.events), pages, seen, unseen)

    def time_s(self, row: OperatorTime) -> float:
        """What an operator takes when nobody watches."""
        return max(0.0, row.seconds - self.event_s * row.events)

    def touching_s(self, row: OperatorTime) -> float:
        """What an operator spends on first touches."""
        if self.pages is None:
            return 0.0
        num_pages = self.seen * (row.first_touches or 0) + self.unseen * _others(row, self.pages)
        return min(self.time_s(row), num_pages * self.pages.touch_s)


def _others(row: OperatorTime, pages: FirstTouches) -> float:
    """Pages that an operator allocated and was not seen to touch first: they had been kept, in that call."""
    return max(0.0, (row.allocated_bytes or 0) / pages.page_bytes - (row.first_touches or 0))


def _alike(profile: Profile) -> float:
    """Which difference of two shares is too small to be told: the more the profiler took, the larger."""
    slowdown = max(0.0, profile.whole_s / profile.plain_s - 1) if profile.plain_s else 0.0
    return min(MOST_ALIKE, ALIKE + ATTRIBUTED * slowdown)


def _add_idle(profile: Profile, stages: Mapping[tuple[str, str], Division], watching: _Watching) -> None:
    """The host's share where it does the work itself."""
    inside_s: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row in profile.operators:
        inside_s[row.phase, row.stage] += row.seconds - watching.time_s(row)
    for stage in profile.stages:
        seconds = stages[stage.phase, stage.stage].seconds
        seconds[Limit.HOST] += min(stage.idle_s, stage.host_s)
        # what is in no row is spent between operators, by those that are made of others
        left_s = stage.host_s - inside_s[stage.phase, stage.stage] - sum(seconds.values())
        seconds[Limit.HOST] += max(0.0, left_s)


def _move_touches(profile: Profile, whole: Division) -> None:
    """Take from the host what first touches cost outside of operators: giving pages back, and what nobody placed."""
    if profile.pages is None:
        return
    all_s = profile.pages.num_pages * (profile.pages.touch_s + profile.pages.return_s)
    moved_s = min(whole.seconds[Limit.HOST], max(0.0, all_s - whole.seconds[Limit.FIRST_TOUCH]))
    whole.seconds[Limit.HOST] -= moved_s
    whole.seconds[Limit.FIRST_TOUCH] += moved_s


def _add_gaps(profile: Profile, stages: Mapping[tuple[str, str], Division]) -> None:
    """The host's share where the work is a device's: the time in which that had none."""
    gaps_s = max(0.0, profile.whole_s - sum(stage.device_s or 0.0 for stage in profile.stages))
    slower_s = {
        (stage.phase, stage.stage): max(0.0, stage.host_s - (stage.device_s or 0.0))
        for stage in profile.stages
        if stage.stage != "waiting"
    }
    total_s = sum(slower_s.values())
    for key, seconds in slower_s.items():
        stages[key].seconds[Limit.HOST] += gaps_s * seconds / total_s if total_s else 0.0


@dataclass(frozen=True, slots=True)
class _Speeds:
    """What the machine can do: operations and bytes per second, and what it keeps near.

    Attributes:
        existing_fit: whether weights and tokens stay in the cache from call to call.
        calling_s: what calling an operator costs at all.
    """

    peak: float
    memory: float
    cache: float | None
    cache_bytes: int
    existing_fit: bool
    calling_s: float


def bytes_to_keep(profile: Profile) -> float:
    """What must fit the cache for the next call to find its weights there; infinite where it is not known."""
    if profile.timeline is None:
        return math.inf
    touched = sum(row.existing_bytes or 0 for row in profile.operators)
    return min(touched, sum(profile.timeline.existing_bytes.values())) + profile.timeline.peak_bytes


def _calling_s(operators: Sequence[OperatorTime], watching: _Watching) -> float:
    """What calling an operator costs at all: the median of those that move nothing."""
    empty = [watching.time_s(row) / row.calls for row in operators if row.moved_bytes == 0 and row.calls]
    return statistics.median(empty) if empty else 0.0


def _divide(row: OperatorTime, into: Division, speeds: _Speeds, watching: _Watching) -> None:
    """Add an operator's time to its causes."""
    time_s = watching.time_s(row)
    calls = max(1, row.calls)
    touching_s = watching.touching_s(row)
    into.seconds[Limit.FIRST_TOUCH] += touching_s
    time_s -= touching_s
    moved, existing = row.moved_bytes or 0, row.existing_bytes or 0
    made_fit = moved / calls <= speeds.cache_bytes
    cached = 0 if speeds.cache is None else existing * speeds.existing_fit + (moved - existing) * made_fit
    if row.near_s is not None and cached < moved:
        reading_s = max(0.0, time_s - row.near_s)
        into.seconds[Limit.MEMORY] += reading_s
        time_s -= reading_s
        cached = moved if speeds.cache else 0
    cache_s = cached / speeds.cache if speeds.cache else 0.0
    memory_s = 0.0 if row.near_s is not None else (moved - cached) / speeds.memory
    compute_s = (row.flops or 0) / speeds.peak
    if max(compute_s, cache_s + memory_s) < speeds.calling_s * calls:
        into.seconds[Limit.HOST] += time_s
        return
    if row.near_s and row.follows_s is not None:
        follows_s = time_s * min(1.0, row.follows_s / row.near_s)
        _at_roof(into, Limit.COMPUTE, min(compute_s, follows_s), follows_s)
        called_s = min(time_s - follows_s, speeds.calling_s * calls)
        stays_s = time_s - follows_s - called_s
        _at_roof(into, Limit.CACHE, min(cache_s, stays_s), stays_s)
    else:
        limit, needed_s = Limit.COMPUTE, compute_s
        if compute_s < cache_s + memory_s:
            limit, needed_s = Limit.CACHE if cache_s > memory_s else Limit.MEMORY, cache_s + memory_s
        roof_s = min(time_s, needed_s)
        called_s = min(time_s - roof_s, speeds.calling_s * calls)
        _at_roof(into, limit, roof_s, time_s - called_s)
    into.seconds[Limit.HOST] += called_s


def _at_roof(into: Division, limit: Limit, roof_s: float, time_s: float) -> None:
    """Add a time of which a part is spent at a roof; of the rest as much is that roof's as it is near."""
    left_s = time_s - roof_s
    into.seconds[limit] += roof_s
    into.seconds[Limit.BELOW_ROOF] += left_s
    if left_s > 0:
        into.below[limit] += left_s * nearness(roof_s / time_s)


def _sentence(division: Division, profile: Profile, peak: float) -> str:
    total = sum(division.seconds.values())
    if not total:
        return "It takes no time."
    near = division.by_resource()
    limit = division.limit
    shown = [kind for kind in sorted(Limit, key=lambda kind: -near[kind]) if near[kind] >= 0.05 * total]
    words = ", ".join(_share(kind, division, total) for kind in shown)
    text = f"Limited by {limit_words(division.limits)}: {words}."
    products = [row for row in profile.operators if row.flops and not row.folded]
    if products and limit in (Limit.BELOW_ROOF, Limit.COMPUTE):
        most = products[0]
        time_s = most.seconds
        if time_s:
            share = (most.flops or 0) / time_s / peak
            text += f" Its longest product, {most.name} of {most.shapes}, reaches {share:.0%} of the matrix peak."
    return " ".join([text, *(ADVICE[limit] for limit in division.limits)])


def limit_words(limits: Sequence[Limit]) -> str:
    """As in ``arithmetic`` or ``main memory's bandwidth and the host alike``."""
    *others, last = (NOUNS[limit] for limit in limits)
    return f"{', '.join(others)} and {last} alike" if others else last


def _share(limit: Limit, division: Division, total_s: float) -> str:
    """As in ``60% compute (20% of the time lost below that roof)``."""
    share = f"{division.by_resource()[limit] / total_s:.0%} {limit}"
    below = division.below[limit] / total_s
    return f"{share} ({below:.0%} of the time lost below that roof)" if below >= 0.05 else share


NOUNS = {
    Limit.COMPUTE: "arithmetic",
    Limit.MEMORY: "main memory's bandwidth",
    Limit.CACHE: "the cache's bandwidth",
    Limit.HOST: "the host",
    Limit.FIRST_TOUCH: "memory that is touched for the first time",
    Limit.BELOW_ROOF: "kernels that run far below every roof",
}
