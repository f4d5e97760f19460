"""Made-up runs for comparisons: written to disk as real ones are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import Case, Workload
from bench.store import log
from bench.store.qualified import Qualified, RoutingFacts
from bench.store.schema import AnyRecord, Arm, CaseRecord, ControlRecord, EnergyRecord, RunInfo, SamplesRecord, Status
from impls.spec import LayerSpec

NOISE = Path(__file__).parents[2] / "data" / "noise" / "processes.jsonl"
ENVIRONMENT: dict[str, Any] = {
    "cpu": {"model": "a processor", "usable_cores": 2},
    "packages": {"torch": "2.13.0", "numpy": "2.3"},
    "settings": {"OMP_NUM_THREADS": "2"},
    "system": {"allocator": "glibc"},
    "gpu_driver": None,
    "python": "CPython 3.11.4",
}


def recorded() -> NDArray[np.float64]:
    """Log of the median time of every recorded process, in the order of the record."""
    return np.array([np.log(np.median(json.loads(line))) for line in NOISE.read_text().splitlines()])


def workload(**fields: Any) -> Workload:
    layer = LayerSpec(d_model=64, d_ff=32, num_experts=fields.pop("num_experts", 8), top_k=2)
    return Workload(layer=layer, **{"num_tokens": 128, **fields})


def info(run_id: str, *, commit: str | None = None, created: float = 0.0, **fields: Any) -> RunInfo:
    known: dict[str, Any] = {
        "machine": "m", "command": ["moebench"], "source": "smoke", "config": {}, "seed": 0,
        "environment": ENVIRONMENT, "environment_hash": "e",
    }  # fmt: skip
    return RunInfo(run_id=run_id, created_unix_s=created, git_commit=commit, **{**known, **fields})


def case_record(impl: str, on: Workload, *, status: Status = Status.OK, **fields: Any) -> CaseRecord:
    case, ok = Case(impl=impl, workload=on), status is Status.OK
    qualified = Qualified(
        relative_error=fields.get("relative_error", 1e-7),
        worst_tensor="output",
        checked_tokens=128,
        routing=RoutingFacts(tokens_per_expert=[32] * 8, dropped_fraction=0.0, load_imbalance=1.0),
        flops=1, moved_bytes=1, weight_bytes=1, prepared_bytes=0, prepare_s=0.0, first_call_s=0.1, rough_latency_s=0.1,
        allocator_peak_bytes=fields.pop("peak", 65_536), os_peak_bytes=1, reserved_peak_bytes=None,
        analytic_peak_bytes=1, gaps={"reserved_peak_bytes": "only CUDA reserves"},
    )  # fmt: skip
    return CaseRecord(
        environment_hash="e", unix_time_s=1.0, case=case, case_id=case.id, status=status,
        reason="" if ok else "because the test says so", qualified=qualified if ok else None, **fields,
    )  # fmt: skip


def samples(on: Workload, logs: Mapping[str, Sequence[float]]) -> list[SamplesRecord]:
    """One process a value; the logarithm of seconds by implementation."""
    count = len(next(iter(logs.values())))
    return [
        SamplesRecord(
            environment_hash="e", unix_time_s=2.0, workload_id=on.id, replicate=replicate, order_seed=0, wall_s=1.0,
            arms={
                Case(impl=impl, workload=on).id: Arm(latency_s=[float(np.exp(values[replicate]))], warmup_s=[])
                for impl, values in logs.items()
            },
        )
        for replicate in range(count)
    ]  # fmt: skip


def control(base: float = 0.0, *, sound: bool = True) -> list[ControlRecord]:
    """A self-test whose base arm takes ``exp(base)`` milliseconds."""
    rng = np.random.default_rng(5)
    ratios = (("base", 1.0), ("twin", 1.0 if sound else 1.2), ("slowed", 1.05))
    return [
        ControlRecord(
            environment_hash="e", unix_time_s=1.5, replicate=replicate, planted_slowdown=0.05, wall_s=1.0,
            arms={
                name: Arm(latency_s=(1e-3 * ratio * np.exp(base + rng.normal(0, 0.003, 9))).tolist(), warmup_s=[])
                for name, ratio in ratios
            },
        )
        for replicate in range(12)
    ]  # fmt: skip


def energy(impl: str, on: Workload, joules: float, low: float, high: float) -> EnergyRecord:
    return EnergyRecord(
        environment_hash="e", unix_time_s=3.0, case_id=Case(impl=impl, workload=on).id, energy_j=joules,
        energy_low_j=low, energy_high_j=high, calls=1.0, window_s=1.0, meter="made up",
    )  # fmt: skip


def quiet(mean: float, seed: int, count: int = 12) -> list[float]:
    """Processes that hardly differ."""
    return [mean + float(noise) for noise in np.random.default_rng(seed).normal(0, 0.002, count)]


def write(results: Path, run: RunInfo, records: Sequence[AnyRecord]) -> Path:
    folder = log.create_run(results, run)
    for record in records:
        log.append(folder, record)
    return folder


def simple_run(results: Path, run_id: str, mean: float, *, drift: float, seed: int = 1, **fields: Any) -> Path:
    """A sound run of one workload, of two implementations, on a machine that is slower by ``drift``."""
    on, impls = workload(), ("loop", "grouped")
    logs = {impl: quiet(mean + drift, seed + number) for number, impl in enumerate(impls)}
    return write(
        results,
        info(run_id, **fields),
        [*(case_record(impl, on) for impl in impls), *control(drift), *samples(on, logs)],
    )
