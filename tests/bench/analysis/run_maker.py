"""Recorded noise, and runs made of thin air whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import VARIANTS, Case, Workload, uncompiled
from bench.store.qualified import Qualified, RoutingFacts
from bench.store.schema import (
    AnyRecord,
    Arm,
    CaseRecord,
    CeilingRecord,
    ControlRecord,
    NoteRecord,
    RunInfo,
    SamplesRecord,
    Status,
)
from impls.spec import LayerSpec

NOISE = Path(__file__).parents[2] / "data" / "noise" / "pairs.jsonl"
BASELINES = ("dense", "dense_total", "ensemble", "ensemble_weighted")
PLANTED = 0.05


def labelled(label: str, workload: Workload) -> Case:
    """The case of a label such as ``loop`` or ``loop [compile]``."""
    impl = uncompiled(label)
    mode = next(mode for mode, variant in VARIANTS.items() if label == impl + variant)
    return Case(impl=impl, workload=workload, compile=mode)


class Making:
    """Makes records; every method says what its result holds, the rest is arbitrary but valid."""

    info = RunInfo(
        run_id="20260101-000000-test",
        machine="test-cpu-2c",
        created_unix_s=0.0,
        command=["moebench", "run"],
        source="test",
        config={},
        seed=0,
        git_commit=None,
        environment={},
        environment_hash="e",
    )

    def workload(self, *, num_experts: int = 8, capacity_factor: float | None = None, **fields: Any) -> Workload:
        layer = LayerSpec(d_model=64, d_ff=32, num_experts=num_experts, top_k=2, capacity_factor=capacity_factor)
        return Workload(layer=layer, **{"num_tokens": 128, **fields})

    def qualified(self, **fields: Any) -> Qualified:
        known: dict[str, Any] = {
            "relative_error": 1e-7,
            "worst_tensor": "output",
            "checked_tokens": 128,
            "routing": RoutingFacts(tokens_per_expert=[32] * 8, dropped_fraction=0.0, load_imbalance=1.0),
            "flops": 2_000_000,
            "moved_bytes": 1_000_000,
            "weight_bytes": 196_608,
            "prepared_bytes": 0,
            "prepare_s": 0.01,
            "first_call_s": 0.1,
            "rough_latency_s": 0.001,
            "allocator_peak_bytes": 65_536,
            "os_peak_bytes": 69_632,
            "reserved_peak_bytes": None,
            "analytic_peak_bytes": 32_768,
            "gaps": {"reserved_peak_bytes": "only CUDA's caching allocator reserves"},
        }
        return Qualified(**{**known, **fields})

    def case(
        self,
        impl: str,
        workload: Workload,
        *,
        status: Status = Status.OK,
        qualified: Qualified | None = None,
        **fields: Any,
    ) -> CaseRecord:
        case = labelled(impl, workload)
        ok = status is Status.OK
        return CaseRecord(
            environment_hash="e",
            unix_time_s=1.0,
            case=case,
            case_id=case.id,
            status=status,
            reason="" if ok else "because the test says so",
            qualified=(qualified or self.qualified()) if ok else None,
            **{"semantics": impl if impl in BASELINES else "moe", **fields},
        )

    def samples(
        self, workload: Workload, replicate: int, latencies_s: Mapping[str, Sequence[float]], **fields: Any
    ) -> SamplesRecord:
        """Samples by the implementation's name."""
        arms = {
            labelled(impl, workload).id: Arm(latency_s=list(values), warmup_s=[1.0])
            for impl, values in latencies_s.items()
        }
        known: dict[str, Any] = {
            "environment_hash": "e",
            "unix_time_s": 2.0 + replicate,
            "order_seed": 0,
            "wall_s": 1.0,
        }
        return SamplesRecord(workload_id=workload.id, replicate=replicate, arms=arms, **{**known, **fields})

    def timed(
        self,
        workload: Workload,
        true_s: Mapping[str, float],
        *,
        num_processes: int = 12,
        num_rounds: int = 11,
        noise: float = 0.004,
        seed: int = 0,
    ) -> list[SamplesRecord]:
        """Processes whose implementations have these true latencies; 30 % of drift is common to all in a process."""
        rng = np.random.default_rng(seed)
        records = []
        for replicate in range(num_processes):
            common = rng.normal(0, 0.3)
            latencies = {
                impl: (seconds * np.exp(common + rng.normal(0, noise) + rng.normal(0, 0.02, num_rounds))).tolist()
                for impl, seconds in true_s.items()
            }
            records.append(self.samples(workload, replicate, latencies))
        return records

    def control(
        self, *, twin: float = 1.0, slowed: float = 1 + PLANTED, num_processes: int = 12
    ) -> list[ControlRecord]:
        """A control whose true ratios are these."""
        rng = np.random.default_rng(7)
        records = []
        for replicate in range(num_processes):
            arms = {
                name: Arm(latency_s=(ratio * np.exp(rng.normal(0, 0.003, 9))).tolist(), warmup_s=[])
                for name, ratio in (("base", 1.0), ("twin", twin), ("slowed", slowed))
            }
            records.append(
                ControlRecord(
                    environment_hash="e",
                    unix_time_s=1.5,
                    replicate=replicate,
                    arms=arms,
                    planted_slowdown=PLANTED,
                    wall_s=1.0,
                )
            )
        return records

    def ceiling(
        self, what: Any, per_s: Sequence[float], *, dtype: str = "float32", working_set_bytes: int = 1
    ) -> CeilingRecord:
        return CeilingRecord(
            environment_hash="e",
            unix_time_s=1.0,
            what=what,
            device="cpu",
            dtype=dtype,
            threads=1,
            replicate=0,
            per_s=list(per_s),
            working_set_bytes=working_set_bytes,
        )

    def note(self, event: Any, unix_time_s: float, **fields: Any) -> NoteRecord:
        return NoteRecord(environment_hash="e", unix_time_s=unix_time_s, event=event, **fields)

    def run(self, workload: Workload, true_s: Mapping[str, float], **timing: Any) -> list[AnyRecord]:
        """A finished run of one workload with a sound control."""
        return [
            self.note("started", 0.0),
            *(self.case(impl, workload) for impl in true_s),
            *self.control(),
            *self.timed(workload, true_s, **timing),
            self.note("finished", 100.0),
        ]


making = Making()


def noise_units() -> NDArray[np.float64]:
    """Median log-ratio of identical code in each of the recorded processes."""
    rows = [json.loads(line) for line in NOISE.read_text().splitlines()]
    return np.array([np.median(np.log(row["first_ns"]) - np.log(row["second_ns"])) for row in rows])
