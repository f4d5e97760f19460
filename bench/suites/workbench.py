"""Checks and times one case inside a pytest-benchmark test, with the jobs that the harness's own workers do.

Layers, weights, inputs, truth, memory meter and the timed closure are those of ``moebench run``; only the loop around
the closure is pytest-benchmark's. What that loop can and cannot say is in ``docs/pytest-benchmark.md``.
"""

from __future__ import annotations

import time
from typing import Any, NoReturn

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case, Workload
from bench.measure.disturbance import watch
from bench.measure.latency import is_steady
from bench.measure.opening import open_device
from bench.runner.jobs import perform
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import declared, failed
from bench.runner.jobs.shared import make_call, open_shared
from bench.runner.protocol import Announce, Answer, MaterialiseJob, QualifyJob, TruthJob
from bench.runner.scratch import NoSpaceError, Scratch
from bench.store.pytest_benchmark import ExtraInfo, LoopInfo
from bench.store.schema import CaseRecord, Status


class Workbench:
    """Measures cases one after the other in this process.

    Attributes:
        not_timed: cases that ended with another status than ``ok``.

    Args:
        scratch: where workloads' files lie.
        environment_hash: of the environment that the records are made in.
        truth_max_flops: where a truth would cost more, tokens are sampled.
    """

    def __init__(self, scratch: Scratch, environment_hash: str, truth_max_flops: float) -> None:
        self.not_timed: list[CaseRecord] = []
        self._scratch = scratch
        self._environment_hash = environment_hash
        self._truth_max_flops = truth_max_flops

    def measure(self, case: Case, benchmark: BenchmarkFixture) -> None:
        """Check a case against the truth, measure its memory, then have pytest-benchmark time it.

        A case that cannot run here is skipped with its reason; one that is wrong or breaks fails the test.
        """
        answer = self._qualify(case)
        if answer.qualified is None:
            self._give_up(case, answer)
        record = self._record(case, answer)
        benchmark.group = label(case.workload)
        benchmark.params = parameters(case)  # plain columns for --benchmark-group-by=param:NAME
        try:
            loop = self._time(case, benchmark)
        except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
            benchmark.has_error = True  # pytest-benchmark then leaves it out of the file
            self._give_up(case, failed(error, case))
        routing, stats = answer.qualified.routing, benchmark.stats
        info = ExtraInfo(
            case_id=case.id,
            peak_memory_bytes=answer.qualified.allocator_peak_bytes,
            tokens_per_s=None if stats is None else case.workload.num_tokens / stats["median"],
            dropped_fraction=None if routing is None else routing.dropped_fraction,
            record=record,
            loop=loop,
        )
        benchmark.extra_info.update(info.model_dump(mode="json"))

    def _qualify(self, case: Case) -> Answer:
        workload = case.workload
        try:
            folder = str((self._scratch.folder if self._scratch.holds(workload) else self._scratch.reserve)(workload))
        except NoSpaceError as error:
            return Answer(status=Status.ERROR, reason=str(error), **declared(case))
        semantics = [declared(case)["semantics"]]
        for job in (
            MaterialiseJob(workload=workload, folder=folder),
            TruthJob(workload=workload, folder=folder, semantics=semantics, max_flops=self._truth_max_flops),
            QualifyJob(case=case, folder=folder),
        ):
            answer = perform(job, _ignore)
            if answer.status is not Status.OK:
                break
        return answer

    def _time(self, case: Case, benchmark: BenchmarkFixture) -> LoopInfo | None:
        workload = case.workload
        device = open_device(workload.device, workload.threads)
        shared = open_shared(workload, self._scratch.folder(workload), device.torch_device)
        call = make_call(build_case(case, shared), shared)

        def call_and_wait() -> None:
            call()
            device.synchronize()

        start_s = time.perf_counter()
        with watch(device) as watched:
            benchmark(call_and_wait)
        wall_s = time.perf_counter() - start_s
        shared.require_unchanged()
        stats = benchmark.stats
        if stats is None:  # --benchmark-disable
            return None
        return LoopInfo(wall_s=wall_s, steady=is_steady(stats.stats.data), disturbance=watched.disturbance)

    def _give_up(self, case: Case, answer: Answer) -> NoReturn:
        self.not_timed.append(self._record(case, answer))
        if answer.status is Status.UNSUPPORTED:
            pytest.skip(answer.reason)
        pytest.fail(f"{answer.status}: {answer.reason}", pytrace=False)

    def _record(self, case: Case, answer: Answer) -> CaseRecord:
        return CaseRecord(
            environment_hash=self._environment_hash,
            unix_time_s=time.time(),
            case=case,
            case_id=case.id,
            status=answer.status,
            reason=answer.reason,
            relative_error=answer.relative_error,
            qualified=answer.qualified,
            **declared(case),
        )


def label(workload: Workload) -> str:
    """A workload in short: ``forward-E8-K2-Cnone-T256-D64-F128-float32-cpu-1thread``."""
    return f"{workload.direction}-{_sizes(workload)}"


def case_label(case: Case) -> str:
    """A case in short, for ``-k`` and as the name that ``--benchmark-compare`` matches: all that tells cases apart."""
    return f"{case.impl.rpartition('/')[2]}-{_sizes(case.workload)}"


def _sizes(workload: Workload) -> str:
    layer = workload.layer
    capacity = "none" if layer.capacity_factor is None else f"{layer.capacity_factor:g}"
    parts = [
        f"E{layer.num_experts}-K{layer.top_k}-C{capacity}-T{workload.num_tokens}-D{layer.d_model}-F{layer.d_ff}",
        workload.dtype,
        workload.device,
        f"{workload.threads}thread{'s' * (workload.threads != 1)}",
    ]
    if workload.routing != "router":
        parts.append(workload.routing.rpartition("/")[2])
    return "-".join(parts)


def parameters(case: Case) -> dict[str, Any]:
    """The case's fields on one level, by the names of the columns of ``moebench show``."""
    workload = case.workload.model_dump(mode="json", exclude={"layer"})
    return {"impl": case.impl, **case.workload.layer.to_dict(), **workload}


def _ignore(_: Announce) -> None:
    pass
