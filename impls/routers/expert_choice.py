"""Expert choice: every expert takes the tokens that suit it best.

Shapes: T tokens, E experts, C tokens of one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.routers.base import Admission, Router
from impls.spec import LayerSpec
from impls.weights import Weights


class ExpertChoice(Router):
    """Softmax over experts, and every expert takes the C tokens that have the largest share for it.

    ``C = T * K / E * capacity_factor``, so K is how many experts a token gets *on average*: some get none, some all.
    The weight is the softmax's own, ``S[t, e]``, not renormalised. No expert is ever fuller than another.

    As a routing, every token names all experts, in order: ids (T, E) are 0 to E - 1, and `kept` says which experts
    took it. Which token an expert takes depends on all other tokens, so the router is not for causal generation.

    Source: Zhou et al., Mixture-of-Experts with Expert Choice Routing, 2022, section 3.2.
    """

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """All experts."""
        del spec, weights, x_TD
        num_tokens, num_experts = logits_TE.shape
        return torch.arange(num_experts, device=logits_TE.device).expand(num_tokens, -1).contiguous()

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Softmax over experts; the ids are all of them in order."""
        del spec, ids_TK
        return logits_TE.softmax(-1)

    def admit(self, spec: LayerSpec, ids_TK: Tensor, weights_TK: Tensor, wanted_TK: Tensor | None) -> Admission:
        """The C largest weights of every expert; a slot is the rank among them."""
        del wanted_TK
        num_tokens, num_experts = ids_TK.shape
        capacity = spec.capacity(num_tokens)
        assert capacity is not None
        taken_CE = weights_TK.detach().topk(min(capacity, num_tokens), dim=0).indices
        ranks_CE = torch.arange(taken_CE.shape[0], device=ids_TK.device).unsqueeze(1).expand(-1, num_experts)
        slots_TE = torch.full_like(ids_TK, capacity).scatter(0, taken_CE, ranks_CE)
        kept_TE = slots_TE < capacity
        return Admission(kept=kept_TE, slots=slots_TE, capacity=capacity, wanted=kept_TE)
