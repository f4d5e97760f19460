"""GShard's formulation: one-hot dispatch and combine tensors, and every step an einsum.

Shapes: T tokens, D d_model, E experts, K top-k, C slots of one expert.
Source: Lepikhin et al., GShard, 2020, algorithm 2. The tensors hold T * E * C numbers, which is what it pays with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.ffn import feed_forward_batched
from impls.layer import MoELayer
from impls.routing import Routing, expert_slots
from impls.stages import stage


class Einsum(MoELayer):
    """Dispatch and combine as dense tensors; without a capacity it waits for the device once, to learn the fullest."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Dispatch by einsum, every expert on its whole buffer, combine by einsum."""
        num_tokens, num_experts = x_TD.shape[0], self.spec.num_experts

        def one_hot(values_TK: Tensor) -> Tensor:
            # Adding lets a dropped assignment add zero wherever it points.
            flat = values_TK.new_zeros(num_tokens, num_experts * capacity).scatter_add(1, place_TK, values_TK)
            return flat.to(x_TD.dtype).view(num_tokens, num_experts, capacity)

        with stage("dispatch"):
            slots_TK, capacity = expert_slots(routing)
            place_TK = routing.expert_ids * capacity + slots_TK.clamp(max=capacity - 1)
            dispatch_TEC = one_hot(routing.kept.to(x_TD.dtype))
            combine_TEC = one_hot(routing.weights * routing.kept)
            buffer_ECD = torch.einsum("tec,td->ecd", dispatch_TEC, x_TD)
        with stage("experts"):
            weights = self.weights
            y_ECD = feed_forward_batched(
                self.spec, buffer_ECD, weights.in_proj, weights.down_proj, weights.in_bias, weights.down_bias
            )
        with stage("combine"):
            return torch.einsum("tec,ecd->td", combine_TEC, y_ECD)
