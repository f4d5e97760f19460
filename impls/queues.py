"""Queues of assignments before their experts: sorting, places, and how long a buffer must be.

Shapes: T tokens, E experts, K choices of a token, N = T * K assignments. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def queue_places(
    ids_TK: Tensor, num_experts: int, wanted_TK: Tensor | None = None, weights_TK: Tensor | None = None
) -> Tensor:
    """Place (T, K) of every assignment in its expert's queue.

    The order is all first choices in token order, then all second, ...: the priority of Lepikhin et al., GShard, 2020,
    algorithm 1.

    Args:
        ids_TK: experts.
        num_experts: E.
        wanted_TK: which assignments queue at all, by default all; the others' places mean nothing.
        weights_TK: where given, the larger weight goes first, and that order only decides between equal ones.
    """
    if wanted_TK is not None:
        ids_TK = ids_TK.masked_fill(~wanted_TK, num_experts)
    ids_N = ids_TK.t().reshape(-1)
    if weights_TK is None:
        order_N, begins = sort_by_expert(ids_N, num_experts)
    else:
        heaviest_N = weights_TK.t().reshape(-1).argsort(descending=True, stable=True)
        by_expert_N, begins = sort_by_expert(ids_N[heaviest_N], num_experts)
        order_N = heaviest_N[by_expert_N]
    places_N = invert(order_N) - begins[ids_N]
    return places_N.view(ids_TK.shape[1], ids_TK.shape[0]).t()
