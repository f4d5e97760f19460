"""Memory that ran out is told from other faults, on the host and on a GPU."""

import pytest
import torch

from bench.runner.jobs.failures import failed, is_out_of_memory
from bench.store.schema import Status


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        torch.cuda.OutOfMemoryError("the same class by its older name"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_memory_that_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert failed(error).status is Status.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "CUBLAS_STATUS_NOT_SUPPORTED"]
)
def test_other_faults_are_errors(text: str) -> None:
    assert failed(RuntimeError(text)).status is Status.ERROR
