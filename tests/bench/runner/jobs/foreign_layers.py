"""Implementations as a third party might write them, each wrong in a way of its own."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor

from impls.layer import MoELayer, Unsupported
from impls.loop import Loop
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.weights import Weights


class Right(Loop):
    pass


class ThreePercentOff(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * 1.03


class SlowToBuild(Loop):
    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        time.sleep(1.0)


class SlowToPrepare(Loop):
    def prepare(self) -> None:
        time.sleep(0.3)


class SlightlyOffButInexact(ThreePercentOff):
    exact: ClassVar[bool] = False


class NothingButInexact(Loop):
    exact: ClassVar[bool] = False

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) * -1


class KeepsWhatShouldBeDropped(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        weights = self.weights
        for expert in range(self.spec.num_experts):
            token, choice = (routing.expert_ids == expert).nonzero(as_tuple=True)
            gate, up = (x_TD[token] @ weights.in_proj[expert].T).chunk(2, dim=-1)
            out = (torch.nn.functional.silu(gate) * up) @ weights.down_proj[expert].T
            y_TD = y_TD.index_add(0, token, out * routing.weights[token, choice, None].to(out.dtype))
        return y_TD


class OneGradientWrong(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        down = self.weights.down_proj[0, 0, 0]
        return y_TD + (down - down.detach())  # zero, but not its gradient


class ChangesItsInput(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        x_TD.data[0] += 1  # unseen by autograd, which would refuse to go back
        return y_TD


class ChangesItsWeights(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        self.weights.router_weight.data[0, 0] += 1
        return y_TD


class Raises(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        raise KeyError("a mistake of its own", x_TD.shape, routing.capacity)


class RaisesLater(Loop):
    calls = 0

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            raise ValueError("tired")
        return super().compute(x_TD, routing)


class RunsOutOfMemory(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return super().compute(x_TD, routing) + torch.empty(2**60, dtype=torch.uint8)


class GivesNaN(Loop):
    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = super().compute(x_TD, routing)
        return torch.where(torch.arange(len(y_TD)).unsqueeze(1) == 5, float("nan"), y_TD)


class WrongShape(Loop):
    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        return super().forward(x, routing)[1:]


class RoutesByItself(Loop):
    def route(self, x: Tensor, given: Tensor | Routing | None = None) -> Routing:
        return super().route(x, torch.zeros_like(super().route(x, given).expert_ids))


class TakesNoGivenIds(Loop):
    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        if routing is not None:
            raise Unsupported("it routes by itself")
        return super().forward(x)


class Refuses(Loop):
    @classmethod
    def supports(cls, *_: object) -> str | None:
        return "not on a Sunday"


class Packs(Loop):
    def prepare(self) -> None:
        packed = self.weights.down_proj.detach().clone()
        self.packed = [packed, packed.view(-1), self.weights.down_proj.detach()]


class NotALayer:
    semantics = MoELayer.semantics
