"""The walk of :mod:`impls.loop_indexed`."""

from __future__ import annotations

from bench.memory.feed_forward import feed_forward
from bench.memory.indexing import index_add, index_elements, where_true
from bench.memory.layer import Layer
from bench.memory.operators import compare, masked_fill, mul, to
from bench.memory.routing import Routing, not_
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import select, unsqueeze


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """For every expert: its tokens, one feed-forward, and an `index_add` into the output."""
    account = layer.account
    with account.stage("dispatched"):
        ids_TK = masked_fill(routing.expert_ids, not_(routing.kept))
    y_TD = fresh(x_TD, x_TD.shape, x_TD.item_bytes, "output")
    for load in layer.loads:
        with account.stage("dispatched"):
            token_n, choice_n = where_true(compare(ids_TK), load)
            x_nD = index_elements(x_TD, token_n)
        in_bias = None if layer.in_bias is None else select(layer.in_bias)
        down_bias = None if layer.down_bias is None else select(layer.down_bias)
        y_nD = feed_forward(layer.spec, x_nD, select(layer.in_proj), select(layer.down_proj), in_bias, down_bias)
        with account.stage("output"):
            share_n1 = unsqueeze(index_elements(routing.weights, token_n, choice_n), 1)
            y_TD = index_add(y_TD, token_n, to(mul(y_nD, share_n1), y_TD.item_bytes))
    return y_TD
