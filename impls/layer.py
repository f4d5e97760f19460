"""The interface of an implementation: one class in one file that says how the routed experts are computed.

Everything that implementations have in common is here, once: the router, the shared experts, the shape of the input.
Shapes: ... any, T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from impls.ffn import feed_forward
from impls.routing import Routing, route
from impls.spec import LayerSpec
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

    def prepare(self) -> None:
        """Derive another weight layout, once, after the weights are final; its cost is not the layer's."""

    @abstractmethod
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """What the routed experts give for every token, weighted and summed: (T, D)."""

    def route(self, x: Tensor, expert_ids: Tensor | None = None) -> Routing:
        """Where the shared router sends the tokens of ``x`` (..., D), or what follows from given ``expert_ids``."""
        return route(self.spec, self.weights, self._tokens(x), expert_ids)

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        """The layer's output, of the shape of ``x``.

        Args:
            x: tokens (..., D), of the weights' dtype.
            routing: replaces the router's choice of experts. The router still runs in full, and weights and capacity
                are computed anew for these ids.
        """
        x_TD = self._tokens(x)
        y_TD = self._routed(x_TD, None if routing is None else routing.expert_ids)
        weights = self.weights
        if weights.shared_in_proj is not None:
            assert weights.shared_down_proj is not None
            shared_TD = feed_forward(self.spec.activation, x_TD, weights.shared_in_proj, weights.shared_down_proj)
            y_TD = y_TD + shared_TD
        return y_TD.view(x.shape)

    def _routed(self, x_TD: Tensor, expert_ids: Tensor | None) -> Tensor:
        return self.compute(x_TD, route(self.spec, self.weights, x_TD, expert_ids))

    def _tokens(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.spec.d_model or x.dtype != self.weights.dtype:
            raise ValueError(
                f"the layer takes (..., {self.spec.d_model}) of {self.weights.dtype}, "
                f"found {tuple(x.shape)} of {x.dtype}"
            )
        return x.reshape(-1, self.spec.d_model)
