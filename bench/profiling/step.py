"""One call of a layer, cut into its forward and backward parts with marks that the profiler sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from bench.measure.device import Device
from impls.stages import PREFIX

CALL = PREFIX + "call"
FORWARD = PREFIX + "forward"
BACKWARD = PREFIX + "backward"
WAIT = PREFIX + "wait"
DROP = PREFIX + "drop"


@dataclass(frozen=True)
class Step:
    """What is profiled: the same work as a timed call.

    Attributes:
        forward: gives the layer's output.
        backward: propagates the fixed gradient from that output; None in ``forward``.
        drop: forgets the gradients, so that the next call allocates its own.
        device: where it runs.
        cold: whether calls are timed with empty caches.
        nvtx: whether NVIDIA's tools, which then watch the device in place of torch's profiler, see calls and stages.
    """

    forward: Callable[[], torch.Tensor]
    backward: Callable[[torch.Tensor], None] | None
    drop: Callable[[], None]
    device: Device
    cold: bool = False
    nvtx: bool = False

    @property
    def profiled_device(self) -> str | None:
        """The device that torch's profiler is to watch beside the host; only one tool at a time can."""
        return None if self.nvtx or self.device.torch_device.type == "cpu" else self.device.torch_device.type

    def settle(self) -> None:
        """Before a call whose time counts, and outside of it: empty the caches where that is asked for."""
        if self.cold:
            self.device.flush_cache()
            self.device.synchronize()

    def __call__(
        self,
        after_forward: Callable[[torch.Tensor], None] = lambda _: None,
        before_drop: Callable[[], None] = lambda: None,
    ) -> None:
        """One marked call; returns once the device is done.

        Args:
            after_forward: told the output, before anything is propagated back.
            before_drop: called while the output and the gradients are still there.
        """
        with record_function(CALL), torch.cuda.nvtx.range(CALL) if self.nvtx else nullcontext():
            with record_function(FORWARD):
                output = self.forward()
            after_forward(output)
            if self.backward is not None:
                with record_function(BACKWARD):
                    self.backward(output)
            # a mark costs a microsecond, and a CPU has nothing to wait for
            with nullcontext() if self.device.torch_device.type == "cpu" else record_function(WAIT):
                self.device.synchronize()
            before_drop()
            # giving memory back is part of a call, as it is where calls are timed
            with nullcontext() if self.backward is None else record_function(DROP):
                del output
                self.drop()
