"""What lint found in a run, once for every implementation and rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.store.qualified import Finding
from bench.store.schema import CaseRecord


@dataclass(frozen=True, slots=True)
class Found:
    """A known reason why an implementation is slow.

    Attributes:
        impl: whose.
        num_cases: cases that show it.
        worst: the finding in the one of them with the most work, where it weighs most.
    """

    impl: str
    num_cases: int
    worst: Finding

    @property
    def sentence(self) -> str:
        """The same in plain words, with what to do."""
        count = f"{self.num_cases} cases, in the largest " if self.num_cases > 1 else ""
        advice = self.worst.fix[0].upper() + self.worst.fix[1:]
        return f"{self.impl} is slow for a known reason, {self.worst.rule}: {count}{self.worst.evidence}. {advice}."


def gather(cases: Iterable[CaseRecord]) -> tuple[Found, ...]:
    """Every finding of a run's cases, in the order in which implementations and rules first appear."""
    by_rule: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for record in cases:
        if record.qualified is not None and record.qualified.conduct is not None:
            for finding in record.qualified.conduct.findings:
                by_rule.setdefault((record.case.label, finding.rule), []).append((record.qualified.flops, finding))
    return tuple(
        Found(impl, len(findings), max(findings, key=lambda one: one[0])[1]) for (impl, _), findings in by_rule.items()
    )
