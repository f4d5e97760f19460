"""The machine's ceilings, measured through torch: matrix products per dtype, memory and cache bandwidth.

A roofline is an upper bound, so a ceiling is what the best of a few plain operations sustains:

* ``matmul``: square products of doubling size until one takes a tenth of the time budget; the fastest size counts.
* ``memory``: a buffer of four times all last-level caches, read once a repetition.
* ``cache``: a buffer of half the last-level caches that the threads reach, read again and again: too large for the
  second-level caches, small enough for the last.

Bandwidth is that of *reading*, by the faster of ``sum`` and ``dot``: what a layer cannot avoid moving is nearly all
weights, which it reads. An operation that also writes can move more bytes a second, which no layer could use.
"""

from __future__ import annotations

import statistics
from typing import Literal

import torch

from bench.measure.cpu import CpuDevice
from bench.measure.device import Call, Device

MIN_REPETITIONS = 5
MAX_REPETITIONS = 200
MIN_MATRIX, MAX_MATRIX = 256, 8192

What = Literal["matmul", "memory", "cache"]


def measure_ceiling(what: What, device: Device, dtype: str, time_budget_s: float) -> tuple[list[float], int]:
    """Floating-point operations (``matmul``) or bytes (``memory``, ``cache``) per second, one value a repetition.

    Args:
        what: which ceiling.
        device: where.
        dtype: of the matrices, as ``float32``; bandwidth does not depend on it and is read as float32.
        time_budget_s: for the choice of size or operation and the repetitions together.

    Returns:
        The values, and the bytes of the working set.
    """
    deadline_s = device.now_s() + time_budget_s
    if what == "matmul":
        return _matmul(device, getattr(torch, dtype), time_budget_s, deadline_s)
    num_bytes = buffer_bytes(what, device)
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device.torch_device)
    halves = buffer.chunk(2)
    with torch.inference_mode():
        readers: list[Call] = [buffer.sum, lambda: torch.dot(halves[0], halves[1])]
        for read in readers:
            _seconds(device, read)  # maps the pages, starts the threads
        tries = [[_seconds(device, read) for _ in range(3)] for read in readers]
        fastest = min(range(len(readers)), key=lambda i: min(tries[i]))
        seconds = _repeat(device, readers[fastest], deadline_s)
    return [num_bytes / s for s in seconds], num_bytes


def buffer_bytes(what: What, device: Device) -> int:
    """Size of the buffer that is read for ``memory`` or ``cache`` bandwidth."""
    if isinstance(device, CpuDevice):
        if what == "memory":
            return 4 * device.llc_total_bytes
        within_reach = min(device.caches.num_llcs, device.threads)
        return device.llc_total_bytes // device.caches.num_llcs * within_reach // 2
    l2_bytes = torch.cuda.get_device_properties(device.torch_device).L2_cache_size
    # A GPU reads its L2 caches in microseconds; a larger buffer keeps the start of the kernel out of the figure.
    return max(8 * l2_bytes, 2**30) if what == "memory" else l2_bytes // 2


def _matmul(device: Device, dtype: torch.dtype, time_budget_s: float, deadline_s: float) -> tuple[list[float], int]:
    fastest_per_s, fastest_size = 0.0, MIN_MATRIX
    size = MIN_MATRIX
    with torch.inference_mode():
        while size <= MAX_MATRIX:
            call = _product(device, dtype, size)
            _seconds(device, call)  # first use of a shape may choose or pack a kernel
            seconds = min(_seconds(device, call) for _ in range(2))
            if 2 * size**3 / seconds > fastest_per_s:
                fastest_per_s, fastest_size = 2 * size**3 / seconds, size
            # The next size takes eight times as long.
            if 8 * seconds > time_budget_s / 10:
                break
            size *= 2
        seconds_each = _repeat(device, _product(device, dtype, fastest_size), deadline_s)
    num_bytes = 3 * fastest_size**2 * dtype.itemsize
    return [2 * fastest_size**3 / s for s in seconds_each], num_bytes


def _product(device: Device, dtype: torch.dtype, size: int) -> Call:
    """A square matrix product of random numbers: zeros would draw less power and run at higher clocks.

    The second matrix is transposed, as a linear layer's weight is: torch's float16 product on a CPU is nine times
    faster that way, and a ceiling must not lie below what it is there to bound.
    """
    a, b = (torch.randn(size, size, device=device.torch_device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device.torch_device)
    b_transposed = b.t()
    return lambda: torch.mm(a, b_transposed, out=out)


def _repeat(device: Device, call: Call, deadline_s: float) -> list[float]:
    """Seconds of one call, again and again until the deadline; samples long enough for the clock."""
    once_s = statistics.median(_seconds(device, call) for _ in range(3))
    num_calls = max(1, round(10 * device.min_sample_s / once_s))
    seconds: list[float] = []
    while len(seconds) < MIN_REPETITIONS or (device.now_s() < deadline_s and len(seconds) < MAX_REPETITIONS):
        seconds.append(_seconds(device, call, num_calls))
    return seconds


def _seconds(device: Device, call: Call, num_calls: int = 1) -> float:
    reader = device.sample(call, num_calls)
    device.synchronize()
    return reader().device_s / num_calls
