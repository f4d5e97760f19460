"""The walk of :mod:`impls.scatter_gather`."""

from __future__ import annotations

from bench.memory.feed_forward import feed_forward_batched
from bench.memory.indexing import index_copy
from bench.memory.layer import Layer
from bench.memory.permute import combine_rows
from bench.memory.routing import Routing, expert_slots, rows_of_slots
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import expand, narrow, reshape, unsqueeze


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Scatter, every expert on its whole buffer, gather and combine."""
    num_tokens, width = x_TD.shape
    num_experts, top_k = layer.spec.num_experts, routing.expert_ids.shape[1]
    with layer.account.stage("dispatched"):
        slots_TK, capacity = expert_slots(layer, routing)
        num_rows = num_experts * capacity
        row_TK = rows_of_slots(routing.expert_ids, slots_TK, routing.kept)
        x_ND = reshape(expand(unsqueeze(x_TD, 1), (num_tokens, top_k, width)), -1, width)
        buffer_RD = index_copy(fresh(x_TD, (num_rows + 1, width), x_TD.item_bytes), row_TK, x_ND)
        buffer_ECD = reshape(narrow(buffer_RD, 0, num_rows), num_experts, capacity, width)
    y_ECD = feed_forward_batched(layer.spec, buffer_ECD, layer.in_proj, layer.down_proj, layer.in_bias, layer.down_bias)
    with layer.account.stage("output"):
        return combine_rows(reshape(y_ECD, num_rows, width), routing.weights, row_TK)
