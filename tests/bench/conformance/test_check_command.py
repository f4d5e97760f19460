"""`moebench check` on the command line: exit codes, options, and what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cli
from bench.conformance.battery import Outcome
from bench.conformance.command import MAX_GROUPS, Checked, lines
from bench.errors import Exit

MUTANTS = Path(__file__).with_name("mutants.py")
QUICK = ("--dtype", "fp32", "--tokens", "12")


def impl(name: str) -> str:
    return f"{MUTANTS}:{name}"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["check", *arguments]) == Exit.CANNOT
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_right_layer_ends_with_0_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "loop", *QUICK]) == Exit.OK
    captured = capsys.readouterr()
    assert captured.out.startswith("loop: right. ")
    assert "wrong" not in captured.out
    assert "checking loop" in captured.err


def test_the_worst_layer_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", impl("RaisesOnOddWidths"), impl("Plain"), *QUICK]) == Exit.FAILED
    assert cli.main(["check", impl("RaisesOnOddWidths"), impl("ThreePercentOff"), *QUICK]) == Exit.WRONG_NUMERICS
    out = capsys.readouterr().out
    assert "RaisesOnOddWidths: not usable." in out
    assert "RuntimeError: the width must be even (mutants.py:" in out


def test_one_mistake_is_said_once_with_the_probes_that_share_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", impl("ThreePercentOff"), *QUICK]) == Exit.WRONG_NUMERICS
    out = capsys.readouterr().out
    assert out.count("likely: the whole output is 1.03 times the right one") == 1
    assert "the same in " in out
    assert len(out.splitlines()) < 40


def test_a_layer_that_is_wrong_everywhere_is_not_blamed_for_the_manner_of_a_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main(["check", impl("ThreePercentOff"), *QUICK, "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    wrong = [probe for probe in found["probes"] if probe["status"] == "wrong"]
    labels = " ".join(probe["label"] for probe in wrong)
    assert "a second call" in labels
    assert "two backwards" in labels
    assert {cause for probe in wrong for cause in probe["causes"]} == {"the whole output is 1.03 times the right one"}


def test_json_has_every_probe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "loop", impl("Plain"), *QUICK, "--json"]) == Exit.OK
    ours, theirs = json.loads(capsys.readouterr().out)
    assert (ours["impl"], ours["exit_code"], ours["counts"]) == ("loop", 0, {"right": len(ours["probes"])})
    assert theirs["counts"]["unsupported"] > 0
    assert {probe["status"] for probe in theirs["probes"]} == {"right", "unsupported"}


def test_options_set_what_is_probed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dtype", "bf16", "--tokens", "9,16", "--set", "layer.num_experts=7", "--json")
    assert cli.main(["check", "loop", *options]) == Exit.OK
    (found,) = json.loads(capsys.readouterr().out)
    where = [probe["where"] for probe in found["probes"]]
    assert all("bfloat16" in text for text in where)
    assert sum("E7 " in text and "T9 " in text for text in where) > 10
    assert sum("E7 " in text and "T16 " in text for text in where) > 10


def test_an_inexact_layer_is_told_its_own_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", impl("QuarterOffAndInexact"), *QUICK]) == Exit.WRONG_NUMERICS
    assert "off by 0.25 of its norm where 0.1 is allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "check needs an implementation"),
        (("lop",), "no implementation is named 'lop'; did you mean 'loop'?"),
        (("absent.py:Mine",), "there is no file"),
        ((f"{MUTANTS}:Mine",), "has no class 'Mine'"),
        ((f"{MUTANTS}:ctypes",), "must be a subclass of impls.MoELayer"),
        ((f"{MUTANTS}:UnknownSemantics",), "semantics is 'mixture'"),
        (("loop", "--dtype", "fp8"), "--dtype fp8: should be one of float32"),
        (("loop", "--tokens", "many"), "--tokens many: should be whole numbers"),
        (("loop", "--set", "workload.seed=1"), "check takes layer.NAME=VALUE"),
        (("loop", "--set", "layer.top_k=1,2"), "check takes one value a key"),
        (("loop", "--set", "layer.activation=tanh"), "activation"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(capsys, *arguments)


def test_a_package_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impls.packages.Package.version", lambda _: None)
    assert "hf_eager cannot run here: transformers is not installed: pip install" in refused(capsys, "hf_eager")


def test_a_layer_that_says_what_it_lacks_is_refused_in_its_own_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "needy.py"
    file.write_text(
        "from impls.loop import Loop\n\n\nclass Needy(Loop):\n    @classmethod\n    def missing(cls):\n"
        "        return 'it needs a licence'\n"
    )
    assert "cannot run here: it needs a licence" in refused(capsys, f"{file}:Needy")


def test_mistakes_past_the_limit_are_counted() -> None:
    wrong = [
        Outcome(label=f"probe {i}", status="wrong", where="w", faults=["f"], causes=[f"cause {i}"]) for i in range(9)
    ]
    text = "\n".join(lines(Checked("mine", wrong)))
    assert text.count("likely: ") == MAX_GROUPS
    assert f"and {9 - MAX_GROUPS} more wrong probes in {9 - MAX_GROUPS} other ways: --json has all" in text
