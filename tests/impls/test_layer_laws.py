"""Laws that every exact implementation obeys, over random layers, tokens and routings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_testing import EXACT, make_spec, make_tokens, relative_error
from torch.func import functional_call

from impls import LayerSpec, MoELayer, Routing, build
from impls.routing import route

pytestmark = pytest.mark.parametrize("name", EXACT)

# A plain, unscaled float32 rounding: summation orders may differ between the two sides of a law.
ROUNDING = 3e-6

seeds = st.integers(0, 2**31)


@st.composite
def specs(draw: st.DrawFn, capacity: bool = False) -> LayerSpec:
    fields: dict[str, Any] = {"num_experts": draw(st.integers(1, 9))}
    fields["top_k"] = draw(st.integers(1, fields["num_experts"]))
    fields["activation"] = draw(st.sampled_from(["relu", "gelu", "silu", "swiglu", "geglu"]))
    fields["norm_topk_prob"] = draw(st.booleans())
    fields["num_shared_experts"] = draw(st.integers(0, 1))
    if capacity:
        fields["capacity_factor"] = draw(st.sampled_from([None, 0.3, 1.0]))
    return make_spec(d_model=8, d_ff=8, **fields)


Test = TypeVar("Test", bound=Callable[..., None])


def laws(**strategies: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    def decorate(test: Test) -> Test:
        return cast("Test", settings(deadline=None, max_examples=8)(given(**strategies)(test)))

    return decorate


def output(layer: MoELayer, x_TD: torch.Tensor, ids_TK: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = layer(x_TD, routing=None if ids_TK is None else layer.route(x_TD, ids_TK))
    return found


@laws(spec=specs(), num_tokens=st.integers(1, 20), seed=seeds)
def test_permuting_tokens_permutes_outputs(name: str, spec: LayerSpec, num_tokens: int, seed: int) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    order = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed))
    ids_TK = layer.route(x_TD).expert_ids
    assert relative_error(output(layer, x_TD[order], ids_TK[order]), output(layer, x_TD, ids_TK)[order]) < ROUNDING


@laws(spec=specs(), num_tokens=st.integers(2, 20), seed=seeds, share=st.floats(0, 1))
def test_splitting_a_batch_changes_nothing(
    name: str, spec: LayerSpec, num_tokens: int, seed: int, share: float
) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    ids_TK = layer.route(x_TD).expert_ids
    cut = int(share * num_tokens)
    parts = [output(layer, x_TD[:cut], ids_TK[:cut]), output(layer, x_TD[cut:], ids_TK[cut:])]
    assert relative_error(torch.cat(parts), output(layer, x_TD, ids_TK)) < ROUNDING


@laws(num_tokens=st.integers(1, 20), seed=seeds)
def test_of_two_equal_experts_either_gives_the_same(name: str, num_tokens: int, seed: int) -> None:
    layer = build(name, make_spec(num_experts=4, top_k=1), seed=seed)
    with torch.no_grad():
        for parameter in layer.weights.parameters():
            parameter[3] = parameter[1]
    x_TD = make_tokens(num_tokens, 32, seed=seed)
    one = output(layer, x_TD, torch.full((num_tokens, 1), 1))
    assert relative_error(output(layer, x_TD, torch.full((num_tokens, 1), 3)), one) < ROUNDING
    mixed = torch.randint(0, 2, (num_tokens, 1), generator=torch.Generator().manual_seed(seed)) * 2 + 1
    assert relative_error(output(layer, x_TD, mixed), one) < ROUNDING


@laws(spec=specs(capacity=True), num_tokens=st.integers(0, 20), seed=seeds)
def test_zero_weights_give_zero(name: str, spec: LayerSpec, num_tokens: int, seed: int) -> None:
    layer = build(name, spec)
    with torch.no_grad():
        for parameter in layer.weights.parameters():
            parameter.zero_()
    found = output(layer, make_tokens(num_tokens, 8, seed=seed))
    assert torch.equal(found, torch.zeros(num_tokens, 8))


@laws(spec=specs(capacity=True), num_tokens=st.integers(1, 20), seed=seeds, scale=st.sampled_from([-2.0, 0.5, 4.0]))
def test_scaling_the_down_projections_scales_the_output(
    name: str, spec: LayerSpec, num_tokens: int, seed: int, scale: float
) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    before = output(layer, x_TD)
    with torch.no_grad():
        layer.weights.down_proj.mul_(scale)
        if layer.weights.shared_down_proj is not None:
            layer.weights.shared_down_proj.mul_(scale)
    assert torch.equal(output(layer, x_TD), before * scale)  # powers of two are exact


@laws(spec=specs(capacity=True), num_tokens=st.integers(1, 20), seed=seeds)
def test_a_forced_routing_equal_to_the_choice_changes_nothing(
    name: str, spec: LayerSpec, num_tokens: int, seed: int
) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    assert torch.equal(output(layer, x_TD, layer.route(x_TD).expert_ids), output(layer, x_TD))


@laws(num_tokens=st.integers(2, 20), seed=seeds)
def test_a_token_that_is_dropped_everywhere_gives_zero(name: str, num_tokens: int, seed: int) -> None:
    layer = build(name, make_spec(top_k=1, capacity_factor=0.01), seed=seed)
    x_TD = make_tokens(num_tokens, 32, seed=seed)
    found = output(layer, x_TD, torch.zeros(num_tokens, 1, dtype=torch.int64))
    assert torch.equal(found[1:], torch.zeros(num_tokens - 1, 32))
    assert float(found[0].norm()) > 0


@laws(spec=specs(capacity=True), num_tokens=st.integers(1, 20), seed=seeds)
def test_renaming_the_experts_changes_nothing(name: str, spec: LayerSpec, num_tokens: int, seed: int) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    ids_TK = layer.route(x_TD).expert_ids
    before = output(layer, x_TD, ids_TK)
    old_E = torch.randperm(spec.num_experts, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter_name, parameter in layer.weights.named_parameters():
            if not parameter_name.startswith("shared_"):
                parameter.copy_(parameter[old_E])
    assert relative_error(output(layer, x_TD, old_E.argsort()[ids_TK]), before) < ROUNDING


@laws(spec=specs(capacity=True), num_tokens=st.integers(1, 20), seed=seeds)
def test_the_experts_share_is_linear_in_the_routing_weights(
    name: str, spec: LayerSpec, num_tokens: int, seed: int
) -> None:
    layer = build(name, spec, seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    with torch.inference_mode():
        routing = layer.route(x_TD)
        one, other = routing.weights, make_tokens(*routing.weights.shape, seed=seed + 1)
        together = layer.compute(x_TD, replace(routing, weights=one + 2 * other))
        apart = [layer.compute(x_TD, replace(routing, weights=weights)) for weights in (one, other)]
    # against the size of the terms, which may cancel
    size = float(apart[0].norm() + 2 * apart[1].norm())
    assert relative_error(together, apart[0] + 2 * apart[1], size) < ROUNDING


@laws(num_tokens=st.integers(1, 20), seed=seeds, scale=st.sampled_from([0.25, 2.0]), gated=st.booleans())
def test_what_an_activation_lets_through_scales_with_the_input_projections(
    name: str, num_tokens: int, seed: int, scale: float, gated: bool
) -> None:
    """relu is homogeneous, and the second half of a gated projection is a factor."""
    layer = build(name, make_spec(d_model=8, d_ff=8, activation="swiglu" if gated else "relu"), seed=seed)
    x_TD = make_tokens(num_tokens, 8, seed=seed)
    before = output(layer, x_TD)
    with torch.no_grad():
        layer.weights.in_proj[:, 8 if gated else 0 :].mul_(scale)
    assert torch.equal(output(layer, x_TD), before * scale)  # powers of two are exact


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_no_number_reaches_no_other(name: str, value: float) -> None:
    if name in ("einsum", "dense_masked"):
        pytest.skip("multiplies every token with zeros for what it did not choose, by definition")
    x_TD = make_tokens(12, 32)
    ids_TK = torch.arange(12).unsqueeze(1) % 3 + torch.arange(2)
    # what is dropped under a capacity is row 0 times zero in these two
    for capacity_factor in (None,) if name in ("grouped", "scatter_gather") else (None, 0.4):
        layer = build(name, make_spec(capacity_factor=capacity_factor))
        clean = output(layer, x_TD, ids_TK)
        x_TD[0] = value
        spoiled = output(layer, x_TD, ids_TK)
        x_TD[0] = 0
        assert not bool(spoiled[0].isfinite().any())
        assert torch.equal(spoiled[1:], clean[1:])


@pytest.mark.parametrize("trained", ["input", "routing weights", "up_proj", "down_proj"])
def test_gradients_are_slopes_in_float64(name: str, trained: str) -> None:
    """Numeric slopes, which share nothing with any reference."""
    if name == "grouped":
        pytest.skip("torch's grouped_mm has no float64; its gradients are held to the float64 reference")
    spec = make_spec(d_model=6, d_ff=4, num_experts=3, activation="gelu", expert_bias=True, capacity_factor=0.9)
    layer = build(name, spec, direction="train")
    layer.weights.double()
    x_TD = make_tokens(4, 6).double()
    routing = route(spec, layer.weights, x_TD)
    assert not bool(routing.kept.all())
    leaves = {
        "input": x_TD,
        "routing weights": routing.weights.detach().double(),
        "up_proj": layer.weights.in_proj.detach(),
        "down_proj": layer.weights.down_proj.detach(),
    }

    def computed(leaf: torch.Tensor) -> torch.Tensor:
        values = leaves | {trained: leaf}
        parts = {name: values[name] for name in ("down_proj", "up_proj")}
        call = _Experts(layer, replace(routing, weights=values["routing weights"]))
        found: torch.Tensor = functional_call(
            call, {f"layer.weights.{name}": value for name, value in parts.items()}, (values["input"],)
        )
        return found

    assert torch.autograd.gradcheck(computed, leaves[trained].clone().requires_grad_())


class _Experts(torch.nn.Module):
    """The experts' part of a layer under one routing."""

    def __init__(self, layer: MoELayer, routing: Routing) -> None:
        super().__init__()
        self.layer, self.routing = layer, routing

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.layer.compute(x_TD, self.routing)
