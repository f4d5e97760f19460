"""What the analysis of a run gives to tables, reports and scripts: plain frozen data, no methods that compute.

Everything here is derived from the log when it is read (see :func:`bench.analysis.load`), never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from bench.analysis.divisions import CaseLimit
    from bench.analysis.findings import Found
    from bench.analysis.interval import Estimate
    from bench.analysis.levers import LimitCheck
    from bench.store.profiles import Profile
    from bench.store.qualified import RoutingFacts
    from bench.store.schema import RunInfo


class Verdict(StrEnum):
    """What may be said of one implementation against another.

    ``faster`` and ``slower``: the corrected interval of the ratio excludes 1. ``same``: it contains 1 and lies inside
    the equivalence band. Everything else is ``inconclusive``.
    """

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Comparison:
    """``impl`` against ``base`` on one workload, from paired rounds.

    Attributes:
        workload_id: the workload of both.
        impl, base: the implementations; a ratio below 1 means that ``impl`` takes less time.
        ratio: latency of ``impl`` over latency of ``base``; the interval is corrected over all comparisons of the run.
        p_value: uncorrected, two-sided.
        num_processes: independent processes behind it.
        verdict: the plain word.
        negligible: whether a ``faster`` or ``slower`` lies inside the equivalence band.
        more_processes: for an inconclusive one, about how many more processes would decide; None where that cannot
            be said.
        same_semantics: False where one of the two is a baseline, or only one drops assignments: such pairs are
            compared for information and never ranked.
        reason: why it is inconclusive, in words; empty for the other verdicts.
    """

    workload_id: str
    impl: str
    base: str
    ratio: Estimate
    p_value: float
    num_processes: int
    verdict: Verdict
    negligible: bool
    more_processes: int | None
    same_semantics: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Winner:
    """The outcome of one workload among exact implementations of the same semantics.

    Attributes:
        workload_id: the workload.
        impl: the one that is ``faster`` than each other, or None where there is no such one.
        contenders: where there is no winner, those that nobody is faster than, fastest estimate first.
        sentence: the same in plain words, for a report.
    """

    workload_id: str
    impl: str | None
    contenders: Sequence[str]
    sentence: str


@dataclass(frozen=True, slots=True)
class Control:
    """The self-test of the run: identical code must not differ, a planted slowdown must be found.

    Attributes:
        passed: both held; where not, verdicts are withheld (all ``inconclusive``) and ``sentence`` says why.
        twin: ratio of identical twins, with interval; None where no control was run.
        slowed: ratio of the slowed twin to the base; the truth is ``1 + planted_slowdown``.
        planted_slowdown: what was planted.
        noise_floor: the smallest relative difference that this run could show, half the width of ``twin``.
        sentence: the same in plain words.
    """

    passed: bool
    twin: Estimate | None
    slowed: Estimate | None
    planted_slowdown: float | None
    noise_floor: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Exponent:
    """How one implementation's cost grows along one axis of the sweep: cost ~ axis ** exponent.

    Attributes:
        quantity: ``latency`` or ``memory`` (peak of allocated bytes).
        axis: column of the frame.
        impl: the implementation.
        fixed: the values of the other fields that vary in the run, by column.
        span: smallest and largest value of the axis in the fit.
        num_points: values of the axis in the fit.
        fitted: slope over all points on logarithmic axes. Of latencies the 95 % interval is over processes; peaks are
            exact, and low and high are then the value.
        at_end: the same between the two largest values alone, which is where a theory of growth has to hold.
        num_processes: independent processes behind the interval; 0 for memory.
        theory: what the slope tends to; None where nothing is claimed.
        why: the theory in words; empty where nothing is claimed.
    """

    quantity: Literal["latency", "memory"]
    axis: str
    impl: str
    fixed: Mapping[str, Any]
    span: tuple[float, float]
    num_points: int
    fitted: Estimate
    at_end: Estimate
    num_processes: int
    theory: float | None
    why: str


@dataclass(frozen=True)
class Analysis:
    """Everything that is known of one run.

    Attributes:
        info: ``run.json``.
        frame: tidy table, one row a case, with the columns of :data:`bench.analysis.frame.COLUMNS`.
        comparisons: every pair of timed implementations on every workload.
        winners: one a workload.
        control: the self-test.
        ceilings: measured peaks by ``(what, device, dtype, threads)``, operations or bytes per second.
        exponents: scaling along the axes of the sweep, see :mod:`bench.analysis.scaling`.
        warnings: sentences with evidence and a next step.
        finished: whether the run went through to its end.
        in_samples_fraction: share of the run's wall time that was spent inside samples; None while unfinished.
        profiles: by case id, where time, memory and operations go; empty where none was asked for.
        not_profiled: by case id, why there is no profile though one was asked for.
        limits: by case id, what limits the profiled cases.
        not_limited: the profiled cases of which that cannot be said, with the reason.
        limit_checks: by case id, whether levers name the same limit.
        not_checked: by case id, why that is not known though it was asked for.
        routings: by workload id, the routing that happened, where the workload is routed.
        cache_bytes: by ``(device, threads)``, what is known to fit the last-level cache.
        folder: where the run was read from; None where it came from no folder.
        findings: known reasons why implementations are slow, as lint found them.
    """

    info: RunInfo
    frame: pd.DataFrame
    comparisons: Sequence[Comparison]
    winners: Sequence[Winner]
    control: Control
    ceilings: dict[tuple[str, str, str, int], Estimate]
    exponents: Sequence[Exponent] = field(default_factory=tuple)
    warnings: Sequence[str] = field(default_factory=tuple)
    finished: bool = True
    in_samples_fraction: float | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    not_profiled: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, CaseLimit] = field(default_factory=dict)
    not_limited: Mapping[str, str] = field(default_factory=dict)
    limit_checks: Mapping[str, LimitCheck] = field(default_factory=dict)
    not_checked: Mapping[str, str] = field(default_factory=dict)
    routings: Mapping[str, RoutingFacts] = field(default_factory=dict)
    cache_bytes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    folder: Path | None = None
    findings: Sequence[Found] = field(default_factory=tuple)
