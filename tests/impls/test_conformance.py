"""Every implementation against the token-by-token reference: output, and the gradient of input and every weight."""

from __future__ import annotations

import functools

import pytest
import torch
from layer_testing import (
    BASELINES,
    EXACT,
    TOLERANCE,
    Step,
    assert_same,
    errors_of,
    make_spec,
    make_tokens,
    reference_step,
    train_step,
)
from torch import Tensor

from impls import LayerSpec, Unsupported, build
from impls.registry import ENTRIES
from impls.routing import route
from impls.weights import Weights, make_weights

SPECS = {
    "plain": make_spec(),
    "relu": make_spec(activation="relu"),
    "gelu_bias_c1": make_spec(activation="gelu", expert_bias=True, capacity_factor=1.0),
    "silu_k1": make_spec(activation="silu", top_k=1),
    "geglu_shared": make_spec(activation="geglu", num_shared_experts=2),
    "relu_bias_shared_c1.25": make_spec(
        activation="relu", expert_bias=True, num_shared_experts=1, capacity_factor=1.25, norm_topk_prob=False
    ),
    "k_is_e": make_spec(top_k=8, norm_topk_prob=False),
    "one_expert": make_spec(num_experts=1, top_k=1),
    "one_expert_raw": make_spec(num_experts=1, top_k=1, norm_topk_prob=False, capacity_factor=0.5),
    "c0.5_router_bias": make_spec(capacity_factor=0.5, router_bias=True),
    "k1_raw_c0.5_bias": make_spec(top_k=1, norm_topk_prob=False, capacity_factor=0.5, expert_bias=True),
    "c1.25_raw_router_bias": make_spec(capacity_factor=1.25, norm_topk_prob=False, router_bias=True, top_k=3),
}
# How the tokens are sent: by the router, all first choices to one expert, or only to two experts (the rest are empty).
ROUTINGS = ["router", "hot", "two"]


def forced_ids(how: str, spec: LayerSpec, num_tokens: int) -> Tensor | None:
    if how == "router":
        return None
    tokens_T1 = torch.arange(num_tokens).unsqueeze(1)
    choices_K = torch.arange(spec.top_k)
    if how == "hot":
        others_TK = 1 + (tokens_T1 + choices_K) % max(1, spec.num_experts - 1)
        return torch.where(choices_K == 0, 0, others_TK).expand(num_tokens, -1)
    return (tokens_T1 + choices_K) % spec.top_k + spec.num_experts - spec.top_k


@functools.cache
def problem(
    label: str, how: str, num_tokens: int, dtype: torch.dtype, semantics: str
) -> tuple[Weights, Tensor, Tensor, Tensor, Step]:
    spec = SPECS[label]
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD = make_tokens(num_tokens, spec.d_model, dtype=dtype, seed=num_tokens)
    grad_TD = make_tokens(num_tokens, spec.d_model, dtype=dtype, seed=99)
    ids_TK = route(spec, weights, x_TD, forced_ids(how, spec, num_tokens)).expert_ids
    return weights, x_TD, grad_TD, ids_TK, reference_step(semantics, spec, weights, x_TD, ids_TK, grad_TD)


def check(name: str, label: str, how: str, num_tokens: int, dtype: torch.dtype) -> None:
    spec = SPECS[label]
    weights, x_TD, grad_TD, ids_TK, truth = problem(label, how, num_tokens, dtype, ENTRIES[name].semantics)
    if name == "grouped" and spec.activation == "relu" and spec.expert_bias and dtype != torch.float32:
        with pytest.raises(Unsupported, match="turns signs before relu"):
            build(name, spec, weights=weights, direction="train")
        return
    if name == "batched" and dtype != torch.float32:
        with pytest.raises(Unsupported, match="is rounded to"):
            build(name, spec, weights=weights, direction="train")
        return
    layer = build(name, spec, weights=weights, direction="train")
    routing = None if how == "router" else layer.route(x_TD, ids_TK)
    found = train_step(layer, x_TD, grad_TD, routing)
    assert found.output.dtype == dtype
    assert all(gradient.dtype == dtype for gradient in found.gradients.values())
    assert_same(found, truth, TOLERANCE[dtype])


@pytest.mark.parametrize("num_tokens", [0, 1, 33])
@pytest.mark.parametrize("label", SPECS)
@pytest.mark.parametrize("name", EXACT)
def test_float32_matches_the_reference(name: str, label: str, num_tokens: int) -> None:
    check(name, label, "router", num_tokens, torch.float32)


@pytest.mark.parametrize("how", ["hot", "two"])
@pytest.mark.parametrize("label", ["plain", "k1_raw_c0.5_bias", "c1.25_raw_router_bias", "relu_bias_shared_c1.25"])
@pytest.mark.parametrize("name", EXACT)
def test_uneven_routing_matches_the_reference(name: str, label: str, how: str) -> None:
    check(name, label, how, 21, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("label", SPECS)
@pytest.mark.parametrize("name", EXACT)
def test_half_precision_matches_the_reference(name: str, label: str, dtype: torch.dtype) -> None:
    check(name, label, "router", 33, dtype)


@pytest.mark.parametrize("num_tokens", [0, 1, 33])
@pytest.mark.parametrize("capacity_factor", [None, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_expert_choice_executed_as_defined_matches_the_reference(
    dtype: torch.dtype, capacity_factor: float | None, num_tokens: int
) -> None:
    spec = make_spec(router="expert_choice", capacity_factor=capacity_factor, expert_bias=True, activation="gelu")
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD, grad_TD = (make_tokens(num_tokens, 32, dtype=dtype, seed=seed) for seed in (0, 1))
    executed, looped = (
        train_step(build(name, spec, weights=weights, direction="train"), x_TD, grad_TD)
        for name in ("expert_choice", "loop")
    )
    assert_same(executed, looped, 2 * TOLERANCE[dtype])  # each may be one tolerance from the truth


def test_expert_choice_refuses_other_routers() -> None:
    with pytest.raises(Unsupported, match="executes router 'expert_choice' only"):
        build("expert_choice", make_spec())


def test_batched_refuses_to_gather_past_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impls.batched.MAX_GATHERED_BYTES", 2**20)
    layer = build("batched", make_spec(d_model=64, d_ff=64))  # 48 KiB an expert
    assert layer(make_tokens(10, 64)).shape == (10, 64)
    with pytest.raises(Unsupported, match="each of 22 assignments takes"):
        layer(make_tokens(11, 64))


@pytest.mark.parametrize("name", ["ensemble", "ensemble_weighted"])
def test_the_error_of_an_ensemble_does_not_grow_with_its_members(name: str) -> None:
    spec = make_spec(num_experts=128)
    weights = make_weights(spec, dtype=torch.bfloat16)
    x_TD, grad_TD = (make_tokens(16, 32, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    truth = reference_step(name, spec, weights, x_TD, torch.zeros(16, 2, dtype=torch.int64), grad_TD)
    layer = build(name, spec, weights=weights, direction="train")
    assert_same(train_step(layer, x_TD, grad_TD), truth, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("label", ["plain", "gelu_bias_c1", "geglu_shared", "k_is_e", "one_expert"])
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_match_their_own_references(name: str, label: str, dtype: torch.dtype) -> None:
    check(name, label, "router", 19, dtype)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_take_no_tokens_and_ignore_a_given_routing(name: str) -> None:
    spec = SPECS["geglu_shared"]
    layer = build(name, spec)
    x_TD = make_tokens(5, spec.d_model)
    routing = layer.route(x_TD, forced_ids("hot", spec, 5))
    assert not layer.routes
    assert torch.equal(layer(x_TD, routing=routing), layer(x_TD))
    assert layer(x_TD[:0]).shape == (0, spec.d_model)


def test_dense_gives_the_same_packed_for_inference_as_in_training() -> None:
    spec = SPECS["plain"]
    layer = build("dense", spec)
    x_TD = make_tokens(5, spec.d_model)
    with torch.inference_mode():
        packed = layer(x_TD)
    torch.testing.assert_close(packed, layer(x_TD).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*EXACT, *BASELINES])
def test_batched_and_non_contiguous_input(name: str) -> None:
    spec = SPECS["c0.5_router_bias"]
    layer = build(name, spec, direction="train")
    x_BSD = make_tokens(5, 3, spec.d_model).transpose(0, 1)
    grad_BSD = make_tokens(5, 3, spec.d_model, seed=1).transpose(0, 1)
    assert not x_BSD.is_contiguous()
    found = train_step(layer, x_BSD, grad_BSD)
    flat = train_step(layer, x_BSD.reshape(15, -1), grad_BSD.reshape(15, -1))
    assert found.output.shape == x_BSD.shape
    assert torch.equal(found.output.reshape(15, -1), flat.output)
    assert torch.equal(found.gradients["input"].reshape(15, -1), flat.gradients["input"])


@pytest.mark.parametrize("name", [*EXACT, *BASELINES])
def test_inference_gives_the_output_of_training(name: str) -> None:
    spec = SPECS["c1.25_raw_router_bias"]
    trained = build(name, spec, direction="train")
    evaluated = build(name, spec, weights=trained.weights)
    x_TD = make_tokens(9, spec.d_model)
    with torch.inference_mode():
        output = evaluated(x_TD)
    torch.testing.assert_close(output, trained(x_TD).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("broadcast", ["sum", "mean"])
@pytest.mark.parametrize("name", EXACT)
def test_an_expanded_output_gradient_is_accepted(name: str, broadcast: str) -> None:
    layer = build(name, SPECS["plain"], direction="train")
    getattr(layer(make_tokens(4, 32)), broadcast)().backward()
    assert layer.weights.router_weight.grad is not None


def test_the_comparison_itself_sees_a_wrong_gradient() -> None:
    _, _, _, _, truth = problem("plain", "router", 33, torch.float32, "moe")
    wrong = Step(truth.output, truth.gradients | {"down_proj": truth.gradients["down_proj"] * 1.001})
    assert errors_of(wrong, truth)["down_proj"] == pytest.approx(1e-3)
    with pytest.raises(AssertionError):
        assert_same(wrong, truth, TOLERANCE[torch.float32])
