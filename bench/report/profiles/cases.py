"""Profiled cases made ready for pictures and tables: in a fixed order, with printable names and the machine's roofs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis.divisions import CaseLimit
from bench.analysis.interval import Estimate
from bench.analysis.levers import LimitCheck
from bench.analysis.limits import bytes_to_keep
from bench.limit_table import check_sentence
from bench.report.slices import evenly
from bench.report.style import Look
from bench.report.view import View, without_paths
from bench.store.profiles import OperatorTime, Profile, StageTime

MAX_WORKLOADS = 4
MAX_IMPLS = 8
"""So many workloads, and implementations of each, are drawn; ``profiles.csv`` has all."""


@dataclass(frozen=True)
class Roofs:
    """What this machine can do at most where the case ran.

    Attributes:
        peak: operations a second of matrix products.
        memory: bytes a second of main memory.
        cache: of the last-level cache; None where it was not measured or the case's caches are cold.
        cache_bytes: what is known to fit it.
        existing_fit: whether weights and tokens stay in it from call to call.
    """

    peak: Estimate
    memory: Estimate
    cache: Estimate | None
    cache_bytes: int
    existing_fit: bool

    def bandwidth(self, *, fits: bool) -> float:
        """Of the cache for what fits it, else of main memory."""
        return self.cache.value if self.cache is not None and fits else self.memory.value

    def needed_s(self, row: OperatorTime) -> float:
        """Seconds that the machine needs at least for all calls of an operator.

        What was there before the call comes from the cache only where all of it fits, as when a case's limit is found.
        """
        moved, existing = row.moved_bytes or 0, row.existing_bytes or 0
        made_s = (moved - existing) / self.bandwidth(fits=moved <= self.cache_bytes * max(1, row.calls))
        return max((row.flops or 0) / self.peak.value, made_s + existing / self.bandwidth(fits=self.existing_fit))


@dataclass(frozen=True)
class Profiled:
    """One profiled case.

    Attributes:
        case_id, workload_id: as in the frame.
        impl: printable name, and how it is drawn: ``look``.
        workload: words that tell its workload from the others.
        profile: what was recorded.
        limit: what limits it; None where that cannot be said, for the reason ``no_limit``.
        check: whether levers name the same limit; None where that was not asked for.
        latency: as timed, with its interval; None where it was not timed.
        roofs: None where the run has none for it.
        tokens_per_expert: assignments that each expert kept; empty for what does not route.
    """

    case_id: str
    workload_id: str
    impl: str
    look: Look
    workload: str
    profile: Profile
    limit: CaseLimit | None
    no_limit: str
    check: LimitCheck | None
    latency: Estimate | None
    roofs: Roofs | None
    tokens_per_expert: Sequence[int]

    @property
    def scale(self) -> float:
        """Turns a time of the host in the profiled call into one of a call that nobody watches."""
        return self.profile.plain_s / self.profile.whole_s if self.profile.whole_s else 1.0

    def seconds(self, part: StageTime | OperatorTime) -> float:
        """As in a call that nobody watches: what the profiler takes, it takes from the host and not from a device."""
        return self.scale * part.host_s if part.device_s is None else part.device_s

    @property
    def disturbed(self) -> bool:
        """Whether the machine was disturbed while it was profiled."""
        return bool(self.profile.disturbed)


def profiled_cases(view: View) -> list[Profiled]:
    """All profiled cases: workloads in the order of the sweep, implementations in drawing order."""
    analysis = view.analysis
    order = {impl: place for place, impl in enumerate(view.looks)}
    place_of = {workload_id: place for place, workload_id in enumerate(view.workloads)}
    rows = view.frame[view.frame["case_id"].isin(analysis.profiles.keys())].drop_duplicates("case_id")
    found = []
    for row in rows.to_dict("records"):
        facts = analysis.routings.get(row["workload_id"])
        profile = analysis.profiles[row["case_id"]]
        timed = row["latency_s"] == row["latency_s"]
        found.append(
            Profiled(
                case_id=row["case_id"],
                workload_id=row["workload_id"],
                impl=row["impl"],
                look=view.looks[row["impl"]],
                workload=view.workloads[row["workload_id"]],
                profile=profile,
                limit=analysis.limits.get(row["case_id"]),
                no_limit=analysis.not_limited.get(row["case_id"], ""),
                check=analysis.limit_checks.get(row["case_id"]),
                latency=Estimate(row["latency_s"], row["latency_low_s"], row["latency_high_s"]) if timed else None,
                roofs=_roofs(view, row, profile),
                tokens_per_expert=facts.tokens_per_expert if facts is not None else [],
            )
        )
    return sorted(found, key=lambda one: (place_of[one.workload_id], order[one.impl]))


def _roofs(view: View, row: Mapping[Hashable, Any], profile: Profile) -> Roofs | None:
    device, dtype, threads, warm = row["device"], row["dtype"], row["threads"], row["cache"] == "warm"
    peak = view.analysis.ceilings.get(("matmul", device, dtype, threads))
    # bytes are bytes: a bandwidth that was measured in another number format will do
    bandwidths = {
        what: found
        for (what, at, _, many), found in sorted(view.analysis.ceilings.items(), key=lambda item: item[1].value)
        if (at, many) == (device, threads)
    }
    memory, cache = bandwidths.get("memory"), bandwidths.get("cache") if warm else None
    if peak is None or memory is None:
        return None
    cache_bytes = view.analysis.cache_bytes.get((device, threads), 0)
    return Roofs(peak, memory, cache, cache_bytes, existing_fit=bytes_to_keep(profile) <= cache_bytes)


def drawn_workloads(cases: Sequence[Profiled], limit: int = MAX_WORKLOADS) -> list[list[Profiled]]:
    """The workloads that stand for all: of those with at least half of the implementations, evenly taken, in order."""
    counts = Counter(case.workload_id for case in cases)
    most = max(counts.values(), default=0)
    ids = evenly([workload_id for workload_id, count in counts.items() if 2 * count >= most], limit)
    return [[case for case in cases if case.workload_id == workload_id][:MAX_IMPLS] for workload_id in ids]


def case_words(case: Profiled) -> str:
    """An implementation and its workload."""
    return f"{case.impl} · {case.workload}"


def limit_sentence(case: Profiled) -> str:
    """What limits the case, in words that are fit for a page."""
    if case.limit is None:
        return f"What limits it cannot be said: {without_paths(case.no_limit)}."
    why = case.profile.disturbed
    doubt = f" Doubtful: {why}, so the machine was disturbed meanwhile." if why else ""
    checked = f" {check_sentence(case.check)}" if case.check is not None else ""
    return without_paths(case.limit.sentence) + doubt + checked
