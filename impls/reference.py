"""The slow, obvious truth: one token at a time, one expert at a time, in float64, differentiable by autograd.

It shares nothing with the implementations but the names of the weights and what routers draw. Takes seconds at a
thousand tokens: it is for tests; runs use :mod:`impls.truth`, which the tests prove equal to it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from impls.draws import drawn
from impls.spec import LayerSpec

CLOSE = 0.02  # SparseMixer: relative distance of logits


def reference(
    semantics: str, spec: LayerSpec, weights: Mapping[str, Tensor], x_TD: Tensor, expert_ids_TK: Tensor
) -> Tensor:
    """The output (T, D) for given expert ids.

    Args:
        semantics: ``moe``, ``dense``, ``dense_total``, ``ensemble`` or ``ensemble_weighted``.
        spec: the layer.
        weights: canonical weights by name, float64.
        x_TD: tokens, float64.
        expert_ids_TK: where the tokens go, (T, E) under expert choice; only ``moe`` looks at it.
    """
    logits = [_logits(semantics, spec, weights, x_D, token, len(x_TD)) for token, x_D in enumerate(x_TD)]
    ids = expert_ids_TK.tolist() if semantics == "moe" else [list(range(spec.num_experts))] * len(x_TD)
    gates = [_gates(semantics, spec, logits_E, token_ids) for logits_E, token_ids in zip(logits, ids, strict=True)]
    kept = kept_assignments(spec, ids, gates) if semantics == "moe" else _used_by_baseline(semantics, spec, len(x_TD))
    outputs = [
        _one_token(
            spec,
            weights,
            x_D,
            [(e, gate) for k, (e, gate) in enumerate(zip(ids[t], gates[t], strict=True)) if (t, k) in kept],
            semantics,
        )
        for t, x_D in enumerate(x_TD)
    ]
    return torch.stack(outputs) if outputs else x_TD * 0


def kept_assignments(spec: LayerSpec, ids: list[list[int]], gates: list[list[Tensor]]) -> set[tuple[int, int]]:
    """The (token, choice) pairs that are asked for and that an expert has room for."""
    room = spec.capacity(len(ids))
    queues: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for choice in range(len(ids[0]) if ids else 0):  # all first choices in token order, then all second, ...
        for token, token_ids in enumerate(ids):
            if not (spec.router == "gshard" and choice == 1 and _skips_second(spec, gates, token)):
                queues[token_ids[choice]].append((token, choice))
    if spec.router == "expert_choice" or spec.capacity_policy == "score":
        for queue in queues.values():
            queue.sort(key=lambda pair: -float(gates[pair[0]][pair[1]].detach()))
    return {pair for queue in queues.values() for pair in queue[:room]}


def _skips_second(spec: LayerSpec, gates: list[list[Tensor]], token: int) -> bool:
    uniform = drawn("uniform", spec.router_seed, (len(gates),), torch.device("cpu"))[token]
    return 2 * float(gates[token][1].detach()) / spec.routed_scaling <= float(uniform)


def _used_by_baseline(semantics: str, spec: LayerSpec, num_tokens: int) -> set[tuple[int, int]]:
    num_used = spec.top_k if semantics == "dense" else spec.num_experts
    return {(token, e) for token in range(num_tokens) for e in range(num_used)}


def _logits(
    semantics: str, spec: LayerSpec, weights: Mapping[str, Tensor], x_D: Tensor, token: int, num_tokens: int
) -> Tensor:
    logits_E = weights["router_weight"] @ x_D
    if spec.router_bias:
        logits_E = logits_E + weights["router_bias"]
    if spec.router == "noisy_topk" and semantics == "moe":
        deviation_E = (1 + (weights["router_noise_weight"] @ x_D).exp()).log()
        noise_TE = drawn("normal", spec.router_seed, (num_tokens, spec.num_experts), torch.device("cpu"))
        logits_E = logits_E + noise_TE[token].double() * deviation_E
    return logits_E


def _gates(semantics: str, spec: LayerSpec, logits_E: Tensor, ids: list[int]) -> list[Tensor]:
    """What each of the experts ``ids`` of one token is multiplied with."""
    one = torch.ones((), dtype=torch.float64)
    probability_E = logits_E.exp() / logits_E.exp().sum()
    if semantics != "moe":
        share = {"ensemble": one / spec.num_experts, "ensemble_weighted": None}.get(semantics, one)
        return [probability_E[e] if share is None else share for e in ids]
    if spec.router == "sparsemixer":
        gates = _sparse_mixture(logits_E, ids)
    elif spec.router == "hash":
        gates = [one / spec.top_k for _ in ids]
    else:
        sigmoid = spec.router in ("sigmoid_topk", "topk_sigmoid")
        score_E = 1 / (1 + (-logits_E).exp()) if sigmoid else probability_E
        renormalised = spec.router in ("topk_softmax", "noisy_topk", "gshard") or (
            spec.norm_topk_prob and spec.router in ("softmax_topk", "sigmoid_topk")
        )
        total = torch.stack([score_E[e] for e in ids]).sum() if renormalised else one
        gates = [score_E[e] / total for e in ids]
    return [gate * spec.routed_scaling for gate in gates]


def _sparse_mixture(logits_E: Tensor, ids: list[int]) -> list[Tensor]:
    gates = []
    for choice, e in enumerate(ids):
        left = [i for i in range(len(logits_E)) if i not in ids[:choice]]
        best = float(logits_E[e].detach())
        close = [i for i in left if (best - float(logits_E[i])) / max(abs(float(logits_E[i])), best) <= CLOSE]
        gates.append(logits_E[e].exp() / torch.stack([logits_E[i].exp() for i in close]).sum())
    return gates


def _one_token(
    spec: LayerSpec, weights: Mapping[str, Tensor], x_D: Tensor, shares: list[tuple[int, Tensor]], semantics: str
) -> Tensor:
    name = "gate_up" if spec.gated else "up"
    y_D = torch.zeros_like(x_D)
    for e, share in shares:
        scaled_input = spec.router == "topk_sigmoid" and semantics == "moe"
        hidden_I = weights[f"{name}_proj"][e] @ (share * x_D if scaled_input else x_D)
        if spec.expert_bias:
            hidden_I = hidden_I + weights[f"{name}_bias"][e]
        out_D = weights["down_proj"][e] @ _activate(spec, spec.activation, hidden_I)
        if spec.expert_bias:
            out_D = out_D + weights["down_bias"][e]
        y_D = y_D + (out_D if scaled_input else share * out_D)
    if spec.num_shared_experts:
        hidden_I = weights[f"shared_{name}_proj"] @ x_D
        out_D = weights["shared_down_proj"] @ _activate(spec, spec.activation, hidden_I)
        y_D = y_D + (out_D / (1 + (-(weights["shared_gate_weight"][0] @ x_D)).exp()) if spec.shared_gate else out_D)
    return y_D


def _activate(spec: LayerSpec, activation: str, hidden_I: Tensor) -> Tensor:
    half = hidden_I.shape[0] // 2
    if activation == "relu":
        return hidden_I * (hidden_I > 0)
    if activation == "gelu":
        return hidden_I * (1 + torch.erf(hidden_I / math.sqrt(2))) / 2
    if activation == "silu":
        return hidden_I / (1 + torch.exp(-hidden_I))
    if activation == "swiglu_clamped":
        limit = torch.tensor(spec.swiglu_limit, dtype=torch.float64)
        gate_F = torch.where(hidden_I[:half] > limit, limit, hidden_I[:half])
        up_F = torch.where(hidden_I[half:].abs() > limit, limit * hidden_I[half:].sign(), hidden_I[half:])
        return gate_F / (1 + torch.exp(-1.702 * gate_F)) * (up_F + 1)
    inner = {"swiglu": "silu", "geglu": "gelu"}[activation]
    return _activate(spec, inner, hidden_I[:half]) * hidden_I[half:]
