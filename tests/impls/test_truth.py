"""The expert-by-expert truth equals the token-by-token reference, also in blocks and for some tokens only."""

from __future__ import annotations

import pytest
import torch
from layer_testing import BASELINES, Step, assert_same, make_spec, make_tokens, reference_step, relative_error

from impls import LayerSpec, truth
from impls.ffn import feed_forward
from impls.routing import route
from impls.truth import expertwise_truth
from impls.weights import make_weights

SPECS = [
    make_spec(),
    make_spec(activation="relu", capacity_factor=0.5, expert_bias=True, router_bias=True),
    make_spec(activation="geglu", top_k=3, norm_topk_prob=False, num_shared_experts=2, capacity_factor=1.25),
    make_spec(activation="gelu", num_experts=1, top_k=1, num_shared_experts=1, expert_bias=True),
    make_spec(activation="silu", top_k=8, norm_topk_prob=False, router_bias=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.activation}-{spec.top_k}-{spec.capacity_factor}")
@pytest.mark.parametrize("semantics", ["moe", *BASELINES])
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
def test_equals_the_reference(
    semantics: str, spec: LayerSpec, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "BLOCK_TOKENS", 4)
    weights = make_weights(spec, dtype=torch.bfloat16, seed=1)
    x_TD = make_tokens(num_tokens, 32, dtype=torch.bfloat16)
    grad_TD = make_tokens(num_tokens, 32, dtype=torch.bfloat16, seed=1)
    ids_TK = route(spec, weights, x_TD).expert_ids
    expected = reference_step(semantics, spec, weights, x_TD, ids_TK, grad_TD)
    found = expertwise_truth(semantics, spec, weights, x_TD, ids_TK, grad_output_TD=grad_TD)
    assert found.gradients.keys() == expected.gradients.keys()
    assert all(gradient.dtype == torch.float64 for gradient in found.gradients.values())
    assert found.tokens.tolist() == list(range(num_tokens))
    assert_same(Step(found.output, found.gradients), expected, 1e-12)


def test_some_tokens_are_those_of_the_whole_with_capacity_counted_over_all() -> None:
    spec = SPECS[1]
    weights = make_weights(spec)
    x_TD, grad_TD = make_tokens(13, 32), make_tokens(13, 32, seed=1)
    ids_TK = route(spec, weights, x_TD).expert_ids
    tokens = torch.tensor([2, 11, 12])
    only = torch.zeros(13, 1).index_fill(0, tokens, 1.0)
    whole = expertwise_truth("moe", spec, weights, x_TD, ids_TK, grad_output_TD=grad_TD * only)
    some = expertwise_truth("moe", spec, weights, x_TD, ids_TK, grad_output_TD=grad_TD, tokens=tokens)
    assert some.tokens.tolist() == [2, 11, 12]
    assert relative_error(some.output, whole.output[tokens]) < 1e-12
    for name, gradient in whole.gradients.items():
        assert some.gradients[name].shape == gradient.shape
        assert relative_error(some.gradients[name], gradient) < 1e-12, name


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_norms_before_cancellation_are_those_over_random_signs(norm_topk_prob: bool) -> None:
    spec = make_spec(num_experts=4, top_k=3, capacity_factor=0.8, norm_topk_prob=norm_topk_prob, router_bias=True)
    weights = make_weights(spec)
    x_TD, grad_TD = make_tokens(5, 32), make_tokens(5, 32, seed=1)
    routing = route(spec, weights, x_TD)
    found = expertwise_truth("moe", spec, weights, x_TD, routing.expert_ids, grad_output_TD=grad_TD)

    router = [p for p in (weights.router_weight, weights.router_bias) if p is not None]
    squares = [0.0, 0.0]  # gates with independent random gradients: their squares add up
    for token, choice in routing.kept.nonzero().tolist():
        e = int(routing.expert_ids[token, choice])
        y_D = feed_forward(spec, x_TD[token], weights.in_proj[e], weights.down_proj[e])
        slopes = torch.autograd.grad(routing.weights[token, choice], router, retain_graph=True)
        for i, slope in enumerate(slopes):
            squares[i] += float(slope.norm() * (grad_TD[token] * y_D.detach()).norm()) ** 2
    assert not routing.kept.all()
    assert list(found.uncancelled) == ["router_weight", "router_bias"]
    assert list(found.uncancelled.values()) == pytest.approx([square**0.5 for square in squares], rel=1e-5)


def test_without_an_output_gradient_there_are_no_gradients() -> None:
    spec = SPECS[0]
    weights = make_weights(spec)
    x_TD = make_tokens(5, 32)
    found = expertwise_truth("moe", spec, weights, x_TD, route(spec, weights, x_TD).expert_ids)
    assert found.gradients == {}
    assert not found.output.requires_grad
    assert weights.router_weight.grad is None
