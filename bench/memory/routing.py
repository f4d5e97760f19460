"""Where tokens go, in tensors without numbers: as in :mod:`impls.routing` and :mod:`impls.queues`.

Shapes: T tokens, D d_model, E experts, K choices of a token, N = T * K assignments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.memory import routers
from bench.memory.indexing import arange, index_elements, invert, largest, scatter, search_sorted, sort, top_k
from bench.memory.layer import Layer
from bench.memory.operators import combined, compare, masked_fill, mul_number, with_number
from bench.memory.tensors import BOOL, INDEX, Tensor, existing, fresh, fresh_like
from bench.memory.views import expand, reshape, transpose, unsqueeze


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Tensors of a routing, as in :class:`impls.routing.Routing`.

    Attributes:
        expert_ids, weights, kept, slots, wanted: (T, K); the last two where there are any.
        scores: (T, E): the logits, and where there is noise those before it and its deviation.
    """

    expert_ids: Tensor
    weights: Tensor
    kept: Tensor
    slots: Tensor | None
    wanted: Tensor | None
    scores: tuple[Tensor, ...] = ()


def route(layer: Layer, x_TD: Tensor) -> Routing:
    """Score, choose, weigh, and apply the capacity."""
    spec = layer.spec
    scores = routers.scores(layer, x_TD)
    ids_TK = routers.choose(layer, x_TD, scores[0].alias())
    if layer.forced:
        ids_TK = existing(layer.account, ids_TK.shape, INDEX)
    weights_TK = routers.weigh(layer, scores[0], ids_TK)
    wanted_TK = routers.wanted(weights_TK) if spec.router == "gshard" else None
    kept_TK, slots_TK, wanted_TK = _admit(layer, ids_TK, weights_TK, wanted_TK)
    routing = Routing(
        expert_ids=ids_TK,
        weights=weights_TK if spec.routed_scaling == 1 else mul_number(weights_TK),
        kept=kept_TK,
        slots=slots_TK,
        wanted=wanted_TK,
        scores=scores,
    )
    if not (layer.forced and spec.keeps_by_value):
        return routing
    return replace(
        routing,
        kept=_given(kept_TK),
        slots=None if slots_TK is None else _given(slots_TK),
        wanted=None if wanted_TK is None else _given(wanted_TK),
    )


def _given(x: Tensor) -> Tensor:
    """The same, from a routing that was made before the call."""
    return existing(x.account, x.shape, x.item_bytes).view(x.shape, x.strides)


def _admit(
    layer: Layer, ids_TK: Tensor, weights_TK: Tensor, wanted_TK: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Which are kept, and where there is a capacity their slots; and which were asked for."""
    spec = layer.spec
    capacity = spec.capacity(ids_TK.shape[0])
    if spec.router == "expert_choice":
        assert capacity is not None
        taken_CE = top_k(weights_TK.alias(), min(capacity, ids_TK.shape[0]), dim=0)[1]
        ranks_CE = expand(unsqueeze(arange(ids_TK, taken_CE.shape[0]), 1), taken_CE.shape)
        slots_TE = scatter(fresh(ids_TK, ids_TK.shape, INDEX), taken_CE, ranks_CE)
        kept_TE = compare(slots_TE)
        return kept_TE, slots_TE, kept_TE
    if capacity is None:
        return fresh(ids_TK, ids_TK.shape, BOOL) if wanted_TK is None else wanted_TK, None, wanted_TK
    by_weight = weights_TK.alias() if spec.capacity_policy == "score" else None
    slots_TK = queue_places(ids_TK, spec.num_experts, wanted_TK, by_weight)
    if wanted_TK is not None:
        slots_TK = masked_fill(slots_TK, not_(wanted_TK))
    return compare(slots_TK), slots_TK, wanted_TK


def not_(mask: Tensor) -> Tensor:
    """True where it was False."""
    return fresh_like(mask, BOOL)


def sort_by_expert(ids_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The order of assignments by expert, and where each expert begins in it."""
    narrow_bytes = 1 if num_experts < 256 else 2 if num_experts < 32768 else 4
    values_N, order_N = sort(_narrowed(ids_N, narrow_bytes))
    experts = arange(ids_N, num_experts + 1)
    begins = search_sorted(_narrowed(experts, narrow_bytes))
    del values_N, experts
    return order_N, begins


def _narrowed(x: Tensor, item_bytes: int) -> Tensor:
    return fresh(x, x.shape, item_bytes, "routing")


def queue_places(
    ids_TK: Tensor, num_experts: int, wanted_TK: Tensor | None = None, weights_TK: Tensor | None = None
) -> Tensor:
    """Place of every assignment in its expert's queue."""
    if wanted_TK is not None:
        ids_TK = masked_fill(ids_TK, not_(wanted_TK))
    ids_N = reshape(transpose(ids_TK), -1)
    if weights_TK is None:
        order_N, begins = sort_by_expert(ids_N, num_experts)
    else:
        heaviest_N = sort(reshape(transpose(weights_TK), -1))[1]
        by_expert_N, begins = sort_by_expert(index_elements(ids_N, heaviest_N), num_experts)
        order_N = index_elements(heaviest_N, by_expert_N)
    places_N = combined(invert(order_N), index_elements(begins, ids_N))
    return transpose(reshape(places_N, ids_TK.shape[1], ids_TK.shape[0]))


def expert_slots(layer: Layer, routing: Routing) -> tuple[Tensor, int]:
    """Slots (T, K), and how many slots an expert's buffer needs: its capacity, or what the fullest expert has."""
    if routing.slots is not None:
        capacity = layer.spec.capacity(layer.num_tokens)
        assert capacity is not None
        return routing.slots, capacity
    slots_TK = queue_places(routing.expert_ids, layer.spec.num_experts, routing.wanted)
    if routing.wanted is not None:
        slots_TK = masked_fill(slots_TK, not_(routing.wanted))
    if slots_TK.numel:
        largest(slots_TK)
    return slots_TK, max(1, *layer.loads)


def clamped(x: Tensor) -> Tensor:
    """Indices within a limit."""
    return fresh_like(x)


def rows_of_slots(ids_TK: Tensor, slots_TK: Tensor, kept_TK: Tensor) -> Tensor:
    """The row of every assignment among the experts' slots; one past the last where it is not kept."""
    return masked_fill(combined(with_number(ids_TK), slots_TK), not_(kept_TK))
