"""What a router is: scores, a choice of experts, and weights that are differentiable in the scores.

The three are apart so that given expert ids can replace the choice: the weights then come from the router's own scores
of these experts. Everything is float32, whatever the tokens' number format: rounding logits to bfloat16 moves the
gates by half a percent (the selective precision of Switch Transformers).

Shapes: T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from impls.queues import queue_places
from impls.spec import LayerSpec
from impls.weights import Weights

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Scores:
    """What a router says of every expert.

    Attributes:
        logits: (T, E) float32, what is chosen by; differentiable.
        clean_logits: (T, E), the logits before noise; None where there is none.
        noise_deviation: (T, E), standard deviation of that noise, else None.
    """

    logits: Tensor
    clean_logits: Tensor | None = None
    noise_deviation: Tensor | None = None


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Admission:
    """Which assignments have room.

    Attributes:
        kept: (T, K) bool.
        slots: (T, K) int64, place among the expert's assignments, at or past ``capacity`` where it is not kept; None
            without a capacity.
        capacity: slots of one expert, or None.
        wanted: (T, K) bool, what was asked for before the capacity; None where that is everything.
    """

    kept: Tensor
    slots: Tensor | None
    capacity: int | None
    wanted: Tensor | None


def router_logits(weights: Weights, x_TD: Tensor) -> Tensor:
    """Router scores (T, E) in float32, whatever the tokens' number format."""
    bias_E = None if weights.router_bias is None else weights.router_bias.float()
    return functional.linear(x_TD.float(), weights.router_weight.float(), bias_E)


class Router(ABC):
    """One way to send tokens to experts; without state, one object serves all layers."""

    score: ClassVar[Score] = "softmax"
    """What makes probabilities of its logits; a load-balancing loss needs them."""

    def scores(self, spec: LayerSpec, weights: Weights, x_TD: Tensor) -> Scores:
        """Scores of every expert for every token."""
        del spec
        return Scores(logits=router_logits(weights, x_TD))

    @abstractmethod
    def choose(self, spec: LayerSpec, weights: Weights, x_TD: Tensor, logits_TE: Tensor) -> Tensor:
        """The experts (T, K) int64 of every token, best first; not differentiable."""

    @abstractmethod
    def weigh(self, spec: LayerSpec, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Weights (T, K) float32 of these experts, before `routed_scaling`; differentiable in the logits."""

    def wanted(self, spec: LayerSpec, weights_TK: Tensor) -> Tensor | None:
        """Which assignments (T, K) the router asks for; None where it asks for all that it chose."""
        del spec, weights_TK
        return None

    def admit(self, spec: LayerSpec, ids_TK: Tensor, weights_TK: Tensor, wanted_TK: Tensor | None) -> Admission:
        """Apply the layer's capacity."""
        capacity = spec.capacity(ids_TK.shape[0])
        if capacity is None:
            kept_TK = torch.ones_like(ids_TK, dtype=torch.bool) if wanted_TK is None else wanted_TK
            return Admission(kept=kept_TK, slots=None, capacity=None, wanted=wanted_TK)
        by_weight = weights_TK.detach() if spec.capacity_policy == "score" else None
        slots_TK = queue_places(ids_TK, spec.num_experts, wanted_TK, by_weight)
        if wanted_TK is not None:
            slots_TK = slots_TK.masked_fill(~wanted_TK, capacity)
        return Admission(kept=slots_TK < capacity, slots=slots_TK, capacity=capacity, wanted=wanted_TK)
