"""What a comparison gives to tables, scripts and pull requests: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.analysis.interval import Estimate
from bench.cases import Case
from bench.store.schema import Status

Metric = Literal["latency", "memory", "energy", "accuracy"]
METRICS: tuple[Metric, ...] = ("latency", "memory", "energy", "accuracy")
NOT_COMPARED = "not_compared"


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity of one case, NEW against BASE.

    Attributes:
        base, new: seconds a call, bytes, joules a call, or relative error; None where it was not measured.
        ratio: NEW over BASE; below 1 is less time, less memory, less energy, a smaller error. None where either lacks.
        verdict: ``faster``/``slower`` for latency, ``less``/``more`` for memory and energy, ``better``/``worse`` for
            accuracy, ``same``, ``inconclusive``, or ``not_compared``.
        reason: why there is no verdict, in words; else empty.
    """

    base: float | None = None
    new: float | None = None
    ratio: Estimate | None = None
    verdict: str = NOT_COMPARED
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CaseComparison:
    """One case in both runs or versions, or in one only.

    Attributes:
        case: the case, as NEW has it where it has it.
        status_base, status_new: how it ended; None where that side does not have the case.
        reason_base, reason_new: why it ended so.
        changes: by quantity.
        num_processes_base, num_processes_new: independent processes behind the latency.
        p_value: of the latency, two-sided, uncorrected; None where there is none.
        negligible: whether a ``faster`` or ``slower`` lies within the band of 1 %.
        more_processes: for an inconclusive latency, about how many more processes would decide; None where that cannot
            be said or would not help.
        fails: the limits of ``--fail-if`` that it fails, and a status that got worse.
    """

    case: Case
    status_base: Status | None
    status_new: Status | None
    reason_base: str = ""
    reason_new: str = ""
    changes: Mapping[Metric, Change] = field(default_factory=dict)
    num_processes_base: int = 0
    num_processes_new: int = 0
    p_value: float | None = None
    negligible: bool = False
    more_processes: int | None = None
    fails: Sequence[str] = ()

    @property
    def broken(self) -> bool:
        """Whether it was ok and is not any more."""
        return self.status_base is Status.OK and self.status_new not in (Status.OK, None)

    @property
    def verdict(self) -> str:
        """The word for the case: its latency's, unless its status says more."""
        if self.status_base is None or self.status_new is None:
            return "only_in_new" if self.status_base is None else "only_in_base"
        if self.broken:
            return "broken"
        if self.status_base is not Status.OK and self.status_new is Status.OK:
            return "repaired"
        return self.change("latency").verdict

    @property
    def reason(self) -> str:
        """Why there is no verdict, or what became of the case."""
        if self.broken:
            return f"was ok, is {self.status_new}: {self.reason_new}"
        if self.verdict == "repaired":
            return f"was {self.status_base}, is ok"
        if self.status_base is not None and self.status_base is self.status_new and self.status_new is not Status.OK:
            return f"{self.status_new} in both: {self.reason_new}"
        if None not in (self.status_base, self.status_new) and self.status_new is not Status.OK:
            return f"was {self.status_base}, is {self.status_new}: {self.reason_new}"
        return self.reason_new or self.reason_base or self.change("latency").reason

    def change(self, metric: Metric) -> Change:
        """One quantity; ``not_compared`` where nothing is known of it."""
        return self.changes.get(metric, Change(reason="not measured"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a comparison found.

    Attributes:
        base, new: what the two sides are called; never an absolute path.
        interleaved: whether both were alive at once.
        cases: matched cases first, then those of one side only.
        forced: the differences that would have stopped the comparison without ``--force``.
        caveats: sentences that a reader must know.
        limits: what ``--fail-if`` asked for.
    """

    base: str
    new: str
    interleaved: bool
    cases: Sequence[CaseComparison]
    forced: Sequence[str] = ()
    caveats: Sequence[str] = ()
    limits: Sequence[str] = ()
