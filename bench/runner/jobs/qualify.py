"""Qualifies one case: builds it, checks it against the truth, and measures its memory and one rough time.

T tokens, n tokens that the truth was computed for, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cases import Case
from bench.check import Checked, check_result
from bench.cost import Cost, cost_of_call
from bench.measure.device import Call, Device
from bench.measure.memory import measure_peak
from bench.measure.opening import open_device
from bench.memory import memory_of_call
from bench.routing_check import routing_fault
from bench.runner.jobs.behaviour import behaviour
from bench.runner.jobs.building import build_case, prepared_bytes
from bench.runner.jobs.compiling import explain, new_inputs
from bench.runner.jobs.failures import WrongResultError, declared, failed
from bench.runner.jobs.room import require_memory
from bench.runner.jobs.shared import Shared, gradients_dropped, make_call, open_shared
from bench.runner.jobs.truth import StoredTruth, read_truth
from bench.runner.protocol import Announce, Answer, QualifyJob
from bench.store.qualified import Compiled, Qualified, RoutingFacts
from impls.layer import MoELayer
from impls.routing import Routing

_ROUGH_CALLS = 3
_NO_MODEL = "no_model: what a compiler keeps and what it never makes has no analytic model"


def qualify(job: QualifyJob, announce: Callable[[Announce], None]) -> Answer:
    """What is known of a case that is right, or how it failed."""
    case = job.case
    try:
        announce(Announce(case_id=case.id, what="build"))
        qualified = _qualify(case, Path(job.folder), announce)
    except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
        return failed(error, case)
    return Answer(case_id=case.id, relative_error=qualified.relative_error, qualified=qualified, **declared(case))


def _qualify(case: Case, folder: Path, announce: Callable[[Announce], None]) -> Qualified:
    workload, semantics = case.workload, declared(case)["semantics"]
    device = open_device(workload.device, workload.threads)
    shared = open_shared(workload, folder, device.torch_device)
    # the least that a call allocates; what a capacity drops does not change it
    least = cost_of_call(workload, semantics, [0] * workload.layer.num_experts)
    require_memory("output and gradients of a call", least.analytic_peak_bytes, device.torch_device)
    layer = build_case(case, shared, prepare=False)
    device.synchronize()
    prepare_s = _seconds(layer.prepare, device)
    explained = None
    if case.compile != "none":
        announce(Announce(case_id=case.id, what="explain"))
        explained = explain(layer, shared)

    announce(Announce(case_id=case.id, what="check"))
    routing = routing_of(layer, shared) if layer.routes else None
    truth = read_truth(folder, semantics)
    checked, first_call_s = _check(layer, shared, truth, routing, device)
    shared.require_unchanged()
    if checked.fault:
        raise WrongResultError(checked.fault, checked.relative_error)
    assert checked.relative_error is not None

    call = make_call(layer, shared)
    announce(Announce(case_id=case.id, what="rough time"))
    # the fastest: on a busy machine the median of so few can be a hundred times too long to plan with
    rough_latency_s = min(_seconds(call, device) for _ in range(_ROUGH_CALLS))
    announce(Announce(case_id=case.id, what="memory"))
    peak = measure_peak(call, device)
    facts = None if routing is None else facts_of(routing, shared.note)
    announce(Announce(case_id=case.id, what="conduct"))
    conduct = behaviour(
        layer, shared, device, rough_latency_s=rough_latency_s, routing=facts, compiled=explained is not None
    )
    announce(Announce(case_id=case.id, what="check again"))
    again, _ = _check(layer, shared, truth, routing, device)  # what a layer keeps of earlier calls must not matter
    if again.fault:
        raise WrongResultError(f"right in its first call, and in a later call: {again.fault}", again.relative_error)
    compiled = None
    if explained is not None:
        announce(Announce(case_id=case.id, what="compile again"))
        compiled = Compiled(
            mode=case.compile,
            compile_s=max(0.0, first_call_s - rough_latency_s),
            num_graphs=explained.num_graphs,
            num_graph_breaks=explained.num_breaks,
            break_reasons=explained.reasons,
            new_inputs=new_inputs(layer, shared, device),
        )
    loads = None if facts is None else facts.tokens_per_expert
    cost: Cost = cost_of_call(workload, semantics, loads)
    model = _NO_MODEL if compiled else memory_of_call(case.impl, workload, loads)
    no_model = {"predicted_peak_bytes": model} if isinstance(model, str) else {}
    return Qualified(
        relative_error=checked.relative_error,
        worst_tensor=checked.worst_tensor,
        checked_tokens=len(truth.tokens),
        routing=facts,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        weight_bytes=cost.weight_bytes,
        prepared_bytes=prepared_bytes(layer),
        prepare_s=prepare_s,
        first_call_s=first_call_s,
        rough_latency_s=rough_latency_s,
        allocator_peak_bytes=peak.allocator_peak_bytes,
        os_peak_bytes=peak.os_peak_bytes,
        reserved_peak_bytes=peak.reserved_peak_bytes,
        analytic_peak_bytes=cost.analytic_peak_bytes,
        predicted_peak_bytes=None if isinstance(model, str) else model.peak_bytes,
        predicted_parts_bytes={} if isinstance(model, str) else model.parts,
        path=layer.path,
        conduct=conduct,
        compiled=compiled,
        gaps=peak.gaps | no_model,
    )


def _seconds(call: Call, device: Device) -> float:
    start_s = time.perf_counter()
    call()
    device.synchronize()
    return time.perf_counter() - start_s


def routing_of(layer: MoELayer, shared: Shared) -> Routing:
    """The routing of the layer's own call, checked by value."""
    forced = shared.routing
    with torch.no_grad():
        routing = layer.route(shared.x, None if forced is None else forced.expert_ids)
        if forced is None:
            weights = dict(shared.weights.named_parameters())
            if fault := routing_fault(layer.spec, weights, shared.x, routing.expert_ids, routing.kept):
                raise WrongResultError(fault)
        elif not torch.equal(routing.expert_ids, forced.expert_ids):
            raise WrongResultError("its routing does not follow the expert ids that it was given")
    return routing


def _check(
    layer: MoELayer, shared: Shared, truth: StoredTruth, routing: Routing | None, device: Device
) -> tuple[Checked, float]:
    """Compare the first call with the truth, under the ids that the truth was computed for; and its seconds."""
    given = shared.routing
    if given is None and routing is not None and _other_decisions(routing, truth):
        given = shared.decided(truth.expert_ids, truth.kept)  # equal scores fell the other way in this process
    train = shared.workload.direction == "train"
    output_gradient_TD = _only(shared.output_gradient, truth.tokens)
    with gradients_dropped(shared):
        start_s = time.perf_counter()
        with torch.inference_mode(not train):
            output_TD = layer(shared.x, routing=given)
        if train and getattr(output_TD, "shape", None) == shared.x.shape:  # else check_result says what is wrong
            output_TD.backward(output_gradient_TD)
        device.synchronize()
        first_call_s = time.perf_counter() - start_s
        gradients = {name: leaf.grad for name, leaf in shared.leaves()}
        checked = check_result(
            output_TD,
            gradients,
            truth_output_nD=truth.output,
            truth_gradients=truth.gradients,
            tokens_n=truth.tokens,
            like_TD=shared.x,
            uncancelled=truth.uncancelled,
            tolerance=None if layer.exact else layer.tolerance,
        )
    return checked, first_call_s


def _other_decisions(routing: Routing, truth: StoredTruth) -> bool:
    if not torch.equal(routing.expert_ids.cpu(), truth.expert_ids):
        return True
    return truth.kept is not None and not torch.equal(routing.kept.cpu(), truth.kept)


def _only(gradient_TD: torch.Tensor | None, tokens_n: torch.Tensor) -> torch.Tensor | None:
    """The output gradient of the sampled tokens, and zero for all others, so that they add to no weight's gradient."""
    if gradient_TD is None or len(tokens_n) == len(gradient_TD):
        return gradient_TD
    only_TD, index_n = torch.zeros_like(gradient_TD), tokens_n.to(gradient_TD.device)
    only_TD[index_n] = gradient_TD[index_n]
    return only_TD


def facts_of(routing: Routing, note: str) -> RoutingFacts:
    """What happened to the assignments."""
    ids_TK, E = routing.expert_ids, routing.num_experts
    # what the router asked for: all that it chose, but for second experts skipped and tokens not taken
    wanted_TK = torch.ones_like(routing.kept) if routing.wanted is None else routing.wanted
    num_wanted = int(wanted_TK.sum())
    kept_E = torch.bincount(ids_TK[routing.kept], minlength=E)
    wanted_E = torch.bincount(ids_TK[wanted_TK], minlength=E)
    notes = [note] if note else []
    if num_alone := int((~wanted_TK.any(dim=1)).sum()):
        notes.append(f"{num_alone} of {len(ids_TK)} tokens were taken by no expert")
    elif routing.wanted is not None and ids_TK.shape[1] < E:
        notes.append(f"{ids_TK.numel() - num_wanted} of {len(ids_TK)} second experts were skipped at random")
    return RoutingFacts(
        tokens_per_expert=kept_E.tolist(),
        dropped_fraction=1 - int(kept_E.sum()) / num_wanted if num_wanted else 0.0,
        load_imbalance=int(wanted_E.max()) * E / num_wanted if num_wanted else 1.0,
        dropped_per_expert=(wanted_E - kept_E).tolist(),
        note="; ".join(notes),
    )
