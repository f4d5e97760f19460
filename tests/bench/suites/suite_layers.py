"""Layers that go wrong in one way each, for the suites to find."""

from __future__ import annotations

from torch import Tensor

from impls.loop import Loop
from impls.routing import Routing


class Wrong(Loop):
    """Doubles every output."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return 2 * super().compute(x_TD, routing)


class Refuses(Loop):
    """Runs nowhere."""

    @classmethod
    def missing(cls) -> str | None:
        return "it needs a machine that was never built"


class BreaksLater(Loop):
    """Is right while it is checked and breaks while it is timed."""

    num_calls = 0

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        BreaksLater.num_calls += 1
        if BreaksLater.num_calls > 12:
            raise RuntimeError("worn out")
        return super().compute(x_TD, routing)


class ChangesLater(Loop):
    """Writes to the shared tokens, though not while it is checked."""

    num_calls = 0

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        ChangesLater.num_calls += 1
        if ChangesLater.num_calls > 12:
            x_TD.mul_(0.5)
        return super().compute(x_TD, routing)
