"""The walks of :mod:`impls.dense`: several experts' weights side by side."""

from __future__ import annotations

from bench.memory.feed_forward import activate
from bench.memory.layer import Layer
from bench.memory.operators import linear, sum_over
from bench.memory.tensors import Tensor, existing
from bench.memory.views import narrow, reshape, transpose


def mix(layer: Layer, x_TD: Tensor) -> Tensor:
    """The first top_k experts."""
    return _mix(layer, x_TD, layer.spec.top_k)


def mix_total(layer: Layer, x_TD: Tensor) -> Tensor:
    """All experts."""
    return _mix(layer, x_TD, layer.spec.num_experts)


def _mix(layer: Layer, x_TD: Tensor, taken: int) -> Tensor:
    in_bias = None if layer.in_bias is None else reshape(narrow(layer.in_bias, 0, taken), -1)
    in_MID = narrow(layer.in_proj, 0, taken)
    _, rows, width = in_MID.shape
    hidden_TMI = reshape(linear(x_TD, reshape(in_MID, -1, width), in_bias), -1, taken, rows)
    hidden_TMF = activate(layer.spec, hidden_TMI)
    packed = None if layer.account.differentiates else existing(layer.account, (width, taken * layer.spec.d_ff), 0)
    down_bias = None if layer.down_bias is None else sum_over(narrow(layer.down_bias, 0, taken), 0)
    return linear(
        reshape(hidden_TMF, x_TD.shape[0], -1), _pack_down(layer, taken) if packed is None else packed, down_bias
    )


def _pack_down(layer: Layer, taken: int) -> Tensor:
    # a copy in a training step, made before it otherwise
    return reshape(transpose(narrow(layer.down_proj, 0, taken), 0, 1), layer.spec.d_model, -1)
