"""The variants of a case that a check of its limit times: each changes one thing, and all are sampled in rounds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cases import Case, Workload
from bench.runner.jobs import perform
from bench.runner.jobs.levers import TINY_WIDTH, own_memory, pulled
from bench.runner.jobs.shared import Shared, open_shared
from bench.runner.protocol import Answer, LimitCheckJob, MaterialiseJob
from bench.store.schema import Status
from impls.factory import build
from impls.layer import Unsupported
from impls.spec import LayerSpec

ROUNDS = 2


def workload(**fields: Any) -> Workload:
    layer = LayerSpec(d_model=32, d_ff=24, num_experts=4, top_k=2, num_shared_experts=1)
    return Workload.model_validate({"layer": layer, "num_tokens": 6, "routing": "balanced"} | fields)


def shared(folder: Path, w: Workload) -> Shared:
    answer = perform(MaterialiseJob(workload=w, folder=str(folder)), lambda _: None)
    assert answer.status is Status.OK
    return open_shared(w, folder, torch.device("cpu"))


def output(variant: Shared) -> torch.Tensor:
    with torch.inference_mode():
        layer = build("loop", variant.workload.layer, weights=variant.weights)
        return layer(variant.x, routing=variant.routing)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


@pytest.mark.parametrize("routing", ["router", "balanced"])
def test_the_same_tokens_twice_go_where_they_went(tmp_path: Path, routing: str) -> None:
    base = own_memory(shared(tmp_path, workload(routing=routing)))
    twice = pulled(base, "tokens")
    assert torch.allclose(output(twice), output(base).repeat(2, 1), atol=1e-6)


def test_one_experts_weights_take_the_room_of_one(tmp_path: Path) -> None:
    base = own_memory(shared(tmp_path, workload()))
    weight, one = base.weights.in_proj, pulled(base, "one_expert").weights.in_proj
    assert one.shape == weight.shape
    assert one.untyped_storage().nbytes() == weight[0].numel() * weight.element_size()
    assert torch.equal(one, weight[:1].expand(weight.shape))


def test_a_tiny_layer_keeps_the_assignments(tmp_path: Path) -> None:
    base = own_memory(shared(tmp_path, workload(direction="train")))
    tiny = pulled(base, "tiny")
    assert base.routing is not None
    assert tiny.routing is not None
    assert torch.equal(tiny.routing.expert_ids, base.routing.expert_ids)
    layer = tiny.workload.layer
    assert (layer.d_model, layer.d_ff, layer.shared_d_ff) == (TINY_WIDTH,) * 3
    assert tiny.x.requires_grad


def check(
    tmp_path: Path,
    impl: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    touches_little: bool = False,
    keeps: bool = True,
    **fields: Any,
) -> Answer:
    # what cannot be undone is not done to the process of the tests
    monkeypatch.setattr("bench.runner.jobs.limits.keep_pages", lambda calls: keeps and bool(list(calls)))
    monkeypatch.setattr("bench.runner.jobs.limits._touches_little", lambda *_: touches_little)
    w = workload(**fields)
    shared(tmp_path, w)
    case = Case(impl=impl, workload=w)
    job = LimitCheckJob(
        case=case, folder=str(tmp_path), order_seed=1, time_budget_s=1e-3, min_rounds=1, max_rounds=ROUNDS,
        other_threads=2,
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        answer = perform(job, lambda _: None)
    finally:
        torch.set_num_threads(before)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    return answer


@pytest.mark.parametrize(("impl", "direction"), [("loop", "train"), ("grouped", "forward")])
def test_every_lever_is_pulled_and_its_work_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impl: str, direction: str
) -> None:
    answer = check(tmp_path, impl, monkeypatch, direction=direction, routing="router")
    assert (answer.status, answer.reason, answer.gaps) == (Status.OK, "", {})
    assert answer.arms is not None
    assert set(answer.arms) == {"base", "tokens", "one_expert", "tiny", "threads", "pages"}
    assert all(1 <= len(arm.latency_s) <= ROUNDS for arm in answer.arms.values())
    base, twice, tiny = (answer.work[lever] for lever in ("base", "tokens", "tiny"))
    assert twice.flops == 2 * base.flops
    assert base.moved_bytes < twice.moved_bytes < 2 * base.moved_bytes
    assert tiny.flops < base.flops / 2


def test_a_case_that_touches_little_memory_first_is_timed_in_rounds_with_its_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = check(tmp_path, "loop", monkeypatch, touches_little=True)
    assert answer.arms is not None
    assert (set(answer.arms), answer.gaps) == ({"base", "tokens", "one_expert", "tiny", "threads"}, {})
    assert len({len(arm.latency_s) for arm in answer.arms.values()}) == 1


def test_fewer_experts_are_a_lever_of_layers_in_which_every_token_meets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runner.jobs.levers.FEW_BYTES", 20_000)
    layer = LayerSpec(d_model=32, d_ff=24, num_experts=4, top_k=2)
    answer = check(tmp_path, "dense_total", monkeypatch, layer=layer, routing="router")
    assert answer.arms is not None
    assert "few_experts" in answer.arms
    assert 2 * answer.work["few_experts"].flops == answer.work["base"].flops
    assert "few_experts" not in (check(tmp_path, "loop", monkeypatch, layer=layer, routing="router").arms or {})


@pytest.mark.parametrize(
    ("few_bytes", "fields"),
    [(20_000, {"cache": "cold"}), (100, {}), (10**9, {}), (20_000, {"layer": {"num_experts": 3}})],
    ids=["cold", "too large", "no fewer", "odd"],
)
def test_fewer_experts_are_no_lever_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_bytes: int, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr("bench.runner.jobs.levers.FEW_BYTES", few_bytes)
    layer = LayerSpec(**({"d_model": 32, "d_ff": 24, "num_experts": 4, "top_k": 1} | fields.pop("layer", {})))
    base = own_memory(shared(tmp_path, workload(layer=layer, routing="router", **fields)))
    with pytest.raises(Unsupported):
        pulled(base, "few_experts")


def test_a_refused_order_to_keep_pages_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = check(tmp_path, "loop", monkeypatch, keeps=False)
    assert answer.arms is not None
    assert "did not take the order" in answer.gaps["pages"]
    assert len({len(arm.latency_s) for arm in answer.arms.values()}) == 1, "all in rounds together"


def test_what_has_to_be_done_is_counted_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runner.jobs.limits.tally", None)
    w = workload()
    shared(tmp_path, w)
    job = LimitCheckJob(
        case=Case(impl="loop", workload=w), folder=str(tmp_path), order_seed=1, time_budget_s=1e-3, min_rounds=1,
        count=False,
    )  # fmt: skip
    monkeypatch.setattr("bench.runner.jobs.limits.keep_pages", lambda _: True)
    answer = perform(job, lambda _: None)
    assert (answer.status, answer.work) == (Status.OK, {})


def test_a_layer_that_fails_costs_its_own_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = check(tmp_path, f"{Path(__file__).with_name('foreign_layers.py')}:NoSuchLayer", monkeypatch)
    assert answer.status is not Status.OK
    assert "NoSuchLayer" in answer.reason
