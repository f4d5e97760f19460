"""Laws that every exact implementation obeys, over random layers, tokens and routings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_testing import EXACT, make_spec, make_tokens, relative_error

from impls import LayerSpec, MoELayer, build

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
