"""The shared router by value: choices, weights, capacity, auxiliary losses."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_testing import make_spec, make_tokens
from torch import Tensor

from impls import Routing
from impls.routing import expert_slots, queue_places, route, sort_by_expert
from impls.weights import make_weights


def routed(num_tokens: int = 6, ids: list[list[int]] | None = None, **changes: object) -> tuple[Routing, Tensor]:
    spec = make_spec(**changes)
    weights = make_weights(spec)
    routing = route(spec, weights, make_tokens(num_tokens, 32), None if ids is None else torch.tensor(ids))
    return routing, routing.logits.softmax(-1)


def test_the_chosen_are_the_most_probable_best_first() -> None:
    routing, probability_TE = routed(top_k=3)
    expected = probability_TE.sort(descending=True).values[:, :3]
    torch.testing.assert_close(probability_TE.gather(1, routing.expert_ids), expected)
    assert routing.expert_ids.dtype == torch.int64
    assert bool(routing.kept.all())
    assert routing.slots is None
    assert routing.capacity is None


def test_weights_sum_to_one_where_renormalised_and_are_probabilities_where_not() -> None:
    routing, probability_TE = routed(top_k=3)
    chosen_TK = probability_TE.gather(1, routing.expert_ids)
    torch.testing.assert_close(routing.weights, chosen_TK / chosen_TK.sum(1, keepdim=True))
    raw, _ = routed(top_k=3, norm_topk_prob=False)
    torch.testing.assert_close(raw.weights, chosen_TK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_float32_whatever_the_tokens_are(dtype: torch.dtype) -> None:
    spec = make_spec(router_bias=True)
    weights = make_weights(spec, dtype=dtype)
    x_TD = make_tokens(5, 32, dtype=dtype)
    routing = route(spec, weights, x_TD)
    assert weights.router_bias is not None
    expected = x_TD.double() @ weights.router_weight.double().t() + weights.router_bias.double()
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    torch.testing.assert_close(routing.logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_forced_ids_are_weighed_by_the_routers_own_scores() -> None:
    ids = [[7, 0], [0, 7], [3, 4], [1, 2], [5, 6], [2, 1]]
    routing, probability_TE = routed(ids=ids)
    own, _ = routed()
    chosen_TK = probability_TE.gather(1, torch.tensor(ids))
    assert routing.expert_ids.tolist() == ids
    assert torch.equal(routing.logits, own.logits)
    torch.testing.assert_close(routing.weights, chosen_TK / chosen_TK.sum(1, keepdim=True))


def test_forced_ids_without_any_probability_still_have_weights() -> None:
    spec = make_spec(router_bias=True)
    weights = make_weights(spec)
    assert weights.router_bias is not None
    with torch.no_grad():
        weights.router_bias[:2] = -1000.0
    routing = route(spec, weights, make_tokens(1, 32), torch.tensor([[0, 1]]))
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(1))


def test_forced_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(T, K\) = \(6, 2\), found \(2, 1\)"):
        routed(ids=[[1], [2]])


def test_first_choices_come_before_second_choices() -> None:
    # Capacity 1 * 2 * 4 / 4 = 2: expert 0 is the second choice of tokens 0 and 1, the first of tokens 2 and 3.
    routing, _ = routed(4, [[1, 0], [1, 0], [0, 1], [0, 2]], num_experts=4, capacity_factor=1.0)
    assert routing.capacity == 2
    assert routing.kept.tolist() == [[True, False], [True, False], [True, False], [True, True]]
    assert routing.slots is not None
    assert routing.slots.tolist() == [[0, 2], [1, 3], [0, 2], [1, 0]]


def test_dropping_leaves_the_other_weights_alone() -> None:
    ids = [[0, 1]] * 6
    tight, _ = routed(ids=ids, capacity_factor=0.5)
    free, _ = routed(ids=ids)
    assert int(tight.kept.sum()) == 2
    assert torch.equal(tight.weights, free.weights)


@pytest.mark.parametrize(
    ("factor", "num_tokens", "expected"), [(1.1, 100, 28), (1.0, 40, 10), (0.1, 10, 1), (0.01, 1, 1), (1.25, 0, 1)]
)
def test_capacity_rounds_up_in_exact_arithmetic(factor: float, num_tokens: int, expected: int) -> None:
    assert make_spec(capacity_factor=factor).capacity(num_tokens) == expected


@st.composite
def assignments(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    num_experts = draw(st.integers(1, 300))
    top_k = draw(st.integers(1, min(4, num_experts)))
    token = st.lists(st.integers(0, num_experts - 1), min_size=top_k, max_size=top_k, unique=True)
    return num_experts, draw(st.lists(token, min_size=1, max_size=20))


@given(assignments(), st.sampled_from([0.1, 0.5, 1.0, 1.1, 3.0]))
@settings(deadline=None, max_examples=30)
def test_capacity_is_gshards_by_brute_force(given_ids: tuple[int, list[list[int]]], factor: float) -> None:
    num_experts, ids = given_ids
    top_k = len(ids[0])
    routing, _ = routed(len(ids), ids, num_experts=num_experts, top_k=top_k, capacity_factor=factor)
    room = max(1, math.ceil(Fraction(str(factor)) * len(ids) * top_k / num_experts))
    queues: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for choice in range(top_k):
        for token, experts in enumerate(ids):
            queues[experts[choice]].append((token, choice))
    kept = {pair for queue in queues.values() for pair in queue[:room]}
    assert {(t, k) for t, k in routing.kept.nonzero().tolist()} == kept
    assert routing.slots is not None
    for queue in queues.values():
        assert [int(routing.slots[pair]) for pair in queue] == list(range(len(queue)))


@pytest.mark.parametrize("num_experts", [1, 255, 256, 300, 40_000])
def test_sorting_is_right_for_every_width_of_the_ids(num_experts: int) -> None:
    ids_N = torch.randint(0, num_experts + 1, (500,), generator=torch.Generator().manual_seed(0))
    ids_N[0] = num_experts
    order_N, begins = sort_by_expert(ids_N, num_experts)
    assert torch.equal(order_N, ids_N.sort(stable=True).indices)
    counts = torch.bincount(ids_N, minlength=num_experts + 1)
    assert torch.equal(begins.diff(), counts[:-1])
    assert int(begins[-1]) == 500 - int(counts[-1])


def test_without_a_capacity_a_buffer_is_as_long_as_the_fullest_queue() -> None:
    routing, _ = routed(ids=[[0, 1], [0, 2], [0, 3], [4, 0], [5, 6], [1, 2]])
    slots_TK, length = expert_slots(routing)
    assert length == 4
    assert torch.equal(slots_TK, queue_places(routing.expert_ids, 8))
    empty, _ = routed(0)
    assert expert_slots(empty)[1] == 1


def test_load_balance_loss_is_one_at_balance_and_rises_with_imbalance() -> None:
    spec = make_spec(num_experts=4)
    weights = make_weights(spec)
    weights.router_weight.data.zero_()  # equal probabilities
    balanced = route(spec, weights, make_tokens(2, 32), torch.tensor([[0, 1], [2, 3]]))
    assert float(balanced.load_balance_loss().detach()) == pytest.approx(1.0)
    weights.router_weight.data[0] = 5.0
    x_TD = make_tokens(2, 32).abs()
    hot = route(spec, weights, x_TD, torch.tensor([[0, 1], [0, 2]]))
    assert float(hot.load_balance_loss().detach()) == pytest.approx(4 * 0.5, rel=1e-3)  # half go to 0, sure of it


def test_z_loss_is_the_mean_square_of_the_log_sum_exp() -> None:
    routing, _ = routed()
    expected = routing.logits.exp().sum(1).log().square().mean()
    torch.testing.assert_close(routing.z_loss(), expected)
    routing.z_loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def test_losses_of_no_tokens_are_zero() -> None:
    routing, _ = routed(0)
    assert float(routing.z_loss().detach()) == 0.0
    assert float(routing.load_balance_loss().detach()) == 0.0
