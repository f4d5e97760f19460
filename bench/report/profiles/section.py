"""The page's section on profiles: pictures, sentences and tables, or nothing where no case was profiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.limit_table import limit_table
from bench.report.figures.canvas import Picture
from bench.report.figures.causes import causes_picture, stages_picture
from bench.report.figures.experts import expert_sentence, expert_times, experts_picture
from bench.report.figures.stage_roof import above_roof, bandwidth_picture, stage_roof_picture
from bench.report.figures.timeline import timeline_picture
from bench.report.profiles.answers import Answer, answers
from bench.report.profiles.cases import Profiled, case_words, drawn_workloads, limit_sentence, profiled_cases
from bench.report.profiles.export import TraceFile, find_traces
from bench.report.profiles.operators import Difference, differences
from bench.report.profiles.tables import (
    LargeTensors,
    OperatorTable,
    PivotTable,
    kind_table,
    large_tensors,
    operator_table,
    peak_sentence,
    stage_table,
)
from bench.report.view import View, without_paths
from bench.table import Table
from bench.units import bytes_

MAX_TIMELINES = 3
MAX_SENTENCES = 40
MAX_TRACE_LINKS = 200


@dataclass(frozen=True)
class WorkloadPart:
    """What the page says of one drawn workload.

    Attributes:
        words: which it is.
        stages: implementations by stage.
        kinds: implementations by kind of operator.
        differences: of each implementation to the fastest.
        operators: the operators of each implementation.
        timeline: memory over time; None where it is not drawn.
        peaks: what each implementation's peak is made of, in words.
        tensors: the largest tensors at each peak.
    """

    words: str
    stages: PivotTable
    kinds: PivotTable
    differences: Sequence[Difference]
    operators: Sequence[OperatorTable]
    timeline: Picture | None
    peaks: Sequence[str]
    tensors: Sequence[LargeTensors]


@dataclass(frozen=True)
class Traces:
    """Traces of one case: kind in words, link and size."""

    words: str
    links: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class ProfileSection:
    """Everything that the page says of the profiles of one run."""

    cases: Sequence[Profiled]
    answers: Sequence[Answer]
    causes: Picture | None
    stages: Picture | None
    experts: Picture | None
    roofline: Picture | None
    bandwidth: Picture | None
    limits: Sequence[tuple[str, str]]
    num_limits: int
    checks: Table | None
    expert_sentences: Sequence[str]
    above_roof: Sequence[str]
    workloads: Sequence[WorkloadPart]
    num_workloads: int
    gaps: Sequence[tuple[str, str]]
    files: Sequence[TraceFile]
    traces: Sequence[Traces]
    num_without_trace: int
    pictures: list[Picture] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        timelines = [part.timeline for part in self.workloads]
        found = [self.causes, self.stages, *timelines, self.roofline, self.experts, self.bandwidth]
        self.pictures.extend(picture for picture in found if picture is not None)


def make_section(view: View, slug_prefix: str = "") -> ProfileSection | None:
    """None where the run has no profiles."""
    cases = profiled_cases(view)
    if not cases:
        return None
    groups = drawn_workloads(cases)
    drawn = [case for group in groups for case in group]
    rest = [case for case in cases if case not in drawn]
    sentences = [(case_words(case), limit_sentence(case)) for case in (*drawn, *rest)]
    files = find_traces(view, [*drawn, *rest], slug_prefix)
    traced = {file.case_id for file in files}
    return ProfileSection(
        cases=cases,
        answers=answers(groups),
        causes=causes_picture(view, cases, slug_prefix),
        stages=stages_picture(view, cases, slug_prefix),
        experts=experts_picture(view, cases, slug_prefix),
        roofline=stage_roof_picture(view, cases, slug_prefix),
        bandwidth=bandwidth_picture(view, cases, slug_prefix),
        limits=sentences[:MAX_SENTENCES],
        num_limits=len(sentences),
        checks=_checks([*drawn, *rest]),
        expert_sentences=[
            f"{expert_sentence(case, times)} ({case.workload})"
            for case in drawn
            if (times := expert_times(case)) is not None
        ],
        above_roof=above_roof(cases),
        workloads=[_workload(view, group, number, slug_prefix) for number, group in enumerate(groups, start=1)],
        num_workloads=len({case.workload_id for case in cases}),
        gaps=[
            (case_words(case), f"{name}: {without_paths(reason)}")
            for case in cases
            for name, reason in case.profile.gaps.items()
        ],
        files=files,
        traces=[_traces(case, files) for case in (*drawn, *rest) if case.case_id in traced][:MAX_TRACE_LINKS],
        num_without_trace=sum(bool(case.profile.traces) and case.case_id not in traced for case in cases),
    )


def _checks(cases: Sequence[Profiled]) -> Table | None:
    """What the levers say of each case's limit; None where nobody pulled them."""
    checks = {case.case_id: case.check for case in cases if case.check is not None}
    titles = [(case.case_id, case_words(case)) for case in cases if case.case_id in checks]
    return limit_table(checks, titles[:MAX_SENTENCES]) if checks else None


def _workload(view: View, group: Sequence[Profiled], number: int, slug_prefix: str) -> WorkloadPart:
    return WorkloadPart(
        words=group[0].workload,
        stages=stage_table(group),
        kinds=kind_table(group),
        differences=differences(group),
        operators=[operator_table(case) for case in group],
        timeline=timeline_picture(view, group, number, slug_prefix) if number <= MAX_TIMELINES else None,
        peaks=[sentence for case in group if (sentence := peak_sentence(case))],
        tensors=[table for case in group if (table := large_tensors(case)) is not None],
    )


_KINDS = {
    "perfetto": "timeline of one call",
    "memory": "memory snapshot",
    "allocator": "snapshot of the CUDA allocator",
}


def _traces(case: Profiled, files: Sequence[TraceFile]) -> Traces:
    own = [file for file in files if file.case_id == case.case_id]
    return Traces(case_words(case), [(_KINDS.get(f.kind, f.kind), f.name, bytes_(f.num_bytes)) for f in own])
