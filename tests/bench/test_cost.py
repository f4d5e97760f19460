from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Workload
from bench.cost import cost_of_call
from impls.factory import build
from impls.ffn import feed_forward
from impls.routing import route
from impls.shapes import parameter_shapes
from impls.spec import FIXED_TOP_K, ROUTERS, SELECTING_ROUTERS, LayerSpec
from impls.weights import Weights, make_weights


def workload(T: int = 10, direction: str = "forward", dtype: str = "float32", **layer: Any) -> Workload:
    spec = LayerSpec(**{"d_model": 6, "d_ff": 5, "num_experts": 4, "top_k": 2, **layer})
    return Workload.model_validate({"layer": spec, "num_tokens": T, "direction": direction, "dtype": dtype})


def test_by_hand_gated_with_drops_and_shared_experts() -> None:
    w = workload(num_shared_experts=3)
    cost = cost_of_call(w, "moe", [9, 0, 4, 5])
    # router 10*6*4, 18 kept assignments through three products of 6*5, shared experts of width 15
    assert cost.flops == 2 * (10 * 6 * 4 + 18 * 3 * 6 * 5 + 10 * 3 * 6 * 15)
    router, expert, shared, tokens = 4 * 6, 3 * 6 * 5, 3 * 6 * 15, 10 * 6
    assert cost.weight_bytes == 4 * (router + 4 * expert + shared)
    assert cost.moved_bytes == 4 * (router + 3 * expert + shared + 2 * tokens)  # one expert is not used
    assert cost.analytic_peak_bytes == 4 * tokens


def test_by_hand_train_in_half_precision_with_biases() -> None:
    w = workload(direction="train", dtype="bfloat16", activation="relu", router_bias=True, expert_bias=True)
    cost = cost_of_call(w, "moe", [20, 0, 0, 0])
    assert cost.flops == 3 * 2 * (10 * 6 * 4 + 20 * 2 * 6 * 5)
    router, expert, tokens = 4 * 6 + 4, 2 * 6 * 5 + 5 + 6, 10 * 6
    weights = router + 4 * expert
    # tokens and output's gradient in, output and gradients out
    assert cost.moved_bytes == 2 * (router + expert + 4 * tokens + weights)
    assert cost.analytic_peak_bytes == 2 * (tokens + tokens + weights)


def test_baselines_by_hand() -> None:
    w = workload(activation="gelu")
    product = 2 * 2 * 6 * 5
    assert cost_of_call(w, "dense", None).flops == 10 * 2 * product
    assert cost_of_call(w, "dense_total", None).flops == 10 * 4 * product
    assert cost_of_call(w, "ensemble", None).flops == 10 * 4 * product
    assert cost_of_call(w, "ensemble_weighted", None).flops == 10 * 4 * product + 2 * 10 * 6 * 4
    assert cost_of_call(w, "dense", None).moved_bytes == 4 * (2 * 2 * 6 * 5 + 2 * 10 * 6)
    assert cost_of_call(w, "ensemble_weighted", None).moved_bytes == 4 * (4 * 6 + 4 * 2 * 6 * 5 + 2 * 10 * 6)


def test_no_tokens_cost_no_operations() -> None:
    cost = cost_of_call(workload(T=0), "moe", [0, 0, 0, 0])
    assert (cost.flops, cost.analytic_peak_bytes) == (0, 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.sampled_from(["forward", "train"]))
def test_operations_depend_on_the_sum_of_loads_and_bytes_on_which_are_used(loads: list[int], direction: str) -> None:
    w = workload(direction=direction)
    cost, turned = (cost_of_call(w, "moe", order) for order in (loads, loads[::-1]))
    assert cost == turned
    more = cost_of_call(w, "moe", [loads[0] + 1, *loads[1:]])
    assert more.flops - cost.flops == (3 if direction == "train" else 1) * 2 * 3 * 6 * 5
    assert (more.moved_bytes > cost.moved_bytes) == (loads[0] == 0)


@pytest.mark.parametrize("loads", [None, [1, 2]])
def test_loads_that_do_not_fit_are_refused(loads: list[int] | None) -> None:
    with pytest.raises(ValueError, match="loads of 4 experts"):
        cost_of_call(workload(), "moe", loads)


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(ValueError, match="'nonsense' is unknown"):
        cost_of_call(workload(), "nonsense", None)


def count(w: Workload, weights: Weights, call: Any) -> int:
    """Operations that torch counts for one forward, or one forward and backward, of ``call(x)``."""
    x_TD = torch.randn(w.num_tokens, w.layer.d_model, requires_grad=w.direction == "train")
    weights.requires_grad_(w.direction == "train")
    with FlopCounterMode(display=False) as counter:
        y_TD = call(x_TD)
        if w.direction == "train":
            y_TD.backward(torch.ones_like(y_TD))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_agrees_with_torchs_counter_on_one_feed_forward(direction: str, activation: str) -> None:
    w = workload(direction=direction, activation=activation, num_experts=1, top_k=1)
    weights = make_weights(w.layer)
    counted = count(w, weights, lambda x_TD: feed_forward(w.layer, x_TD, weights.in_proj[0], weights.down_proj[0]))
    assert counted == cost_of_call(w, "dense", None).flops


@pytest.mark.parametrize("direction", ["forward", "train"])
def test_agrees_with_torchs_counter_on_an_expert_by_expert_layer(direction: str) -> None:
    w = workload(T=32, direction=direction, capacity_factor=0.75)
    weights = make_weights(w.layer)

    def layer(x_TD: torch.Tensor) -> torch.Tensor:
        routing = route(w.layer, weights, x_TD)
        y_TD = torch.zeros_like(x_TD)
        for expert, (gate_up, down) in enumerate(zip(weights.in_proj, weights.down_proj, strict=True)):
            token, choice = ((routing.expert_ids == expert) & routing.kept).nonzero(as_tuple=True)
            out_nD = feed_forward(w.layer, x_TD[token], gate_up, down)
            y_TD = y_TD.index_add(0, token, out_nD * routing.weights[token, choice, None])
        return y_TD

    with torch.no_grad():
        torch.manual_seed(3)
        x_TD = torch.randn(32, 6)
        routing = route(w.layer, weights, x_TD)
        loads = torch.bincount(routing.expert_ids[routing.kept], minlength=4).tolist()
    assert sum(loads) < 64, "the case must drop something"
    torch.manual_seed(3)
    assert count(w, weights, layer) == cost_of_call(w, "moe", loads).flops


EXPERT, ROUTER, TOKENS = 3 * 6 * 5, 4 * 6, 10 * 6


def test_by_hand_shared_experts_of_another_width_with_a_gate() -> None:
    w = workload(direction="train", num_shared_experts=2, d_ff_shared=7, shared_gate=True)
    cost = cost_of_call(w, "moe", [5, 5, 5, 5])
    # the shared experts are one feed-forward of width 14; the gate is one number a token
    assert cost.flops == 3 * 2 * (10 * ROUTER + 20 * EXPERT + 10 * (3 * 6 * 14 + 6))
    weights = ROUTER + 4 * EXPERT + 3 * 6 * 14 + 6
    assert cost.weight_bytes == 4 * weights
    assert cost.moved_bytes == 4 * (2 * weights + 4 * TOKENS)
    assert cost.analytic_peak_bytes == 4 * (2 * TOKENS + weights)


def test_by_hand_a_selection_bias_is_read_and_has_no_gradient() -> None:
    cost = cost_of_call(workload(direction="train", router="sigmoid_topk", selection_bias=True), "moe", [5, 5, 5, 5])
    assert cost.flops == 3 * 2 * (10 * ROUTER + 20 * EXPERT)
    read, learnt = ROUTER + 4 + 4 * EXPERT, ROUTER + 4 * EXPERT
    assert cost.weight_bytes == 4 * read
    assert cost.moved_bytes == 4 * (read + learnt + 4 * TOKENS)
    assert cost.analytic_peak_bytes == 4 * (2 * TOKENS + learnt)


def test_by_hand_hashing_neither_reads_nor_learns_the_routers_weight() -> None:
    cost = cost_of_call(workload(direction="train", router="hash", router_bias=True), "moe", [5, 5, 5, 5])
    assert cost.flops == 3 * 2 * 20 * EXPERT
    assert cost.weight_bytes == 4 * (ROUTER + 4 + 4 * EXPERT)
    assert cost.moved_bytes == 4 * (2 * 4 * EXPERT + 4 * TOKENS)
    assert cost.analytic_peak_bytes == 4 * (2 * TOKENS + 4 * EXPERT)


def test_by_hand_noise_has_a_product_and_a_weight_of_its_own() -> None:
    cost = cost_of_call(workload(direction="train", router="noisy_topk"), "moe", [5, 5, 5, 5])
    assert cost.flops == 3 * 2 * (2 * 10 * ROUTER + 20 * EXPERT)
    assert cost.weight_bytes == 4 * (2 * ROUTER + 4 * EXPERT)
    assert cost.analytic_peak_bytes == 4 * (2 * TOKENS + 2 * ROUTER + 4 * EXPERT)


def test_by_hand_experts_that_choose_all_have_the_same_load() -> None:
    w = workload(router="expert_choice", capacity_factor=0.5)
    capacity = 3  # 0.5 * 10 * 2 / 4, rounded up
    assert w.layer.capacity(10) == capacity
    cost = cost_of_call(w, "moe", [capacity] * 4)
    assert cost.flops == 2 * (10 * ROUTER + 4 * capacity * EXPERT)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_agrees_with_torchs_counter_and_with_what_has_a_gradient(router: str) -> None:
    fields: dict[str, Any] = {"num_shared_experts": 1, "d_ff_shared": 7, "shared_gate": True, "router_bias": True}
    fields |= {"router": router, "top_k": FIXED_TOP_K.get(router, 2), "selection_bias": router in SELECTING_ROUTERS}
    w = workload(T=32, direction="train", **fields)
    layer = build("loop", w.layer, device="cpu", dtype=torch.float32, direction="train", seed=0)
    x_TD = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        routing = layer.route(x_TD)
    loads = torch.bincount(routing.expert_ids[routing.kept], minlength=4).tolist()
    with FlopCounterMode(display=False) as counter:
        y_TD = layer(x_TD)
    forward = counter.get_total_flops()
    y_TD.backward(torch.ones_like(y_TD))
    cost = cost_of_call(w, "moe", loads)
    assert cost.flops == 3 * forward
    learnt = sum(weight.grad.nbytes for weight in layer.weights.parameters() if weight.grad is not None)
    assert x_TD.grad is not None
    assert cost.analytic_peak_bytes == y_TD.nbytes + x_TD.grad.nbytes + learnt


def test_weight_bytes_are_those_of_the_parameters() -> None:
    w = workload(num_shared_experts=1, router_bias=True, expert_bias=True)
    assert cost_of_call(w, "ensemble", None).weight_bytes == make_weights(w.layer).num_bytes
    assert len(parameter_shapes(w.layer)) == 8
