"""What every walk is given: the layer, its weights as tensors without numbers, and what the routing came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.memory.account import Account
from bench.memory.tensors import Tensor
from impls.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer in one call.

    Attributes:
        spec: what it is.
        weights: its parameters by name.
        num_tokens: T, of the call.
        loads: assignments that each expert keeps, length E; empty for baselines.
        forced: whether expert ids are given from outside.
        account: of the call.
    """

    spec: LayerSpec
    weights: dict[str, Tensor]
    num_tokens: int
    loads: Sequence[int]
    forced: bool
    account: Account

    @property
    def in_proj(self) -> Tensor:
        """The experts' input projection."""
        return self.weights["gate_up_proj" if self.spec.gated else "up_proj"]

    @property
    def down_proj(self) -> Tensor:
        """The experts' down projection."""
        return self.weights["down_proj"]

    @property
    def in_bias(self) -> Tensor | None:
        """Its bias."""
        return self.weights.get("gate_up_bias" if self.spec.gated else "up_bias")

    @property
    def down_bias(self) -> Tensor | None:
        """Its bias."""
        return self.weights.get("down_bias")
