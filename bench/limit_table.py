"""The table of checked limits: what each profile names, what the levers say, and what each lever did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.analysis.divisions import Limit
from bench.table import Table

if TYPE_CHECKING:
    from bench.analysis.interval import Estimate
    from bench.analysis.levers import LimitCheck, Pulled

HEADINGS = ["case", "named limit", "by levers", "agreement", "lever", "predicted", "measured"]
NOTE = (
    "Ratios are of times, with the lever over without; predicted is what the profile's division allows. Shares and "
    "ratios are means over processes with 95 % intervals. * is outside of what was predicted."
)


def limit_table(checks: Mapping[str, LimitCheck], titles: Sequence[tuple[str, str]]) -> Table:
    """One row a lever; what is said of the case stands in the first of its rows.

    Args:
        checks: by case id.
        titles: ids and names of the cases, in the order of the table.
    """
    rows = []
    for case_id, title in titles:
        check = checks[case_id]
        said = [
            title,
            ", ".join(f"{limit} {check.by_profile.get(limit, 0.0):.0%}" for limit in check.named),
            share_words(check),
            str(check.agreement),
        ]
        for pulled in check.levers:
            rows.append([*said, pulled.lever, predicted_words(pulled), measured_words(pulled)])
            said = [""] * len(said)
        if not check.levers:
            rows.append([*said, "", "", ""])
    gaps = dict.fromkeys(f"{lever}: {reason}." for check in checks.values() for lever, reason in check.gaps.items())
    return Table("", HEADINGS, rows, " ".join([NOTE, *gaps]))


def share_words(check: LimitCheck) -> str:
    """The largest shares by levers, with intervals: ``compute 62-71 %, host 10-12 %``."""
    shares: list[tuple[Limit, Estimate]] = sorted(check.by_levers.items(), key=lambda item: -item[1].value)
    words = [
        f"{limit} {100 * max(0.0, share.low):.0f}-{100 * min(1.0, share.high):.0f} %"
        for limit, share in shares
        if share.value >= 0.05
    ]
    return ", ".join(words[:3]) or "not known"


def predicted_words(pulled: Pulled) -> str:
    """One number, or the range: ``x1.98`` or ``x1.00-1.35``."""
    low, high = pulled.predicted
    return f"x{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"x{low:.2f}-{high:.2f}"


def measured_words(pulled: Pulled) -> str:
    """As in ``x1.53 [1.49, 1.57]``; marked where it is not as predicted."""
    found = pulled.measured
    return f"x{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]{'' if pulled.as_predicted else ' *'}"


SAID = {
    "agrees": "Checked without the profiler, by levers, which agree",
    "disagrees": "Checked without the profiler, by levers, which disagree",
    "cannot tell": "Checked without the profiler, by levers, which cannot tell",
}


def check_sentence(check: LimitCheck) -> str:
    """Agreement, the shares by levers, and what each lever did, in one sentence."""
    did = "; ".join(
        f"{pulled.lever} {measured_words(pulled).rstrip(' *')}, predicted {predicted_words(pulled)}"
        for pulled in check.levers
    )
    shares = f": {share_words(check)}" if check.by_levers else ""
    return f"{SAID[check.agreement]}{shares}{f' ({did})' if did else ''}."
