"""Ensemble baselines: every expert is a member that sees every token, and their outputs are averaged.

Shapes: T tokens, D d_model, E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

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
        for e, share_T in enumerate(self.member_weights(x_TD).unbind(1)):
            member_TD = feed_forward(self.spec.activation, x_TD, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e])
            y_TD = y_TD + share_T.unsqueeze(-1) * member_TD
        return y_TD.to(x_TD.dtype)


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
