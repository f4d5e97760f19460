"""The section on conduct: a row an implementation, findings with evidence and advice, and silence about older runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.findings import Found, gather
from bench.analysis.model import Analysis
from bench.cases import Case, Workload
from bench.report import write_report
from bench.report.conduct import COLUMNS, make_conduct
from bench.report.view import make_view
from bench.store.qualified import Conduct, Finding, Qualified
from bench.store.schema import CaseRecord

TRAP = Finding(rule="quadratic_indexing", evidence="32 gradients <of> full size", fix="take them apart once")


@pytest.fixture
def watched(analysis_factory: Callable[..., Analysis]) -> Analysis:
    """Two implementations on a few workloads, with figures of conduct as a run records them."""
    analysis = analysis_factory(experts=(8, 32), top_ks=(2,), capacities=("none",))
    frame = analysis.frame[analysis.frame["impl"].isin(["loop", "grouped"])].copy()
    loop = frame["impl"] == "loop"
    frame["allocator"] = "glibc 2.36, MALLOC_ARENA_MAX=1"
    frame["host_syncs"] = [1.0 if is_loop else 0.0 for is_loop in loop]
    frame.loc[loop & (frame["num_experts"] == 32), "host_syncs"] = 33.0
    frame["distinct_results"] = [3.0 if is_loop else 1.0 for is_loop in loop]
    frame["deterministic_ratio"] = [float("nan") if is_loop else 1.25 for is_loop in loop]
    frame["gaps"] = [
        "deterministic_ratio: it has no deterministic path: index_add" if is_loop else "" for is_loop in loop
    ]
    frame["path"] = ["" if is_loop else "grouped_mm" for is_loop in loop]
    frame["work_ratio"] = [1.0 if is_loop else 1.5 for is_loop in loop]
    frame["workspace_bytes"] = 2.0**20
    frame["num_operators"] = 40.0
    return replace(analysis, frame=frame, comparisons=(), winners=(), findings=(Found("loop", 2, TRAP),))


def test_each_implementation_has_its_figures_over_all_cases(watched: Analysis) -> None:
    conduct = make_conduct(make_view(watched))
    assert conduct is not None
    rows = {impl: dict(zip(COLUMNS, texts, strict=True)) for impl, texts in conduct.rows}
    assert rows["loop"] == {
        "waits": "1 to 33",
        "same bits": "no, in 2 of 2 cases",
        "deterministic": "none in 2 of 2 cases",
        "path": "the only one",
        "products / useful": "1.00",
        "workspace": "1.00 MiB",
        "operators": "40",
    }
    assert rows["grouped"]["same bits"] == "yes"
    assert rows["grouped"]["deterministic"] == "\N{MULTIPLICATION SIGN} 1.25"
    assert rows["grouped"]["path"] == "grouped_mm"
    assert (conduct.allocators, conduct.on_cpu) == (["glibc 2.36, MALLOC_ARENA_MAX=1"], True)


@pytest.mark.usefixtures("undrawn")
def test_the_page_names_the_trap_with_its_evidence_and_what_to_do(watched: Analysis, tmp_path: Path) -> None:
    text = write_report([watched], tmp_path).read_text()
    section = text[text.index('id="conduct"') :]
    assert "<strong>loop: quadratic indexing.</strong>" in section
    assert "In 2 cases; in the largest 32 gradients &lt;of&gt; full size." in section
    assert "<em>What to do:</em> take them apart once." in section
    assert "what the same calls would do on a GPU" in section


@pytest.mark.usefixtures("undrawn")
def test_what_lint_found_stands_on_the_page_once(watched: Analysis, tmp_path: Path) -> None:
    warned = replace(watched, warnings=("The machine was busy.", *(found.sentence for found in watched.findings)))
    text = write_report([warned], tmp_path).read_text()
    assert text.count("32 gradients &lt;of&gt; full size") == 1
    assert "The machine was busy." in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_such_figures_says_so(analysis_factory: Callable[..., Analysis], tmp_path: Path) -> None:
    analysis = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    assert make_conduct(make_view(analysis)) is None
    assert "did not look at it, or no case ran" in write_report([analysis], tmp_path).read_text()


def test_findings_are_gathered_by_rule_from_the_case_with_the_most_work() -> None:
    def record(num_tokens: int, **finding: Any) -> CaseRecord:
        workload = Workload.model_validate(
            {"layer": {"d_model": 8, "d_ff": 8, "num_experts": 2, "top_k": 1}, "num_tokens": num_tokens}
        )
        case = Case(impl="mine", workload=workload)
        gaps = dict.fromkeys(("num_operators", "host_syncs", "computed_flops", "distinct_results"), "not here")
        conduct = Conduct(
            threads=1,
            allocator="glibc",
            findings=[TRAP.model_copy(update=finding)],
            gaps=gaps | {"deterministic_ratio": "not here"},
        )
        known: dict[str, Any] = {"flops": num_tokens, "conduct": conduct}
        record: dict[str, Any] = {"case": case, "qualified": Qualified.model_construct(**known)}
        return CaseRecord.model_construct(**record)

    found = gather([record(4, evidence="small"), record(9, evidence="large"), record(5, rule="float64")])
    assert [(f.impl, f.worst.rule, f.num_cases, f.worst.evidence) for f in found] == [
        ("mine", "quadratic_indexing", 2, "large"),
        ("mine", "float64", 1, TRAP.evidence),
    ]
