"""The slow, obvious truth: one token at a time, one expert at a time, in float64, differentiable by autograd.

It shares nothing with the implementations but the names of the weights. Takes seconds at a thousand tokens: it is for
tests; runs use :mod:`impls.truth`, which the tests prove equal to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from impls.spec import LayerSpec


def kept_assignments(spec: LayerSpec, expert_ids: list[list[int]]) -> set[tuple[int, int]]:
    """The (token, choice) pairs that an expert has room for: all first choices in token order, then all second, ..."""
    room = spec.capacity(len(expert_ids))
    seen: Counter[int] = Counter()
    kept = set()
    for choice in range(spec.top_k):
        for token, ids in enumerate(expert_ids):
            if room is None or seen[ids[choice]] < room:
                kept.add((token, choice))
            seen[ids[choice]] += 1
    return kept


def reference(
    semantics: str, spec: LayerSpec, weights: Mapping[str, Tensor], x_TD: Tensor, expert_ids_TK: Tensor
) -> Tensor:
    """The output (T, D) for given expert ids.

    Args:
        semantics: ``moe``, ``dense``, ``dense_total``, ``ensemble`` or ``ensemble_weighted``.
        spec: the layer.
        weights: canonical weights by name, float64.
        x_TD: tokens, float64.
        expert_ids_TK: where the tokens go; only ``moe`` looks at it.
    """
    ids = expert_ids_TK.tolist()
    kept = kept_assignments(spec, ids)
    outputs = [_one_token(semantics, spec, weights, x_D, token, ids[token], kept) for token, x_D in enumerate(x_TD)]
    return torch.stack(outputs) if outputs else x_TD * 0


def _one_token(
    semantics: str,
    spec: LayerSpec,
    weights: Mapping[str, Tensor],
    x_D: Tensor,
    token: int,
    ids: list[int],
    kept: set[tuple[int, int]],
) -> Tensor:
    logits_E = weights["router_weight"] @ x_D
    if spec.router_bias:
        logits_E = logits_E + weights["router_bias"]
    probability_E = logits_E.exp() / logits_E.exp().sum()
    everyone = range(spec.num_experts)
    if semantics == "moe":
        total = sum(probability_E[e] for e in ids) if spec.norm_topk_prob else 1
        shares = [(e, probability_E[e] / total) for choice, e in enumerate(ids) if (token, choice) in kept]
    elif semantics == "dense":
        shares = [(e, torch.ones(())) for e in range(spec.top_k)]
    elif semantics == "dense_total":
        shares = [(e, torch.ones(())) for e in everyone]
    elif semantics == "ensemble":
        shares = [(e, torch.ones((), dtype=torch.float64) / spec.num_experts) for e in everyone]
    else:
        assert semantics == "ensemble_weighted", semantics
        shares = [(e, probability_E[e]) for e in everyone]

    name = "gate_up" if spec.gated else "up"
    y_D = torch.zeros_like(x_D)
    for e, share in shares:
        hidden_I = weights[f"{name}_proj"][e] @ x_D
        if spec.expert_bias:
            hidden_I = hidden_I + weights[f"{name}_bias"][e]
        out_D = weights["down_proj"][e] @ _activate(spec.activation, hidden_I)
        if spec.expert_bias:
            out_D = out_D + weights["down_bias"][e]
        y_D = y_D + share * out_D
    if spec.num_shared_experts:
        hidden_I = weights[f"shared_{name}_proj"] @ x_D
        y_D = y_D + weights["shared_down_proj"] @ _activate(spec.activation, hidden_I)
    return y_D


def _activate(activation: str, hidden_I: Tensor) -> Tensor:
    half = hidden_I.shape[0] // 2
    if activation == "relu":
        return hidden_I * (hidden_I > 0)
    if activation == "gelu":
        return hidden_I * (1 + torch.erf(hidden_I / math.sqrt(2))) / 2
    if activation == "silu":
        return hidden_I / (1 + torch.exp(-hidden_I))
    inner = {"swiglu": "silu", "geglu": "gelu"}[activation]
    return _activate(inner, hidden_I[:half]) * hidden_I[half:]
