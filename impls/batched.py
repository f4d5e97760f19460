"""Gathered weights: fetch the weights of every assignment's expert, and multiply one token with each, in one batch.

For few tokens, as in decoding: no sorting, no loop, no wait, every shape known beforehand. It pays by copying: T * K
experts' weights are gathered, however many of them are the same.

Shapes: T tokens, D d_model, F d_ff, I 2F or F, K top-k, N = T * K assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.ffn import feed_forward_batched
from impls.layer import Direction, MoELayer, Unsupported
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.stages import stage

MAX_GATHERED_BYTES = 4 * 2**30
"""Past this the gather alone takes seconds and crowds out everything else; such a call is refused, with its size."""


class Batched(MoELayer):
    """One `bmm` over gathered weights; nothing here waits for the device."""

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """No training in half precision: a gather's gradient is summed token by token in its number format."""
        del spec, device
        if direction == "train" and dtype != torch.float32:
            return f"the gradient of gathered weights is rounded to {dtype} after every token: it misses the tolerance"
        return None

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Gather weights, two batched products, a weighted sum over K.

        Raises:
            Unsupported: where the gathered weights would exceed :data:`MAX_GATHERED_BYTES`.
        """
        weights, (num_tokens, top_k) = self.weights, routing.expert_ids.shape
        num_bytes = num_tokens * top_k * (weights.in_proj[0].nbytes + weights.down_proj[0].nbytes)
        if num_bytes > MAX_GATHERED_BYTES:
            raise Unsupported(
                f"gathering one expert's weights for each of {num_tokens * top_k} assignments takes "
                f"{num_bytes / 2**30:.1f} GiB, above {MAX_GATHERED_BYTES / 2**30:.1f} GiB; batched is for few tokens"
            )
        with stage("dispatch"):
            ids_N = routing.expert_ids.reshape(-1)
            x_N1D = x_TD.repeat_interleave(top_k, dim=0).unsqueeze(1)
            in_NID = weights.in_proj.index_select(0, ids_N)
            down_NDF = weights.down_proj.index_select(0, ids_N)
            in_bias_NI = None if weights.in_bias is None else weights.in_bias.index_select(0, ids_N)
            down_bias_ND = None if weights.down_bias is None else weights.down_bias.index_select(0, ids_N)
        with stage("experts"):
            y_N1D = feed_forward_batched(self.spec, x_N1D, in_NID, down_NDF, in_bias_NI, down_bias_ND)
        with stage("combine"):
            share_T1K = (routing.weights * routing.kept).to(x_TD.dtype).unsqueeze(1)
            return torch.bmm(share_T1K, y_N1D.view(num_tokens, top_k, self.spec.d_model)).squeeze(1)
