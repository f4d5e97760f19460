"""The shared router: which experts a token goes to, with what weight, and whether they still have room.

Shapes: T tokens, D d_model, E experts, K top-k, N = T * K assignments. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from impls.spec import LayerSpec
from impls.weights import Weights


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Routing:
    """Where every token goes.

    Attributes:
        expert_ids: (T, K) int64, best first unless they were given.
        weights: (T, K) float32, what the expert's output is multiplied with; differentiable. Dropped assignments keep
            theirs, so that the others are not renormalised.
        kept: (T, K) bool, False where the expert had no room.
        logits: (T, E) float32, differentiable.
        slots: (T, K) int64, place of an assignment in its expert's queue, at or past ``capacity`` where it is dropped;
            None where nothing can be dropped.
        num_experts: E.
        capacity: slots of one expert, None where nothing can be dropped.
    """

    expert_ids: Tensor
    weights: Tensor
    kept: Tensor
    logits: Tensor
    slots: Tensor | None
    num_experts: int
    capacity: int | None

    def load_balance_loss(self) -> Tensor:
        """E times the sum over experts of (share of assignments) * (mean router probability); 1 at perfect balance.

        The share counts what the router chose, dropped or not. Source: Fedus et al., Switch Transformers, 2021, eq. 4,
        with shares of assignments in place of tokens, so that the value does not depend on top_k.
        """
        num_tokens, top_k = self.expert_ids.shape
        ids_N = self.expert_ids.reshape(-1)
        counts_E = torch.zeros_like(self.logits[:1].sum(0)).index_add(
            0, ids_N, torch.ones_like(ids_N, dtype=torch.float32)
        )
        share_E = counts_E / max(1, num_tokens * top_k)
        probability_E = self.logits.softmax(-1).sum(0) / max(1, num_tokens)
        return self.num_experts * (share_E * probability_E).sum()

    def z_loss(self) -> Tensor:
        """Mean squared log-sum-exp of the logits, which keeps them small. Source: Zoph et al., ST-MoE, 2022, eq. 5."""
        return self.logits.logsumexp(-1).square().sum() / max(1, self.logits.shape[0])


def router_logits(weights: Weights, x_TD: Tensor) -> Tensor:
    """Router scores (T, E) in float32, whatever the tokens' number format.

    Rounding logits to bfloat16 moves the gates by half a percent, which is why routers are computed in float32 (the
    selective precision of Switch Transformers).
    """
    bias_E = None if weights.router_bias is None else weights.router_bias.float()
    return functional.linear(x_TD.float(), weights.router_weight.float(), bias_E)


def route(spec: LayerSpec, weights: Weights, x_TD: Tensor, expert_ids: Tensor | None = None) -> Routing:
    """Choose top_k experts a token, weigh them, and apply the capacity.

    Args:
        spec: the layer.
        weights: holds the router.
        x_TD: tokens.
        expert_ids: (T, K) ids that replace the router's choice. The router still runs in full; weights come from its
            scores of these experts, and capacity applies to them.

    Raises:
        ValueError: where ``expert_ids`` has another shape than (T, K).
    """
    logits_TE = router_logits(weights, x_TD)
    ids_TK = logits_TE.topk(spec.top_k, dim=-1).indices
    if expert_ids is not None:
        if expert_ids.shape != ids_TK.shape:
            raise ValueError(f"expert_ids must be (T, K) = {tuple(ids_TK.shape)}, found {tuple(expert_ids.shape)}")
        ids_TK = expert_ids.to(device=x_TD.device, dtype=torch.int64)
    if spec.norm_topk_prob:
        # The same as dividing the chosen probabilities by their sum, without 0 / 0 where forced ids are improbable.
        weights_TK = logits_TE.gather(1, ids_TK).softmax(-1)
    else:
        weights_TK = logits_TE.softmax(-1).gather(1, ids_TK)
    capacity = spec.capacity(x_TD.shape[0])
    slots_TK, kept_TK = None, torch.ones_like(ids_TK, dtype=torch.bool)
    if capacity is not None:
        slots_TK = queue_places(ids_TK, spec.num_experts)
        kept_TK = slots_TK < capacity
    return Routing(
        expert_ids=ids_TK,
        weights=weights_TK,
        kept=kept_TK,
        logits=logits_TE,
        slots=slots_TK,
        num_experts=spec.num_experts,
        capacity=capacity,
    )


def sort_by_expert(ids_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Stable order of assignments by expert, and where each expert begins in it.

    Args:
        ids_N: expert of every assignment; ``num_experts`` itself stands for none and comes last.
        num_experts: E.

    Returns:
        order_N, the assignments in expert order, and begins (E + 1,), the last one where the last expert ends.
    """
    # A stable sort of one or two bytes is a radix sort with few passes: 8 times faster than int64 on a CPU.
    narrow = torch.uint8 if num_experts < 256 else torch.int16 if num_experts < 32768 else torch.int32
    sorted_N, order_N = ids_N.to(narrow).sort(stable=True)
    # Not bincount: it waits for the device.
    experts = torch.arange(num_experts + 1, device=ids_N.device)
    return order_N, torch.searchsorted(sorted_N, experts.to(narrow))


def invert(order_N: Tensor) -> Tensor:
    """The permutation that undoes ``order_N``."""
    return torch.empty_like(order_N).index_copy_(0, order_N, torch.arange(order_N.numel(), device=order_N.device))


def queue_places(ids_TK: Tensor, num_experts: int) -> Tensor:
    """Place (T, K) of every assignment in its expert's queue: all first choices in token order, then all second, ...

    Source: the priority of Lepikhin et al., GShard, 2020, algorithm 1.
    """
    ids_N = ids_TK.t().reshape(-1)
    order_N, begins = sort_by_expert(ids_N, num_experts)
    places_N = invert(order_N) - begins[ids_N]
    return places_N.view(ids_TK.shape[1], ids_TK.shape[0]).t()


def expert_slots(routing: Routing) -> tuple[Tensor, int]:
    """Slots (T, K) and how many slots an expert's buffer needs.

    The capacity where there is one. Without, the fullest expert's count, which takes one wait for the device.
    """
    if routing.slots is not None:
        assert routing.capacity is not None
        return routing.slots, routing.capacity
    slots_TK = queue_places(routing.expert_ids, routing.num_experts)
    return slots_TK, int(slots_TK.max()) + 1 if slots_TK.numel() else 1
