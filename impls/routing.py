"""Where tokens go: the record of a routing, its auxiliary losses, and the one function that makes it.

Shapes: T tokens, D d_model, E experts, K choices of a token (top-k; E under expert choice). Nothing here waits for the
device but :func:`expert_slots` without a capacity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from impls.queues import invert, queue_places, sort_by_expert
from impls.routers import TABLE, router_logits
from impls.routers.base import Score
from impls.spec import LayerSpec
from impls.weights import Weights

__all__ = [
    "Routing", "expert_slots", "invert", "queue_places", "route", "router_logits", "sort_by_expert", "with_kept",
]  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Routing:
    """Where every token goes.

    Attributes:
        expert_ids: (T, K) int64, best first unless they were given; under expert choice (T, E), all experts in order.
        weights: (T, K) float32, what the expert's output is multiplied with (or its input, see
            :attr:`impls.LayerSpec.scales_input`); differentiable. Dropped assignments keep theirs, so that the others
            are not renormalised.
        kept: (T, K) bool, False where the expert had no room or was not asked.
        logits: (T, E) float32, differentiable; with noise, where the router adds any.
        slots: (T, K) int64, place of an assignment in its expert's queue, at or past ``capacity`` where it is not kept;
            None without a capacity.
        num_experts: E.
        capacity: slots of one expert, None where it has no limit.
        wanted: (T, K) bool, what the router asks for, before any capacity: False where GShard skips a second expert,
            or where an expert did not choose the token; None where every assignment is asked for.
        score: how the router makes scores of logits.
        clean_logits: (T, E) float32, the logits before noise; None without noise.
        noise_deviation: (T, E) float32, standard deviation of the noise; None without.
    """

    expert_ids: Tensor
    weights: Tensor
    kept: Tensor
    logits: Tensor
    slots: Tensor | None
    num_experts: int
    capacity: int | None
    wanted: Tensor | None = None
    score: Score = "softmax"
    clean_logits: Tensor | None = None
    noise_deviation: Tensor | None = None

    def load_balance_loss(self) -> Tensor:
        """E times the sum over experts of (share of assignments) * (mean router probability); 1 at perfect balance.

        The share counts what the router asked for, dropped or not. The probability is the softmax of the logits, or of
        a sigmoid router the scores over their sum. Source: Fedus et al., Switch Transformers, 2021, eq. 4, with shares
        of assignments in place of tokens, so that the value does not depend on top_k; for sigmoids DeepSeek-V3, 2024,
        eq. 17 to 20.
        """
        counts_E = self._per_expert(torch.ones_like(self.weights))
        share_E = counts_E / counts_E.sum().clamp_min(1)
        if self.score == "softmax":
            probability_TE = self.logits.softmax(-1)
        else:
            probability_TE = torch.nn.functional.logsigmoid(self.logits).softmax(-1)
        probability_E = probability_TE.sum(0) / max(1, self.logits.shape[0])
        return self.num_experts * (share_E * probability_E).sum()

    def z_loss(self) -> Tensor:
        """Mean squared log-sum-exp of the logits, which keeps them small. Source: Zoph et al., ST-MoE, 2022, eq. 5."""
        return self.logits.logsumexp(-1).square().sum() / max(1, self.logits.shape[0])

    def importance_loss(self) -> Tensor:
        """Squared coefficient of variation of the experts' importance, the sum of their weights over the tokens.

        0 where all experts matter alike. Source: Shazeer et al., 2017, section 4, eq. 6 and 7.
        """
        return _squared_variation(self._per_expert(self.weights))

    def load_loss(self) -> Tensor:
        """Squared coefficient of variation of the experts' smooth load.

        The load of expert e is the sum over tokens of the probability that e is among the K best if its noise alone is
        drawn anew: ``normal_cdf((clean_e - threshold_e) / deviation_e)``, the threshold being the K-th largest noisy
        logit of the others. Source: Shazeer et al., 2017, appendix A, eq. 8 to 11.

        Raises:
            ValueError: the router adds no noise.
        """
        if self.clean_logits is None or self.noise_deviation is None:
            raise ValueError("the load loss is defined by a router's noise, and this router adds none; see noisy_topk")
        num_experts, top_k = self.num_experts, self.expert_ids.shape[1]
        if top_k == num_experts:
            return self.logits.sum() * 0  # everybody is always chosen
        best = self.logits.topk(top_k + 1, dim=-1).values
        inside_TE = self.logits >= best[:, top_k - 1 : top_k]
        threshold_TE = torch.where(inside_TE, best[:, top_k:], best[:, top_k - 1 : top_k])
        deviations = (self.clean_logits - threshold_TE) / self.noise_deviation
        return _squared_variation((1 + torch.erf(deviations / math.sqrt(2))).sum(0) / 2)

    def _per_expert(self, values_TK: Tensor) -> Tensor:
        if self.wanted is not None:
            values_TK = values_TK * self.wanted
        zeros_E = torch.zeros_like(self.logits[:1].sum(0))
        return zeros_E.index_add(0, self.expert_ids.reshape(-1), values_TK.reshape(-1))


def _squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean, of the whole population; 0 where all values are zero."""
    return values_E.var(correction=0) / values_E.mean().square().clamp_min(torch.finfo(values_E.dtype).tiny)


def route(spec: LayerSpec, weights: Weights, x_TD: Tensor, given: Tensor | Routing | None = None) -> Routing:
    """Score the experts, choose, weigh, and apply the capacity.

    Args:
        spec: the layer.
        weights: holds the router.
        x_TD: tokens.
        given: (T, K) expert ids that replace the router's choice, or a routing whose choice does. The router still runs
            in full; weights come from its scores of these experts, and capacity applies to them. Where what is kept
            depends on weights and not on ids alone (:attr:`impls.LayerSpec.keeps_by_value`), a given routing also
            says what is kept, so that two roundings of one weight cannot send a token two ways.

    Raises:
        ValueError: the ids have another shape than (T, K), or this router cannot follow ids.
    """
    router = TABLE[spec.router]
    scores = router.scores(spec, weights, x_TD)
    ids_TK = router.choose(spec, weights, x_TD, scores.logits.detach())
    if given is not None:
        ids_TK = _given_ids(spec, given, ids_TK)
    weights_TK = router.weigh(spec, scores.logits, ids_TK)
    admission = router.admit(spec, ids_TK, weights_TK, router.wanted(spec, weights_TK))
    routing = Routing(
        expert_ids=ids_TK,
        weights=weights_TK if spec.routed_scaling == 1 else weights_TK * spec.routed_scaling,
        kept=admission.kept,
        logits=scores.logits,
        slots=admission.slots,
        num_experts=spec.num_experts,
        capacity=admission.capacity,
        wanted=admission.wanted,
        score=router.score,
        clean_logits=scores.clean_logits,
        noise_deviation=scores.noise_deviation,
    )
    if isinstance(given, Routing) and spec.keeps_by_value:
        return replace(routing, kept=given.kept, slots=given.slots, wanted=given.wanted)
    return routing


def _given_ids(spec: LayerSpec, given: Tensor | Routing, chosen_TK: Tensor) -> Tensor:
    ids_TK = given.expert_ids if isinstance(given, Routing) else given
    if spec.unforceable and not isinstance(given, Routing):
        raise ValueError(spec.unforceable)
    if ids_TK.shape != chosen_TK.shape:
        raise ValueError(f"expert_ids must be (T, K) = {tuple(chosen_TK.shape)}, found {tuple(ids_TK.shape)}")
    return ids_TK.to(device=chosen_TK.device, dtype=torch.int64)


def with_kept(routing: Routing, kept_TK: Tensor) -> Routing:
    """The same routing where exactly ``kept_TK`` is kept, the slots in the order of the queue."""
    kept_TK = kept_TK.to(routing.expert_ids.device)
    if routing.capacity is None:
        return replace(routing, kept=kept_TK)
    slots_TK = queue_places(routing.expert_ids, routing.num_experts, kept_TK)
    return replace(routing, kept=kept_TK, slots=slots_TK.masked_fill(~kept_TK, routing.capacity))


def expert_slots(routing: Routing) -> tuple[Tensor, int]:
    """Slots (T, K) and how many slots an expert's buffer needs.

    The capacity where there is one. Without, the fullest expert's count, which takes one wait for the device.
    """
    if routing.slots is not None:
        assert routing.capacity is not None
        return routing.slots, routing.capacity
    slots_TK = queue_places(routing.expert_ids, routing.num_experts, routing.wanted)
    if routing.wanted is not None:
        slots_TK = slots_TK.masked_fill(~routing.wanted, 0)
    return slots_TK, int(slots_TK.max()) + 1 if slots_TK.numel() else 1
