"""A train step on a GPU as the profiler's library hands it over, event by event, for torch's own code to read.

The fields and their meaning are those of ``torch.autograd.profiler.profile._parse_kineto_results`` of torch 2.13: what
the device did bears the number of the operator that launched it, so do calls of the device's library, whose own numbers
are from another count; and every range is there a second time, as the device saw it. Microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.autograd.profiler import profile
from torch.profiler import DeviceType

STREAM = 7


@dataclass
class Recorded:
    """One event of the library."""

    number: int
    title: str
    begin_us: int
    end_us: int
    kind: str = "cpu_op"
    thread: int = 1
    linked: int = 0
    sequence: int = -1
    dims: list[list[int]] = field(default_factory=list)

    @property
    def on_device(self) -> bool:
        return self.kind in ("kernel", "gpu_memcpy", "gpu_user_annotation")

    def answers(self) -> dict[str, Any]:
        return {
            "name": self.title, "overload_name": "", "correlation_id": self.number,
            "linked_correlation_id": self.linked,
            "start_ns": 5000 + 1000 * self.begin_us, "end_ns": 5000 + 1000 * self.end_us,
            "device_type": DeviceType.CUDA if self.on_device else DeviceType.CPU, "device_index": 0,
            "device_resource_id": STREAM if self.on_device else self.thread, "start_thread_id": self.thread,
            "end_thread_id": self.thread, "fwd_thread_id": 0, "is_async": False, "sequence_nr": self.sequence,
            "is_user_annotation": self.kind.endswith("user_annotation"), "activity_type": self.kind, "scope": 0,
            "shapes": self.dims, "stack": [], "concrete_inputs": [], "kwinputs": {}, "flops": 0, "cuda_elapsed_us": -1,
            "is_python_function": False, "metadata_json": "", "extra_meta": {}, "flow_id": 0, "flow_type": 0,
            "flow_start": False, "external_id": 0, "structured_input_shapes": [], "structured_input_strides": [],
            "dtypes": [], "python_id": -1, "python_parent_id": -1, "python_module_id": -1,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        answers = self.answers()
        if name not in answers:
            raise AttributeError(name)
        return lambda: answers[name]


@dataclass
class Result:
    """What the library hands over."""

    recorded: list[Recorded]

    def events(self) -> list[Recorded]:
        return self.recorded

    def trace_start_ns(self) -> int:
        return 5000


RUNTIME, RANGE, SEEN = "cuda_runtime", "user_annotation", "gpu_user_annotation"
STEP = [
    Recorded(1, "moebench:call", 0, 1000, RANGE),
    Recorded(2, "moebench:forward", 10, 300, RANGE),
    Recorded(3, "moebench:experts", 20, 250, RANGE),
    Recorded(4, "aten::matmul", 30, 80, dims=[[64, 32], [32, 16]], sequence=0),
    Recorded(5, "aten::mm", 35, 78, dims=[[64, 32], [32, 16]], sequence=0),
    Recorded(900, "cudaLaunchKernel", 50, 70, RUNTIME, thread=4711, linked=5),
    Recorded(900, "gemm_bf16", 200, 500, "kernel", linked=5),
    Recorded(6, "aten::mul", 100, 140, dims=[[64, 16], [64, 16]], sequence=1),
    Recorded(5, "cudaLaunchKernel", 110, 120, RUNTIME, thread=4711, linked=6),  # 5: an operator's number by chance
    Recorded(5, "elementwise", 500, 560, "kernel", linked=6),
    Recorded(902, "cuLaunchKernel", 150, 160, "cuda_driver", thread=4711, linked=3),  # by Python itself, as Triton does
    Recorded(902, "triton_gate", 560, 600, "kernel", linked=3),
    Recorded(7, "moebench:combine", 255, 290, RANGE),
    Recorded(8, "aten::index_add_", 260, 285, dims=[[64, 16]], sequence=2),
    Recorded(903, "cudaLaunchKernel", 265, 270, RUNTIME, thread=4711, linked=8),
    Recorded(903, "index_add", 600, 700, "kernel", linked=8),
    Recorded(906, "cuLaunchKernel", 292, 298, "cuda_driver", thread=4711, linked=2),  # by Python, and in no stage
    Recorded(906, "triton_tail", 900, 950, "kernel", linked=2),
    Recorded(9, "moebench:backward", 302, 400, RANGE),
    Recorded(10, "autograd::engine::evaluate_function: MmBackward0", 310, 390, thread=2, sequence=0),
    Recorded(11, "MmBackward0", 312, 385, thread=2, sequence=0),
    Recorded(12, "aten::mm", 320, 360, thread=2, dims=[[32, 64], [64, 16]]),
    Recorded(904, "cudaLaunchKernel", 330, 340, RUNTIME, thread=4712, linked=12),
    Recorded(904, "gemm_bf16", 700, 900, "kernel", linked=12),
    Recorded(13, "moebench:wait", 405, 990, RANGE),
    Recorded(905, "cudaDeviceSynchronize", 406, 989, RUNTIME, thread=4711, linked=13),
    Recorded(14, "moebench:drop", 991, 998, RANGE),
    Recorded(1, "moebench:call", 200, 900, SEEN),
    Recorded(2, "moebench:forward", 200, 700, SEEN),
    Recorded(3, "moebench:experts", 200, 600, SEEN),
    Recorded(7, "moebench:combine", 600, 700, SEEN),
]


def read_step() -> profile:
    """The step as torch's profiler gives it after it has ended."""
    read = profile()
    read.use_device = "cuda"
    read.kineto_results = Result(STEP)  # type: ignore[assignment]  # recorded, not the library's own
    return read
