"""Expert by expert: sort the assignments, and give each expert its tokens in turn.

Shapes: T tokens, D d_model, E experts, K top-k, N = T * K assignments, R rows (assignments that are kept).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from impls.ffn import feed_forward, unbind_bias
from impls.layer import MoELayer
from impls.permute import combine_rows, gather_rows
from impls.routing import Routing, invert, sort_by_expert
from impls.stages import stage


class Loop(MoELayer):
    """A Python loop over experts that have tokens; waits for the device once, for their counts."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Gather by expert, one feed-forward an expert, combine."""
        num_experts, top_k = routing.num_experts, routing.expert_ids.shape[1]
        with stage("dispatch"):
            ids_N = routing.expert_ids.masked_fill(~routing.kept, num_experts).view(-1)
            order_N, begins = sort_by_expert(ids_N, num_experts)
            bounds = begins.tolist()
            num_rows = bounds[-1]

            row_TK = invert(order_N).clamp(max=num_rows).view_as(routing.expert_ids)  # the dropped come last
            x_RD = gather_rows(x_TD, order_N[:num_rows] // top_k, row_TK)

        with stage("experts"):
            # unbind, not w[e]: the gradient of every w[e] would be as large as all experts together.
            weights = self.weights
            in_E, down_E = weights.in_proj.unbind(0), weights.down_proj.unbind(0)
            in_bias_E = unbind_bias(weights.in_bias, num_experts)
            down_bias_E = unbind_bias(weights.down_bias, num_experts)
            sizes = [end - begin for begin, end in pairwise(bounds)]
            outputs = []
            for e, x in enumerate(torch.split(x_RD, sizes)):
                if sizes[e]:
                    with stage("experts", e):
                        outputs.append(feed_forward(self.spec, x, in_E[e], down_E[e], in_bias_E[e], down_bias_E[e]))
            # One row of zeros more is what dropped assignments read. Without tokens, the rows keep the graph alive.
            y_RD = torch.cat([*outputs, x_TD.new_zeros(1, x_TD.shape[1])]) if outputs else x_RD
        with stage("combine"):
            return combine_rows(y_RD, routing.weights, row_TK)
