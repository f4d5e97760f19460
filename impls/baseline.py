"""What the baselines share: they compute every token with the same parameters, so there is no choice of experts."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from impls.layer import MoELayer
from impls.routing import Routing
from impls.stages import stage


class Baseline(MoELayer):
    """A layer on the canonical weights that computes something else than the Mixture-of-Experts on purpose."""

    routes: ClassVar[bool] = False

    @abstractmethod
    def mix(self, x_TD: Tensor) -> Tensor:
        """The output for every token, without the shared experts: (T, D)."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """What `mix` gives: a baseline has no use for a routing."""
        del routing
        return self.mix(x_TD)

    def _routed(self, x_TD: Tensor, given: Routing | None) -> Tensor:
        del given
        with stage("experts"):
            return self.mix(x_TD)
