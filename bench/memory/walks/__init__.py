"""A walk for each implementation of this project: its `compute` on tensors without numbers, under its own name.

A walk has the variables of its implementation, because these decide what is alive. It is changed together with it, and
a test holds the two together, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.memory.layer import Layer
from bench.memory.routing import Routing
from bench.memory.tensors import Tensor
from bench.memory.walks import (
    batched,
    dense,
    einsum,
    ensemble,
    expert_choice,
    grouped,
    loop,
    loop_indexed,
    scatter_gather,
)

ROUTED: dict[str, Callable[[Layer, Tensor, Routing], Tensor]] = {
    "loop": loop.compute,
    "scatter_gather": scatter_gather.compute,
    "einsum": einsum.compute,
    "grouped": grouped.compute,
    "batched": batched.compute,
    "loop_indexed": loop_indexed.compute,
    "dense_masked": ensemble.compute_masked,
    "expert_choice": expert_choice.compute,
}
"""What follows the router."""

BASELINES: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "dense": dense.mix,
    "dense_total": dense.mix_total,
    "ensemble": ensemble.mix,
    "ensemble_weighted": ensemble.mix_weighted,
}
"""What sees every token."""
