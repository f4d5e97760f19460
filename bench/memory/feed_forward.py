"""One expert's feed-forward in tensors without numbers, as in :mod:`impls.ffn`.

Shapes: n tokens, E experts, C tokens of one expert, D d_model, F hidden width, I rows of the input projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.memory.backward import Gradients, Kept, note, only
from bench.memory.operators import (
    add_number,
    bmm,
    clamp,
    gelu,
    kept_factors,
    linear,
    mul,
    mul_number,
    relu,
    sigmoid,
    silu,
)
from bench.memory.tensors import Tensor, fresh
from bench.memory.views import split, transpose, unbind, unsqueeze
from impls.spec import LayerSpec

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu, "gelu": gelu, "silu": silu, "swiglu": silu, "geglu": gelu,
}  # fmt: skip


def activate(spec: LayerSpec, hidden_I: Tensor) -> Tensor:
    """(..., I) -> (..., F)."""
    if not spec.gated:
        return _FUNCTIONS[spec.activation](hidden_I)
    gate_F, up_F = split(hidden_I, [hidden_I.shape[-1] // 2] * 2, dim=-1)
    if spec.activation == "swiglu_clamped":
        gate_F = clamp(gate_F, 1)
        return mul(mul(gate_F, sigmoid(mul_number(gate_F))), add_number(clamp(up_F, 2)))
    return mul(_FUNCTIONS[spec.activation](gate_F), up_F)


def feed_forward(
    spec: LayerSpec,
    x_nD: Tensor,
    in_ID: Tensor,
    down_DF: Tensor,
    in_bias_I: Tensor | None = None,
    down_bias_D: Tensor | None = None,
) -> Tensor:
    """One expert: (n, D) -> (n, D)."""
    hidden_nF = activate(spec, linear(x_nD, in_ID, in_bias_I))
    return linear(hidden_nF, down_DF, down_bias_D)


def feed_forward_batched(
    spec: LayerSpec,
    x_ECD: Tensor,
    in_EID: Tensor,
    down_EDF: Tensor,
    in_bias_EI: Tensor | None,
    down_bias_ED: Tensor | None,
) -> Tensor:
    """Every expert on its own C tokens: (E, C, D) -> (E, C, D)."""
    hidden_ECF = activate(spec, _batched_linear(x_ECD, in_EID, in_bias_EI))
    return _batched_linear(hidden_ECF, down_EDF, down_bias_ED)


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape_x, shape_weight = x.shape, weight.shape

    def rule(gradients: Gradients, _: Kept, needed: Sequence[bool]) -> Gradients:
        gradient, item_bytes = only(gradients), only(gradients).item_bytes
        num_experts, width = gradient.shape[0], gradient.shape[2]
        of_weight = fresh(gradient, shape_weight, item_bytes) if needed[1] else None
        of_x = fresh(gradient, shape_x, item_bytes) if needed[0] else None
        of_bias = fresh(gradient, (num_experts, width), item_bytes) if needed[2] else None
        return [of_x, of_weight, of_bias]

    with x.account.undifferentiated():
        result = bmm(x, transpose(weight), None if bias is None else unsqueeze(bias, 1))
    note([result], [x, weight, bias], kept_factors(x, weight), rule)
    return result


def unbind_bias(bias_E: Tensor | None, num_experts: int) -> Sequence[Tensor | None]:
    """One bias an expert, or None for each."""
    return [None] * num_experts if bias_E is None else unbind(bias_E)
