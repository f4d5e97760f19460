"""A device's clock: what every meter needs of a CPU or a GPU, behind one small interface.

A CPU finishes a call before it returns; a GPU only takes it into a queue. The difference is hidden in one place:
:meth:`Device.sample` starts a timed sample and gives back a function that reads it, which is valid after the next
:meth:`Device.synchronize`. So a round of many samples needs a single synchronisation, and code that is right on the
GPU is right on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch  # what is torch-free (the energy meters, the probe) stays so with this interface

Call = Callable[[], object]


class Timing(NamedTuple):
    """One sample.

    Attributes:
        device_s: seconds that the device worked, all calls of the sample together.
        host_s: seconds until the host had issued them; None where the two are the same thing.
    """

    device_s: float
    host_s: float | None


class Device(Protocol):
    """Where a call runs, with its clock.

    Attributes:
        torch_device: for allocating tensors.
        min_sample_s: a sample shorter than this drowns in the clock's resolution; batch calls until it is longer.
    """

    torch_device: torch.device
    min_sample_s: float

    def now_s(self) -> float:
        """Seconds on the host's monotonic clock."""

    def synchronize(self) -> None:
        """Wait until everything issued so far is finished."""

    def flush_cache(self) -> None:
        """Push out of the caches whatever earlier calls left there."""

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        """Issue ``num_calls`` calls as one timed sample; read it after the next :meth:`synchronize`."""

    def issue(self, call: Call) -> Callable[[], bool]:
        """Issue one call and give back a function that tells whether the device has finished it."""

    def idle(self, seconds: float) -> None:
        """Leave the host alone for a while; the device goes on with what it has."""

    def identity(self) -> dict[str, str | int]:
        """Which device this is; on CUDA its ``uuid``, which no environment variable can shift to another card."""
