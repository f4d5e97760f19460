"""Opening a device: the one place that knows which devices there are."""

from __future__ import annotations

from bench.errors import RequestError
from bench.measure.device import Device


def open_device(name: str, threads: int) -> Device:
    """The device called ``cpu``, ``cuda`` or ``cuda:N``, ready for measuring.

    Args:
        name: as torch spells it.
        threads: intra-operator threads that torch uses on the CPU from now on.

    Raises:
        RequestError: there is no such device here.
    """
    # Imported here so that a process that measures the CPU never touches CUDA.
    import torch

    if name == "cpu":
        from bench.measure.cpu import CpuDevice

        return CpuDevice(threads)
    if name == "cuda" or name.startswith("cuda:"):
        from bench.measure.cuda import CudaDevice

        torch.set_num_threads(threads)
        return CudaDevice(name)
    raise RequestError(f"unknown device {name!r}: expected cpu, cuda or cuda:N")
