"""Padded capacity buffers: scatter every token into its experts' slots, batched matmul, gather.

Shapes: T tokens, D d_model, E experts, K top-k, N = T * K assignments, C slots of one expert.
"""

from __future__ import annotations

from torch import Tensor

from impls.ffn import feed_forward_batched
from impls.layer import MoELayer
from impls.permute import combine_rows
from impls.routing import Routing, expert_slots
from impls.stages import stage


class ScatterGather(MoELayer):
    """Every expert gets C slots, used or not; without a capacity it waits for the device once, to learn the fullest."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Scatter, every expert on its whole buffer, gather and combine."""
        num_tokens, width = x_TD.shape
        num_experts, top_k = routing.num_experts, routing.expert_ids.shape[1]
        with stage("dispatch"):
            slots_TK, capacity = expert_slots(routing)
            num_rows = num_experts * capacity
            row_TK = (routing.expert_ids * capacity + slots_TK).masked_fill(~routing.kept, num_rows)

            # One row more than there are takes what is dropped, and is cut off.
            x_ND = x_TD.unsqueeze(1).expand(num_tokens, top_k, width).reshape(-1, width)
            buffer_RD = x_TD.new_zeros(num_rows + 1, width).index_copy(0, row_TK.reshape(-1), x_ND)
            buffer_ECD = buffer_RD[:num_rows].view(num_experts, capacity, width)

        with stage("experts"):
            weights = self.weights
            y_ECD = feed_forward_batched(
                self.spec, buffer_ECD, weights.in_proj, weights.down_proj, weights.in_bias, weights.down_bias
            )
        with stage("combine"):
            return combine_rows(y_ECD.view(num_rows, width), routing.weights, row_TK)
