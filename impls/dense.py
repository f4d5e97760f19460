"""Dense baselines: several experts' weights side by side, as one feed-forward that sees every token.

`dense` takes the first top_k experts (the same active FLOPs as the layer), `dense_total` all of them (the same
parameters). Shapes: T tokens, D d_model, F d_ff of one expert, I 2F or F, M experts taken.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from impls.baseline import Baseline
from impls.ffn import activate
from impls.spec import LayerSpec
from impls.weights import Weights


class Dense(Baseline):
    """The sum of the first top_k experts, as one feed-forward of width top_k * F."""

    semantics: ClassVar[str] = "dense"
    _down_packed: Tensor | None

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        # a buffer, so that it goes where the layer goes; not saved, because it is derived
        self.register_buffer("_down_packed", None, persistent=False)

    @property
    def num_taken(self) -> int:
        """How many experts are put side by side."""
        return self.spec.top_k

    def prepare(self) -> None:
        """Pack the down projections, for evaluation; in training they are packed in the step, to carry gradients."""
        if not self.training:
            with torch.no_grad():
                self._down_packed = self._pack_down()

    def mix(self, x_TD: Tensor) -> Tensor:
        """One input projection, one activation, one down projection."""
        taken, weights = self.num_taken, self.weights
        in_bias = None if weights.in_bias is None else weights.in_bias[:taken].flatten()
        in_MID = weights.in_proj[:taken]
        hidden_TMI = functional.linear(x_TD, in_MID.flatten(0, 1), in_bias).view(-1, taken, in_MID.shape[1])
        hidden_TMF = activate(self.spec, hidden_TMI)
        packed = None if torch.is_grad_enabled() else self._down_packed
        down_bias = None if weights.down_bias is None else weights.down_bias[:taken].sum(0)
        return functional.linear(hidden_TMF.flatten(1), self._pack_down() if packed is None else packed, down_bias)

    def _pack_down(self) -> Tensor:
        return self.weights.down_proj[: self.num_taken].transpose(0, 1).flatten(1)


class DenseTotal(Dense):
    """The sum of all experts, as one feed-forward of width E * F."""

    semantics: ClassVar[str] = "dense_total"

    @property
    def num_taken(self) -> int:
        """How many experts are put side by side."""
        return self.spec.num_experts
