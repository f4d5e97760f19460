"""SparseMixer: experts one after the other, each weighed among those that come close to it.

Shapes: T tokens, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impls.routers.base import Router
from impls.spec import LayerSpec
from impls.weights import Weights

JITTER = 0.01
"""Half the relative distance within which logits count as close: the value of Phi-3.5-MoE."""


class SparseMixer(Router):
    """K rounds: take the best expert that is left, weigh it by a softmax over those that come close, take it away.

    With m the chosen logit of a round, expert i comes close if ``(m - s_i) / max(|s_i|, m) <= 2 * JITTER``; the weight
    is ``exp(m) / sum of exp(s_i)`` over those close and not taken before. Weights are not renormalised: those of K
    clear winners are K ones.

    What is computed, in `forward` and in `train` alike, is the router's evaluation mode: the best expert, not one drawn
    by Gumbel noise. The gradient is that of the masked softmax, the mask being constant. The published estimator
    (Heun's third-order method) gives this same gradient and the same weight wherever the expert drawn is the best one;
    where it is not, it also scales the weight, and that does not occur here.

    Under forced ids m is the logit of the given expert, so experts better than it come close too, and no weight
    becomes 0 / 0.

    Source: Liu et al., GRIN: Gradient-Informed MoE, 2024 (SparseMixer-v2), as in Phi-3.5-MoE.
    """

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The best, then the best of the others, and so on: the K largest logits in order."""
        del weights, x_TD
        return logits_TE.topk(spec.top_k, dim=-1).indices

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """One masked softmax a round."""
        del spec
        taken_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        rounds = []
        for id_T1 in torch.split(ids_TK, 1, dim=1):
            with torch.no_grad():
                chosen_T1 = logits_TE.gather(1, id_T1)
                far_TE = (chosen_T1 - logits_TE) / torch.maximum(logits_TE.abs(), chosen_T1) > 2 * JITTER
            close_TE = logits_TE.masked_fill(taken_TE | far_TE, float("-inf"))
            rounds.append(close_TE.softmax(-1).gather(1, id_T1))
            taken_TE = taken_TE.scatter(1, id_T1, True)
        return torch.cat(rounds, dim=1)
