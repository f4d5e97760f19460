"""A case's time divided by what limits it, as plain data; :mod:`bench.analysis.limits` does the dividing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

ALIKE = 0.75
"""A resource with so much of the largest one's share is named beside it: a profile does not tell them apart."""


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
        below: the part of ``seconds[BELOW_ROOF]`` that is in kernels near a roof, by that roof.
    """

    stage: str
    phase: str
    seconds: dict[Limit, float] = field(default_factory=lambda: dict.fromkeys(Limit, 0.0))
    below: dict[Limit, float] = field(default_factory=lambda: dict.fromkeys(Limit, 0.0))

    def by_resource(self) -> dict[Limit, float]:
        """The same time by what limits it: a kernel near its roof belongs to that roof as a whole."""
        near = {limit: self.seconds[limit] + self.below[limit] for limit in Limit}
        near[Limit.BELOW_ROOF] = self.seconds[Limit.BELOW_ROOF] - sum(self.below.values())
        return near

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The resource that takes the most time, and those that take nearly as much (:data:`ALIKE`), largest first."""
        near = self.by_resource()
        ranked = sorted(Limit, key=lambda limit: -near[limit])
        return tuple(limit for limit in ranked if limit is ranked[0] or near[limit] >= ALIKE * near[ranked[0]] > 0)

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
        stages: the stages' times by cause, as the profiler saw them.
        sentence: the same in plain words, with what to try.
    """

    whole: Division
    stages: Sequence[Division]
    sentence: str
