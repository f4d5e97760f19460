"""Expert choice, executed as it is defined: every expert has chosen its C tokens, so its buffer is simply gathered.

Source: Zhou et al., Mixture-of-Experts with Expert Choice Routing, 2022, section 3.2. Every expert has the same number
of tokens, so nothing is sorted, padded or counted.

Shapes: T tokens, D d_model, E experts, C tokens of one expert, R = E * C rows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from impls.ffn import feed_forward_batched
from impls.layer import Direction, MoELayer
from impls.routing import Routing, expert_slots
from impls.spec import LayerSpec
from impls.stages import stage


class ExpertChoice(MoELayer):
    """Gather (E, C) tokens, every expert on its own, add the weighted rows back; nothing here waits for the device."""

    ROUTER: ClassVar[str] = "expert_choice"

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Only experts that choose their tokens all have the same number of them."""
        del device, dtype, direction
        if spec.router == cls.ROUTER:
            return None
        return f"it executes router {cls.ROUTER!r} only, where every expert has the same number of tokens"

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Gather by expert, batched feed-forward, `index_add` in float32."""
        num_tokens, num_experts = routing.expert_ids.shape
        if num_tokens == 0:  # an expert has a row at least, and there is no token to put there
            return x_TD.clone()
        with stage("dispatch"):
            slots_TE, capacity = expert_slots(routing)
            num_rows = num_experts * capacity
            # One row more than there are takes what no expert chose, and is cut off.
            row_TE = (routing.expert_ids * capacity + slots_TE).masked_fill(~routing.kept, num_rows)
            token_T1 = torch.arange(num_tokens, device=x_TD.device).unsqueeze(1)
            token_R = row_TE.new_zeros(num_rows + 1).scatter_(
                0, row_TE.view(-1), token_T1.expand_as(row_TE).reshape(-1)
            )
            share_R = routing.weights.new_zeros(num_rows + 1).scatter(0, row_TE.view(-1), routing.weights.reshape(-1))
            token_R, share_R = token_R[:num_rows], share_R[:num_rows]
            x_ECD = x_TD.index_select(0, token_R).view(num_experts, capacity, -1)
        with stage("experts"):
            weights = self.weights
            y_ECD = feed_forward_batched(
                self.spec,
                x_ECD,
                weights.in_proj,
                weights.down_proj,
                weights.in_bias,
                weights.down_bias,
            )
        with stage("combine"):
            weighted_RD = y_ECD.view(num_rows, -1) * share_R.unsqueeze(1)
            y_TD = weighted_RD.new_zeros(x_TD.shape).index_add(0, token_R, weighted_RD)
        return y_TD.to(x_TD.dtype)
