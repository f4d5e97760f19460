"""Whether a router chose rightly, by value: the selection score of every router once more, in float64.

Which of two equal scores is taken is nobody's contract, so a choice is wrong only where it is worse than another by
more than the dtype's rounding. Shares nothing with :mod:`impls.routers` but what was drawn.

T tokens, t tokens of one piece, D d_model, E experts, K top-k, G groups, C tokens that an expert takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from bench.check import TOLERANCE
from impls.draws import drawn
from impls.spec import LayerSpec

_PIECE = 1 << 20


class _Scores(NamedTuple):
    """What is chosen by, and how far rounded logits can move it."""

    values: torch.Tensor
    slack: torch.Tensor


def routing_fault(
    spec: LayerSpec,
    weights: Mapping[str, torch.Tensor],
    x_TD: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    kept_TK: torch.Tensor | None = None,
) -> str:
    """What is wrong with a router's choice, in a sentence; empty where every token goes to K of its best experts.

    Args:
        spec: the layer.
        weights: its weights by name.
        x_TD: tokens.
        expert_ids_TK: the choice; under expert choice (T, E), all experts in order.
        kept_TK: what is kept, for routers whose choice it is: under expert choice each expert must keep C of the
            tokens that suit it best, and GShard's second expert must be skipped where the draw says so.
    """
    T, E = x_TD.shape[0], spec.num_experts
    choices = E if spec.router == "expert_choice" else spec.top_k
    if expert_ids_TK.shape != (T, choices):
        return f"routing has shape {tuple(expert_ids_TK.shape)}, expected {(T, choices)}"
    if spec.router == "expert_choice":
        return _expert_choice_fault(spec, weights, x_TD, expert_ids_TK, kept_TK)
    rows = max(1, _PIECE // max(E, spec.d_model))
    for first in range(0, T, rows):
        some = slice(first, first + rows)
        if spec.router == "hash":
            wrong_t, expected = _other_than_hashed(spec, x_TD[some], expert_ids_TK[some])
        else:
            scores = _selection_scores(spec, weights, x_TD, some)
            wrong_t, expected = _worse_than_best(spec, scores, expert_ids_TK[some])
        wrong = wrong_t.nonzero().flatten()
        if len(wrong):
            token = int(wrong[0])
            return (
                f"token {first + token} is routed to experts {expert_ids_TK[first + token].tolist()}, "
                f"expected {expected[token].tolist()} or their equals by score"
            )
        if spec.router == "gshard" and spec.capacity_factor is None and kept_TK is not None:
            logits_t2 = _logits(spec, weights, x_TD, some).gather(1, expert_ids_TK[some])
            margin_t = 2 * logits_t2.softmax(1)[:, 1] - drawn("uniform", spec.router_seed, (T,), x_TD.device)[some]
            clear_t = margin_t.abs() > TOLERANCE[x_TD.dtype] * (1 + logits_t2.abs().amax(1))
            wrong = (((margin_t > 0) != kept_TK[some, 1]) & clear_t | ~kept_TK[some, 0]).nonzero().flatten()
            if len(wrong):
                return f"token {first + int(wrong[0])}: what is kept of its two experts is not what its draw says"
    return ""


def _logits(spec: LayerSpec, weights: Mapping[str, torch.Tensor], x_TD: torch.Tensor, some: slice) -> torch.Tensor:
    logits_tE = x_TD[some].double() @ weights["router_weight"].double().T
    if "router_bias" in weights:
        logits_tE += weights["router_bias"].double()
    if spec.router == "noisy_topk":
        raw_tE = x_TD[some].double() @ weights["router_noise_weight"].double().T
        noise_TE = drawn("normal", spec.router_seed, (x_TD.shape[0], spec.num_experts), x_TD.device)
        logits_tE += noise_TE[some] * torch.logaddexp(raw_tE, torch.zeros_like(raw_tE))
    return logits_tE


def _selection_scores(spec: LayerSpec, weights: Mapping[str, torch.Tensor], x_TD: torch.Tensor, some: slice) -> _Scores:
    logits_tE = _logits(spec, weights, x_TD, some)
    slack_t1 = TOLERANCE[x_TD.dtype] * (1 + logits_tE.abs().amax(1, keepdim=True))
    if spec.num_expert_groups == 1 and not spec.selection_bias:
        return _Scores(logits_tE, slack_t1)  # every score rises with its logit
    values_tE = logits_tE.sigmoid() if spec.router == "sigmoid_topk" else logits_tE.softmax(1)
    slack_t1 = slack_t1 * (values_tE * (1 - values_tE)).amax(1, keepdim=True)  # the slopes of both
    if spec.selection_bias:
        values_tE = values_tE + weights["router_selection_bias"].double()
    return _Scores(values_tE, slack_t1)


def _worse_than_best(spec: LayerSpec, scores: _Scores, ids_tK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens have a better expert than one of theirs, within the groups they may choose; and the best."""
    values_tE, slack_t1 = scores
    E, groups, allowed = spec.num_experts, spec.num_expert_groups, spec.top_k_groups
    sane_t = ((ids_tK >= 0) & (ids_tK < E)).all(1) & (ids_tK.sort(1).values.diff(dim=1) != 0).all(1)
    ids_tK = ids_tK.clamp(0, E - 1)
    best_of = 2 if spec.router == "sigmoid_topk" else 1
    grouped_tGe = values_tE.view(-1, groups, E // groups)
    groups_tG = grouped_tGe.topk(min(best_of, E // groups), dim=2).values.sum(2)
    least_t1 = groups_tG.topk(allowed, dim=1).values[:, -1:]
    possible_tE = (groups_tG >= least_t1 - 2 * slack_t1).repeat_interleave(E // groups, dim=1)
    certain_tE = (groups_tG > least_t1 + 2 * slack_t1).repeat_interleave(E // groups, dim=1)
    clear_t1 = possible_tE.sum(1, keepdim=True) == allowed * (E // groups)
    chosen_tE = torch.zeros_like(possible_tE).scatter(1, ids_tK, True)
    num_groups_t = chosen_tE.view(-1, groups, E // groups).any(2).sum(1)
    worst_chosen_t1 = values_tE.gather(1, ids_tK).amin(1, keepdim=True)
    rivals_tE = torch.where(clear_t1, possible_tE, certain_tE) & ~chosen_tE
    beaten_t = (rivals_tE & (values_tE > worst_chosen_t1 + slack_t1)).any(1)
    wrong_t = ~sane_t | (chosen_tE & ~possible_tE).any(1) | (num_groups_t > allowed) | beaten_t
    best_tK = torch.where(groups_tG >= least_t1, 0.0, -torch.inf).repeat_interleave(E // groups, dim=1).add(values_tE)
    return wrong_t, best_tK.topk(spec.top_k, dim=1).indices


def _other_than_hashed(spec: LayerSpec, x_tD: torch.Tensor, ids_tK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens go elsewhere than the hash of their bits says; and where that is."""
    bits = drawn("bits", spec.router_seed, (spec.d_model + spec.num_experts,), torch.device("cpu")).numpy()
    factors_D, salts_E = bits[: spec.d_model].view(np.uint64) | np.uint64(1), bits[spec.d_model :].view(np.uint64)
    width = torch.int16 if x_tD.element_size() == 2 else torch.int32
    words_tD = x_tD.detach().cpu().contiguous().view(width).numpy().astype(np.int64).view(np.uint64)
    mixed_tE = (words_tD * factors_D).sum(1, keepdims=True, dtype=np.uint64) ^ salts_E
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        mixed_tE = (mixed_tE ^ (mixed_tE >> np.uint64(shift))) * np.uint64(factor)
    mixed_tE = (mixed_tE ^ (mixed_tE >> np.uint64(31))) & np.uint64(2**63 - 1)
    order_tE = np.argsort(mixed_tE, axis=1)[:, ::-1]
    expected_tK = torch.from_numpy(order_tE[:, : spec.top_k].astype(np.int64)).to(ids_tK.device)
    return (expected_tK != ids_tK).any(1), expected_tK


def _expert_choice_fault(
    spec: LayerSpec,
    weights: Mapping[str, torch.Tensor],
    x_TD: torch.Tensor,
    ids_TE: torch.Tensor,
    kept_TE: torch.Tensor | None,
) -> str:
    if not torch.equal(ids_TE, torch.arange(spec.num_experts, device=ids_TE.device).expand_as(ids_TE)):
        return "under expert choice every token names all experts in order, and this routing does not"
    T, capacity = x_TD.shape[0], spec.capacity(x_TD.shape[0])
    assert capacity is not None
    if kept_TE is None or T == 0:
        return ""
    logits_TE = _logits(spec, weights, x_TD, slice(None))
    values_TE = logits_TE.log_softmax(1)
    slack = 2 * TOLERANCE[x_TD.dtype] * (1 + float(logits_TE.abs().max()))
    least_E = values_TE.masked_fill(~kept_TE, torch.inf).amin(0)
    best_left_E = values_TE.masked_fill(kept_TE, -torch.inf).amax(0)
    counts_E = kept_TE.sum(0)
    wrong = ((counts_E != min(capacity, T)) | (best_left_E > least_E + slack)).nonzero().flatten()
    if not len(wrong):
        return ""
    e = int(wrong[0])
    return f"expert {e} took {int(counts_E[e])} tokens, expected the {min(capacity, T)} that suit it best"
