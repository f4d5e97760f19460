"""The same mistakes in a run's own check: each is caught at the sizes of `moebench run smoke`, right layers pass.

In `smoke` itself the direction is forward; a wrong gradient is caught where the same sizes are asked for in `train`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cases import Case, Workload
from bench.config import load_sweep
from bench.runner.jobs import perform
from bench.runner.protocol import Answer, MaterialiseJob, QualifyJob, TruthJob
from bench.store.schema import Status

MUTANTS = Path(__file__).with_name("mutants.py")
FORWARD: dict[str, object] = {}
TRAIN: dict[str, object] = {"workload.direction": "train"}
BFLOAT16: dict[str, object] = {"workload.dtype": "bfloat16"}
CAUGHT = {
    # class: what `smoke` is asked for besides, and words of the reason
    "ThreePercentOff": (FORWARD, "output is off by 0.03"),
    "KeepsDropped": (FORWARD, "output is off by"),
    "RenormalisesAfterDrop": (FORWARD, "output is off by"),
    "PassesDroppedThrough": (FORWARD, "output is off by"),
    "WrongWithoutTokensOfAnExpert": (FORWARD, "output is off by 0.03"),
    "NaNForAnEmptyExpert": (FORWARD, "output is not finite"),
    "OverwritesDuplicates": (FORWARD, "output is off by"),
    "LosesDuplicates": (FORWARD, "output is off by"),
    "LosesARow": (FORWARD, "first at token"),
    "ForgetsTheLastExpert": (FORWARD, "output is off by"),
    "SwapsGateAndUp": (FORWARD, "output is off by"),
    "WrongFromTheSecondCallOn": (FORWARD, "in a later call: output is off by 0.03"),
    "ChangesItsInput": (FORWARD, "changed tokens in place"),
    "WrongInBfloat16": (BFLOAT16, "output is off by 0.03"),
    "DownGradientOff": (TRAIN, "gradient of down_proj is off by 0.03"),
    "UpGradientOff": (TRAIN, "gradient of gate_up_proj is off by 0.02"),
    "InputGradientOff": (TRAIN, "gradient of input is off by"),
    "DetachesTheRouter": (TRAIN, "gradient of router_weight is off by 1"),
}
Qualify = Callable[[str, dict[str, object]], list[Answer]]


@pytest.fixture(scope="module")
def qualify(tmp_path_factory: pytest.TempPathFactory) -> Qualify:
    """Takes a layer through the jobs of a smoke run, one for each of its workloads."""
    folders: dict[str, Path] = {}

    def prepared(workload: Workload) -> Path:
        if workload.id not in folders:
            folder = folders[workload.id] = tmp_path_factory.mktemp("workload")
            for job in (
                MaterialiseJob(workload=workload, folder=str(folder)),
                TruthJob(workload=workload, folder=str(folder), semantics=["moe"], max_flops=1e12),
            ):
                assert perform(job, lambda _: None).reason == ""
        return folders[workload.id]

    def qualified(name: str, overrides: dict[str, object]) -> list[Answer]:
        sweep = load_sweep("smoke", {"workload.impls": [f"{MUTANTS}:{name}"], "workload.device": "cpu", **overrides})
        return [perform(_job(case, prepared(case.workload)), lambda _: None) for case in sweep.cases]

    return qualified


def _job(case: Case, folder: Path) -> QualifyJob:
    return QualifyJob(case=case, folder=str(folder))


@pytest.mark.parametrize("name", CAUGHT)
def test_a_mistake_is_a_wrong_result_at_smoke_size(qualify: Qualify, name: str) -> None:
    overrides, words = CAUGHT[name]
    answers = qualify(name, overrides)
    wrong = [answer for answer in answers if answer.status is Status.WRONG_RESULT]
    assert any(words in answer.reason for answer in wrong), [(a.status, a.reason) for a in answers]
    assert all(answer.qualified is None for answer in wrong)


@pytest.mark.parametrize("overrides", [FORWARD, TRAIN, BFLOAT16])
def test_the_layer_that_the_mistakes_are_made_in_is_right(qualify: Qualify, overrides: dict[str, object]) -> None:
    assert [(answer.status, answer.reason) for answer in qualify("Plain", overrides)] == [(Status.OK, "")] * len(
        load_sweep("smoke", {"workload.impls": ["loop"]}).cases
    )


@pytest.mark.parametrize("name", ["DownGradientOff", "DetachesTheRouter"])
def test_a_wrong_gradient_alone_leaves_evaluation_right(qualify: Qualify, name: str) -> None:
    assert {answer.status for answer in qualify(name, FORWARD)} == {Status.OK}
