"""Every router in every exact implementation, and in the truth of runs, against the token-by-token reference."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from layer_testing import EXACT, TOLERANCE, Step, assert_same, errors_of, make_tokens, reference_step, train_step
from router_specs import ROUTED
from torch import Tensor

from impls import LayerSpec, Routing, Unsupported, build
from impls import reference as reference_module
from impls.ffn import LEAST_HALF_LIMIT
from impls.gates import Gates
from impls.registry import resolve
from impls.routing import route
from impls.spec import ACTIVATIONS, CAPACITY_POLICIES, ROUTERS
from impls.truth import expertwise_truth
from impls.weights import Weights, make_weights


@functools.cache
def problem(label: str, num_tokens: int, dtype: torch.dtype) -> tuple[Weights, Tensor, Tensor, Routing, Step]:
    spec = ROUTED[label]
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD = make_tokens(num_tokens, spec.d_model, dtype=dtype, seed=num_tokens)
    grad_TD = make_tokens(num_tokens, spec.d_model, dtype=dtype, seed=99)
    with torch.no_grad():
        routing = route(spec, weights, x_TD)
    return weights, x_TD, grad_TD, routing, reference_step("moe", spec, weights, x_TD, routing.expert_ids, grad_TD)


def test_every_router_and_policy_is_tried() -> None:
    assert {spec.router for spec in ROUTED.values()} == set(ROUTERS)
    assert {spec.capacity_policy for spec in ROUTED.values()} == set(CAPACITY_POLICIES)
    assert "swiglu_clamped" in ACTIVATIONS
    assert all(spec.impossible is None for spec in ROUTED.values())


@pytest.mark.parametrize("num_tokens", [0, 1, 33])
@pytest.mark.parametrize("label", ROUTED)
@pytest.mark.parametrize("name", EXACT)
def test_float32_matches_the_reference(name: str, label: str, num_tokens: int) -> None:
    weights, x_TD, grad_TD, _, truth = problem(label, num_tokens, torch.float32)
    layer = build(name, ROUTED[label], weights=weights, direction="train")
    assert_same(train_step(layer, x_TD, grad_TD), truth, TOLERANCE[torch.float32])


HALF = [
    (name, label)
    for name in EXACT
    for label, spec in ROUTED.items()
    if resolve(name).supports(spec, torch.device("cpu"), torch.bfloat16, "train") is None
    # a slope that jumps where values are dense: rounded to bfloat16, some fall on the other side
    and label != "topk_softmax_tight_clamp"
]


@pytest.mark.parametrize("name", EXACT)
def test_a_clamp_among_the_values_is_not_trained_in_half_precision(name: str) -> None:
    spec = ROUTED["topk_softmax_tight_clamp"]
    with pytest.raises(Unsupported, match=r"swiglu_limit 0\.5 is below 4"):
        build(name, spec, dtype=torch.bfloat16, direction="train")
    build(name, spec, dtype=torch.bfloat16)
    build(name, spec, direction="train")


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0])
def test_rounding_nothing_but_the_clamped_values_misses_the_tolerance(
    limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the excess is not an implementation's."""
    spec = replace(ROUTED["topk_softmax_tight_clamp"], swiglu_limit=limit)
    weights = make_weights(spec, dtype=torch.bfloat16, seed=3)
    x_TD, grad_TD = (make_tokens(33, 32, dtype=torch.bfloat16, seed=seed) for seed in (33, 99))
    ids_TK = route(spec, weights, x_TD).expert_ids
    truth = reference_step("moe", spec, weights, x_TD, ids_TK, grad_TD)
    exact = reference_module._activate

    def rounded(spec: LayerSpec, activation: str, hidden_I: Tensor) -> Tensor:
        rounding_I = hidden_I.detach().bfloat16().double() - hidden_I.detach()
        return exact(spec, activation, hidden_I + rounding_I)

    monkeypatch.setattr(reference_module, "_activate", rounded)
    ideal = reference_step("moe", spec, weights, x_TD, ids_TK, grad_TD)
    assert errors_of(ideal, truth)["gate_up_proj"] > 2 * TOLERANCE[torch.bfloat16]
    assert errors_of(ideal, truth)["output"] < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_limit_that_may_be_trained_in_half_precision_meets_the_tolerance(dtype: torch.dtype) -> None:
    spec = replace(ROUTED["topk_softmax_tight_clamp"], swiglu_limit=LEAST_HALF_LIMIT)
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD, grad_TD = (make_tokens(128, 32, dtype=dtype, seed=seed) for seed in (33, 99))
    truth = reference_step("moe", spec, weights, x_TD, route(spec, weights, x_TD).expert_ids, grad_TD)
    assert_same(
        train_step(build("loop", spec, weights=weights, direction="train"), x_TD, grad_TD), truth, TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("name", "label"), HALF)
def test_bfloat16_matches_the_reference(name: str, label: str) -> None:
    weights, x_TD, grad_TD, _, truth = problem(label, 33, torch.bfloat16)
    layer = build(name, ROUTED[label], weights=weights, direction="train")
    found = train_step(layer, x_TD, grad_TD)
    assert found.output.dtype == torch.bfloat16
    assert_same(found, truth, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("label", ROUTED)
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
def test_the_truth_of_runs_matches_the_reference(label: str, num_tokens: int) -> None:
    weights, x_TD, grad_TD, routing, reference = problem(label, num_tokens, torch.float32)
    found = expertwise_truth(
        "moe", ROUTED[label], weights, x_TD, routing.expert_ids, kept_TK=routing.kept, grad_output_TD=grad_TD
    )
    assert found.gradients.keys() == reference.gradients.keys()
    assert_same(Step(found.output, found.gradients), reference, 1e-12)


@pytest.mark.parametrize("label", [label for label, spec in ROUTED.items() if spec.unforceable is None])
def test_forced_ids_are_followed_and_weighed(label: str) -> None:
    spec = ROUTED[label]
    weights, x_TD, grad_TD, _, _ = problem(label, 33, torch.float32)
    ids_TK = (torch.arange(33).unsqueeze(1) + torch.arange(spec.top_k)) % 3
    layer = build("loop", spec, weights=weights, direction="train")
    found = train_step(layer, x_TD, grad_TD, layer.route(x_TD, ids_TK))
    expected = reference_step("moe", spec, weights, x_TD, ids_TK, grad_TD)
    assert_same(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("label", [label for label, spec in ROUTED.items() if spec.router != "hash"])
def test_norms_before_cancellation_are_those_over_random_signs(label: str) -> None:
    spec = ROUTED[label]
    weights, x_TD, _, routing, _ = problem(label, 13, torch.float32)
    scale_TK = make_tokens(*routing.weights.shape, seed=5).abs() * routing.kept
    gates = Gates("moe", spec, weights, x_TD, x_TD.double().requires_grad_(), torch.arange(13), routing.expert_ids)
    found = gates.uncancelled(scale_TK.double())

    live = route(spec, weights, x_TD, routing)
    squares = dict.fromkeys(found, 0.0)  # gates with independent random gradients: their squares add up
    for token, choice in routing.kept.nonzero().tolist():
        slopes = torch.autograd.grad(
            live.weights[token, choice], [getattr(weights, name) for name in found], retain_graph=True
        )
        for name, slope in zip(found, slopes, strict=True):
            squares[name] += float(slope.norm() * scale_TK[token, choice]) ** 2
    assert found == pytest.approx({name: square**0.5 for name, square in squares.items()}, rel=1e-4)
