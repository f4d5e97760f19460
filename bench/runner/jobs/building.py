"""Builds the layer of a case on the weights that its workload shares."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bench import inputs
from bench.cases import Case
from bench.runner.jobs.compiling import compile_layer
from bench.runner.jobs.shared import Shared
from impls.factory import build
from impls.layer import MoELayer


def build_case(case: Case, shared: Shared, *, prepare: bool = True) -> MoELayer:
    """The layer of ``case``, prepared unless the caller means to time that.

    A compiled case's is compiled by its first call.

    Raises:
        Unsupported: with the reason.
    """
    workload = case.workload
    layer = build(
        case.impl,
        workload.layer,
        device=shared.x.device,
        dtype=inputs.DTYPES[workload.dtype],
        direction=workload.direction,
        weights=shared.weights,
        prepare=prepare,
    )
    compile_layer(layer, case, shared)
    return layer


def prepared_bytes(layer: MoELayer) -> int:
    """Bytes that a layer holds beyond the canonical weights: every storage once, however many tensors view it."""
    canonical = {weight.untyped_storage().data_ptr() for weight in layer.weights.parameters()}
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _tensors(vars(layer).values(), seen=set())
        if tensor.layout == torch.strided
    }
    return sum(num_bytes for pointer, num_bytes in found.items() if pointer not in canonical)


def _tensors(values: Iterable[object], seen: set[int]) -> Iterable[torch.Tensor]:
    """Every tensor in attributes, submodules and plain containers."""
    for value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, torch.nn.Module):
            yield from _tensors(vars(value).values(), seen)
        elif isinstance(value, dict):
            yield from _tensors(value.values(), seen)
        elif isinstance(value, (list, tuple, set)):
            yield from _tensors(value, seen)
