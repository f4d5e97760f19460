"""The battery against a table of mistakes: every one is found, named where it can be, and right layers pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.conformance.battery import Outcome, Probe, battery
from bench.conformance.session import run_battery
from bench.runner.interrupt import Interrupt
from bench.runner.jobs import perform
from bench.runner.jobs.probing import run_probe
from bench.runner.protocol import ConformJob
from bench.runner.servers import ForkServer

MUTANTS = Path(__file__).with_name("mutants.py")
WRONG = {
    # class: words that are said of it
    "ThreePercentOff": "the whole output is 1.03 times the right one",
    "KeepsDropped": "`routing.kept` is not looked at",
    "RenormalisesAfterDrop": "renormalised, and must not be",
    "PassesDroppedThrough": "passed on as they are",
    "OverwritesDuplicates": "overwrite each other",
    "LosesDuplicates": "only a token's",
    "WrongFromTheSecondCallOn": "something of the first call is kept and used in the second",
    "IgnoresWeights": "the routing weights are not applied",
    "WeighsTwice": "the routing weights are applied twice",
    "ForgetsTheLastExpert": "the last expert is left out",
    "LosesARow": "1 of 35 tokens, the first is token",
    "SwapsGateAndUp": "gate and up are taken for each other",
    "WrongActivation": "it computes the activation geglu, not swiglu",
    "NaNForAnEmptyExpert": "divided by zero",
    "WrongWithoutTokensOfAnExpert": "the whole output is 1.03 times the right one",
    "DownGradientOff": "the gradient of down_proj is 1.03 times the right one",
    "UpGradientOff": "only the up half of gate_up_proj has a wrong gradient",
    "InputGradientOff": "the gradient of input is off by",
    "DetachesTheRouter": "the gradient of router_weight never arrives",
    "ChangesItsInput": "it changes tokens in place",
    "CachesItsRouting": "something of the first call is kept|something of a call with another",
    "KeepsACopyOfTheWeights": "a copy of the weights was made once",
    "WritesItsGradient": "a gradient is written to `.grad` and not added|the gradient of down_proj is 0.5 times",
    "ReadsMemoryAsRows": "memory is read as if it lay in rows",
    "OnlyTwoDimensions": "for tokens of (5, 7, 24)",
    "LeavesGradients": "leaves gradients behind",
    "QuarterOffAndInexact": "is off by 0.25",
}


def impl(name: str) -> str:
    return f"{MUTANTS}:{name}"


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    return battery(dtypes=("float32",))


def outcomes_of(name: str, probes: list[Probe], tmp_path: Path) -> list[Outcome]:
    file = tmp_path / "outcomes.jsonl"
    answer = perform(ConformJob(impl=name, probes=probes, file=str(file)), lambda _: None)
    assert answer.reason == ""
    return [Outcome.model_validate_json(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_found_and_said(name: str, probes: list[Probe], tmp_path: Path) -> None:
    found = outcomes_of(impl(name), probes, tmp_path)
    wrong = [outcome for outcome in found if outcome.status == "wrong"]
    said = "\n".join(sentence for outcome in wrong for sentence in (*outcome.faults, *outcome.causes))
    assert any(words in said for words in WRONG[name].split("|")), said


def test_a_mistake_in_one_number_format_is_found_in_that(tmp_path: Path) -> None:
    found = outcomes_of(impl("WrongInBfloat16"), battery(dtypes=("float32", "bfloat16", "float16")), tmp_path)
    assert {o.label.rpartition(", ")[2] for o in found if o.status == "wrong"} == {"bfloat16)"}


@pytest.mark.parametrize("name", ["loop", "scatter_gather", "einsum", "grouped", "dense", "ensemble", impl("Plain")])
def test_a_right_layer_passes(name: str, probes: list[Probe], tmp_path: Path) -> None:
    found = outcomes_of(name, probes, tmp_path)
    bad = [o for o in found if o.status not in ("right", "unsupported")]
    assert bad == []
    assert sum(outcome.status == "right" for outcome in found) > len(probes) / 2


@pytest.mark.parametrize("name", ["loop", "grouped"])
def test_a_right_layer_passes_in_half_precision(name: str, tmp_path: Path) -> None:
    half = [p for p in battery() if p.workload.dtype != "float32"]
    assert {p.workload.dtype for p in half} == {"bfloat16", "float16"}
    assert {o.status for o in outcomes_of(name, half, tmp_path)} == {"right"}


def test_an_inexact_layer_within_its_tolerance_is_right(probes: list[Probe], tmp_path: Path) -> None:
    found = run_probe(impl("FivePercentOffAndInexact"), probes[0], tmp_path)
    assert found.status == "right"
    assert found.relative_error == pytest.approx(0.05, rel=1e-3)


def test_what_a_layer_does_not_support_has_its_reason(tmp_path: Path) -> None:
    with_bias = [p for p in battery(dtypes=("float32",)) if p.workload.layer.expert_bias]
    assert with_bias
    for outcome in outcomes_of(impl("Plain"), with_bias, tmp_path):
        assert (outcome.status, outcome.reason) == (
            "unsupported",
            "experts with biases and scaled inputs are not implemented",
        )


def test_every_probe_is_another_one_and_says_what_it_is_about() -> None:
    found = battery(tokens=(35, 64))
    assert len({(p.about, p.manner, p.workload.id) for p in found}) == len(found)
    assert all(p.about and p.workload.layer.impossible is None for p in found)
    assert {0, 1, 3, 35, 64} <= {p.workload.num_tokens for p in found}


@pytest.mark.parametrize(
    ("name", "status", "words", "num_tokens"),
    [
        ("CrashesOnOneToken", "crashed", "SIGSEGV", 1),
        ("HangsWithoutTokens", "timeout", "said nothing for 2 s", 0),
        ("RaisesOnOddWidths", "error", "RuntimeError: the width must be even (mutants.py:", 35),
    ],
)
def test_what_ends_a_worker_costs_one_probe(
    probes: list[Probe], name: str, status: str, words: str, num_tokens: int
) -> None:
    few = [p for p in probes if p.about in ("dropless", "one token", "no tokens", "odd sizes")]
    few = [p for p in few if p.workload.direction == "forward"]
    with Interrupt() as interrupt, ForkServer(interrupt) as server:
        found = run_battery(impl(name), few, server, silence_s=2.0)
    assert [o.label for o in found] == [p.label for p in few]
    (bad,) = [o for o in found if o.status != "right"]
    assert bad.status == status
    assert words in bad.reason
    assert f"T{num_tokens} " in bad.where
