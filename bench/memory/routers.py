"""The routers in tensors without numbers: scores, choice and weights, as in :mod:`impls.routers`.

Shapes: T tokens, D d_model, E experts, K top-k, G groups of experts, M groups allowed.
"""

from __future__ import annotations

from bench.memory.indexing import arange, gather, scatter, top_k
from bench.memory.layer import Layer
from bench.memory.operators import (
    add,
    cat,
    combined,
    compare,
    linear,
    logsigmoid,
    masked_fill,
    mul,
    sigmoid,
    softmax,
    softplus,
    to,
    with_number,
)
from bench.memory.tensors import BOOL, FLOAT, INDEX, Tensor, existing, fresh, fresh_like
from bench.memory.views import contiguous, expand, reshape, split, unbind, unsqueeze


def router_logits(layer: Layer, x_TD: Tensor) -> Tensor:
    """(T, E) in float32."""
    bias = layer.weights.get("router_bias")
    bias_E = None if bias is None else to(bias, FLOAT)
    return linear(to(x_TD, FLOAT), to(layer.weights["router_weight"], FLOAT), bias_E)


def scores(layer: Layer, x_TD: Tensor) -> tuple[Tensor, ...]:
    """The logits, and where there is noise the logits before it and its deviation."""
    router = layer.spec.router
    if router == "hash":
        return (fresh(x_TD, (x_TD.shape[0], layer.spec.num_experts), FLOAT),)
    clean_TE = router_logits(layer, x_TD)
    if router != "noisy_topk":
        return (clean_TE,)
    noise_weight = layer.weights["router_noise_weight"]
    deviation_TE = softplus(linear(to(x_TD, FLOAT), to(noise_weight, FLOAT)))
    noise_TE = existing(x_TD.account, clean_TE.shape, FLOAT)  # drawn once a process
    return add(clean_TE, mul(noise_TE, deviation_TE)), clean_TE, deviation_TE


def choose(layer: Layer, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
    """Ids (T, K), or (T, E) where experts choose; ``logits_TE`` is cut off from the backward pass."""
    spec = layer.spec
    if spec.router == "expert_choice":
        return contiguous(expand(unsqueeze(arange(x_TD, spec.num_experts), 0), logits_TE.shape))
    if spec.router == "hash":
        return _hashed(layer, x_TD)
    if spec.router == "sigmoid_topk":
        return _choose_by_score(layer, sigmoid(logits_TE))
    if spec.router == "softmax_topk" and (spec.num_expert_groups > 1 or spec.selection_bias):
        return _choose_by_score(layer, softmax(logits_TE))
    return top_k(logits_TE, spec.top_k)[1]


def _choose_by_score(layer: Layer, scores_TE: Tensor) -> Tensor:
    spec = layer.spec
    if (bias := layer.weights.get("router_selection_bias")) is not None:
        scores_TE = add(scores_TE, to(bias.alias(), FLOAT))
    if spec.num_expert_groups > 1:
        T, G = scores_TE.shape[0], spec.num_expert_groups
        grouped = reshape(scores_TE, T, G, spec.num_experts // G)
        best_TM = top_k(_score_groups(spec.router, grouped), spec.top_k_groups)[1]
        ones_TG = fresh(grouped, (T, G), FLOAT)
        barred_TG = to(scatter(ones_TG, best_TM, best_TM), BOOL)
        del ones_TG
        scores_TE = reshape(masked_fill(grouped, barred_TG), T, spec.num_experts)
    return top_k(scores_TE, spec.top_k)[1]


def _score_groups(router: str, scores_TGe: Tensor) -> Tensor:
    T, G, size = scores_TGe.shape
    if router == "softmax_topk":  # the best
        return fresh(scores_TGe, (T, G), FLOAT)
    best = top_k(scores_TGe, min(2, size))[0]  # the two best together
    return fresh(best, (T, G), FLOAT)


def _hashed(layer: Layer, x_TD: Tensor) -> Tensor:
    (T, D), E = x_TD.shape, layer.spec.num_experts
    odd_D, mixing_E = existing(x_TD.account, (D,), INDEX), existing(x_TD.account, (E,), INDEX)
    words_TD = fresh(x_TD, (T, D), INDEX)
    token_T1 = _row_sums(combined(words_TD, with_number(odd_D)))
    return top_k(_mixed(combined(token_T1, mixing_E)), layer.spec.top_k)[1]


def _row_sums(x_TD: Tensor) -> Tensor:
    return fresh(x_TD, (x_TD.shape[0], 1), x_TD.item_bytes)


def _mixed(words: Tensor) -> Tensor:
    for _ in range(2):
        words = with_number(combined(words, _shifted(words)))
    return with_number(combined(words, _shifted(words)))


def _shifted(words: Tensor) -> Tensor:
    return with_number(with_number(words))


def weigh(layer: Layer, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Weights (T, K) float32, before scaling."""
    spec = layer.spec
    if spec.router == "expert_choice":
        return softmax(logits_TE)
    if spec.router == "hash":
        return fresh(ids_TK, ids_TK.shape, FLOAT)
    if spec.router == "sparsemixer":
        return _sparse_mixture(logits_TE, ids_TK)
    if spec.router == "sigmoid_topk":
        chosen_TK = gather(logits_TE, ids_TK)
        return softmax(logsigmoid(chosen_TK)) if spec.norm_topk_prob else sigmoid(chosen_TK)
    if spec.router == "topk_sigmoid":
        return sigmoid(gather(logits_TE, ids_TK))
    if spec.router == "switch" or (spec.router == "softmax_topk" and not spec.norm_topk_prob):
        return gather(softmax(logits_TE), ids_TK)
    return softmax(gather(logits_TE, ids_TK))


def _sparse_mixture(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    taken_TE = fresh(logits_TE, logits_TE.shape, BOOL)
    rounds = []
    for id_T1 in split(ids_TK, [1] * ids_TK.shape[1], dim=1):
        with logits_TE.account.undifferentiated():
            chosen_T1 = gather(logits_TE, id_T1)
            far_TE = compare(combined(combined(chosen_T1, logits_TE), combined(fresh_like(logits_TE), chosen_T1)))
        close_TE = masked_fill(logits_TE, combined(taken_TE, far_TE))
        rounds.append(gather(softmax(close_TE), id_T1))
        taken_TE = scatter(taken_TE, id_T1, id_T1)
    return cat(rounds, dim=1)


def wanted(weights_TK: Tensor) -> Tensor:
    """GShard's: the first choice, and the second at random."""
    first_T, second_T = unbind(weights_TK.alias(), 1)
    columns = [fresh(first_T, first_T.shape, BOOL), _above(with_number(second_T))]
    stacked_TK = fresh(first_T, weights_TK.shape, BOOL)
    del columns
    return stacked_TK


def _above(x: Tensor) -> Tensor:
    return fresh(x, x.shape, BOOL)
