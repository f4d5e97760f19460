"""The feed-forward network of one expert: input projection, activation, down projection.

Shapes: ... tokens, D d_model, F hidden width, I rows of the input projection (2F where gated, else F).
"""

from __future__ import annotations

from collections.abc import Callable

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
