from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bench.cases import Case, Workload
from bench.inputs import DTYPES
from bench.runner.jobs import perform
from bench.runner.jobs.shared import open_shared
from bench.runner.jobs.truth import read_truth
from bench.runner.protocol import (
    Announce,
    Answer,
    CeilingJob,
    ControlJob,
    EnergyJob,
    Job,
    MaterialiseJob,
    QualifyJob,
    TimeJob,
    TruthJob,
)
from bench.store.qualified import Qualified
from bench.store.schema import Status
from impls.registry import ENTRIES, resolve
from impls.spec import LayerSpec

FOREIGN = Path(__file__).with_name("foreign_layers.py")
TOKENS, EXPERTS = 24, 4


def workload(T: int = TOKENS, layer: dict[str, Any] | None = None, **fields: Any) -> Workload:
    spec = LayerSpec(**{"d_model": 16, "d_ff": 8, "num_experts": EXPERTS, "top_k": 2, **(layer or {})})
    return Workload.model_validate({"layer": spec, "num_tokens": T, **fields})


def foreign(name: str) -> str:
    return f"{FOREIGN}:{name}"


def do(job: Job) -> tuple[Answer, list[Announce]]:
    announced: list[Announce] = []
    answer = perform(job, announced.append)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    return answer, announced


def prepare(folder: Path, w: Workload, semantics: list[str] | None = None, max_flops: float = 1e12) -> None:
    for job in (
        MaterialiseJob(workload=w, folder=str(folder)),
        TruthJob(workload=w, folder=str(folder), semantics=semantics or ["moe"], max_flops=max_flops),
    ):
        answer, _ = do(job)
        assert (answer.status, answer.reason) == (Status.OK, "")


def qualify(folder: Path, impl: str, w: Workload) -> Answer:
    answer, announced = do(QualifyJob(case=Case(impl=impl, workload=w), folder=str(folder)))
    assert announced
    assert {message.case_id for message in announced} == {answer.case_id} == {Case(impl=impl, workload=w).id}
    return answer


def qualified(folder: Path, impl: str, w: Workload) -> Qualified:
    answer = qualify(folder, impl, w)
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.qualified is not None
    assert answer.relative_error == answer.qualified.relative_error
    return answer.qualified


def why_not(name: str, w: Workload) -> str | None:
    """Why an implementation says that it cannot run this workload here."""
    found = resolve(name)
    return found.missing() or found.supports(w.layer, torch.device("cpu"), DTYPES[w.dtype], w.direction)


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_implementation_qualifies(tmp_path: Path, direction: str, dtype: str) -> None:
    w = workload(direction=direction, dtype=dtype, layer={"capacity_factor": 1.0, "num_shared_experts": 1})
    prepare(tmp_path, w, sorted({entry.semantics for entry in ENTRIES.values()}))
    for name, entry in ENTRIES.items():
        answer = qualify(tmp_path, name, w)
        if reason := why_not(name, w):
            assert (name, answer.status, answer.reason) == (name, Status.UNSUPPORTED, reason)
            continue
        assert (name, answer.status, answer.reason) == (name, Status.OK, "")
        assert answer.semantics == entry.semantics
        found = answer.qualified
        assert found is not None
        assert (found.routing is not None) == resolve(name).routes
        assert found.checked_tokens == TOKENS
        assert found.flops > 0
        assert found.allocator_peak_bytes is not None
        assert found.allocator_peak_bytes >= found.analytic_peak_bytes
        assert min(found.prepare_s, found.first_call_s, found.rough_latency_s) > 0


def test_what_executes_one_router_only_qualifies_under_that_one(tmp_path: Path) -> None:
    named = {name: entry.router for name, entry in ENTRIES.items() if entry.router}
    assert named
    for name, router in named.items():
        w = workload(layer={"router": router})
        prepare(tmp_path / name, w)
        assert why_not(name, workload()) is not None
        assert qualified(tmp_path / name, name, w).checked_tokens == TOKENS


def test_a_layer_is_judged_by_its_own_choice_of_experts_where_that_is_the_truths(tmp_path: Path) -> None:
    prepare(tmp_path, workload())
    assert qualified(tmp_path, foreign("TakesNoGivenIds"), workload()).relative_error < 1e-5
    forced = workload(routing="balanced")
    prepare(tmp_path / "forced", forced)
    answer = qualify(tmp_path / "forced", foreign("TakesNoGivenIds"), forced)
    assert (answer.status, answer.reason) == (Status.UNSUPPORTED, "it routes by itself")


def test_no_tokens_at_all_qualify(tmp_path: Path) -> None:
    w = workload(T=0)
    prepare(tmp_path, w)
    found = qualified(tmp_path, "loop", w)
    assert (found.relative_error, found.flops, found.checked_tokens) == (0, 0, 0)


def test_the_time_of_prepare_is_that_of_prepare_alone(tmp_path: Path) -> None:
    w = workload()
    prepare(tmp_path, w)
    assert qualified(tmp_path, foreign("SlowToBuild"), w).prepare_s < 1.0
    assert qualified(tmp_path, foreign("SlowToPrepare"), w).prepare_s >= 0.3


def test_materialised_tensors_are_those_of_the_seed_and_are_made_once(tmp_path: Path) -> None:
    w = workload(direction="train", routing="balanced")
    job = MaterialiseJob(workload=w, folder=str(tmp_path / "new"))
    answer, announced = do(job)
    assert announced
    assert answer.materialised_bytes == (tmp_path / "new" / "inputs.bin").stat().st_size
    written = (tmp_path / "new" / "inputs.bin").stat().st_mtime_ns
    again, announced = do(job)
    assert again == answer
    assert not announced
    assert (tmp_path / "new" / "inputs.bin").stat().st_mtime_ns == written
    shared = open_shared(w, tmp_path / "new", torch.device("cpu"))
    assert shared.routing is not None
    assert torch.bincount(shared.routing.expert_ids.flatten()).tolist() == [TOKENS * 2 // EXPERTS] * EXPERTS
    assert dict(shared.weights.named_parameters()).keys() == {"router_weight", "gate_up_proj", "down_proj"}


def test_the_folder_of_another_workload_is_made_anew_and_never_mistaken(tmp_path: Path) -> None:
    prepare(tmp_path, workload())
    answer = qualify(tmp_path, "loop", workload(seed=1))
    assert answer.status is Status.ERROR
    assert "holds workload" in answer.reason
    do(MaterialiseJob(workload=workload(seed=1), folder=str(tmp_path)))
    assert open_shared(workload(seed=1), tmp_path, torch.device("cpu")).x.shape == (TOKENS, 16)


def test_an_impossible_layer_and_a_bad_routing_are_answers(tmp_path: Path) -> None:
    answer, _ = do(MaterialiseJob(workload=workload(layer={"top_k": 5}), folder=str(tmp_path)))
    assert (answer.status, answer.reason) == (Status.UNSUPPORTED, "top_k (5) is above num_experts (4)")
    answer, _ = do(MaterialiseJob(workload=workload(routing="trace:absent.npy"), folder=str(tmp_path)))
    assert answer.status is Status.ERROR
    assert "trace absent.npy cannot be read" in answer.reason


@pytest.mark.parametrize("direction", ["forward", "train"])
def test_a_truth_that_costs_too_much_is_sampled_and_still_tells_right_from_wrong(
    tmp_path: Path, direction: str
) -> None:
    w = workload(direction=direction, layer={"capacity_factor": 0.75})
    prepare(tmp_path, w, max_flops=10_000)
    truth = read_truth(tmp_path, "moe")
    assert 1 <= len(truth.tokens) < TOKENS
    assert qualified(tmp_path, "loop", w).checked_tokens == len(truth.tokens)
    assert qualify(tmp_path, foreign("ThreePercentOff"), w).status is Status.WRONG_RESULT
    if direction == "train":
        assert qualify(tmp_path, foreign("OneGradientWrong"), w).status is Status.WRONG_RESULT


def test_routing_that_happened_sets_the_facts_and_the_cost(tmp_path: Path) -> None:
    w = workload(routing="hot:1", layer={"capacity_factor": 1.0})
    prepare(tmp_path, w)
    found = qualified(tmp_path, "loop", w)
    assert found.routing is not None
    assert found.routing.load_imbalance == pytest.approx(TOKENS / (TOKENS * 2 / EXPERTS))
    assert sorted(found.routing.tokens_per_expert) == [8, 8, 8, 12]
    assert found.routing.dropped_fraction == pytest.approx(12 / 48)
    assert found.flops == 2 * (TOKENS * 16 * EXPERTS + 36 * 3 * 16 * 8)


def test_a_repeated_trace_is_noted_in_the_record(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[0, 1], [2, 1]]))
    w = workload(routing=f"trace:{tmp_path / 'ids.npy'}")
    prepare(tmp_path, w)
    facts = qualified(tmp_path, "scatter_gather", w).routing
    assert facts is not None
    assert facts.note == f"trace ids.npy of 2 tokens repeated to {TOKENS}"
    assert facts.tokens_per_expert == [12, 24, 12, 0]


@pytest.mark.parametrize(
    ("name", "direction", "status", "words"),
    [
        ("ThreePercentOff", "forward", Status.WRONG_RESULT, ["off by 0.03", "first at token"]),
        ("NothingButInexact", "forward", Status.WRONG_RESULT, ["off by 2"]),
        ("KeepsWhatShouldBeDropped", "forward", Status.WRONG_RESULT, ["output is off", "first at token"]),
        ("OneGradientWrong", "train", Status.WRONG_RESULT, ["gradient of down_proj", "first at expert 0 (1 of 4"]),
        ("ChangesItsInput", "forward", Status.WRONG_RESULT, ["changed tokens in place"]),
        ("ChangesItsInput", "train", Status.WRONG_RESULT, ["changed tokens in place"]),
        ("ChangesItsWeights", "forward", Status.WRONG_RESULT, ["changed weights.router_weight in place"]),
        ("Raises", "forward", Status.ERROR, ["KeyError: ('a mistake of its own'", "foreign_layers.py:", "in compute"]),
        ("RunsOutOfMemory", "forward", Status.OUT_OF_MEMORY, ["RuntimeError", "foreign_layers.py:"]),
        ("GivesNaN", "forward", Status.WRONG_RESULT, ["output is not finite, first at token 5 (1 of 24"]),
        ("WrongShape", "forward", Status.WRONG_RESULT, ["output is torch.float32 (23, 16), expected"]),
        ("WrongShape", "train", Status.WRONG_RESULT, ["output is torch.float32 (23, 16), expected"]),
        ("RoutesByItself", "forward", Status.WRONG_RESULT, ["token 0 is routed to experts [0, 0]"]),
        ("Refuses", "forward", Status.UNSUPPORTED, ["not on a Sunday"]),
        ("NotALayer", "forward", Status.ERROR, ["must be a subclass"]),
        ("Absent", "forward", Status.ERROR, ["has no class 'Absent'"]),
    ],
)
def test_what_is_wrong_with_an_implementation_is_said(
    tmp_path: Path, name: str, direction: str, status: Status, words: list[str]
) -> None:
    w = workload(direction=direction, layer={"capacity_factor": 0.75})
    prepare(tmp_path, w)
    answer = qualify(tmp_path, foreign(name), w)
    assert answer.status is status, answer.reason
    assert answer.qualified is None
    for word in words:
        assert word in answer.reason


def test_an_inexact_implementation_is_measured_not_judged(tmp_path: Path) -> None:
    prepare(tmp_path, workload())
    answer = qualify(tmp_path, foreign("SlightlyOffButInexact"), workload())
    assert answer.status is Status.OK
    assert not answer.exact
    assert answer.relative_error == pytest.approx(0.03, rel=1e-3)


def test_bytes_that_prepare_added_are_counted_once_and_weights_never(tmp_path: Path) -> None:
    prepare(tmp_path, workload())
    assert qualified(tmp_path, foreign("Packs"), workload()).prepared_bytes == EXPERTS * 16 * 8 * 4
    assert qualified(tmp_path, foreign("Right"), workload()).prepared_bytes == 0


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, workload())
    little = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    for answer in (
        do(MaterialiseJob(workload=workload(), folder=str(tmp_path / "new")))[0],
        qualify(tmp_path, "loop", workload()),
        do(TruthJob(workload=workload(), folder=str(tmp_path), semantics=["dense"], max_flops=1e12))[0],
    ):
        assert answer.status is Status.OUT_OF_MEMORY
        assert "of cpu memory are needed" in answer.reason
    monkeypatch.undo()
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    answer, _ = do(MaterialiseJob(workload=workload(), folder=str(tmp_path / "new")))
    assert answer.status is Status.OUT_OF_MEMORY
    assert "of disk" in answer.reason


@pytest.mark.parametrize("direction", ["forward", "train"])
def test_cases_are_timed_in_whole_rounds(tmp_path: Path, direction: str) -> None:
    w = workload(direction=direction, routing="zipf:1")
    prepare(tmp_path, w)
    cases = [Case(impl=name, workload=w) for name in ("loop", "einsum", "dense")]
    answer, announced = do(TimeJob(cases=cases, folder=str(tmp_path), order_seed=1, time_budget_s=0.2, max_rounds=7))
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.arms is not None
    assert answer.arms.keys() == {case.id for case in cases}
    lengths = {len(arm.latency_s) for arm in answer.arms.values()}
    assert len(lengths) == 1
    assert 5 <= lengths.pop() <= 7
    assert all(latency > 0 for arm in answer.arms.values() for latency in arm.latency_s)
    assert answer.disturbance.involuntary_switches is not None
    assert {case.id for case in cases} <= {message.case_id for message in announced}


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("Raises", Status.ERROR, "a mistake of its own"),
        ("RaisesLater", Status.ERROR, "ValueError: tired (foreign_layers.py:"),
        ("ChangesItsInput", Status.WRONG_RESULT, "changed tokens in place"),
        ("Refuses", Status.UNSUPPORTED, "not on a Sunday"),
    ],
)
def test_a_failure_while_timing_names_the_case(tmp_path: Path, name: str, status: Status, words: str) -> None:
    prepare(tmp_path, workload())
    cases = [Case(impl=impl, workload=workload()) for impl in ("loop", foreign(name), "einsum")]
    answer, _ = do(TimeJob(cases=cases, folder=str(tmp_path), order_seed=1, time_budget_s=0.1, max_rounds=5))
    assert (answer.status, answer.case_id, answer.arms) == (status, cases[1].id, None)
    assert words in answer.reason


def test_self_test_has_its_three_arms() -> None:
    answer, _ = do(ControlJob(device="cpu", threads=1, planted_slowdown=0.05, order_seed=0, time_budget_s=0.3))
    assert answer.arms is not None
    assert answer.arms.keys() == {"base", "twin", "slowed"}


def test_ceiling_is_positive() -> None:
    answer, announced = do(CeilingJob(what="matmul", device="cpu", dtype="float32", threads=1, time_budget_s=0.1))
    assert announced[0].what == "matmul ceiling"
    assert answer.per_s is not None
    assert min(answer.per_s) > 0


def test_energy_is_a_value_or_a_reason(tmp_path: Path) -> None:
    prepare(tmp_path, workload())
    case = Case(impl="loop", workload=workload())
    answer, _ = do(EnergyJob(case=case, folder=str(tmp_path), window_s=0.2))
    assert answer.status is Status.OK
    assert answer.energy is not None
    assert (answer.energy.energy_j is None) == bool(answer.energy.reason)
    answer, _ = do(EnergyJob(case=Case(impl=foreign("Refuses"), workload=workload()), folder=str(tmp_path), window_s=1))
    assert (answer.status, answer.reason) == (Status.UNSUPPORTED, "not on a Sunday")


def test_an_absent_device_is_an_answer() -> None:
    answer, _ = do(CeilingJob(what="matmul", device="nonsense", dtype="float32", threads=1, time_budget_s=0.1))
    assert answer.status is Status.ERROR
    assert "nonsense" in answer.reason
