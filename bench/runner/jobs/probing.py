"""Runs one probe in this process: makes its tensors, calls the layer in the probe's manner, and judges the result.

T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import Case
from bench.check import Checked, allowed_error, check_result
from bench.conformance.battery import Outcome, Probe
from bench.conformance.diagnosis import diagnose
from bench.measure.opening import open_device
from bench.runner.jobs.behaviour import behaviour
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import WrongResultError, declared
from bench.runner.jobs.materialise import materialise
from bench.runner.jobs.qualify import facts_of, routing_of
from bench.runner.jobs.shared import Shared, gradients_dropped, open_shared
from bench.runner.jobs.truth import StoredTruth, compute_truth, read_truth
from bench.runner.protocol import MaterialiseJob, TruthJob
from bench.runner.session import short_workload
from impls.layer import MoELayer, Unsupported
from impls.routing import Routing

ROUGH_S = 1e-3  # what a call of the battery's sizes may be taken for, where nobody has timed it


@dataclass(frozen=True, slots=True)
class Result:
    """What a layer gave: its output as (T, D), its gradients by name, and how often they were added up."""

    output: Tensor
    gradients: dict[str, Tensor | None]


def run_probe(impl: str, probe: Probe, folder: Path) -> Outcome:
    """How the probe ends for the implementation ``impl``; what the layer raises is raised."""
    workload = probe.workload
    where = short_workload(workload)
    for made in (
        materialise(MaterialiseJob(workload=workload, folder=str(folder)), lambda _: None),
        compute_truth(
            TruthJob(workload=workload, folder=str(folder), semantics=[_semantics(impl, probe)], max_flops=1e15),
            lambda _: None,
        ),
    ):
        if made.reason:
            return Outcome(label=probe.label, status="error", where=where, reason=made.reason)
    device = open_device(workload.device, workload.threads)
    shared = open_shared(workload, folder, device.torch_device)
    try:
        if probe.manner == "updated_weights":
            with torch.no_grad():
                for weight in shared.weights.parameters():
                    weight.mul_(1.5)
        layer = build_case(Case(impl=impl, workload=workload), shared)
        if probe.manner == "behaviour":
            routing = facts_of(routing_of(layer, shared), "") if layer.routes else None
            conduct = behaviour(layer, shared, device, rough_latency_s=ROUGH_S, routing=routing)
            return Outcome(label=probe.label, status="right", where=where, findings=conduct.findings)
        truth = read_truth(folder, layer.semantics)

        def right_in_one_call() -> bool:
            fresh = open_shared(workload, folder, device.torch_device)
            return not _plain_fault(build_case(Case(impl=impl, workload=workload), fresh), fresh, truth)

        return _judged(probe, layer, shared, truth, where, right_in_one_call)
    except Unsupported as error:
        return Outcome(label=probe.label, status="unsupported", where=where, reason=error.reason)


def _semantics(impl: str, probe: Probe) -> str:
    return declared(Case(impl=impl, workload=probe.workload))["semantics"]


def _judged(
    probe: Probe,
    layer: MoELayer,
    shared: Shared,
    truth: StoredTruth,
    where: str,
    right_in_one_call: Callable[[], bool],
) -> Outcome:
    faults, causes = [], []
    routing: Routing | None = None
    if layer.routes:
        try:
            if probe.manner != "updated_weights":  # the router's weights are other ones there
                routing_of(layer, shared)
        except WrongResultError as error:
            faults.append(f"{error}")
        routing = _right_routing(layer, shared, truth)
    with gradients_dropped(shared):
        result = _MANNERS.get(probe.manner, _once)(layer, shared, routing)
        leaves_gradients = any(leaf.grad is not None for _, leaf in shared.leaves())
    if probe.manner == "updated_weights" and layer.routes:
        routing = _right_routing(layer, shared, truth)  # under the weights that the result is of
    gradients = {name: g for name, g in truth.gradients.items() if name in result.gradients}
    checked = _check(result, truth, gradients, shared, layer)
    if checked.fault:
        found = diagnose(
            result.output, result.gradients, truth, gradients, shared, routing, checked, _allowed(layer, shared, truth)
        )
        faults += found.faults
        causes += found.causes
        # what is wrong in a plain call too does not come from the manner
        if (cause := _CAUSES.get(probe.manner)) and right_in_one_call():
            causes.append(cause)
    if changed := shared.changed():
        faults.append(f"it changes {changed} in place, which belong to the caller")
        causes.append("an operator that writes to its input (its name ends in `_`, or `out=`)")
    if probe.workload.direction == "forward" and leaves_gradients:
        faults.append("an evaluation leaves gradients behind")
    return Outcome(
        label=probe.label,
        status="wrong" if faults else "right",
        where=where,
        faults=faults,
        causes=list(dict.fromkeys(causes)),
        relative_error=checked.relative_error,
    )


def _right_routing(layer: MoELayer, shared: Shared, truth: StoredTruth) -> Routing:
    if shared.routing is not None:
        return shared.routing
    with torch.no_grad():
        return layer.route(shared.x) if shared.workload.layer.unforceable else shared.route(truth.expert_ids)


def _plain_fault(layer: MoELayer, shared: Shared, truth: StoredTruth) -> str:
    """What is wrong with one plain call of a new layer."""
    routing = _right_routing(layer, shared, truth) if layer.routes else None
    with gradients_dropped(shared):
        result = _once(layer, shared, routing)
        return _check(result, truth, truth.gradients, shared, layer).fault


def _allowed(layer: MoELayer, shared: Shared, truth: StoredTruth) -> float:
    rounding = allowed_error(shared.x.dtype, len(truth.tokens))
    return rounding if layer.exact else max(layer.tolerance, rounding)


def _check(
    result: Result, truth: StoredTruth, gradients: dict[str, Tensor], shared: Shared, layer: MoELayer
) -> Checked:
    return check_result(
        result.output,
        result.gradients,
        truth_output_nD=truth.output,
        truth_gradients=gradients,
        tokens_n=truth.tokens,
        like_TD=shared.x.detach(),
        uncancelled=truth.uncancelled,
        tolerance=None if layer.exact else layer.tolerance,
    )


def _call(
    layer: MoELayer, shared: Shared, x: Tensor, routing: Routing | None, gradient: Tensor | None = None
) -> Tensor:
    """One forward, or forward and backward, on tokens ``x`` of any shape; gradients stay on the leaves."""
    if shared.workload.direction == "forward":
        with torch.inference_mode():
            output: Tensor = layer(x, routing=routing)
        return output
    output = layer(x, routing=routing)
    assert shared.output_gradient is not None
    judged = isinstance(output, Tensor) and output.shape == x.shape  # else the check says what is wrong
    if judged and (output.requires_grad or len(x)):  # without tokens there is nothing to go back to
        output.backward(shared.output_gradient.view(x.shape) if gradient is None else gradient)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return output


def _collect(output: Tensor, shared: Shared, only: Callable[[str], bool] = lambda _: True) -> Result:
    train = shared.workload.direction == "train"
    gradients = {name: leaf.grad for name, leaf in shared.leaves() if only(name)} if train else {}
    if isinstance(output, Tensor) and output.dim() == 3:
        output = output.detach().reshape(-1, output.shape[-1])
    return Result(output.detach() if isinstance(output, Tensor) else output, gradients)


def _drop(shared: Shared) -> None:
    for _, leaf in shared.leaves():
        leaf.grad = None


def _once(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    # where the truth's ids are the layer's own choice it is left alone; equal scores may fall either way
    return _collect(_call(layer, shared, shared.x, _needed(layer, shared, routing)), shared)


def _needed(layer: MoELayer, shared: Shared, routing: Routing | None) -> Routing | None:
    """The routing to give to the layer: None where it makes the same one by itself."""
    if shared.routing is not None or routing is None or shared.workload.layer.unforceable:
        return shared.routing
    with torch.no_grad():
        own = layer.route(shared.x)
    return None if torch.equal(own.expert_ids, routing.expert_ids) else routing


def _again(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    _before(layer, shared, shared.x.detach().flip(0))
    return _once(layer, shared, routing)


def _other_sizes(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    _before(layer, shared, shared.x.detach()[: len(shared.x) // 2].flip(0))
    return _once(layer, shared, routing)


def _before(layer: MoELayer, shared: Shared, x: Tensor) -> None:
    """A call on other tokens, whose results are thrown away."""
    train = shared.x.requires_grad
    with torch.inference_mode(not train):
        output = layer(x.requires_grad_(train))
    if train:
        output.sum().backward()
    _drop(shared)


def _three_dimensional(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    num_tokens, width = shared.x.shape
    batch = next((n for n in (5, 3, 2) if num_tokens % n == 0), 1)
    x = shared.x.view(batch, num_tokens // batch, width)
    output = _call(layer, shared, x, _needed(layer, shared, routing))
    if isinstance(output, Tensor) and output.shape != x.shape:
        raise WrongResultError(f"it gives {tuple(output.shape)} for tokens of {tuple(x.shape)}")
    return _collect(output, shared)


def _strided(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    x = shared.x.t().contiguous().t()
    gradient = None if shared.output_gradient is None else shared.output_gradient.t().contiguous().t()
    return _collect(_call(layer, shared, x, _needed(layer, shared, routing), gradient), shared)


def _outside_inference_mode(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    return _collect(layer(shared.x, routing=_needed(layer, shared, routing)), shared)


def _accumulated(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    for _ in range(2):
        output = _call(layer, shared, shared.x, _needed(layer, shared, routing))
    found = _collect(output, shared)
    return Result(found.output, {name: None if g is None else g / 2 for name, g in found.gradients.items()})


def _frozen_weights(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    for weight in shared.weights.parameters():
        weight.requires_grad_(False)
    output = _call(layer, shared, shared.x, _needed(layer, shared, routing))
    return _collect(output, shared, lambda name: name == "input")


def _constant_input(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    output = _call(layer, shared, shared.x.detach(), _needed(layer, shared, routing))
    return _collect(output, shared, lambda name: name != "input")


def _updated_weights(layer: MoELayer, shared: Shared, routing: Routing | None) -> Result:
    """The layer was built on other weights; they get their stored values only now."""
    _call(layer, shared, shared.x, None)
    _drop(shared)
    shared.restore()
    return _once(layer, shared, routing)


_MANNERS: dict[str, Callable[[MoELayer, Shared, Routing | None], Result]] = {
    "again": _again,
    "other_sizes": _other_sizes,
    "three_dimensional": _three_dimensional,
    "strided": _strided,
    "outside_inference_mode": _outside_inference_mode,
    "accumulated": _accumulated,
    "frozen_weights": _frozen_weights,
    "constant_input": _constant_input,
    "updated_weights": _updated_weights,
}
_CAUSES = {
    "again": "something of the first call is kept and used in the second",
    "other_sizes": "something of a call with another number of tokens is kept and used again",
    "three_dimensional": "tokens of another shape than (T, D) are not flattened and put back",
    "strided": "memory is read as if it lay in rows: use `reshape` or strides, not `view` of what `contiguous` is not",
    "accumulated": "a gradient is written to `.grad` and not added",
    "frozen_weights": "the backward takes for granted that the weights need gradients",
    "constant_input": "the backward takes for granted that the tokens need a gradient",
    "updated_weights": "a copy of the weights was made once, in `prepare()` or in a first call, and is used ever since",
}
