"""Two versions alive at once, end to end on tiny layers: structure and right numbers, no claims about speed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from bench.cli import main
from bench.comparing.versions import open_version
from bench.errors import RequestError

LAYER = """
import os
import torch
from impls import MoELayer


class Mine(MoELayer):
    def compute(self, x_TD, routing):
        y_TD = torch.zeros_like(x_TD)
        for e in range(self.spec.num_experts):
            token, choice = ((routing.expert_ids == e) & routing.kept).nonzero(as_tuple=True)
            gate, up = (x_TD[token] @ self.weights.gate_up_proj[e].T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ self.weights.down_proj[e].T
            y_TD = y_TD.index_add(0, token, y * routing.weights[token, choice, None].to(y.dtype))
        return y_TD
"""
TINY = (
    "smoke", "--quiet", "--processes", "2", "--budget", "1s", "--device", "cpu", "--threads", "1", "--tokens", "16,32",
    "--set", "layer.num_experts=4", "--set", "layer.top_k=2", "--set", "layer.capacity_factor=none", "--json",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "a.py").write_text(LAYER)
    return tmp_path


def test_a_file_and_its_copy_are_both_right_and_get_no_verdict_from_two_pairs(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    assert main(["compare", "--interleave", "a.py", "b.py:Mine", *TINY, "--fail-if", "latency > 0%"]) == 0
    printed = capsys.readouterr()
    objects = json.loads(printed.out)
    assert [found["num_tokens"] for found in objects] == [16, 32]
    for found in objects:
        assert (found["status_base"], found["status_new"], found["verdict"]) == ("ok", "ok", "inconclusive")
        assert found["num_processes_new"] >= 1
        assert found["latency_s_base"] > 0
        assert found["accuracy_verdict"] == "same"
        assert "a verdict needs 6" in found["reason"]
    assert "equal to the bit in 2 of 2 cases" in printed.err
    assert list((in_a_folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(("does", "code"), [("return 2 * y_TD", 4), ("os._exit(7)", 3), ("raise KeyError(1)", 3)])
def test_a_version_that_fails_costs_its_cases_with_the_reason(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str], does: str, code: int
) -> None:
    end = f"if x_TD.shape[0] == 32:\n            {does}\n        return y_TD"
    (in_a_folder / "b.py").write_text(LAYER.replace("return y_TD", end))
    assert main(["compare", "--interleave", "a.py", "b.py", *TINY, "--fail-if", "latency > 5%"]) == code
    whole, broken = json.loads(capsys.readouterr().out)
    assert (whole["status_new"], broken["verdict"], broken["status_base"]) == ("ok", "broken", "ok")
    assert broken["ratio"] is None
    assert broken["reason"].startswith("was ok, is ")
    assert list((in_a_folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.py", "there is no file nothing.py"),
        ("nothing.whl", "there is no wheel nothing.whl"),
        ("no-such-ref", "is nothing that can be compared"),
        ("empty.py", "found none"),
        ("two.py", "say which, as in two.py:One"),
        ("broken.py", "is no Python file"),
        ("scratch", "holds no package `impls`"),
        ("--upload-pack=x", "is nothing that can be compared"),
    ],
)
def test_what_is_no_version_is_refused(in_a_folder: Path, name: str, message: str) -> None:
    (in_a_folder / "empty.py").write_text("class Other: pass")
    (in_a_folder / "two.py").write_text("class One:\n  def compute(self): 0\nclass Two:\n  def compute(self): 0")
    (in_a_folder / "broken.py").write_text("def")
    unpacked = in_a_folder / "unpacked"
    unpacked.mkdir()
    with pytest.raises(RequestError, match=message):
        open_version(name, unpacked)


def test_a_ref_of_any_repository_brings_its_own_files(in_a_folder: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *who, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    git("add", "a.py")
    git("commit", "-m", "first")
    (in_a_folder / "a.py").write_text("changed")
    unpacked = in_a_folder / "unpacked"
    unpacked.mkdir()
    version = open_version("trunk", unpacked)
    assert version.label.startswith("trunk (")
    assert version.path is None, "it holds no moebench of its own"
    assert version.implementation("a.py:Mine") == f"{unpacked}/a.py:Mine"
    assert (unpacked / "a.py").read_text() == LAYER
    assert version.implementation("loop") == "loop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--force",), "--force is for two runs"),
        (("--fail-if", "memory > 5%"), "cannot ask for memory"),
        (("--processes", "1"), "at least 2"),
        (("--impl", "loop"), "leave out --impl"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    assert main(["compare", "--interleave", "a.py", "b.py", "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err
