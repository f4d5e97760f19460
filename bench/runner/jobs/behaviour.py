"""How the layer of a case behaves in one call, and which known traps that shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.environment import usable_cores
from bench.lint import Situation, lint
from bench.measure.conduct import observe
from bench.measure.device import Device
from bench.runner.jobs.shared import Shared, gradients_dropped, make_call
from bench.store.qualified import Conduct, RoutingFacts
from impls.layer import MoELayer

_COMPILED = "compiled code runs no operators that could be watched, and is made anew for other settings"


def behaviour(
    layer: MoELayer,
    shared: Shared,
    device: Device,
    *,
    rough_latency_s: float,
    routing: RoutingFacts | None,
    compiled: bool = False,
) -> Conduct:
    """Conduct of one call, with lint's findings; a compiled call is not watched, because watching changes what runs."""
    workload = shared.workload
    spec = workload.layer
    stacked = {name: weight for name, weight in shared.weights.named_parameters() if weight.dim() == 3}
    item_bytes = shared.x.element_size()
    result_bytes = shared.x.numel() * item_bytes
    if workload.direction == "train":
        result_bytes += sum(leaf.numel() * item_bytes for _, leaf in shared.leaves())
    num_rows = workload.num_tokens * spec.top_k
    conduct, operators = observe(
        make_call(layer, shared),
        lambda: [result.clone() for result in _results(layer, shared)] if compiled else _results(layer, shared),
        device,
        rough_latency_s=rough_latency_s,
        result_bytes=result_bytes,
        stacked=stacked,
        num_rows=num_rows,
        width=spec.d_model,
        hidden=_COMPILED if compiled else "",
    )
    # what a baseline computes is on purpose: it multiplies every token with every expert
    if operators is None or routing is None:
        return conduct
    situation = Situation(
        operators=operators,
        num_experts=spec.num_experts,
        busy_experts=sum(count > 0 for count in routing.tokens_per_expert),
        row_bytes=num_rows * spec.d_model * item_bytes,
        stacked_bytes=sum(weight.numel() * item_bytes for weight in stacked.values()),
        threads=conduct.threads,
        cores=usable_cores(),
    )
    return conduct.model_copy(update={"findings": lint(situation)})


def _results(layer: MoELayer, shared: Shared) -> Sequence[Tensor]:
    """The output of one call, and in ``train`` every gradient."""
    train = shared.workload.direction == "train"
    with gradients_dropped(shared):
        with torch.inference_mode(not train):
            output_TD = layer(shared.x, routing=shared.routing)
        if not train:
            return [output_TD]
        output_TD.backward(shared.output_gradient)
        gradients = [leaf.grad for _, leaf in shared.leaves()]
        return [output_TD.detach(), *(gradient for gradient in gradients if gradient is not None)]
