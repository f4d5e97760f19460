"""What each router chooses and how it weighs, by hand-written formulas, and the laws that hold for them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_testing import make_spec, make_tokens
from router_specs import ROUTED
from torch import Tensor

from impls import LayerSpec, Routing, build
from impls.ffn import activate
from impls.routers import TABLE
from impls.routing import route
from impls.spec import ROUTERS
from impls.weights import Weights, make_weights

GROUPED = make_spec(router="sigmoid_topk", selection_bias=True, num_expert_groups=4, top_k_groups=2)


def routed(spec: LayerSpec, num_tokens: int = 16, given_ids: Tensor | None = None) -> tuple[Routing, Weights, Tensor]:
    weights, x_TD = make_weights(spec), make_tokens(num_tokens, spec.d_model)
    return route(spec, weights, x_TD, given_ids), weights, x_TD


def test_the_table_holds_every_name_of_the_specification() -> None:
    assert tuple(TABLE) == ROUTERS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"router": "switch"}, "exactly 1"),
        ({"router": "gshard", "top_k": 1}, "exactly 2"),
        ({"router": "switch", "top_k": 1, "selection_bias": True}, "no selection bias"),
        ({"router": "hash", "num_expert_groups": 2}, "no expert groups"),
        ({"num_expert_groups": 3}, "no multiple"),
        ({"num_expert_groups": 2, "top_k_groups": 3}, "above num_expert_groups"),
        ({"num_expert_groups": 8, "top_k_groups": 1}, "above the 1 experts"),
        ({"shared_gate": True}, "num_shared_experts is 0"),
        ({"router": "expert_choice", "capacity_policy": "score"}, "nothing is dropped"),
    ],
)
def test_combinations_that_cannot_be_say_why(changes: dict[str, object], reason: str) -> None:
    assert reason in (make_spec(**changes).impossible or "")


@pytest.mark.parametrize("field", ["capacity_multiple", "num_expert_groups", "top_k_groups", "d_ff_shared"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        make_spec(**{field: 0})


def test_a_selection_bias_moves_the_choice_and_not_the_scores_and_has_no_gradient() -> None:
    spec = make_spec(router="sigmoid_topk", selection_bias=True, norm_topk_prob=False)
    weights, x_TD = make_weights(spec), make_tokens(16, 32)
    assert weights.router_selection_bias is not None
    with torch.no_grad():
        weights.router_selection_bias.zero_()
        plain = route(spec, weights, x_TD)
        weights.router_selection_bias[3] = 2.0
    biased = route(spec, weights, x_TD)
    assert not torch.equal(plain.expert_ids, biased.expert_ids)
    assert bool((biased.expert_ids[:, 0] == 3).all())
    torch.testing.assert_close(biased.weights, biased.logits.sigmoid().gather(1, biased.expert_ids))
    biased.weights.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert weights.router_selection_bias.grad is None


def test_groups_bound_the_experts_of_a_token_by_their_two_best() -> None:
    routing, weights, _ = routed(GROUPED)
    assert weights.router_selection_bias is not None
    scores = (routing.logits.sigmoid() + weights.router_selection_bias).detach().view(16, 4, 2)
    for token, ids in enumerate(routing.expert_ids.tolist()):
        best = set(scores[token].sum(1).topk(2).indices.tolist())
        assert {e // 2 for e in ids} <= best


@given(st.integers(0, 50), st.sampled_from([(2, 1), (4, 2), (8, 3)]))
@settings(deadline=None, max_examples=20)
def test_no_token_leaves_its_groups(seed: int, groups: tuple[int, int]) -> None:
    spec = make_spec(num_experts=16, num_expert_groups=groups[0], top_k_groups=groups[1])
    ids_TK = route(spec, make_weights(spec, seed=seed), make_tokens(9, 32, seed=seed)).expert_ids
    assert all(len({e // (16 // groups[0]) for e in ids}) <= groups[1] for ids in ids_TK.tolist())


def commutes(spec: LayerSpec) -> bool:
    """Whether the router and the capacity look at a token's value only, and not at its position."""
    by_position = spec.capacity_factor is not None and spec.capacity_policy == "gshard"
    return spec.router == "expert_choice" or (spec.router not in ("noisy_topk", "gshard") and not by_position)


@pytest.mark.parametrize("label", [label for label, spec in ROUTED.items() if commutes(spec)])
def test_permuting_tokens_permutes_the_routing(label: str) -> None:
    spec = ROUTED[label]
    weights, x_TD = make_weights(spec), make_tokens(12, 32)
    order_T = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    one, other = route(spec, weights, x_TD), route(spec, weights, x_TD[order_T])
    assert torch.equal(one.expert_ids[order_T], other.expert_ids)
    assert torch.equal(one.kept[order_T], other.kept)
    torch.testing.assert_close(one.weights[order_T], other.weights)


def test_scaling_scales_the_weights_alone() -> None:
    one, _, _ = routed(make_spec(router="sigmoid_topk"))
    scaled, _, _ = routed(make_spec(router="sigmoid_topk", routed_scaling=2.5))
    assert torch.equal(one.expert_ids, scaled.expert_ids)
    torch.testing.assert_close(scaled.weights, 2.5 * one.weights)
    torch.testing.assert_close(one.weights.sum(1), torch.ones(16))


@given(st.integers(1, 40), st.sampled_from([0.3, 1.0, 1.7]), st.sampled_from([1, 4, 8]))
@settings(deadline=None, max_examples=30)
def test_a_capacity_is_the_least_multiple_that_holds_it(num_tokens: int, factor: float, multiple: int) -> None:
    plain = make_spec(capacity_factor=factor).capacity(num_tokens)
    rounded = make_spec(capacity_factor=factor, capacity_multiple=multiple).capacity(num_tokens)
    assert plain is not None
    assert rounded is not None
    assert rounded % multiple == 0
    assert plain <= rounded < plain + multiple


def test_by_score_the_largest_weights_of_an_expert_stay() -> None:
    with torch.no_grad():
        routing, _, _ = routed(make_spec(capacity_factor=0.5, capacity_policy="score"), 32)
    assert not bool(routing.kept.all())
    for e in range(8):
        here = routing.expert_ids == e
        kept, dropped = routing.weights[here & routing.kept], routing.weights[here & ~routing.kept]
        assert len(kept) <= (routing.capacity or 0)
        assert not len(dropped) or float(kept.min()) >= float(dropped.max())


def test_draws_are_the_same_for_a_seed_and_others_for_another() -> None:
    for router in ("noisy_topk", "gshard", "hash"):
        one, again, other = (routed(make_spec(router=router, router_seed=seed), 64)[0] for seed in (0, 0, 1))
        assert torch.equal(one.expert_ids, again.expert_ids)
        assert torch.equal(one.kept, again.kept)
        assert not (torch.equal(one.expert_ids, other.expert_ids) and torch.equal(one.kept, other.kept))


def test_gshard_skips_a_second_expert_as_often_as_its_weight_says() -> None:
    routing, _, _ = routed(make_spec(router="gshard"), 4000)
    assert routing.wanted is not None
    assert bool(routing.wanted[:, 0].all())
    asked, expected = routing.wanted[:, 1].float().mean(), 2 * routing.weights[:, 1].detach().mean()
    assert abs(float(asked - expected)) < 4 * math.sqrt(0.25 / 4000)


def test_a_hash_spreads_tokens_evenly_over_distinct_experts() -> None:
    routing, _, x_TD = routed(make_spec(router="hash"), 4000)
    counts_E = torch.bincount(routing.expert_ids.flatten(), minlength=8)
    assert float((counts_E - 1000).abs().max()) < 5 * math.sqrt(1000)
    assert bool((routing.expert_ids[:, 0] != routing.expert_ids[:, 1]).all())
    spec = make_spec(router="hash")
    assert torch.equal(route(spec, make_weights(spec), x_TD[5:6].repeat(3, 1)).expert_ids[2], routing.expert_ids[5])


def test_under_expert_choice_every_expert_takes_its_best_and_ids_cannot_be_forced() -> None:
    spec = make_spec(router="expert_choice")
    routing, weights, x_TD = routed(spec)
    assert routing.capacity == 4
    assert routing.kept.sum(0).tolist() == [4] * 8
    share_TE = routing.logits.softmax(-1)
    for e in range(8):
        assert set(share_TE[:, e].topk(4).indices.tolist()) == set(routing.kept[:, e].nonzero().flatten().tolist())
    with pytest.raises(ValueError, match="cannot follow forced ids"):
        route(spec, weights, x_TD, torch.zeros(16, 2, dtype=torch.int64))
    layer = build("loop", spec, weights=weights)
    assert torch.equal(layer(x_TD, routing=routing), layer(x_TD))


def test_sparsemixer_weighs_only_those_that_come_close() -> None:
    spec = make_spec(router="sparsemixer", d_model=4, num_experts=4)
    weights = make_weights(spec)
    weights.router_weight.data = torch.tensor([[2.0, 0, 0, 0], [1.97, 0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    routing = route(spec, weights, torch.tensor([[1.0, 0, 0, 0]]))
    assert routing.expert_ids.tolist() == [[0, 1]]
    assert routing.weights.tolist()[0] == pytest.approx([1 / (1 + math.exp(-0.03)), 1.0])


def test_importance_is_the_squared_variation_of_summed_weights() -> None:
    routing, weights, _ = routed(make_spec())
    importance_E = torch.zeros(16, 8).scatter(1, routing.expert_ids, routing.weights).sum(0)
    torch.testing.assert_close(routing.importance_loss(), importance_E.var(correction=0) / importance_E.mean() ** 2)
    routing.importance_loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert weights.router_weight.grad is not None
    with pytest.raises(ValueError, match="adds none"):
        routing.load_loss()


def test_load_is_the_chance_to_be_chosen_under_noise_drawn_anew() -> None:
    routing, weights, _ = routed(make_spec(router="noisy_topk"), 5)
    assert routing.clean_logits is not None
    assert routing.noise_deviation is not None
    load_E = torch.zeros(8)
    for token in range(5):
        for e in range(8):
            others = [float(v) for i, v in enumerate(routing.logits[token].detach()) if i != e]
            above = float(routing.clean_logits[token, e].detach()) - sorted(others)[-2]
            z = above / float(routing.noise_deviation[token, e].detach())
            load_E[e] += (1 + math.erf(z / math.sqrt(2))) / 2
    expected = load_E.var(correction=0) / load_E.mean() ** 2
    torch.testing.assert_close(routing.load_loss(), expected, rtol=1e-4, atol=1e-6)
    routing.load_loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert weights.router_noise_weight is not None
    assert weights.router_noise_weight.grad is not None


def test_clamped_swiglu_is_linear_in_neither_half_past_its_limit() -> None:
    spec = make_spec(activation="swiglu_clamped", swiglu_limit=7.0)
    found = activate(spec, torch.tensor([9.0, -9.0, 1.0, 9.0, -9.0, 0.5]))
    glu = [g / (1 + math.exp(-1.702 * g)) for g in (7.0, -9.0, 1.0)]
    assert found.tolist() == pytest.approx([glu[0] * 8, glu[1] * -6, glu[2] * 1.5])
