"""The loop as it is commonly written: index the stacked weights with `w[e]`, find the tokens with `torch.where`.

It is here because it is everywhere, and because of what its backward costs: the gradient of every `w[e]` is a zero
tensor of the whole stack (E, ...) with one expert filled in, and autograd sums E of them. A train step moves weights
in proportion to E squared; `loop` differs in `w.unbind(0)`, whose backward stacks the E gradients once.

Shapes: T tokens, D d_model, E experts, K top-k, n tokens of one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.ffn import feed_forward
from impls.layer import MoELayer
from impls.routing import Routing
from impls.stages import stage


class LoopIndexed(MoELayer):
    """A Python loop over all experts on `w[e]`; waits for the device once an expert, in `torch.where`."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """For every expert: its tokens, one feed-forward, and an `index_add` into the output."""
        weights = self.weights
        ids_TK = routing.expert_ids.masked_fill(~routing.kept, self.spec.num_experts)
        y_TD = torch.zeros_like(x_TD)
        for e in range(self.spec.num_experts):
            with stage("dispatch"):
                token_n, choice_n = torch.where(ids_TK == e)
                x_nD = x_TD[token_n]
            with stage("experts"), stage("experts", e):
                in_bias = None if weights.in_bias is None else weights.in_bias[e]
                down_bias = None if weights.down_bias is None else weights.down_bias[e]
                y_nD = feed_forward(self.spec, x_nD, weights.in_proj[e], weights.down_proj[e], in_bias, down_bias)
            with stage("combine"):
                share_n1 = routing.weights[token_n, choice_n].unsqueeze(1)
                y_TD = y_TD.index_add(0, token_n, (y_nD * share_n1).to(y_TD.dtype))
        return y_TD
