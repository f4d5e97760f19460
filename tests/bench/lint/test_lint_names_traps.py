"""Lint by measurement: every slow layer gets its finding, the good ones none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.conformance.battery import battery
from bench.runner.jobs.probing import run_probe

MUTANTS = Path(__file__).parent.parent / "conformance" / "mutants.py"
(PROBE,) = [probe for probe in battery(dtypes=("float32",)) if probe.manner == "behaviour"]


def rules(impl: str, folder: Path) -> set[str]:
    found = run_probe(impl, PROBE, folder)
    assert (found.status, found.reason) == ("right", "")
    assert all(finding.evidence and finding.fix for finding in found.findings)
    return {finding.rule for finding in found.findings}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Indexed", "quadratic_indexing"),
        ("Indexed", "waits_by_expert"),
        ("ReadsEveryCount", "waits_by_expert"),
        ("Interleaved", "interleaved_gate"),
        ("OneHot", "one_hot_dispatch"),
        ("Float64", "float64"),
        ("CopiesWeights", "weights_copied"),
    ],
)
def test_a_slow_layer_gets_its_finding(name: str, rule: str, tmp_path: Path) -> None:
    assert rule in rules(f"{MUTANTS}:{name}", tmp_path)


@pytest.mark.parametrize("name", ["loop", "grouped", "scatter_gather"])
def test_a_good_layer_gets_none(name: str, tmp_path: Path) -> None:
    assert rules(name, tmp_path) == set()


def test_the_trap_in_loop_indexed_is_named_from_its_measurements(tmp_path: Path) -> None:
    found = run_probe("loop_indexed", PROBE, tmp_path)
    (trap,) = [finding for finding in found.findings if finding.rule == "quadratic_indexing"]
    assert "32 gradients of the full size of a stacked weight" in trap.evidence
    assert "unbind" in trap.fix
