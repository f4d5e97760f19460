"""The walk of :mod:`impls.batched`."""

from __future__ import annotations

from bench.memory.feed_forward import feed_forward_batched
from bench.memory.indexing import index_select
from bench.memory.layer import Layer
from bench.memory.operators import bmm, mul, to
from bench.memory.routing import Routing
from bench.memory.tensors import Tensor
from bench.memory.views import clone, expand, reshape, squeeze, unsqueeze


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Gather weights, two batched products, a weighted sum over K."""
    (num_tokens, top_k), width = routing.expert_ids.shape, x_TD.shape[1]
    with layer.account.stage("dispatched"):
        ids_N = reshape(routing.expert_ids, -1)
        x_N1D = unsqueeze(reshape(clone(expand(unsqueeze(x_TD, 1), (num_tokens, top_k, width))), -1, width), 1)
        in_NID = index_select(layer.in_proj, ids_N)
        down_NDF = index_select(layer.down_proj, ids_N)
        in_bias_NI = None if layer.in_bias is None else index_select(layer.in_bias, ids_N)
        down_bias_ND = None if layer.down_bias is None else index_select(layer.down_bias, ids_N)
    y_N1D = feed_forward_batched(layer.spec, x_N1D, in_NID, down_NDF, in_bias_NI, down_bias_ND)
    with layer.account.stage("output"):
        share_T1K = unsqueeze(to(mul(routing.weights, routing.kept), x_TD.item_bytes), 1)
        return squeeze(bmm(share_T1K, reshape(y_N1D, num_tokens, top_k, width)), 1)
