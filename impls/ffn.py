"""The feed-forward network of one expert: input projection, activation, down projection.

Shapes: ... tokens, E experts, C tokens of one expert, D d_model, F hidden width, I rows of the input projection
(2F where gated, else F).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from impls.spec import LayerSpec

CLAMPED_SLOPE = 1.702
"""What the clamped SwiGLU multiplies its gate with inside the sigmoid, so that it is close to gelu."""

LEAST_HALF_LIMIT = 4.0
"""Below it, the clamped SwiGLU's gradient cannot be held to a tolerance in half precision, see `clamp_in_the_way`."""

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "swiglu": functional.silu,
    "geglu": functional.gelu,
}


def activate(spec: LayerSpec, hidden_I: Tensor) -> Tensor:
    """Apply the layer's activation to the last dimension: (..., I) -> (..., F).

    The gated ones (Shazeer, GLU Variants Improve Transformer, 2020) multiply the activated first half with the second.
    gelu is the exact one, by the error function. The clamped SwiGLU is that of GPT-OSS (OpenAI, 2025): with the gate at
    most L and the other half within -L to L, ``gate * sigmoid(1.702 * gate) * (up + 1)``.
    """
    if not spec.gated:
        return _FUNCTIONS[spec.activation](hidden_I)
    gate_F, up_F = hidden_I.chunk(2, dim=-1)
    if spec.activation == "swiglu_clamped":
        limit = spec.swiglu_limit
        gate_F = gate_F.clamp(max=limit)
        return gate_F * torch.sigmoid(CLAMPED_SLOPE * gate_F) * (up_F.clamp(-limit, limit) + 1)
    return _FUNCTIONS[spec.activation](gate_F) * up_F


def clamp_in_the_way(spec: LayerSpec, dtype: torch.dtype, direction: str) -> str | None:
    """Why a clamp among the values forbids training in half precision, or None where it does not.

    The slope jumps from one to zero at the limit, and rounding takes a value near it to the other side. With values of
    deviation one, as a sweep draws them, that happens to one in a thousand at a limit of 0.5 in bfloat16, which changes
    the gradient by six hundredths; a float64 layer of which nothing but these values is rounded misses the tolerance
    too. So no implementation is wrong, and none can be shown to be right. From 4 on it is met; models have 7.
    """
    if spec.activation != "swiglu_clamped" or direction != "train" or dtype.itemsize >= 4:
        return None
    if spec.swiglu_limit >= LEAST_HALF_LIMIT:
        return None
    return (
        f"swiglu_limit {spec.swiglu_limit:g} is below {LEAST_HALF_LIMIT:g}: rounding to {dtype} takes values across "
        "the clamp, whose slope jumps there, and gradients may miss the tolerance in any implementation"
    )


def feed_forward(
    spec: LayerSpec,
    x_D: Tensor,
    in_ID: Tensor,
    down_DF: Tensor,
    in_bias_I: Tensor | None = None,
    down_bias_D: Tensor | None = None,
) -> Tensor:
    """One expert on every token of ``x_D``: (..., D) -> (..., D)."""
    hidden_F = activate(spec, functional.linear(x_D, in_ID, in_bias_I))
    return functional.linear(hidden_F, down_DF, down_bias_D)


def feed_forward_batched(
    spec: LayerSpec,
    x_ECD: Tensor,
    in_EID: Tensor,
    down_EDF: Tensor,
    in_bias_EI: Tensor | None,
    down_bias_ED: Tensor | None,
) -> Tensor:
    """Every expert on its own C tokens, as batched matmuls: (E, C, D) -> (E, C, D)."""
    hidden_ECF = activate(spec, _batched_linear(x_ECD, in_EID, in_bias_EI))
    return _batched_linear(hidden_ECF, down_EDF, down_bias_ED)


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = _BatchedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


class _BatchedLinear(torch.autograd.Function):
    """`linear` for every expert, (E, C, m) x (E, n, m) -> (E, C, n); the weights' gradient lies as the weights do.

    `bmm` alone gives the gradient of its second factor, the transposed weights, row after row; transposed back it does
    not lie as the parameter, and autograd copies all of it, at a fraction of memory's bandwidth.
    """

    @staticmethod
    def forward(x_ECm: Tensor, weight_Enm: Tensor, bias_En: Tensor | None) -> Tensor:
        if bias_En is None:
            return torch.bmm(x_ECm, weight_Enm.transpose(1, 2))
        return torch.baddbmm(bias_En.unsqueeze(1), x_ECm, weight_Enm.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        del output
        x_ECm, weight_Enm, _ = inputs
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_ECm if of_weight else None, weight_Enm if of_x else None)
        # as those of some models lie, which keep them the other way round
        ctx.transposed = weight_Enm.stride(1) == 1 != weight_Enm.stride(2)

    @staticmethod
    def backward(ctx: Any, grad_ECn: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # under autocast a product has another number format than its factors
        x_ECm, weight_Enm = (None if one is None else one.to(grad_ECn.dtype) for one in ctx.saved_tensors)
        grad_x = grad_weight = None
        if x_ECm is not None and ctx.transposed:
            grad_weight = torch.bmm(x_ECm.transpose(1, 2), grad_ECn).transpose(1, 2)
        elif x_ECm is not None:
            grad_weight = torch.bmm(grad_ECn.transpose(1, 2), x_ECm)
        if weight_Enm is not None:
            grad_x = torch.bmm(grad_ECn, weight_Enm)
        return grad_x, grad_weight, grad_ECn.sum(1) if ctx.needs_input_grad[2] else None


def unbind_bias(bias_E: Tensor | None, num_experts: int) -> Sequence[Tensor | None]:
    """One bias an expert, or None for each."""
    return [None] * num_experts if bias_E is None else bias_E.unbind(0)
