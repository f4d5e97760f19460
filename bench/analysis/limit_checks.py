"""What limits the profiled cases of a run, and what levers say of that: from the records, for all cases together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from bench.analysis.divisions import CaseLimit
from bench.analysis.levers import LimitCheck, Roofs, check_limit
from bench.analysis.limits import find_limit
from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.store.profiles import Profile
from bench.store.schema import AnyRecord, CaseRecord, CeilingRecord, LimitCheckRecord, ProfileRecord


def find_limits(
    profiles: Mapping[str, Profile], cases: Mapping[str, CaseRecord], ceilings: Ceilings
) -> dict[str, CaseLimit | str]:
    """What limits every profiled case, or the reason why that cannot be said, by case id."""
    return {
        case_id: find_limit(profile, cases[case_id].case.workload, ceilings)
        for case_id, profile in profiles.items()
        if case_id in cases
    }


def check_limits(
    records: Iterable[AnyRecord],
    limits: Mapping[str, CaseLimit | str],
    cases: Mapping[str, CaseRecord],
    ceilings: Ceilings,
) -> dict[str, LimitCheck | str]:
    """The check of every case that it was asked for, or the reason why there is none."""
    by_case: defaultdict[str, list[LimitCheckRecord]] = defaultdict(list)
    for record in records:
        if isinstance(record, LimitCheckRecord) and record.case_id in cases:
            by_case[record.case_id].append(record)
    found: dict[str, LimitCheck | str] = {}
    for case_id, group in by_case.items():
        workload = cases[case_id].case.workload
        roofs = _roofs(ceilings, workload)
        limit = limits.get(case_id, "it was not profiled")
        if isinstance(limit, str) or roofs is None:
            found[case_id] = group[0].reason or f"its profile names no limit: {limit}"
            continue
        threads = group[0].other_threads
        other = _roofs(ceilings, workload.model_copy(update={"threads": threads})) if threads else None
        found[case_id] = check_limit(limit.whole, group, roofs, other)
    return found


def _roofs(ceilings: Ceilings, workload: Workload) -> Roofs | None:
    roofs = ceilings.roofs(workload)
    if isinstance(roofs, str):
        return None
    peak, memory, cache, cache_bytes = roofs
    return Roofs(peak, memory, cache or memory, cache_bytes if cache and workload.cache == "warm" else 0)


def checks_so_far(records: Sequence[AnyRecord]) -> dict[str, LimitCheck | str]:
    """What levers say of the limits that profiles name, as far as the records go: by case id, or why they say nothing.

    For whoever is still measuring.
    """
    cases = {record.case_id: record for record in records if isinstance(record, CaseRecord)}
    profiles = {r.case_id: r.profile for r in records if isinstance(r, ProfileRecord) and r.profile is not None}
    ceilings = Ceilings.of(record for record in records if isinstance(record, CeilingRecord))
    return check_limits(records, find_limits(profiles, cases, ceilings), cases, ceilings)
