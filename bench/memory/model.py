"""Analytic memory of one call of each implementation: how many bytes of what are alive at the worst moment.

Every implementation is written down a second time, on tensors without numbers (:mod:`bench.memory.tensors`), with its
sizes from the layer's description and the routing that happened. Nothing is run and no measurement enters, so that a
measured peak can be held against it: where the two differ, either the model or the implementation does what nobody
thought of. The input and the canonical weights exist before the call and are not in its peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.cases import Workload
from bench.cost import ELEMENT_BYTES
from bench.memory.account import Account
from bench.memory.backward import propagate, require_gradient
from bench.memory.feed_forward import feed_forward
from bench.memory.layer import Layer
from bench.memory.operators import add, linear, mul, sigmoid, sum_over, to
from bench.memory.routing import Routing, route
from bench.memory.tensors import FLOAT, Tensor, existing, fresh
from bench.memory.views import reshape, unsqueeze
from bench.memory.walks import BASELINES, ROUTED
from impls.registry import ENTRIES
from impls.shapes import parameter_shapes


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What a call allocates at its worst moment.

    Attributes:
        peak_bytes: all parts together.
        parts: bytes of each of :data:`bench.memory.PARTS` at that moment.
        input_bytes: the tokens, which exist before the call and are not in the peak.
    """

    peak_bytes: int
    parts: dict[str, int]
    input_bytes: int


def memory_of_call(impl: str, workload: Workload, tokens_per_expert: Sequence[int] | None) -> MemoryModel | str:
    """The analytic memory of one call, or the reason why there is no model of it, as ``code: sentence``.

    Args:
        impl: a registered name.
        workload: the layer, tokens, dtype and direction.
        tokens_per_expert: assignments that each expert kept, length E; None for baselines, which do not route.
    """
    if impl not in ROUTED and impl not in BASELINES:
        entry = ENTRIES.get(impl)
        package = entry.package.name if entry is not None and entry.package is not None else None
        whose = f"the code of the package {package}" if package else impl
        return f"no_model: {whose} has no analytic model of its memory"
    train, item_bytes = workload.direction == "train", ELEMENT_BYTES[workload.dtype]
    account = Account(differentiates=train, num_threads=workload.threads)
    weights = {name: existing(account, shape, item_bytes) for name, shape in parameter_shapes(workload.layer).items()}
    x_TD = existing(account, (workload.num_tokens, workload.layer.d_model), item_bytes)
    leaves = [require_gradient(tensor) for tensor in (x_TD, *weights.values())] if train else []
    layer = Layer(
        spec=workload.layer,
        weights=weights,
        num_tokens=workload.num_tokens,
        loads=tokens_per_expert or [],
        forced=workload.routing != "router",
        account=account,
    )
    y_TD = _call(impl, layer, x_TD)
    y_TD.belongs_to = "output"
    if train:
        with account.stage("workspace"):
            propagate(y_TD, existing(account, y_TD.shape, item_bytes))
    parts = account.parts_at_peak()
    del y_TD, leaves
    return MemoryModel(account.peak_bytes, parts, x_TD.numel * item_bytes)


def _call(impl: str, layer: Layer, x: Tensor) -> Tensor:
    """The layer's forward pass, as in :mod:`impls.layer`."""
    x_TD = reshape(x, *x.shape)
    y_TD = _routed(impl, layer, x_TD)
    if layer.spec.shared_d_ff:
        y_TD = add(y_TD, _shared(layer, x_TD))
    return reshape(y_TD, *x.shape)


def _routed(impl: str, layer: Layer, x_TD: Tensor) -> Tensor:
    if impl in BASELINES:
        return BASELINES[impl](layer, x_TD)
    with layer.account.stage("routing"):
        routing = route(layer, x_TD)
    if not layer.spec.scales_input:
        return ROUTED[impl](layer, x_TD, routing)
    with layer.account.stage("dispatched"):
        scaled_ND, single = _scaled_assignments(x_TD, routing)
    return sum_over(reshape(ROUTED[impl](layer, scaled_ND, single), *routing.expert_ids.shape, x_TD.shape[1]), 1)


def _scaled_assignments(x_TD: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
    """Every assignment as a token of its own, scaled by its weight."""
    scaled_TKD = to(mul(unsqueeze(x_TD, 1), unsqueeze(routing.weights, -1)), x_TD.item_bytes)
    return reshape(scaled_TKD, -1, x_TD.shape[1]), replace(
        routing,
        expert_ids=reshape(routing.expert_ids, -1, 1),
        weights=fresh(routing.weights, (routing.weights.numel, 1), FLOAT, "routing"),
        kept=reshape(routing.kept, -1, 1),
        slots=None if routing.slots is None else reshape(routing.slots, -1, 1),
        wanted=None if routing.wanted is None else reshape(routing.wanted, -1, 1),
    )


def _shared(layer: Layer, x_TD: Tensor) -> Tensor:
    weights = layer.weights
    in_proj = weights["shared_gate_up_proj" if layer.spec.gated else "shared_up_proj"]
    shared_TD = feed_forward(layer.spec, x_TD, in_proj, weights["shared_down_proj"])
    if not layer.spec.shared_gate:
        return shared_TD
    gate_T1 = sigmoid(linear(to(x_TD, FLOAT), to(weights["shared_gate_weight"], FLOAT)))
    return to(mul(gate_T1, shared_TD), x_TD.item_bytes)
