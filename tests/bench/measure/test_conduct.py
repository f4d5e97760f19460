"""Conduct of calls that are made to behave in known ways; what is too long or too large is left out with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.lint import Situation, lint
from bench.measure import conduct
from bench.measure.conduct import allocator, observe
from bench.measure.cpu import CpuDevice
from bench.measure.numerics import numerics
from bench.measure.operators import Operators
from bench.store.qualified import Conduct

X_TD = torch.randn(16, 8)
WEIGHT_EFD = torch.randn(2, 4, 8)
BACKENDS: Any = torch.backends  # objects in the place of modules, which no type checker knows


def look(
    call: Callable[[], object] = lambda: X_TD @ WEIGHT_EFD[0].T,
    results: Callable[[], Sequence[Tensor]] = lambda: [X_TD],
    *,
    rough_latency_s: float = 1e-4,
    result_bytes: int = 512,
) -> tuple[Conduct, Operators | None]:
    return observe(
        call, results, CpuDevice(1), rough_latency_s=rough_latency_s, result_bytes=result_bytes,
        stacked={"up_proj": WEIGHT_EFD}, num_rows=32, width=8,
    )  # fmt: skip


def test_a_plain_call_is_known_in_every_respect() -> None:
    found, operators = look()
    assert operators is not None
    assert (found.computed_flops, found.host_syncs, found.num_operators) == (2 * 16 * 8 * 4, 0, 1)
    assert (found.repeats, found.distinct_results, found.threads, found.gaps) == (3, 1, 1, {})
    assert found.deterministic_ratio is not None
    assert found.deterministic_ratio > 0


def test_settings_of_products_are_those_after_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    before = BACKENDS.mkldnn.matmul.fp32_precision

    def change() -> None:
        BACKENDS.mkldnn.matmul.fp32_precision = "bf16"

    try:
        found = look(change)[0].numerics
    finally:
        BACKENDS.mkldnn.matmul.fp32_precision = before
    assert found == {"deterministic": "default", "float32_precision": "none", "matmul_float32_precision": "bf16"}
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    on_gpu = numerics("cuda")
    assert on_gpu["cublas_workspace"] == ":4096:8"
    assert on_gpu["matmul_float32_precision"] == BACKENDS.cuda.matmul.fp32_precision
    assert {"float16_reduced_precision_reduction", "bfloat16_reduced_precision_reduction"} <= set(on_gpu)


def test_results_are_compared_bit_by_bit() -> None:
    zeros = iter([torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([0.0])])
    assert look(results=lambda: [next(zeros)])[0].distinct_results == 2
    nan = torch.tensor([float("nan")], dtype=torch.bfloat16)
    assert look(results=lambda: [nan.clone()])[0].distinct_results == 1
    counter = iter(range(3))
    assert look(results=lambda: [X_TD, X_TD + next(counter)])[0].distinct_results == 3


def test_what_has_no_deterministic_path_says_so_and_leaves_torch_as_it_was() -> None:
    def put() -> Tensor:
        return torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))

    before = torch.get_deterministic_debug_mode()
    found, _ = look(put)
    assert found.deterministic_ratio is None
    assert found.gaps["deterministic_ratio"].startswith("it has no deterministic path: put_ does not have")
    assert torch.get_deterministic_debug_mode() == before


def test_waits_on_a_gpu_are_those_that_torch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int | str] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        for text in (
            "called a synchronizing CUDA operation",
            "something else",
            "called a synchronizing CUDA operation",
        ):
            warnings.warn(text, stacklevel=1)  # the same line twice, as in a loop over experts

    assert conduct._cuda_waits(call, CpuDevice(1)) == 2
    assert modes == ["warn", 0]
    with pytest.raises(ZeroDivisionError):
        conduct._cuda_waits(lambda: 1 // 0, CpuDevice(1))
    assert modes == ["warn", 0, "warn", 0], "torch is left as it was, also where the call fails"


def test_products_that_cublas_refuses_to_everybody_are_not_the_layers_fault() -> None:
    def call() -> None:
        if torch.get_deterministic_debug_mode() == 2:
            raise RuntimeError(
                "Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS. To"
                " enable it you must set CUBLAS_WORKSPACE_CONFIG=:4096:8"
            )

    found, _ = look(call)
    assert found.gaps["deterministic_ratio"].startswith("cuBLAS can be deterministic only where")


def test_a_long_call_is_not_made_again() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    found, operators = look(call, lambda: pytest.fail("it was repeated"), rough_latency_s=60.0)
    assert (calls, operators) == (0, None)
    assert set(found.gaps) == {
        "num_operators", "host_syncs", "computed_flops", "distinct_results", "deterministic_ratio"
    }  # fmt: skip
    assert all("60 s, too long to repeat for this" in reason for reason in found.gaps.values())


@pytest.mark.parametrize("rough_latency_s", [1e-4, 0.02, 0.05, 0.09, 0.2, 0.9, 1.1])
def test_what_is_done_again_never_takes_longer_than_its_limits(rough_latency_s: float) -> None:
    calls: list[str] = []

    def results() -> list[Tensor]:
        calls.append("result")
        return [X_TD]

    look(lambda: calls.append("call"), results, rough_latency_s=rough_latency_s)
    limit_s = conduct.REPEATS_AT_MOST_S + conduct.DETERMINISTIC_AT_MOST_S + conduct.WATCHED_AT_MOST_S
    assert len(calls) * rough_latency_s <= limit_s


def test_results_too_large_to_keep_are_not_kept() -> None:
    found, _ = look(results=lambda: pytest.fail("it was kept"), result_bytes=2**30)
    assert found.distinct_results is None
    assert "too large to keep several" in found.gaps["distinct_results"]


def test_operators_of_others_leave_their_products_unknown() -> None:
    with torch.library._scoped_library("moebench_test", "DEF") as library:  # the public one is never undone
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        found, _ = look(lambda: torch.ops.moebench_test.twice(X_TD))
    assert found.computed_flops is None
    assert found.gaps["computed_flops"] == "nobody counts the products inside moebench_test.twice.default"


def test_allocator_names_settings_and_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/somebody/libjemalloc.so.2")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    text = allocator()
    assert {"LD_PRELOAD=libjemalloc.so.2", "MALLOC_ARENA_MAX=1"} <= set(text.split(", "))
    assert "somebody" not in text


def situation(**fields: Any) -> Situation:
    usual = {"num_experts": 4, "busy_experts": 4, "row_bytes": 1024, "stacked_bytes": 4096, "threads": 2, "cores": 2}
    return Situation(operators=Operators(), **usual | fields)


def test_more_threads_than_cores_are_a_finding_and_as_many_are_none() -> None:
    assert lint(situation()) == []
    (found,) = lint(situation(threads=3))
    assert (found.rule, found.evidence) == ("threads_above_cores", "operators run with 3 threads on 2 cores")
