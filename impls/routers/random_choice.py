"""Routers that draw: noise on the logits, a second expert at random, and experts by hash.

What is drawn depends on `router_seed` and the token's position (:mod:`impls.draws`), in `forward` and `train` alike.
Shapes: T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from impls.draws import drawn
from impls.routers.base import Router, Scores, router_logits
from impls.spec import LayerSpec
from impls.weights import Weights


class NoisyTopK(Router):
    """The K largest of noisy logits ``h = x W + n * softplus(x W_noise)``, n from N(0, 1), and softmax over these K.

    `router_noise_weight` (E, D) learns how much noise an expert gets. Noise is there in evaluation too, so that both
    directions compute one function.

    Source: Shazeer et al., Outrageously Large Neural Networks, 2017, section 2.1, eq. 3 to 5.
    """

    def scores(self, spec: LayerSpec, weights: Weights, x_TD: Tensor) -> Scores:
        """Two products of the tokens, and the noise between them."""
        assert weights.router_noise_weight is not None
        clean_TE = router_logits(weights, x_TD)
        deviation_TE = functional.softplus(functional.linear(x_TD.float(), weights.router_noise_weight.float()))
        noise_TE = drawn("normal", spec.router_seed, tuple(clean_TE.shape), x_TD.device)
        return Scores(logits=clean_TE + noise_TE * deviation_TE, clean_logits=clean_TE, noise_deviation=deviation_TE)

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The K largest noisy logits."""
        del weights, x_TD
        return logits_TE.topk(spec.top_k, dim=-1).indices

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Softmax over the chosen."""
        del spec
        return logits_TE.gather(1, ids_TK).softmax(-1)


class GShard(Router):
    """The two most probable experts, renormalised; the second is visited at random, in proportion to its weight.

    ``g_j = p_j / (p_1 + p_2)``. The second expert is asked for if ``2 g_2 > u``, u uniform in [0, 1): with probability
    ``2 g_2``, which is at most 1. Where it is skipped the first weight stays, and no slot of a capacity is taken.

    Source: Lepikhin et al., GShard, 2020, section 2.2 and algorithm 1.
    """

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The two largest logits."""
        del weights, x_TD
        return logits_TE.topk(spec.top_k, dim=-1).indices

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Softmax over the two."""
        del spec
        return logits_TE.gather(1, ids_TK).softmax(-1)

    def wanted(self, spec: LayerSpec, weights_TK: Tensor) -> Tensor | None:
        """The first always, the second by its weight."""
        first_T, second_T = weights_TK.detach().unbind(1)
        uniform_T = drawn("uniform", spec.router_seed, (weights_TK.shape[0],), weights_TK.device)
        return torch.stack([torch.ones_like(first_T, dtype=torch.bool), 2 * second_T > uniform_T], dim=1)


class Hash(Router):
    """K experts that a fixed hash of the token gives, each with weight ``1 / K``; nothing is learned.

    The source hashes a token's number in the vocabulary. A layer does not see it, so here the bits of the token's
    vector are hashed, which needs no more: equal vectors go to the same experts. Every expert gets a hash of (token,
    expert), and the K largest are taken (rendezvous hashing), so that the K are distinct and every expert is as likely.
    It assumes vectors that differ; contextual ones differ at nearly every position, so loads come out even.

    The logits are zeros: `router_weight` takes no part, and gets no gradient.

    Source: Roller et al., Hash Layers For Large Sparse Models, 2021.
    """

    def scores(self, spec: LayerSpec, weights: Weights, x_TD: Tensor) -> Scores:
        """Zeros."""
        del weights
        return Scores(logits=torch.zeros(x_TD.shape[0], spec.num_experts, device=x_TD.device))

    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The experts whose hashes with the token are largest."""
        del weights, logits_TE
        width, num_experts = spec.d_model, spec.num_experts
        bits_DE = drawn("bits", spec.router_seed, (width + num_experts,), x_TD.device)
        same_width = torch.int16 if x_TD.element_size() == 2 else torch.int32
        words_TD = x_TD.detach().contiguous().view(same_width).to(torch.int64)
        # multiply-add in arithmetic modulo 2 ** 64 (Dietzfelbinger, 1996), odd factors, then one hash an expert
        token_T1 = (words_TD * (bits_DE[:width] | 1)).sum(1, keepdim=True)
        return _mixed(token_T1 ^ bits_DE[width:]).topk(spec.top_k, dim=1).indices

    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """One K-th each."""
        del spec
        return torch.full(ids_TK.shape, 1 / ids_TK.shape[1], device=logits_TE.device)


def _mixed(words: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on 63 bits: every input bit moves every output bit."""
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        words = (words ^ _shifted(words, shift)) * factor
    positive: Tensor = (words ^ _shifted(words, 31)) & (2**63 - 1)
    return positive


def _shifted(words: Tensor, by: int) -> Tensor:
    shifted: Tensor = (words >> by) & (2 ** (64 - by) - 1)  # torch shifts the sign in
    return shifted
