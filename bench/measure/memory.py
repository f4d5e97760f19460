"""Peak memory of one call, above what existed before it, as the allocator and as the system sees it.

The two differ on purpose. The allocator's figure is exact to the byte and the same on every machine, but knows only
tensors; the system's includes the scratch of libraries, in whole pages. Neither is polled: a poll misses the peak.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import torch
from torch.autograd.profiler import profile

from bench.measure.device import Call, Device
from bench.measure.driver_memory import driver_memory
from bench.measure.energy.errors import MeterError
from bench.measure.proc import os_peak_gap
from bench.measure.resident import resident_growth_bytes


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak bytes above what existed before the call; null with its reason under the same name in ``gaps``.

    Attributes:
        allocator_peak_bytes: tensors alive at the worst moment.
        os_peak_bytes: resident memory of the process (CPU), or what the driver gave it (CUDA); where it can tell that
            of the whole card only, ``gaps`` says so.
        reserved_peak_bytes: what CUDA's caching allocator held on to, from an empty cache; null on the CPU.
    """

    allocator_peak_bytes: int | None
    os_peak_bytes: int | None
    reserved_peak_bytes: int | None
    gaps: dict[str, str] = field(default_factory=dict)


def measure_peak(call: Call, device: Device) -> PeakMemory:
    """Peak memory of ``call()``, its result included.

    The call is made four times on the CPU and twice on CUDA: first for what happens only once (lazily mapped weights,
    library start-up, for the system's peak once more in a thread of its own), then once under each meter, so that
    neither meter sees the other.

    The call must leave nothing behind, such as gradients: they would pass for something that existed before.
    """
    call()
    device.synchronize()
    if device.torch_device.type == "cuda":
        return _cuda_peak(call, device)
    gaps = {"reserved_peak_bytes": "not_supported: only CUDA's allocator reserves memory"}
    allocator_peak_bytes = cpu_allocator_peak_bytes(call)
    if reason := os_peak_gap():
        return PeakMemory(allocator_peak_bytes, None, None, gaps | {"os_peak_bytes": reason})
    return PeakMemory(allocator_peak_bytes, resident_growth_bytes(call), None, gaps)


def cpu_allocator_peak_bytes(call: Call) -> int:
    """Highest running sum of torch's CPU allocations during one call and their frees, in bytes.

    What the call frees of earlier allocations is not known to the profiler, and not subtracted.
    """
    # Not torch.profiler's: its first start imports torch.compile's machinery, a second in every fresh process.
    with profile(profile_memory=True) as profiler:
        result = call()
    del result
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    alive_bytes = peak_bytes = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive_bytes += event.nbytes()
        peak_bytes = max(peak_bytes, alive_bytes)
    return peak_bytes


def _cuda_peak(call: Call, device: Device) -> PeakMemory:
    where = device.torch_device
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(where)
    allocated_bytes = torch.cuda.memory_allocated(where)
    reserved_bytes = torch.cuda.memory_reserved(where)
    with driver_memory(device) as driver:
        used_bytes = driver.used_bytes()
        result = call()
        device.synchronize()
        # The caching allocator gives nothing back by itself, so the driver's figure afterwards is its peak.
        try:
            used_after_bytes = driver.used_bytes()
            os_peak_bytes: int | None = max(0, used_after_bytes - used_bytes)
            gap = driver.note
        except MeterError as error:  # a meter costs its figure, not the case
            os_peak_bytes, gap = None, str(error)
    del result
    return PeakMemory(
        allocator_peak_bytes=torch.cuda.max_memory_allocated(where) - allocated_bytes,
        os_peak_bytes=os_peak_bytes,
        reserved_peak_bytes=torch.cuda.max_memory_reserved(where) - reserved_bytes,
        gaps={"os_peak_bytes": gap} if gap else {},
    )
