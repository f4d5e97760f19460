"""The class that the pages show as a layer of one's own passes the check, qualifies, and fails as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import cli
from bench.cases import Case
from bench.config import load_sweep
from bench.errors import Exit
from bench.runner.jobs import perform
from bench.runner.protocol import Answer, MaterialiseJob, QualifyJob, TruthJob
from bench.store.schema import Status

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "docs" / "adding-an-implementation.md", ROOT / "README.md")
QUICK = ("--dtype", "fp32", "--tokens", "12")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def source(request: pytest.FixtureRequest) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", request.param.read_text(), re.DOTALL)
    assert len(found.splitlines()) <= 30, "the page promises a short class"
    return str(found)


def qualify(case: Case, folder: Path) -> Answer:
    for job in (
        MaterialiseJob(workload=case.workload, folder=str(folder)),
        TruthJob(workload=case.workload, folder=str(folder), semantics=["moe"], max_flops=1e12),
    ):
        assert perform(job, lambda _: None).reason == ""
    return perform(QualifyJob(case=case, folder=str(folder)), lambda _: None)


def test_it_is_right_and_runs_beside_ours(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my_layer.py"
    file.write_text(source)
    assert cli.main(["check", f"{file}:MyMoE", *QUICK]) == Exit.OK
    assert ": right. " in capsys.readouterr().out
    case = load_sweep("smoke", {"workload.impls": [f"{file}:MyMoE"], "workload.device": "cpu"}).cases[0]
    answer = qualify(case, tmp_path / "workload")
    assert (answer.status, answer.reason) == (Status.OK, "")


def test_without_what_is_kept_the_rows_with_a_capacity_are_wrong(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my_layer.py"
    assert source.count("(routing.weights * routing.kept)") == 1
    file.write_text(source.replace("(routing.weights * routing.kept)", "routing.weights"))
    assert cli.main(["check", f"{file}:MyMoE", *QUICK]) == Exit.WRONG_NUMERICS
    assert "`routing.kept` is not looked at" in capsys.readouterr().out
