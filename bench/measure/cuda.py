"""A CUDA device: events for time, a buffer of twice the L2 cache for cold samples, identity by UUID.

Only documented torch calls. Nothing here synchronises except :meth:`CudaDevice.synchronize`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, cached_property

import torch

from bench.errors import RequestError
from bench.measure.device import Call, Timing


class CudaDevice:
    """One GPU, chosen once for this process.

    Args:
        name: ``cuda`` or ``cuda:N``.

    Raises:
        RequestError: CUDA is not available, or has no such device.
    """

    # The CUDA manual gives events a resolution of about half a microsecond; below some 20 us the start of a kernel
    # dominates anyway. Fifty microseconds is a hundred times the resolution.
    min_sample_s = 50e-6

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            raise RequestError(f"device {name!r} was asked for, but torch {torch.__version__} finds no CUDA device")
        try:
            index = torch.device(name).index or 0
        except RuntimeError as error:
            raise RequestError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from error
        if index >= torch.cuda.device_count():
            raise RequestError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()}")
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._timers: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def now_s(self) -> float:
        """Seconds on the host's monotonic clock."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait for all kernels of this device."""
        torch.cuda.synchronize(self.torch_device)

    @cached_property
    def _flush_buffer(self) -> torch.Tensor:
        l2_bytes = torch.cuda.get_device_properties(self.torch_device).L2_cache_size
        return torch.empty(2 * l2_bytes, dtype=torch.int8, device=self.torch_device)

    def flush_cache(self) -> None:
        """Overwrite twice the L2 cache; goes into the queue like any kernel."""
        self._flush_buffer.zero_()

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        """Queue start event, calls, end event.

        Events are used again once they have been read: torch makes one when it is first recorded, which would be
        between the calls and their end.
        """
        start, end = self._timers.pop() if self._timers else (_timer(), _timer())
        host_start_s = time.perf_counter()
        start.record()
        for _ in range(num_calls):
            call()
        end.record()
        host_s = time.perf_counter() - host_start_s

        @cache  # a second reading must not hand the events out twice
        def read() -> Timing:
            timing = Timing(start.elapsed_time(end) * 1e-3, host_s)
            self._timers.append((start, end))
            return timing

        return read

    def issue(self, call: Call) -> Callable[[], bool]:
        """Queue one call and an event behind it."""
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
        call()
        done.record()
        return done.query

    def idle(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def identity(self) -> dict[str, str | int]:
        """Model, UUID as NVML spells it, and cache size."""
        properties = torch.cuda.get_device_properties(self.torch_device)
        uuid = str(properties.uuid)
        return {
            "kind": "cuda",
            "name": properties.name,
            "uuid": uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}",
            "l2_bytes": properties.L2_cache_size,
        }


def _timer() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's own
