"""A realistic analysis made of thin air: eight implementations over experts, top-k and capacity, with every outcome."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis.frame import COLUMNS, NUMBERS
from bench.analysis.interval import Estimate
from bench.analysis.model import Analysis, Comparison, Control, Verdict, Winner
from bench.cases import VARIANTS, stable_id
from bench.store.schema import RunInfo


class Report(NamedTuple):
    """A report and what it was made of."""

    analysis: Analysis
    page: Path


SPEED = {
    "loop": 1.0,
    "scatter_gather": 0.9,
    "einsum": 2.4,
    "grouped": 0.6,
    "dense": 0.45,
    "dense_total": 3.0,
    "ensemble": 4.0,
    "ensemble_weighted": 4.2,
}
ROUTED = ("loop", "scatter_gather", "einsum", "grouped")


def make_analysis(
    *,
    experts: Sequence[int] = (8, 32, 128),
    top_ks: Sequence[int] = (1, 2, 8),
    capacities: Sequence[Any] = ("none", 1.0, 1.25),
    tokens: Sequence[int] = (512,),
    names: dict[str, str] | None = None,
    reason: str = "needs the fullest expert's buffer: 3.1 GiB, free are 2.0 GiB",
    energy: bool = False,
    sentence: str = "",
    run_id: str = "20260101-120000-quick",
) -> Analysis:
    """Builds the analysis; `names` renames implementations, `reason` is given to rows that failed."""
    rng = random.Random(0)
    names = names or {}
    rows: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    winners: list[Winner] = []
    for e in experts:
        for k in top_ks:
            for capacity in capacities:
                for t in tokens:
                    workload = _workload(e, k, capacity, t)
                    own = [_row(workload, impl, rng, names, reason, energy=energy) for impl in SPEED]
                    rows += own
                    ok = [row for row in own if row["status"] == "ok"]
                    comparisons += _compare(ok)
                    layers = sorted((r for r in ok if r["semantics"] == "moe"), key=lambda r: r["latency_s"])
                    if len(layers) > 1:
                        clear = layers[0]["latency_high_s"] < layers[1]["latency_low_s"]
                        first, second = layers[0]["impl"], layers[1]["impl"]
                        words = f"{first} beats {second}." if clear else f"{first}, {second}: open."
                        winners.append(
                            Winner(
                                workload["workload_id"],
                                first if clear else None,
                                [] if clear else [first, second],
                                sentence or words,
                            )
                        )
    return Analysis(
        info=RunInfo(
            run_id=run_id,
            machine="two-core-test-cpu-2c",
            created_unix_s=1767268800.0,
            command=["/home/somebody/venv/bin/moebench", "run", "quick", "--results", "/home/somebody/results"],
            source="quick",
            config={"layer": {"d_model": 512, "d_ff": 1024, "num_experts": list(experts)}, "measure": {"budget": "3m"}},
            seed=0,
            git_commit="0123456789abcdef",
            environment={"python": "3.11.9", "torch": "2.13.0", "cpu": {"model": "Test CPU", "cores": 2}},
            environment_hash="e" * 12,
        ),
        frame=pd.DataFrame.from_records(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, "float64")),
        comparisons=comparisons,
        winners=winners,
        control=Control(
            passed=True,
            twin=Estimate(1.0004, 0.9971, 1.0037),
            slowed=Estimate(1.0502, 1.0466, 1.0539),
            planted_slowdown=0.05,
            noise_floor=0.0033,
            sentence="Identical code differed by 0.04 % [-0.29 %, 0.37 %]; the planted 5 % was read as 5.0 %.",
        ),
        ceilings={
            ("matmul", "cpu", "float32", 2): Estimate(1.9e11, 1.88e11, 1.92e11),
            ("memory", "cpu", "float32", 2): Estimate(2.1e10, 2.0e10, 2.2e10),
        },
        warnings=["2.1 % of the time was stolen by the hypervisor; choose a quieter hour."],
        in_samples_fraction=0.74,
    )


def with_compiled(analysis: Analysis, impl: str = "grouped") -> Analysis:
    """The analysis with compiled rows of one implementation, a fifth faster than the same uncompiled."""
    frame = analysis.frame
    label = impl + VARIANTS["default"]
    own = frame[frame["impl"] == impl]
    times = {name: 0.8 * own[name] for name in ("latency_s", "latency_low_s", "latency_high_s")}
    rows = own.assign(
        impl=label, compile="default", case_id="c" + own["case_id"], tokens_per_s=own["tokens_per_s"] / 0.8,
        compile_s=12.5, graph_breaks=1.0, recompiles=2.0, recompiles_same_shape=0.0,
        graph_break_reasons="data-dependent branch in /home/somebody/layer.py:12", **times,
    )  # fmt: skip
    ratio = Estimate(0.8, 0.78, 0.82)
    pairs = [
        Comparison(workload_id, label, impl, ratio, 0.001, 12, Verdict.FASTER, False, None, True)
        for workload_id in rows.loc[rows["latency_s"].notna(), "workload_id"]
    ]
    both = pd.DataFrame.from_records([*frame.to_dict("records"), *rows.to_dict("records")], columns=list(COLUMNS))
    both = both.astype(dict.fromkeys(NUMBERS, "float64"))
    return dataclasses.replace(analysis, frame=both, comparisons=[*analysis.comparisons, *pairs])


def _workload(e: int, k: int, capacity: Any, t: int) -> dict[str, Any]:
    fields = {
        "num_experts": e,
        "top_k": k,
        "capacity_factor": capacity,
        "num_tokens": t,
        "d_model": 512,
        "d_ff": 1024,
        "activation": "swiglu",
        "router": "softmax_topk",
        "routing": "router",
        "dtype": "float32",
        "device": "cpu",
        "direction": "forward",
        "threads": 2,
        "cache": "warm",
        "seed": 0,
        "norm_topk_prob": True,
        "num_shared_experts": 0,
        "router_bias": False,
        "expert_bias": False,
    }
    return {**fields, "workload_id": stable_id(fields)}


PARTS = {"output": 5, "routing": 2, "dispatched": 20, "activations": 52, "workspace": 15, "gradients": 5}  # percent


def _row(
    workload: dict[str, Any],
    impl: str,
    rng: random.Random,
    names: dict[str, str],
    reason: str,
    *,
    energy: bool,
) -> dict[str, Any]:
    e, k, t = workload["num_experts"], workload["top_k"], workload["num_tokens"]
    status, why = "ok", ""
    if impl == "einsum" and e >= 128:
        status, why = "out_of_memory", reason
    elif impl == "loop" and e >= 128 and k >= 8:
        status, why = "timeout", "ran past 60 s"
    elif impl == "grouped" and workload["capacity_factor"] == 1.0 and k == 8:
        status, why = "unsupported", "grouped_mm needs sizes that are multiples of 16 bytes"
    work = k + (e / 8 if impl in {"dense_total", "ensemble", "ensemble_weighted"} else 0) + math.log2(e) / 6
    overhead = 0.02 * e if impl == "loop" else 0.3
    latency = 1e-3 * t / 512 * (SPEED[impl] * work + overhead) * rng.uniform(0.97, 1.03)
    half = rng.uniform(0.004, 0.03)
    routes = impl in ROUTED
    flops = 6.0 * t * k * 512 * 1024
    drops = 0.0 if workload["capacity_factor"] == "none" else 0.31 / workload["capacity_factor"] / (1 + k / 4)
    ok = status == "ok"
    weight_bytes = 3 * 4 * e * 512 * 1024
    activation = {"einsum": 9.0, "ensemble": 14.0, "dense_total": 12.0}.get(impl, 1.7)
    peak = int(t * 512 * 4 * k * activation * (e**0.5 if activation > 2 else 1))
    name = names.get(impl, impl)
    return {
        "case_id": stable_id([workload["workload_id"], impl]),
        "impl": name,
        "compile": "none",
        **workload,
        "status": status,
        "reason": why,
        "semantics": "moe" if routes else impl,
        "exact": True,
        "path": "",
        "latency_s": latency if ok else None,
        "latency_low_s": latency * (1 - half) if ok else None,
        "latency_high_s": latency * (1 + half) if ok else None,
        "tokens_per_s": t / latency if ok else None,
        "flops_per_s": flops / latency if ok else None,
        "roofline_fraction": flops / latency / 1.9e13 if ok else None,
        "peak_memory_bytes": peak if ok else None,
        "os_peak_bytes": int(peak * 1.2) if ok else None,
        "analytic_peak_bytes": t * 512 * 4 if ok else None,
        "predicted_peak_bytes": int(peak * 0.99) if ok and routes else None,
        **({f"predicted_{part}_bytes": share * peak // 100 for part, share in PARTS.items()} if ok and routes else {}),
        "weight_bytes": weight_bytes if ok else None,
        "prepared_bytes": 0 if ok else None,
        "prepare_s": 0.01 if ok else None,
        "first_call_s": 3 * latency if ok else None,
        "energy_j_per_token": 80.0 * latency / t if ok and energy else None,
        "power_w": 80.0 if ok and energy else None,
        "gaps": "" if energy or not ok else "energy_j_per_token: not_supported: no powercap tree; power_w: the same",
        "dropped_fraction": drops if ok and routes else None,
        "load_imbalance": 1 + 2.2 / (1 + k) if ok and routes else None,
        "relative_error": 3e-7 if ok else None,
        "num_processes": 12 if ok else 0,
    }


def _compare(rows: list[dict[str, Any]]) -> list[Comparison]:
    result = []
    for i, a in enumerate(rows):
        for b in rows[i + 1 :]:
            value = a["latency_s"] / b["latency_s"]
            ratio = Estimate(value, value * 0.98, value * 1.02)
            verdict = Verdict.FASTER if ratio.high < 1 else Verdict.SLOWER if ratio.low > 1 else Verdict.INCONCLUSIVE
            same = a["semantics"] == b["semantics"]
            more = 8 if verdict is Verdict.INCONCLUSIVE else None
            pair = (a["workload_id"], a["impl"], b["impl"])
            result.append(Comparison(*pair, ratio, 0.01, 12, verdict, False, more, same))
    return result
