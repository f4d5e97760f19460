"""Every expert on every token, and a mask that keeps what the router chose: the honest worst case.

E / K times the layer's useful FLOPs, and nothing else: no sorting, no gather, no wait, fixed shapes. Whatever is slower
than this has lost more to bookkeeping than sparsity saved.

Shapes: T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.ffn import feed_forward, unbind_bias
from impls.layer import MoELayer
from impls.routing import Routing
from impls.stages import stage


class DenseMasked(MoELayer):
    """All experts in turn, each on all tokens; what a token did not choose is weighted with zero.

    An expert that overflows on a token that never chose it spoils that token: zero times infinity is not a number.
    """

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """A table of gates (T, E), mostly zero, and a sum over experts in float32."""
        weights, num_experts = self.weights, self.spec.num_experts
        with stage("dispatch"):
            # adding, so that an expert that was chosen twice counts twice
            gates_TE = routing.weights.new_zeros(x_TD.shape[0], num_experts).scatter_add(
                1, routing.expert_ids, routing.weights * routing.kept
            )
        # unbind, not w[e]: the gradient of every w[e] would be as large as all experts together.
        in_E, down_E = weights.in_proj.unbind(0), weights.down_proj.unbind(0)
        in_bias_E, down_bias_E = unbind_bias(weights.in_bias, num_experts), unbind_bias(weights.down_bias, num_experts)
        y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for e, gate_T in enumerate(gates_TE.unbind(1)):
            with stage("experts"), stage("experts", e):
                expert_TD = feed_forward(self.spec, x_TD, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e])
            with stage("combine"):
                y_TD = y_TD + gate_T.unsqueeze(1) * expert_TD
        return y_TD.to(x_TD.dtype)
