"""Choosing by score: a bias that takes part in the choice alone, and groups that are chosen before their experts.

Shapes: T tokens, E experts, K top-k, G groups of E / G neighbouring experts, M groups allowed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from impls.spec import LayerSpec
from impls.weights import Weights


def choose_by_score(
    spec: LayerSpec, weights: Weights, scores_TE: Tensor, score_groups: Callable[[Tensor], Tensor]
) -> Tensor:
    """The K experts (T, K) of the largest scores, plus the selection bias, within the M best groups.

    Args:
        spec: the layer.
        weights: holds the selection bias, if there is one.
        scores_TE: probabilities.
        score_groups: how a group is scored by its experts' (biased) scores, (T, G, E / G) -> (T, G).
    """
    if weights.router_selection_bias is not None:
        scores_TE = scores_TE + weights.router_selection_bias.detach().float()
    if spec.num_expert_groups > 1:
        grouped = scores_TE.view(scores_TE.shape[0], spec.num_expert_groups, spec.num_experts // spec.num_expert_groups)
        best_TM = score_groups(grouped).topk(spec.top_k_groups, dim=1).indices
        barred_TG = grouped.new_ones(grouped.shape[:2]).scatter(1, best_TM, 0.0).bool()
        scores_TE = grouped.masked_fill(barred_TG.unsqueeze(-1), float("-inf")).flatten(1)
    return scores_TE.topk(spec.top_k, dim=1).indices


def best_of_group(scores_TGe: Tensor) -> Tensor:
    """A group is as good as its best expert: DeepSeek-V2."""
    return scores_TGe.amax(-1)


def two_best_of_group(scores_TGe: Tensor) -> Tensor:
    """A group is as good as its two best experts together: DeepSeek-V3."""
    return scores_TGe.topk(min(2, scores_TGe.shape[-1]), dim=-1).values.sum(-1)
