"""The section's answers in a few sentences: who is limited by what, why the slowest is slow, where memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.levers import Agreement
from bench.analysis.limits import limit_words
from bench.report.figures.experts import expert_sentence, expert_times
from bench.report.profiles.cases import Profiled
from bench.report.profiles.operators import Difference, differences
from bench.report.profiles.tables import peak_sentence


@dataclass(frozen=True)
class Answer:
    """A question's answer in words, and the picture that shows it: the last part of its slug."""

    question: str
    text: str
    picture: str


def answers(groups: Sequence[Sequence[Profiled]]) -> list[Answer]:
    """What the drawn workloads say of their layers; baselines are left out."""
    layers = [[case for case in group if not case.look.baseline] for group in groups]
    shown = [(number, group) for number, group in enumerate(layers, start=1) if group]
    found = [
        Answer(f"What limits {group[0].workload}?", text, "profile-limits")
        for _, group in shown
        if (text := _limits(group))
    ]
    slower = [one for _, group in shown for one in differences(group)]
    if slower:
        worst = max(slower, key=lambda one: one.case.profile.plain_s / one.base.profile.plain_s)
        found.append(_slowest(worst))
    one_by_one = [(case, times) for _, group in shown for case in group if (times := expert_times(case)) is not None]
    if one_by_one:
        case, times = max(one_by_one, key=lambda pair: len(pair[1].tokens))
        text = expert_sentence(case, times)
        found.append(Answer(f"What does an expert cost {case.impl} at {case.workload}?", text, "profile-experts"))
    peaks = [
        (case.profile.timeline.peak_bytes, number, case)
        for number, group in shown
        for case in group
        if case.profile.timeline is not None and case.profile.timeline.peak_bytes
    ]
    if peaks:
        _, number, case = max(peaks, key=lambda peak: peak[0])
        question = f"Where does the most memory go, that of {case.impl} at {case.workload}?"
        found.append(Answer(question, peak_sentence(case), f"profile-memory-{number}"))
    return found


def _limits(group: Sequence[Profiled]) -> str:
    """Who is limited by what, as in ``grouped and einsum by arithmetic; loop by the host``."""
    by_limits: dict[str, list[str]] = {}
    for case in group:
        if case.limit:
            by_limits.setdefault(limit_words(case.limit.whole.limits), []).append(_named(case))
    parts = [f"{_listed(names)} by {words}" for words, names in by_limits.items()]
    return f"{'; '.join(parts)}." if parts else ""


def _named(case: Profiled) -> str:
    doubted = case.check is not None and case.check.agreement is Agreement.DISAGREES
    return f"{case.impl} (its check disagrees)" if doubted else case.impl


def _slowest(one: Difference) -> Answer:
    limit = f" {one.case.impl} is limited by {limit_words(one.case.limit.whole.limits)}." if one.case.limit else ""
    return Answer(f"Why is {one.case.impl} slow at {one.case.workload}?", one.sentence + limit, "profile-stages")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
