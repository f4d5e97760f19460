"""Variants of a workload that differ from it in one thing that can limit it, to be timed beside it.

What each leaves alone and what it changes is said at :data:`bench.store.levers.LEVERS`. T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bench.runner.jobs.shared import Shared
from bench.store.levers import Lever
from impls.layer import Unsupported
from impls.routing import route
from impls.shapes import parameter_shapes
from impls.spec import LayerSpec
from impls.weights import Weights

TINY_WIDTH = 16
"""The least that every implementation takes in every number format: rows of 16 bytes at least."""
FEW_BYTES = 8 * 2**20
"""Weights of a few experts: they fit most last-level caches, and are large enough to be multiplied as all are."""


def pulled(shared: Shared, lever: Lever) -> Shared:
    """The workload with a lever pulled; with ``base`` and ``threads`` nothing but the weights' place changes.

    Weights are copied from the mapped file into this process's own memory, where those of the variants lie too.
    """
    match lever:
        case "tokens":
            return _twice_the_tokens(shared)
        case "one_expert":
            return _with(shared, {name: _first_for_all(weight) for name, weight in shared.weights.named_parameters()})
        case "few_experts":
            return _few_experts(shared)
        case "tiny":
            return _tiny(shared)
    return shared


def own_memory(shared: Shared) -> Shared:
    """The same workload on a copy of the weights."""
    return _with(shared, {name: weight.detach().clone() for name, weight in shared.weights.named_parameters()})


def _with(shared: Shared, weights: Mapping[str, Tensor]) -> Shared:
    return replace(shared, weights=Weights(shared.workload.layer, weights))


def _first_for_all(weight: Tensor) -> Tensor:
    """An expert's weight in the place of all experts' (E, ., .), without a copy of it; others as they are."""
    own = weight.detach()
    return own[:1].clone().expand(own.shape) if own.dim() == 3 else own


def _twice_the_tokens(shared: Shared) -> Shared:
    workload = shared.workload.model_copy(update={"num_tokens": 2 * shared.workload.num_tokens})
    x_TD = torch.cat([shared.x.detach()] * 2).requires_grad_(shared.x.requires_grad)
    gradient_TD = None if shared.output_gradient is None else torch.cat([shared.output_gradient] * 2)
    doubled = replace(shared, workload=workload, x=x_TD, output_gradient=gradient_TD, routing=None)
    if shared.routing is None:
        return doubled
    return replace(doubled, routing=doubled.route(torch.cat([shared.routing.expert_ids] * 2)))


def _few_experts(shared: Shared) -> Shared:
    layer = shared.workload.layer
    fewer = layer.num_experts
    while shared.weights.num_bytes * fewer > FEW_BYTES * layer.num_experts and fewer % 2 == 0:
        fewer //= 2
    if shared.workload.cache == "cold":
        raise Unsupported("the caches are flushed: few experts' weights come from memory too")
    fits = shared.weights.num_bytes * fewer <= FEW_BYTES * layer.num_experts
    if not fits or not layer.top_k <= fewer < layer.num_experts:
        raise Unsupported(
            f"of {layer.num_experts} experts no half, quarter or less fits a cache and is enough for top-{layer.top_k}"
        )
    return _cut(shared, replace(layer, num_experts=fewer))


def _cut(shared: Shared, shrunk: LayerSpec) -> Shared:
    """The same tokens on the corner of the weights that a smaller layer has."""
    shapes = parameter_shapes(shrunk)
    weights = {
        name: weight.detach()[tuple(map(slice, shapes[name]))].clone()
        for name, weight in shared.weights.named_parameters()
    }
    workload = shared.workload.model_copy(update={"layer": shrunk})
    return replace(shared, workload=workload, weights=Weights(shrunk, weights), routing=None)


def _tiny(shared: Shared) -> Shared:
    layer = shared.workload.layer
    d_ff_shared = TINY_WIDTH if layer.num_shared_experts else None
    gradient_TD = shared.output_gradient
    small = replace(
        _cut(shared, replace(layer, d_model=TINY_WIDTH, d_ff=TINY_WIDTH, d_ff_shared=d_ff_shared)),
        x=shared.x.detach()[:, :TINY_WIDTH].clone().requires_grad_(shared.x.requires_grad),
        output_gradient=None if gradient_TD is None else gradient_TD[:, :TINY_WIDTH].clone(),
    )
    if layer.unforceable:
        return small
    with torch.no_grad():
        chosen = shared.routing or route(layer, shared.weights, shared.x)
    return replace(small, routing=small.route(chosen.expert_ids))
