"""The profiling job on a made-up GPU: its files, and what it says where nobody saw the device."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.analysis.limits import find_limit
from bench.analysis.roofline import Ceilings
from bench.cases import Case, Workload
from bench.measure.cpu import CpuDevice
from bench.runner.jobs import perform
from bench.runner.jobs import profile as profiling
from bench.runner.jobs.shared import open_shared
from bench.runner.protocol import MaterialiseJob, ProfileJob
from bench.store.schema import Status
from impls.spec import LayerSpec

WORKLOAD = Workload(
    layer=LayerSpec(d_model=8, d_ff=8, num_experts=2, top_k=1), num_tokens=4, device="cuda", cache="cold"
)
CASE = Case(impl="loop", workload=WORKLOAD)


class Gpu(CpuDevice):
    """A processor that calls itself a GPU."""

    def __init__(self, *_: object) -> None:
        super().__init__(1)
        self.torch_device = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    perform(MaterialiseJob(workload=WORKLOAD, folder=str(folder)), lambda _: None)
    return folder


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(workload: Workload, folder: Path, _: torch.device) -> Any:
        return open_shared(workload, folder, torch.device("cpu"))

    snapshot: dict[str, Any] = {"segments": [], "device_traces": [[]]}
    monkeypatch.setattr(profiling, "open_device", Gpu)
    monkeypatch.setattr(profiling, "open_shared", shared)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **_: None)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: snapshot)
    for name in ("range_push", "range_pop"):
        monkeypatch.setattr(torch.cuda.nvtx, name, lambda *_: None)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.filterwarnings("ignore:CUDA is not available, disabling CUDA profiling")
@pytest.mark.parametrize(("nvtx", "reason"), [(True, profiling.LEFT_TO_NSIGHT), (False, profiling.NO_KERNELS)])
def test_a_device_that_nobody_saw_has_no_time_and_a_reason(
    nvtx: bool, reason: str, files: Path, tmp_path: Path
) -> None:
    job = ProfileJob(case=CASE, folder=str(files), traces=str(tmp_path), time_budget_s=0.001, nvtx=nvtx)
    answer = perform(job, lambda _: None)
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.profile is not None
    assert answer.profile.gaps["device_s"] == reason
    assert not answer.profile.on_device
    assert all(row.device_s is None for row in answer.profile.operators)
    assert set(answer.profile.traces) == {"perfetto", "memory", "allocator"}
    assert pickle.loads((tmp_path / answer.profile.traces["allocator"]).read_bytes())["device_traces"] == [[]]
    assert find_limit(answer.profile, WORKLOAD, Ceilings({}, {})) == reason
