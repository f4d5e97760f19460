"""What the driver has given to this process on a GPU: by process, from NVML; else of the whole card, and labelled so.

More than the allocator's: the libraries' own buffers and the kernels' code are in it. NVML knows processes by the
numbers of the system that the driver runs on. In a container of its own numbers, on Windows and on partitioned or
virtual cards it cannot tell ours; then the card's used memory stands in, which other processes change too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from bench.measure.device import Device
from bench.measure.energy.errors import MeterError
from bench.measure.energy.nvml import find_gpu, session


@dataclass(frozen=True, slots=True)
class DriverMemory:
    """A meter.

    Attributes:
        used_bytes: reads it.
        note: what it is that is read, where it is not this process' own; empty where it is.
    """

    used_bytes: Callable[[], int]
    note: str


@contextmanager
def driver_memory(device: Device) -> Iterator[DriverMemory]:
    """The meter of this process on ``device``; NVML stays open inside the block."""
    with ExitStack() as stack:
        try:
            stack.enter_context(session())
            meter = _of_process(device)
        except MeterError as error:
            meter = _of_card(device, error)
        yield meter


def _of_process(device: Device) -> DriverMemory:
    process = os.getpid()
    gpu = find_gpu(str(device.identity()["uuid"]))
    gpu.process_bytes(process)
    return DriverMemory(lambda: gpu.process_bytes(process), "")


def _of_card(device: Device, error: MeterError) -> DriverMemory:
    def used_bytes() -> int:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device.torch_device)
        return total_bytes - free_bytes

    return DriverMemory(used_bytes, f"of the whole card, other processes included ({error})")
