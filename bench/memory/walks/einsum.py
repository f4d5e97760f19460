"""The walk of :mod:`impls.einsum`."""

from __future__ import annotations

from bench.memory.contraction import einsum
from bench.memory.feed_forward import feed_forward_batched
from bench.memory.indexing import scatter_add
from bench.memory.layer import Layer
from bench.memory.operators import combined, mul, to, with_number
from bench.memory.routing import Routing, clamped, expert_slots
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import reshape


def compute(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Dispatch by einsum, every expert on its whole buffer, combine by einsum."""
    num_tokens, num_experts = x_TD.shape[0], layer.spec.num_experts

    def one_hot(values_TK: Tensor) -> Tensor:
        zeros = (num_tokens, num_experts * capacity)
        flat = scatter_add(fresh(values_TK, zeros, values_TK.item_bytes), place_TK, values_TK)
        return reshape(to(flat, x_TD.item_bytes), num_tokens, num_experts, capacity)

    with layer.account.stage("dispatched"):
        slots_TK, capacity = expert_slots(layer, routing)
        place_TK = combined(with_number(routing.expert_ids), clamped(slots_TK))
        dispatch_TEC = one_hot(to(routing.kept, x_TD.item_bytes))
        combine_TEC = one_hot(mul(routing.weights, routing.kept))
        buffer_ECD = einsum("tec,td->ecd", dispatch_TEC, x_TD)
    y_ECD = feed_forward_batched(layer.spec, buffer_ECD, layer.in_proj, layer.down_proj, layer.in_bias, layer.down_bias)
    with layer.account.stage("output"):
        return einsum("tec,ecd->td", combine_TEC, y_ECD)
