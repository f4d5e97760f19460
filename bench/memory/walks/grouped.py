"""The walk of :mod:`impls.grouped`."""

from __future__ import annotations

from bench.memory.feed_forward import activate
from bench.memory.indexing import index_select, invert
from bench.memory.layer import Layer
from bench.memory.operators import add, grouped_mm, masked_fill, pad_rows, with_number
from bench.memory.permute import combine_rows, gather_rows
from bench.memory.routing import Routing, not_, sort_by_expert
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import reshape, transpose

_END_BYTES = 4


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Gather by expert, two grouped products, combine."""
    num_experts = layer.spec.num_experts
    with layer.account.stage("dispatched"):
        ids_N = reshape(masked_fill(routing.expert_ids, not_(routing.kept)), -1)
        order_N, begins = sort_by_expert(ids_N, num_experts)
        ends_E = fresh(begins, (num_experts,), _END_BYTES, "routing")
        row_TK = masked_fill(reshape(invert(order_N), *routing.expert_ids.shape), not_(routing.kept))
        expert_N = index_select(ids_N, order_N)
        x_ND = gather_rows(x_TD, with_number(order_N), row_TK)
    hidden_NI = grouped_mm(x_ND, transpose(layer.in_proj), ends_E)
    hidden_NF = activate(layer.spec, _add_bias(hidden_NI, layer.in_bias, expert_N))
    y_ND = grouped_mm(hidden_NF, transpose(layer.down_proj), ends_E)
    y_ND = _add_bias(y_ND, layer.down_bias, expert_N)
    with layer.account.stage("output"):
        return combine_rows(y_ND, routing.weights, row_TK)


def _add_bias(rows: Tensor, bias: Tensor | None, expert_N: Tensor) -> Tensor:
    return rows if bias is None else add(rows, index_select(pad_rows(bias), expert_N))
