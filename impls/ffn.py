"""The feed-forward network of one expert: input projection, activation, down projection.

Shapes: ... tokens, E experts, C tokens of one expert, D d_model, F hidden width, I rows of the input projection
(2F where gated, else F).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from impls.spec import GATED_ACTIVATIONS

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "swiglu": functional.silu,
    "geglu": functional.gelu,
}


def activate(activation: str, hidden_I: Tensor) -> Tensor:
    """Apply the activation to the last dimension: (..., I) -> (..., F).

    The gated ones (Shazeer, GLU Variants Improve Transformer, 2020) multiply the activated first half with the second.
    gelu is the exact one, by the error function.
    """
    function = _FUNCTIONS[activation]
    if activation not in GATED_ACTIVATIONS:
        return function(hidden_I)
    gate_F, up_F = hidden_I.chunk(2, dim=-1)
    return function(gate_F) * up_F


def feed_forward(
    activation: str,
    x_D: Tensor,
    in_ID: Tensor,
    down_DF: Tensor,
    in_bias_I: Tensor | None = None,
    down_bias_D: Tensor | None = None,
) -> Tensor:
    """One expert on every token of ``x_D``: (..., D) -> (..., D)."""
    hidden_F = activate(activation, functional.linear(x_D, in_ID, in_bias_I))
    return functional.linear(hidden_F, down_DF, down_bias_D)


def feed_forward_batched(
    activation: str,
    x_ECD: Tensor,
    in_EID: Tensor,
    down_EDF: Tensor,
    in_bias_EI: Tensor | None,
    down_bias_ED: Tensor | None,
) -> Tensor:
    """Every expert on its own C tokens, as batched matmuls: (E, C, D) -> (E, C, D)."""
    hidden_ECF = activate(activation, _batched_linear(x_ECD, in_EID, in_bias_EI))
    return _batched_linear(hidden_ECF, down_EDF, down_bias_ED)


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def unbind_bias(bias_E: Tensor | None, num_experts: int) -> Sequence[Tensor | None]:
    """One bias an expert, or None for each."""
    return [None] * num_experts if bias_E is None else bias_E.unbind(0)
