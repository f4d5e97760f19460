"""How an implementation behaves apart from its time: waits for the device, determinism, products done, allocator.

Every part is bounded, so that a short case pays a few calls and a long one none that it cannot afford; what was left
out is null with its reason.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from statistics import median

import torch
from torch import Tensor

from bench.measure.device import Call, Device
from bench.measure.numerics import WORKSPACE, numerics
from bench.measure.operators import Operators, watch_operators
from bench.store.qualified import Conduct

REPEATS = 3
"""Calls whose results are compared bit by bit."""
REPEATS_AT_MOST_S = 0.3
DETERMINISTIC_PAIRS = 3
DETERMINISTIC_AT_MOST_S = 0.15
WATCHED_AT_MOST_S = 1.0
KEPT_AT_MOST_BYTES = 256 * 2**20
ALLOCATOR_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_SYNC_WARNING = "called a synchronizing CUDA operation"


def observe(
    call: Call,
    results: Callable[[], Sequence[Tensor]],
    device: Device,
    *,
    rough_latency_s: float,
    result_bytes: int,
    stacked: Mapping[str, Tensor],
    num_rows: int,
    width: int,
    hidden: str = "",
) -> tuple[Conduct, Operators | None]:
    """What the call does, and what of that lint looks at (None where the call is too long to be watched).

    Args:
        call: one call as it is timed.
        results: one call that gives its output, and in ``train`` every gradient.
        device: where it runs.
        rough_latency_s: about how long a call takes.
        result_bytes: bytes of ``results()``.
        stacked: the experts' weights by name, (E, ...).
        num_rows: assignments, T * K.
        width: D.
        hidden: why neither operators can be watched nor settings changed; empty where both can.
    """
    gaps: dict[str, str] = {}
    operators = None
    if hidden:
        gaps |= dict.fromkeys(("num_operators", "host_syncs", "computed_flops", "deterministic_ratio"), hidden)
    elif rough_latency_s <= WATCHED_AT_MOST_S:
        operators = watch_operators(call, stacked, num_rows=num_rows, width=width)
        device.synchronize()
    else:
        gaps |= dict.fromkeys(("num_operators", "host_syncs", "computed_flops"), _too_long(rough_latency_s))
    waits = _cuda_waits(call, device) if device.torch_device.type == "cuda" else None
    computed_flops = operators.flops if operators else None
    if operators and operators.unknown:
        computed_flops = None
        gaps["computed_flops"] = f"nobody counts the products inside {next(iter(operators.unknown))}"
    if waits is not None:
        gaps.pop("host_syncs", None)
    elif operators is not None:
        waits = operators.waits.total()
    return Conduct(
        num_operators=operators.num_operators if operators else None,
        host_syncs=waits,
        sync_operators=dict(operators.waits) if operators else {},
        computed_flops=computed_flops,
        repeats=REPEATS,
        distinct_results=_distinct_results(results, rough_latency_s, result_bytes, gaps),
        deterministic_ratio=None if hidden else _deterministic_ratio(call, device, rough_latency_s, gaps),
        threads=torch.get_num_threads(),
        allocator=allocator(),
        numerics=numerics(device.torch_device.type),
        gaps=gaps,
    ), operators


def allocator() -> str:
    """The C library and the settings that decide how memory is handed out, for a person; no paths."""
    library = " ".join(platform.libc_ver()).strip() or platform.system()
    found = sorted(name for name in os.environ if name.startswith(ALLOCATOR_SETTINGS))
    return ", ".join([library, *(f"{name}={_without_folders(os.environ[name])}" for name in found)])


def _without_folders(value: str) -> str:
    return ":".join(PurePath(part).name if part.startswith("/") else part for part in value.split(":"))


def _too_long(rough_latency_s: float) -> str:
    return f"a call takes about {rough_latency_s:.2g} s, too long to repeat for this"


def _cuda_waits(call: Call, device: Device) -> int:
    """Waits of one call, as torch itself reports them."""
    before = torch.cuda.get_sync_debug_mode()
    device.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(_SYNC_WARNING in str(warning.message) for warning in caught)


def _distinct_results(
    results: Callable[[], Sequence[Tensor]], rough_latency_s: float, result_bytes: int, gaps: dict[str, str]
) -> int | None:
    """How many results of :data:`REPEATS` calls differ, bit by bit."""
    if REPEATS * rough_latency_s > REPEATS_AT_MOST_S:
        gaps["distinct_results"] = _too_long(rough_latency_s)
        return None
    if REPEATS * result_bytes > KEPT_AT_MOST_BYTES:
        gaps["distinct_results"] = f"output and gradients are {result_bytes / 2**20:.0f} MiB, too large to keep several"
        return None
    distinct: list[Sequence[Tensor]] = []
    for _ in range(REPEATS):
        found = results()
        if not any(all(map(_same_bits, found, known)) for known in distinct):
            distinct.append(found)
    return len(distinct)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def _deterministic_ratio(call: Call, device: Device, rough_latency_s: float, gaps: dict[str, str]) -> float | None:
    """Time of torch's deterministic algorithms over that of its usual ones: median of a few pairs, taken in turn."""
    if 2 * DETERMINISTIC_PAIRS * rough_latency_s > DETERMINISTIC_AT_MOST_S:
        gaps["deterministic_ratio"] = _too_long(rough_latency_s)
        return None
    ratios = []
    for _ in range(DETERMINISTIC_PAIRS):
        usual_s = _seconds(call, device)
        with _deterministic():
            try:
                deterministic_s = _seconds(call, device)
            except RuntimeError as error:
                gaps["deterministic_ratio"] = _why_not_deterministic(str(error))
                return None
        ratios.append(deterministic_s / usual_s)
    return median(ratios)


def _why_not_deterministic(message: str) -> str:
    if WORKSPACE in message:  # says nothing of the implementation: every product on a GPU is refused
        return f"cuBLAS can be deterministic only where {WORKSPACE} is set, as in {WORKSPACE}=:4096:8"
    return f"it has no deterministic path: {message.partition('. ')[0].strip()}"


@contextmanager
def _deterministic() -> Iterator[None]:
    # Not torch.use_deterministic_algorithms: it imports torch's compiler, a second in every fresh process.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _seconds(call: Call, device: Device) -> float:
    start_s = time.perf_counter()
    call()
    device.synchronize()
    return time.perf_counter() - start_s
