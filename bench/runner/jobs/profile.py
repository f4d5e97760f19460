"""Profiles a case: stages, operators, memory over time, and the traces of one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bench.measure.device import Device
from bench.measure.opening import open_device
from bench.profiling.allocator import Snapshot, allocator_snapshot, write_allocator_snapshot
from bench.profiling.compiled import profile_compiled
from bench.profiling.export import write_memory_snapshot, write_perfetto
from bench.profiling.measure import profile_step
from bench.profiling.step import Step
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import failed
from bench.runner.jobs.shared import Shared, gradients_dropped, open_shared
from bench.runner.protocol import Announce, Answer, ProfileJob
from impls.layer import MoELayer

PERFETTO = ".trace.json.gz"
MEMORY = ".memory.pickle"
ALLOCATOR = ".allocator.pickle"
NO_KERNELS = "torch's profiler saw no kernel: CUPTI is missing, forbidden here, or in another tool's hands"
LEFT_TO_NSIGHT = "left to Nsight, which sees the ranges of these calls: torch's profiler watched the host only"


def profile_case(job: ProfileJob, announce: Callable[[Announce], None]) -> Answer:
    """The profile of ``job.case``; its traces are written under ``job.traces``."""
    case, workload = job.case, job.case.workload
    announce(Announce(case_id=case.id, what="build"))
    device = open_device(workload.device, workload.threads)
    shared = open_shared(workload, Path(job.folder), device.torch_device)
    try:
        layer = build_case(case, shared)
        announce(Announce(case_id=case.id, what="profile"))
        existing = {"weights": layer.weights.num_bytes, "input": shared.x.numel() * shared.x.element_size()}
        with gradients_dropped(shared):
            step = make_step(layer, shared, device, nvtx=job.nvtx)
            if case.compile == "none":
                profiled = profile_step(step, existing, job.time_budget_s)
            else:
                profiled = profile_compiled(step, job.time_budget_s)
            allocator: Snapshot | None = allocator_snapshot(step) if device.torch_device.type == "cuda" else None
    except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
        return failed(error, case)
    announce(Announce(what="write traces"))
    traces = Path(job.traces)
    traces.mkdir(parents=True, exist_ok=True)
    names = {"perfetto": case.id + PERFETTO}
    title, timeline = case.label.rpartition("/")[2], profiled.profile.timeline
    write_perfetto(traces / names["perfetto"], title, profiled.call, profiled.kernels, timeline)
    if profiled.counted is not None:
        names["memory"] = case.id + MEMORY
        write_memory_snapshot(traces / names["memory"], profiled.counted)
    if allocator is not None:
        names["allocator"] = case.id + ALLOCATOR
        write_allocator_snapshot(traces / names["allocator"], allocator)
    gaps = dict(profiled.profile.gaps)
    if device.torch_device.type != "cpu" and not profiled.profile.on_device:
        gaps["device_s"] = LEFT_TO_NSIGHT if job.nvtx else NO_KERNELS
    return Answer(profile=profiled.profile.model_copy(update={"traces": names, "gaps": gaps}))


def make_step(layer: MoELayer, shared: Shared, device: Device, *, nvtx: bool = False) -> Step:
    """The step of a built layer on a workload's shared tensors."""
    x_TD, routing, gradient_TD = shared.x, shared.routing, shared.output_gradient
    cold = shared.workload.cache == "cold"
    if shared.workload.direction == "forward":

        def infer() -> torch.Tensor:
            with torch.inference_mode():
                return layer(x_TD, routing=routing)  # type: ignore[no-any-return] # nn.Module.__call__ is untyped

        return Step(infer, None, lambda: None, device, cold, nvtx)
    leaves = [leaf for _, leaf in shared.leaves()]

    def drop() -> None:
        for leaf in leaves:
            leaf.grad = None

    def backward(output: torch.Tensor) -> None:
        torch.autograd.backward(output, gradient_TD)

    return Step(lambda: layer(x_TD, routing=routing), backward, drop, device, cold, nvtx)
