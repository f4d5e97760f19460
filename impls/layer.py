"""The interface of an implementation: one class in one file that says how the routed experts are computed.

Everything that implementations have in common is here, once: the router, the shared experts, the shape of the input.
Shapes: ... any, T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from impls.ffn import feed_forward
from impls.routing import Routing, route
from impls.spec import LayerSpec
from impls.stages import stage
from impls.weights import Weights

Direction = Literal["forward", "train"]


class Unsupported(Exception):  # noqa: N818  the interface's name: it is an answer, not a fault
    """An implementation cannot run what was asked.

    Attributes:
        reason: why, in a sentence for the user.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MoELayer(nn.Module, ABC):
    """One Mixture-of-Experts layer: (..., D) -> (..., D), differentiable in the input and in every weight.

    An implementation sets `compute`, and what else applies of `supports`, `missing`, `prepare` and the attributes.

    Attributes:
        semantics: what is computed: ``moe``, or a baseline's own label.
        exact: whether it is that to rounding; False where weights or activations are quantised.
        tolerance: where it is not exact, the relative error of output and gradients that it allows itself; past it,
            its result is wrong. A tenth is what weights rounded to four bits give.
        routes: whether tokens go to chosen experts; where False, a given routing changes nothing.
        path: which of several kernel paths runs; empty where there is one.
        spec: the layer.
        weights: its canonical weights.
    """

    semantics: ClassVar[str] = "moe"
    exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1
    routes: ClassVar[bool] = True
    path: str = ""

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__()
        self.spec = spec
        self.weights = weights

    @classmethod
    def missing(cls) -> str | None:
        """What this installation lacks to run the implementation at all, or None."""
        return None

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Why this combination cannot run, or None where it can."""
        del spec, device, dtype, direction  # everything, unless an implementation says otherwise
        return None

    @classmethod
    def cannot_compile(
        cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction
    ) -> str | None:
        """Why ``torch.compile`` cannot make anything of this combination, or None where it can.

        Code that it cannot trace is no reason: it breaks the graph there and runs Python in between.
        """
        del spec, device, dtype, direction  # everything, unless an implementation says otherwise
        return None

    def prepare(self) -> None:
        """Derive another weight layout, once, after the weights are final; its cost is not the layer's."""

    @abstractmethod
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """What the routed experts give for every token, weighted and summed: (T, D)."""

    def route(self, x: Tensor, given: Tensor | Routing | None = None) -> Routing:
        """Where the shared router sends the tokens of ``x`` (..., D), or what follows from given ids or a routing."""
        return route(self.spec, self.weights, self._tokens(x), given)

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        """The layer's output, of the shape of ``x``.

        Args:
            x: tokens (..., D), of the weights' dtype.
            routing: replaces the router's choice of experts. The router still runs in full, and weights are computed
                anew for these ids; so is what is kept, unless that depends on the weights.
        """
        x_TD = self._tokens(x)
        y_TD = self._routed(x_TD, routing)
        if self.weights.shared_in_proj is not None:
            with stage("shared"):
                y_TD = y_TD + self._shared(x_TD, self.weights.shared_in_proj)
        return y_TD.view(x.shape)

    def _routed(self, x_TD: Tensor, given: Routing | None) -> Tensor:
        with stage("route"):
            routing = route(self.spec, self.weights, x_TD, given)
        if not self.spec.scales_input:
            return self.compute(x_TD, routing)
        with stage("dispatch"):
            scaled_ND, single = _scaled_assignments(x_TD, routing)
        return self.compute(scaled_ND, single).view(*routing.expert_ids.shape, x_TD.shape[1]).sum(1)

    def _shared(self, x_TD: Tensor, in_proj: Tensor) -> Tensor:
        """What the shared experts give for every token."""
        weights = self.weights
        assert weights.shared_down_proj is not None
        shared_TD = feed_forward(self.spec, x_TD, in_proj, weights.shared_down_proj)
        if weights.shared_gate_weight is None:
            return shared_TD
        # in float32, as every gate here; source: Qwen1.5-MoE
        gate_T1 = functional.linear(x_TD.float(), weights.shared_gate_weight.float()).sigmoid()
        return (gate_T1 * shared_TD).to(x_TD.dtype)

    def _tokens(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.spec.d_model or x.dtype != self.weights.dtype:
            raise ValueError(
                f"the layer takes (..., {self.spec.d_model}) of {self.weights.dtype}, "
                f"found {tuple(x.shape)} of {x.dtype}"
            )
        return x.reshape(-1, self.spec.d_model)


def _scaled_assignments(x_TD: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
    """Every assignment as a token of its own, scaled by its weight: (N, D), and the routing of these N tokens.

    Each goes to one expert with weight 1, in the slot that its assignment had. So an implementation that weighs
    outputs computes a layer that weighs inputs.
    """

    def single(values_TK: Tensor) -> Tensor:
        return values_TK.reshape(-1, 1)

    scaled_TKD = (x_TD.unsqueeze(1) * routing.weights.unsqueeze(-1)).to(x_TD.dtype)
    return scaled_TKD.flatten(0, 1), replace(
        routing,
        expert_ids=single(routing.expert_ids),
        weights=torch.ones_like(single(routing.weights)),
        kept=single(routing.kept),
        slots=None if routing.slots is None else single(routing.slots),
        wanted=None if routing.wanted is None else single(routing.wanted),
    )
