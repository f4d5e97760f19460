"""Ensemble baselines: every expert is a member that sees every token, and their outputs are averaged.

Shapes: T tokens, D d_model, E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from impls.baseline import Baseline
from impls.ffn import feed_forward, unbind_bias
from impls.routing import router_logits


class _Members(Baseline):
    @abstractmethod
    def member_weights(self, x_TD: Tensor) -> Tensor:
        """What each member's output is multiplied with, float32: (T, E), or (1, E) where all tokens agree."""

    def mix(self, x_TD: Tensor) -> Tensor:
        """Member by member, summed in float32."""
        weights = self.weights
        # unbind, not w[e]: the gradient of every w[e] would be as large as all members together.
        in_E, down_E = weights.in_proj.unbind(0), weights.down_proj.unbind(0)
        in_bias_E, down_bias_E = unbind_bias(weights.in_bias, len(in_E)), unbind_bias(weights.down_bias, len(in_E))
        y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        # Autograd sums the members' gradients of the tokens one by one. In half precision every sum would be rounded,
        # an error that grows with the root of E.
        sum_TD = x_TD.float() if x_TD.requires_grad and torch.is_grad_enabled() else None
        for e, share_T in enumerate(self.member_weights(x_TD).unbind(1)):
            in_TD = x_TD if sum_TD is None else _SummedInFloat.apply(sum_TD, x_TD.detach())  # type: ignore[no-untyped-call]  # torch leaves it untyped
            member_TD = feed_forward(self.spec, in_TD, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e])
            y_TD = y_TD + share_T.unsqueeze(-1) * member_TD
        return y_TD.to(x_TD.dtype)


class _SummedInFloat(torch.autograd.Function):
    """The tokens as they are, whose gradient goes to their float32 twin; nothing is copied or saved."""

    @staticmethod
    def forward(ctx: Any, sum_TD: Tensor, x_TD: Tensor) -> Tensor:
        del ctx, sum_TD
        return x_TD.view_as(x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grad_TD.float(), None


class Ensemble(_Members):
    """The mean of all members."""

    semantics: ClassVar[str] = "ensemble"

    def member_weights(self, x_TD: Tensor) -> Tensor:
        """1 / E."""
        num_experts = self.spec.num_experts
        return torch.full((1, num_experts), 1 / num_experts, device=x_TD.device)


class EnsembleWeighted(_Members):
    """All members under the full softmax of the router's logits: the soft mixture of Jacobs et al., 1991."""

    semantics: ClassVar[str] = "ensemble_weighted"

    def member_weights(self, x_TD: Tensor) -> Tensor:
        """Softmax of the logits."""
        return router_logits(self.weights, x_TD).softmax(-1)
