"""A case's time divided by what limits it, as plain data; :mod:`bench.analysis.limits` does the dividing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

FAR, NEAR = 1 / 8, 1 / 2
"""Kernels that spend less than the first share of their time at a roof are far from it, from the second on near."""
ALIKE = 0.1
"""A resource whose share of the time is less than this below the largest is named beside it."""
ATTRIBUTED = 0.15
"""So much of what the profiler itself took may have been taken from the wrong cause: it widens :data:`ALIKE`."""
MOST_ALIKE = 0.25
"""Nothing that is further from the largest is named beside it, nor what has less than half of its share."""


class Limit(StrEnum):
    """Where the time of a case goes."""

    COMPUTE = "compute"
    MEMORY = "memory"
    CACHE = "cache"
    HOST = "host"
    FIRST_TOUCH = "first touch"
    BELOW_ROOF = "below the roof"


def nearness(share: float) -> float:
    """How far a kernel that spends this share of its time at a roof is limited by that roof, between 0 and 1.

    All of it from :data:`NEAR` on, nothing up to :data:`FAR`, and by the logarithm in between: there is no edge at
    which a little noise would give a case another name.
    """
    if share <= FAR:
        return 0.0
    return min(1.0, math.log(share / FAR) / math.log(NEAR / FAR))


@dataclass(frozen=True, slots=True)
class Division:
    """The time of one stage, or of a whole case, by cause.

    Attributes:
        stage: name of the stage; empty for the whole case.
        phase: ``forward`` or ``backward``; empty for the whole case.
        seconds: by cause; they add up to the time.
        below: the part of ``seconds[BELOW_ROOF]`` that is in kernels near a roof, by that roof (:func:`nearness`).
        alike: shares that differ by less than this are not told apart.
    """

    stage: str
    phase: str
    seconds: dict[Limit, float] = field(default_factory=lambda: dict.fromkeys(Limit, 0.0))
    below: dict[Limit, float] = field(default_factory=lambda: dict.fromkeys(Limit, 0.0))
    alike: float = ALIKE

    def by_resource(self) -> dict[Limit, float]:
        """The same time by what limits it: of a kernel near its roof, what is lost beyond the roof too."""
        near = {limit: self.seconds[limit] + self.below[limit] for limit in Limit}
        near[Limit.BELOW_ROOF] = self.seconds[Limit.BELOW_ROOF] - sum(self.below.values())
        return near

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The resource that takes the most time, and those that take nearly as much (``alike``), largest first."""
        near = self.by_resource()
        ranked = sorted(Limit, key=lambda limit: -near[limit])
        largest = near[ranked[0]]
        least = max(largest / 2, largest - self.alike * sum(near.values()))
        return tuple(limit for limit in ranked if limit is ranked[0] or near[limit] > least)

    @property
    def limit(self) -> Limit:
        """The first of :attr:`limits`."""
        return self.limits[0]

    @property
    def share(self) -> float:
        """Its share of the time."""
        total = sum(self.seconds.values())
        return self.by_resource()[self.limit] / total if total else 0.0


@dataclass(frozen=True, slots=True)
class CaseLimit:
    """What limits a case.

    Attributes:
        whole: the case's time by cause.
        stages: the stages' times by cause, as the profiler saw them, less what its events cost inside of operators.
        sentence: the same in plain words, with what to try.
    """

    whole: Division
    stages: Sequence[Division]
    sentence: str
