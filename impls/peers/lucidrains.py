"""lucidrains' layers as they come, gate included, with our weights in them, where they compute our layer.

Both packages follow GShard: a gate builds one-hot dispatch and combine tensors (T, E, C), and einsums move the tokens.
They route by themselves, so they run where their routing is ours: softmax, the best experts renormalised, none left to
chance, our capacity (theirs is at least :data:`LEAST_CAPACITY`), and no ids given from outside. Their experts are the
`experts` argument that both take.

Shapes: T tokens, D d_model, E experts, C slots of one expert.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from impls.ffn import feed_forward_batched
from impls.layer import Direction, MoELayer, Unsupported
from impls.packages import MIXTURE_OF_EXPERTS, ST_MOE_PYTORCH, Package
from impls.peers.experts import make_experts, put_weights
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.weights import Weights

LEAST_CAPACITY = 4


class GShardPeer(MoELayer):
    """What the two packages have in common; a subclass builds the layer and puts the weights of a call into it."""

    package: ClassVar[Package]

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        self.path = f"{self.package.name} {self.package.version()}"
        # In a tuple, so that the parameters are not registered a second time.
        self._theirs = (self._layer(),)

    @classmethod
    def missing(cls) -> str | None:
        """The package."""
        return cls.package.missing()

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Softmax over all experts, renormalised, in float32."""
        del device, direction
        name = cls.package.name
        if spec.router != "softmax_topk" or not spec.norm_topk_prob or spec.routed_scaling != 1:
            return f"{name} routes by itself: softmax, and the chosen probabilities renormalised"
        if spec.router_bias or spec.selection_bias or spec.num_expert_groups > 1:
            return f"{name}'s gate has no biases and no groups of experts"
        if spec.capacity_policy != "gshard":
            return f"{name} drops in GShard's order"
        if dtype != torch.float32:
            return f"{name} routes in the tokens' number format: only in float32 does it choose as our router does"
        return None

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Their layer on all tokens as one group.

        Raises:
            Unsupported: where the capacity is below what theirs can be.
        """
        num_tokens = x_TD.shape[0]
        if num_tokens == 0:
            return x_TD.clone()
        capacity = routing.capacity
        if capacity is None:  # enough for the fullest expert, as everybody's buffers
            capacity = max(LEAST_CAPACITY, int(routing.expert_ids.reshape(-1).bincount().max()))
        if capacity < min(LEAST_CAPACITY, num_tokens):
            raise Unsupported(f"{self.package.name} gives an expert at least {LEAST_CAPACITY} slots, here {capacity}")
        (theirs,) = self._theirs
        # Theirs is the whole part of factor * T / E: half a slot more keeps rounding out of it.
        factor = (capacity + 0.5) * self.spec.num_experts / num_tokens
        theirs.gate.capacity_factor_train = theirs.gate.capacity_factor_eval = factor
        self._put_weights(theirs)
        y_1TD: Tensor = theirs(x_TD.unsqueeze(0))[0]
        return y_1TD.squeeze(0)

    def _routed(self, x_TD: Tensor, given: Routing | None) -> Tensor:
        if given is not None:
            raise Unsupported(f"{self.package.name} routes by itself: it cannot be given expert ids")
        return super()._routed(x_TD, None)

    @abstractmethod
    def _layer(self) -> Any:
        """Their layer, not yet on our weights."""

    @abstractmethod
    def _put_weights(self, theirs: Any) -> None:
        """Give their layer our weights."""


class _AllExperts(nn.Module):
    """Experts as `mixture-of-experts` calls them: (E, C, D) -> (E, C, D)."""

    def __init__(self, layer: GShardPeer) -> None:
        super().__init__()
        self._layer = (layer.spec, layer.weights)

    def forward(self, x_ECD: Tensor) -> Tensor:
        spec, weights = self._layer
        return feed_forward_batched(spec, x_ECD, weights.in_proj, weights.down_proj, weights.in_bias, weights.down_bias)


class MixtureOfExperts(GShardPeer):
    """`mixture_of_experts.MoE`, which sends every token to two experts."""

    package: ClassVar[Package] = MIXTURE_OF_EXPERTS

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Two experts a token."""
        if spec.top_k != 2:
            return f"mixture-of-experts sends a token to two experts, not {spec.top_k}"
        return super().supports(spec, device, dtype, direction)

    def _layer(self) -> Any:
        module = importlib.import_module("mixture_of_experts")
        layer = module.MoE(
            self.spec.d_model,
            num_experts=self.spec.num_experts,
            second_policy_train="all",
            second_policy_eval="all",
            experts=_AllExperts(self),
        )
        del layer.gate.w_gating  # (D, E), which is a transpose of ours: set in every call
        return layer.train(self.training)

    def _put_weights(self, theirs: Any) -> None:
        theirs.gate.w_gating = self.weights.router_weight.t()


class StMoePytorch(GShardPeer):
    """`st_moe_pytorch.MoE`, with its random second choice and its straight-through gradient turned off."""

    package: ClassVar[Package] = ST_MOE_PYTORCH

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Two experts a token, or more."""
        if spec.top_k < 2:
            return "st-moe-pytorch sends a token to two experts or more"
        return super().supports(spec, device, dtype, direction)

    def _layer(self) -> Any:
        module = importlib.import_module("st_moe_pytorch")
        layer = module.MoE(
            dim=self.spec.d_model,
            num_experts=self.spec.num_experts,
            gating_top_n=self.spec.top_k,
            threshold_train=0.0,
            threshold_eval=0.0,
            straight_through_dispatch_tensor=False,
            experts=make_experts(self.spec),
        )
        layer.gate.to_gates.weight = self.weights.router_weight
        return layer

    def _put_weights(self, theirs: Any) -> None:
        put_weights(theirs.experts.experts, self.weights)
