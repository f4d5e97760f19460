"""The walk of :mod:`impls.loop`."""

from __future__ import annotations

from bench.memory.feed_forward import feed_forward, unbind_bias
from bench.memory.indexing import invert
from bench.memory.layer import Layer
from bench.memory.operators import cat, masked_fill, with_number
from bench.memory.permute import combine_rows, gather_rows
from bench.memory.routing import Routing, clamped, not_, sort_by_expert
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import reshape, split, unbind


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Gather by expert, one feed-forward an expert, combine."""
    num_rows, sizes = sum(layer.loads), layer.loads
    with layer.account.stage("dispatched"):
        ids_N = reshape(masked_fill(routing.expert_ids, not_(routing.kept)), -1)
        order_N, begins = sort_by_expert(ids_N, layer.spec.num_experts)
        row_TK = reshape(clamped(invert(order_N)), *routing.expert_ids.shape)
        x_RD = gather_rows(x_TD, with_number(order_N.view((num_rows,), (1,))), row_TK)
    in_E, down_E = unbind(layer.in_proj), unbind(layer.down_proj)
    in_bias_E = unbind_bias(layer.in_bias, len(in_E))
    down_bias_E = unbind_bias(layer.down_bias, len(in_E))
    outputs = []
    for e, x in enumerate(split(x_RD, sizes)):
        if sizes[e]:
            outputs.append(feed_forward(layer.spec, x, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e]))
    y_RD = cat([*outputs, fresh(x_TD, (1, x_TD.shape[1]), x_TD.item_bytes)]) if outputs else x_RD
    with layer.account.stage("output"):
        y_TD = combine_rows(y_RD, routing.weights, row_TK)
    del begins  # no list of numbers: it lasts as long as the rest
    return y_TD
