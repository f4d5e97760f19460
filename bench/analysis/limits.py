"""What limits a case: arithmetic, memory, the host, or kernels that run below every roof.

A profile's time is divided among four causes, and the largest names the limit:

* **compute**: what the matrix products need at this machine's measured matrix peak;
* **memory** or **cache**: where an operator's bytes need longer than its arithmetic, what they need at the measured
  bandwidth: of the last-level cache where one call of the operator fits into it, else of main memory;
* **host**: time in which no operator ran (Python, autograd, waiting for the next call), and what calling an operator
  costs at all, which is read off the operators that only look at a tensor in another way;
* **below the roof**: what is left. A kernel ran, and the machine could have done its work faster: products too small,
  shapes that fit the processor badly, memory touched for the first time.

The profiler itself costs time where operators are called; how much is known (``whole_s - plain_s``), and it is taken
from the host's share, so that the four add up to the time of a call that nobody watched.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.store.profiles import OperatorTime, Profile


class Limit(StrEnum):
    """Where the time of a case goes."""

    COMPUTE = "compute"
    MEMORY = "memory"
    CACHE = "cache"
    HOST = "host"
    BELOW_ROOF = "below the roof"


@dataclass(frozen=True, slots=True)
class Division:
    """The time of one stage, or of a whole case, by cause.

    Attributes:
        stage: name of the stage; empty for the whole case.
        phase: ``forward`` or ``backward``; empty for the whole case.
        seconds: by cause; they add up to the time.
    """

    stage: str
    phase: str
    seconds: dict[Limit, float]

    @property
    def limit(self) -> Limit:
        """The largest cause."""
        return max(Limit, key=lambda limit: self.seconds[limit])

    @property
    def share(self) -> float:
        """Its share of the time."""
        total = sum(self.seconds.values())
        return self.seconds[self.limit] / total if total else 0.0


@dataclass(frozen=True, slots=True)
class CaseLimit:
    """What limits a case.

    Attributes:
        whole: the case's time by cause.
        stages: the stages' times by cause, as the profiler saw them.
        sentence: the same in plain words, with what to try.
    """

    whole: Division
    stages: Sequence[Division]
    sentence: str


ADVICE = {
    Limit.COMPUTE: "Only less arithmetic helps: a shorter number format, fewer or smaller experts per token.",
    Limit.MEMORY: "Only fewer bytes help: a shorter number format, weights that are read once for more tokens.",
    Limit.CACHE: "Fewer passes over the tokens help: operators that do more at once, or larger experts.",
    Limit.HOST: "Fewer operators help: batched or grouped products instead of one an expert, compilation, more tokens.",
    Limit.BELOW_ROOF: "Other shapes help: more tokens an expert, fewer and larger experts, another implementation.",
}


def find_limit(profile: Profile, workload: Workload, ceilings: Ceilings) -> CaseLimit | str:
    """What limits a profiled case, or the reason why that cannot be said."""
    roofs = ceilings.roofs(workload)
    if isinstance(roofs, str):
        return roofs
    peak, memory, cache, cache_bytes = roofs
    calling_s = _calling_s(profile.operators)
    stages = {(stage.phase, stage.stage): dict.fromkeys(Limit, 0.0) for stage in profile.stages}
    for row in profile.operators:
        seconds = stages.setdefault((row.phase, row.stage), dict.fromkeys(Limit, 0.0))
        _divide(row, seconds, peak, memory, cache, cache_bytes if workload.cache == "warm" else 0, calling_s)
    for stage in profile.stages:
        seconds = stages[stage.phase, stage.stage]
        whole_s = stage.host_s if stage.device_s is None else max(stage.host_s, stage.device_s)
        seconds[Limit.HOST] += min(stage.idle_s, whole_s)
        seconds[Limit.BELOW_ROOF] += max(0.0, whole_s - sum(seconds.values()))
    whole = {limit: sum(seconds[limit] for seconds in stages.values()) for limit in Limit}
    whole[Limit.HOST] = max(0.0, whole[Limit.HOST] - max(0.0, profile.whole_s - profile.plain_s))
    division = Division("", "", whole)
    return CaseLimit(
        division,
        [Division(stage, phase, seconds) for (phase, stage), seconds in stages.items()],
        _sentence(division, profile, peak),
    )


def _calling_s(operators: Sequence[OperatorTime]) -> float:
    """What calling an operator costs at all: the median of those that move nothing."""
    empty = [row.host_s / row.calls for row in operators if row.moved_bytes == 0 and row.calls]
    return statistics.median(empty) if empty else 0.0


def _divide(
    row: OperatorTime,
    seconds: dict[Limit, float],
    peak: float,
    memory: float,
    cache: float | None,
    cache_bytes: int,
    calling_s: float,
) -> None:
    """Add an operator's time to its causes."""
    time_s = row.host_s if row.device_s is None else row.device_s
    calls = max(1, row.calls)
    compute_s = (row.flops or 0) / peak
    moved = row.moved_bytes or 0
    in_cache = cache is not None and moved / calls <= cache_bytes
    bytes_s = moved / (cache if in_cache and cache is not None else memory)
    roof_s = min(time_s, max(compute_s, bytes_s))
    kind = Limit.COMPUTE if compute_s >= bytes_s else Limit.CACHE if in_cache else Limit.MEMORY
    called_s = min(time_s - roof_s, calling_s * calls)
    seconds[kind] += roof_s
    seconds[Limit.HOST] += called_s
    seconds[Limit.BELOW_ROOF] += time_s - roof_s - called_s


def _sentence(division: Division, profile: Profile, peak: float) -> str:
    parts = sorted(((s, limit) for limit, s in division.seconds.items()), key=lambda part: -part[0])
    total = sum(division.seconds.values())
    words = ", ".join(f"{s / total:.0%} {limit}" for s, limit in parts if total and s / total >= 0.05)
    text = f"Limited by {_noun(division.limit)}: {words}."
    products = [row for row in profile.operators if row.flops]
    if products and division.limit in (Limit.BELOW_ROOF, Limit.COMPUTE):
        most = products[0]
        time_s = most.host_s if most.device_s is None else most.device_s
        if time_s:
            share = (most.flops or 0) / time_s / peak
            text += f" Its longest product, {most.name} of {most.shapes}, reaches {share:.0%} of the matrix peak."
    return f"{text} {ADVICE[division.limit]}"


def _noun(limit: Limit) -> str:
    return {
        Limit.COMPUTE: "arithmetic",
        Limit.MEMORY: "main memory's bandwidth",
        Limit.CACHE: "the cache's bandwidth",
        Limit.HOST: "the host",
        Limit.BELOW_ROOF: "kernels that run below every roof",
    }[limit]
