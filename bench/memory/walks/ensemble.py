"""The walks of :mod:`impls.ensemble` and :mod:`impls.dense_masked`: every expert on every token, summed in float32."""

from __future__ import annotations

from collections.abc import Callable

from bench.memory.backward import note
from bench.memory.feed_forward import feed_forward, unbind_bias
from bench.memory.indexing import scatter_add
from bench.memory.layer import Layer
from bench.memory.operators import add, mul, softmax, to
from bench.memory.routers import router_logits
from bench.memory.routing import Routing
from bench.memory.tensors import FLOAT, Tensor, fresh
from bench.memory.views import unbind, unsqueeze


def mix(layer: Layer, x_TD: Tensor) -> Tensor:
    """The mean of all members."""
    return _members(layer, x_TD, lambda: fresh(x_TD, (1, layer.spec.num_experts), FLOAT))


def mix_weighted(layer: Layer, x_TD: Tensor) -> Tensor:
    """All members under the softmax of the router's logits."""
    return _members(layer, x_TD, lambda: softmax(router_logits(layer, x_TD)))


def _members(layer: Layer, x_TD: Tensor, shares: Callable[[], Tensor]) -> Tensor:
    in_E, down_E = unbind(layer.in_proj), unbind(layer.down_proj)
    in_bias_E, down_bias_E = unbind_bias(layer.in_bias, len(in_E)), unbind_bias(layer.down_bias, len(in_E))
    y_TD = fresh(x_TD, x_TD.shape, FLOAT, "output")
    sum_TD = None if x_TD.node is None else to(x_TD, FLOAT)
    with layer.account.stage("routing"):
        share_E = unbind(shares(), 1)
    for e, share_T in enumerate(share_E):
        in_TD = x_TD if sum_TD is None else _summed_in_float(sum_TD, x_TD)
        member_TD = feed_forward(layer.spec, in_TD, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e])
        with layer.account.stage("output"):
            y_TD = add(y_TD, mul(unsqueeze(share_T, -1), member_TD))
    return to(y_TD, x_TD.item_bytes)


def _summed_in_float(sum_TD: Tensor, x_TD: Tensor) -> Tensor:
    """The tokens as they are, whose gradient goes to their float32 twin."""
    result = x_TD.alias()

    def float_gradient(gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        return to(gradient, FLOAT)

    note([result], [sum_TD], (), lambda gradients, *_: [float_gradient(gradients[0])])
    return result


def compute_masked(layer: Layer, x_TD: Tensor, routing: Routing) -> Tensor:
    """`dense_masked`: a table of gates (T, E), mostly zero."""
    num_experts = layer.spec.num_experts
    with layer.account.stage("routing"):
        gates_TE = scatter_add(
            fresh(x_TD, (x_TD.shape[0], num_experts), FLOAT),
            routing.expert_ids,
            mul(routing.weights, routing.kept),
        )
    in_E, down_E = unbind(layer.in_proj), unbind(layer.down_proj)
    in_bias_E, down_bias_E = unbind_bias(layer.in_bias, num_experts), unbind_bias(layer.down_bias, num_experts)
    y_TD = fresh(x_TD, x_TD.shape, FLOAT, "output")
    for e, gate_T in enumerate(unbind(gates_TE, 1)):
        expert_TD = feed_forward(layer.spec, x_TD, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e])
        with layer.account.stage("output"):
            y_TD = add(y_TD, mul(unsqueeze(gate_T, 1), expert_TD))
    return to(y_TD, x_TD.item_bytes)
