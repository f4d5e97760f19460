"""The walk of :mod:`impls.expert_choice`."""

from __future__ import annotations

from bench.memory.feed_forward import feed_forward_batched
from bench.memory.indexing import arange, index_add, index_select, scatter
from bench.memory.layer import Layer
from bench.memory.operators import mul, to
from bench.memory.routing import Routing, expert_slots, rows_of_slots
from bench.memory.tensors import FLOAT, INDEX, Tensor, fresh
from bench.memory.views import clone, expand, narrow, reshape, unsqueeze


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Gather by expert, batched feed-forward, `index_add` in float32."""
    num_tokens, num_experts = routing.expert_ids.shape
    if num_tokens == 0:
        return clone(x_TD)
    with layer.account.stage("dispatched"):
        slots_TE, capacity = expert_slots(layer, routing)
        num_rows = num_experts * capacity
        row_TE = rows_of_slots(routing.expert_ids, slots_TE, routing.kept)
        token_T1 = unsqueeze(arange(x_TD, num_tokens), 1)
        token_R = _written(fresh(x_TD, (num_rows + 1,), INDEX), reshape(expand(token_T1, row_TE.shape), -1))
        share_R = scatter(fresh(x_TD, (num_rows + 1,), FLOAT, "routing"), row_TE, reshape(routing.weights, -1))
        token_R, share_R = token_R.view((num_rows,), (1,)), narrow(share_R, 0, num_rows)
        x_ECD = reshape(index_select(x_TD, token_R), num_experts, capacity, -1)
    y_ECD = feed_forward_batched(layer.spec, x_ECD, layer.in_proj, layer.down_proj, layer.in_bias, layer.down_bias)
    with layer.account.stage("output"):
        weighted_RD = mul(reshape(y_ECD, num_rows, -1), unsqueeze(share_R, 1))
        y_TD = index_add(fresh(x_TD, x_TD.shape, weighted_RD.item_bytes), token_R, weighted_RD)
        return to(y_TD, x_TD.item_bytes)


def _written(into: Tensor, source: Tensor) -> Tensor:
    """In place."""
    del source
    return into
