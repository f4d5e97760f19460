"""The tidy table of a run: one row a case, SI units in the columns' names, an interval beside every time.

A case that is not ``ok`` never carries a time. What an ``ok`` case lacks is empty and has its reason in ``gaps``, as
``column: reason`` joined by semicolons; the reasons of ``latency_s`` and
``energy_j_per_token`` are also those of everything made from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.model import Comparison, Winner
from bench.analysis.roofline import Ceilings
from bench.analysis.statistics import Floats, median_interval
from bench.cases import LATER_FIELDS
from bench.memory import PARTS
from bench.store.qualified import Qualified
from bench.store.schema import CaseRecord, EnergyRecord

LAYER_COLUMNS = (
    "num_experts",
    "top_k",
    "capacity_factor",
    "d_model",
    "d_ff",
    "activation",
    "router",
    "norm_topk_prob",
    "num_shared_experts",
    "router_bias",
    "expert_bias",
    *LATER_FIELDS,
)
WORKLOAD_COLUMNS = ("num_tokens", "dtype", "device", "direction", "routing", "threads", "cache", "seed")
PREDICTED_PARTS = tuple(f"predicted_{part}_bytes" for part in PARTS)
COLUMNS = (
    "case_id", "impl", "num_experts", "top_k", "capacity_factor", "num_tokens", "d_model", "d_ff",
    "activation", "router", "routing", "dtype", "device", "direction", "status", "reason",
    "latency_s", "latency_low_s", "latency_high_s", "tokens_per_s", "flops_per_s", "roofline_fraction",
    "peak_memory_bytes", "weight_bytes", "energy_j_per_token", "power_w", "dropped_fraction", "load_imbalance",
    "relative_error",
    "workload_id", "semantics", "exact", "threads", "cache", "seed",
    "norm_topk_prob", "num_shared_experts", "router_bias", "expert_bias",
    "fastest_impl", "ratio", "ratio_low", "ratio_high", "verdict",
    "prepare_s", "first_call_s", "os_peak_bytes", "reserved_peak_bytes", "analytic_peak_bytes", "prepared_bytes",
    "flops", "moved_bytes", "worst_tensor", "checked_tokens",
    "num_processes", "num_samples", "inner_calls", "steady", "launch_bound", "path", "gaps",
    "energy_low_j_per_token", "energy_high_j_per_token", "latency_p50_s", "latency_p90_s", "latency_p99_s",
    *LATER_FIELDS,
    "predicted_peak_bytes", *PREDICTED_PARTS, "os_beyond_allocator_bytes", "energy_above_idle_j_per_token",
    "idle_power_w",
    "num_operators", "host_syncs", "distinct_results", "deterministic_ratio", "work_ratio", "workspace_bytes",
    "allocator", "findings", "model",
    "compile", "compile_s", "graph_breaks", "recompiles", "recompiles_same_shape", "graph_break_reasons",
)  # fmt: skip
"""The columns, in the order of ``moebench show --csv``.

``ratio`` is the latency over that of ``fastest_impl``, from paired rounds with the interval corrected over the run, and
``verdict`` its plain word; empty for ``fastest_impl`` itself. ``fastest_impl`` is the winner of the workload or, where
there is none, the exact implementation with the lowest estimate. ``capacity_factor`` is a number or the word ``none``.
``inner_calls`` is how many calls one sample held; ``launch_bound`` says that the host took longer to issue a call than
the device to do it, and is empty where the two are the same thing. The energy's bounds come from the meter's
resolution and sampling; ``energy_j_per_token`` has the idle power in it, ``energy_above_idle_j_per_token`` has not.
``predicted_peak_bytes`` is the peak by the analytic model of the implementation, ``predicted_*_bytes`` its parts;
``os_beyond_allocator_bytes`` is what the system saw above the allocator's peak: scratch of libraries, mostly.
``latency_p50_s`` to ``latency_p99_s`` are percentiles over the single calls of all processes:
what a caller meets, noise of the machine included. See :func:`percentiles` for when there is one. ``num_operators``
to ``findings`` are how the implementation behaves in one call (:class:`bench.store.qualified.Conduct`): ``host_syncs``
on a CPU are those that it would have on a GPU; ``work_ratio`` is the operations of its matrix products over the useful
ones, so padding and one-hot products make it larger than 1; ``workspace_bytes`` is its peak above what any
implementation must allocate; ``findings`` are the rules of lint that found something.
The ``impl`` of a compiled case says so, and ``compile`` in which mode. ``compile_s`` to ``recompiles_same_shape`` are
what the compiler made of it (:class:`bench.store.qualified.Compiled`): ``recompiles`` counts the graphs compiled for
two other numbers of tokens, ``recompiles_same_shape`` those compiled for as many others. All are empty for what is
not compiled.
"""
PERCENTILES = {"latency_p50_s": 0.50, "latency_p90_s": 0.90, "latency_p99_s": 0.99}
ROUGH_BELOW_S = 20e-6
"""A device's events resolve half a microsecond; single calls shorter than this are not known to a few per cent."""
SAMPLES_BEYOND = 10
"""A percentile needs at least so many samples above it: 20 samples for p50, 100 for p90, 1,000 for p99."""
FROM_QUALIFIED = (
    "relative_error",
    "worst_tensor",
    "checked_tokens",
    "flops",
    "moved_bytes",
    "weight_bytes",
    "prepared_bytes",
    "prepare_s",
    "first_call_s",
    "os_peak_bytes",
    "reserved_peak_bytes",
    "analytic_peak_bytes",
    "path",
)
FROM_CONDUCT = ("num_operators", "host_syncs", "distinct_results", "deterministic_ratio", "allocator")
NUMBERS = (
    "latency_s", "latency_low_s", "latency_high_s", "tokens_per_s", "flops_per_s", "roofline_fraction",
    "peak_memory_bytes", "weight_bytes", "energy_j_per_token", "power_w", "dropped_fraction", "load_imbalance",
    "relative_error", "ratio", "ratio_low", "ratio_high", "prepare_s", "first_call_s", "os_peak_bytes",
    "reserved_peak_bytes", "analytic_peak_bytes", "prepared_bytes", "flops", "moved_bytes", "checked_tokens",
    "inner_calls", "energy_low_j_per_token", "energy_high_j_per_token", *PERCENTILES,
    "predicted_peak_bytes", *PREDICTED_PARTS, "os_beyond_allocator_bytes", "energy_above_idle_j_per_token",
    "idle_power_w",
    "num_operators", "host_syncs", "distinct_results", "deterministic_ratio", "work_ratio", "workspace_bytes",
    "compile_s", "graph_breaks", "recompiles", "recompiles_same_shape",
)  # fmt: skip
"""Measured columns: floating point throughout, NaN where there is nothing."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one case, summarised.

    Attributes:
        units: median latency in seconds, one number an independent replicate.
        num_samples: samples in all processes, warm-up not counted.
        num_judged: processes with enough samples to see a trend, of which ``num_unsteady`` had one to the end.
        inner_calls: calls in one sample, the median over processes.
        host_s: seconds in which the host issues one call, the median over processes; None on the CPU.
        percentiles: by column, value in seconds or the reason why there is none.
    """

    units: Floats
    num_samples: int
    num_judged: int
    num_unsteady: int
    inner_calls: int = 1
    host_s: float | None = None
    percentiles: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def steady(self) -> bool | None:
        """Whether most processes got steady; None where most had too few samples to tell."""
        return 2 * self.num_unsteady < self.num_judged if 2 * self.num_judged > self.units.size else None


def percentiles(samples_s: Sequence[float], *, single_calls: bool) -> dict[str, float | str]:
    """Percentiles of the samples of all processes, each a value in seconds or the reason why there is none.

    Args:
        samples_s: of one case, warm-up not counted.
        single_calls: whether every sample is one call. The mean of several hides just the slow calls that a
            percentile is asked for.
    """
    if not single_calls:
        return dict.fromkeys(PERCENTILES, "a sample is the mean of several calls")
    # in integers: 1 - 0.99 is a little more than 0.01
    least = {column: SAMPLES_BEYOND * 100 // (100 - round(100 * share)) for column, share in PERCENTILES.items()}
    enough = [column for column in PERCENTILES if len(samples_s) >= least[column]]
    values = np.quantile(samples_s, [PERCENTILES[column] for column in enough]).tolist() if enough else []
    reasons: dict[str, float | str] = {column: f"fewer than {least[column]:,} samples" for column in PERCENTILES}
    return reasons | dict(zip(enough, values, strict=True))


def build_frame(
    cases: Mapping[str, CaseRecord],
    timings: Mapping[str, Timing],
    *,
    energy: Mapping[str, EnergyRecord],
    ceilings: Ceilings,
    winners: Sequence[Winner],
    sides: Mapping[tuple[str, str, str], Comparison],
    model: str = "",
) -> pd.DataFrame:
    """Make the table.

    Args:
        cases: the last record of each case, by case id.
        timings: by case id, of cases that are ``ok``.
        energy: by case id.
        ceilings: of the run.
        winners: of the run.
        sides: comparisons by ``(workload_id, impl, base)``.
        model: label of the real model whose layer the cases have; empty where it is none's.
    """
    fastest = {winner.workload_id: winner.impl or next(iter(winner.contenders), "") for winner in winners}
    rows = []
    for record in sorted(cases.values(), key=_sort_key):
        row = _described(record) | {"model": model}
        if record.qualified is not None:
            gaps = dict(record.qualified.gaps)
            row |= _qualified(record.qualified, gaps)
            row |= _timed(record, record.qualified, timings.get(record.case_id), ceilings, gaps)
            row |= _energy(record, energy.get(record.case_id), gaps)
            row |= _ranked(record, fastest.get(row["workload_id"], ""), sides)
            row["gaps"] = "; ".join(f"{column}: {reason}" for column, reason in gaps.items())
        rows.append(row)
    frame = pd.DataFrame.from_records(rows, columns=list(COLUMNS))
    counts = ["num_processes", "num_samples"]
    return frame.astype(dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(counts, "int64") | {"exact": "bool"})


def _sort_key(record: CaseRecord) -> tuple[Any, ...]:
    workload = record.case.workload
    layer = workload.layer
    capacity = np.inf if layer.capacity_factor is None else layer.capacity_factor
    return (
        workload.device, workload.dtype, workload.direction, layer.d_model, layer.d_ff, layer.num_experts, layer.top_k,
        capacity, workload.num_tokens, workload.id, record.case.label,
    )  # fmt: skip


_TEXTS = (
    "fastest_impl", "verdict", "worst_tensor", "path", "gaps", "allocator", "findings", "graph_break_reasons",
)  # fmt: skip


def _described(record: CaseRecord) -> dict[str, Any]:
    workload = record.case.workload
    row: dict[str, Any] = {name: getattr(workload.layer, name) for name in LAYER_COLUMNS}
    row |= {name: getattr(workload, name) for name in WORKLOAD_COLUMNS}
    return row | {
        "routing": re.sub(r"^trace:.*[/\\]", "trace:", workload.routing),  # the run keeps the path, to be resumed
        "capacity_factor": "none" if workload.layer.capacity_factor is None else workload.layer.capacity_factor,
        "case_id": record.case_id,
        "workload_id": workload.id,
        "impl": record.case.label,
        "compile": record.case.compile,
        "status": record.status.value,
        "reason": record.reason,
        "semantics": record.semantics,
        "exact": record.exact,
        "relative_error": record.relative_error,
        "num_processes": 0,
        "num_samples": 0,
        **dict.fromkeys(_TEXTS, ""),
    }


def _qualified(qualified: Qualified, gaps: dict[str, str]) -> dict[str, Any]:
    row = {name: getattr(qualified, name) for name in FROM_QUALIFIED}
    row["peak_memory_bytes"] = qualified.allocator_peak_bytes
    row["predicted_peak_bytes"] = qualified.predicted_peak_bytes
    if qualified.predicted_peak_bytes is None:
        gaps.setdefault("predicted_peak_bytes", "recorded before there were models of memory")
    else:
        row |= {f"predicted_{part}_bytes": qualified.predicted_parts_bytes.get(part, 0) for part in PARTS}
    if qualified.os_peak_bytes is not None and qualified.allocator_peak_bytes is not None:
        row["os_beyond_allocator_bytes"] = qualified.os_peak_bytes - qualified.allocator_peak_bytes
    if "allocator_peak_bytes" in gaps:
        gaps["peak_memory_bytes"] = gaps.pop("allocator_peak_bytes")
    if qualified.routing is None:
        gaps["dropped_fraction"] = gaps["load_imbalance"] = "this implementation does not route"
    else:
        row["dropped_fraction"] = qualified.routing.dropped_fraction
        row["load_imbalance"] = qualified.routing.load_imbalance
    return row | _conduct(qualified, gaps) | _compiled(qualified, gaps)


def _compiled(qualified: Qualified, gaps: dict[str, str]) -> dict[str, Any]:
    compiled = qualified.compiled
    if compiled is None:
        return {}
    row: dict[str, Any] = {
        "compile_s": compiled.compile_s,
        "graph_breaks": compiled.num_graph_breaks,
        "graph_break_reasons": " | ".join(compiled.break_reasons),
    }
    if not compiled.new_inputs:
        gaps |= dict.fromkeys(("recompiles", "recompiles_same_shape"), "there are no tokens to exchange for others")
        return row
    same, *others = compiled.new_inputs
    return row | {"recompiles": sum(new.num_graphs for new in others), "recompiles_same_shape": same.num_graphs}


def _conduct(qualified: Qualified, gaps: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if qualified.allocator_peak_bytes is None:
        gaps["workspace_bytes"] = gaps["peak_memory_bytes"]
    else:
        row["workspace_bytes"] = qualified.allocator_peak_bytes - qualified.analytic_peak_bytes
    conduct = qualified.conduct
    if conduct is None:
        gaps |= dict.fromkeys((*FROM_CONDUCT, "work_ratio"), "the moebench that made this record did not look at it")
        return row
    gaps |= conduct.gaps
    if "computed_flops" in gaps:
        gaps["work_ratio"] = gaps.pop("computed_flops")
    elif not qualified.flops:
        gaps["work_ratio"] = "there is no useful work to compare with"
    else:
        assert conduct.computed_flops is not None
        row["work_ratio"] = conduct.computed_flops / qualified.flops
    row |= {name: getattr(conduct, name) for name in FROM_CONDUCT}
    return row | {"findings": ", ".join(finding.rule for finding in conduct.findings)}


def _timed(
    record: CaseRecord, qualified: Qualified, timing: Timing | None, ceilings: Ceilings, gaps: dict[str, str]
) -> dict[str, Any]:
    if timing is None:
        gaps["latency_s"] = "not timed: the run ended before its turn"
        return {}
    latency_s, low_s, high_s = median_interval(timing.units)
    if timing.units.size < 6:
        gaps["latency_low_s"] = "fewer than six processes: the interval is their range"
    needed_s = ceilings.needed_s(record.case.workload, qualified.flops, qualified.moved_bytes)
    fraction = None
    if isinstance(needed_s, str):
        gaps["roofline_fraction"] = needed_s
    else:
        fraction = needed_s / latency_s
    if timing.host_s is not None and timing.inner_calls == 1 and latency_s < ROUGH_BELOW_S:
        gaps["inner_calls"] = "single calls, so short that the resolution of the device's events makes them rough"
    gaps |= {column: found for column, found in timing.percentiles.items() if isinstance(found, str)}
    return {
        **{column: found for column, found in timing.percentiles.items() if not isinstance(found, str)},
        "latency_s": latency_s,
        "latency_low_s": low_s,
        "latency_high_s": high_s,
        "tokens_per_s": record.case.workload.num_tokens / latency_s,
        "flops_per_s": qualified.flops / latency_s,
        "roofline_fraction": fraction,
        "num_processes": timing.units.size,
        "num_samples": timing.num_samples,
        "inner_calls": timing.inner_calls,
        "steady": timing.steady,
        "launch_bound": None if timing.host_s is None else timing.host_s > latency_s,
    }


def _energy(record: CaseRecord, energy: EnergyRecord | None, gaps: dict[str, str]) -> dict[str, Any]:
    if energy is None or energy.energy_j is None:
        reason = "not measured in this run" if energy is None else energy.reason
        gaps |= dict.fromkeys(("energy_j_per_token", "power_w", "energy_above_idle_j_per_token"), reason)
        return {}
    row: dict[str, Any] = {"idle_power_w": energy.idle_power_w}
    if energy.window_s:
        row["power_w"] = energy.energy_j / energy.window_s
    else:
        gaps["power_w"] = "the meter gave no window"
    tokens = record.case.workload.num_tokens * (energy.calls or 0)
    if tokens:
        row["energy_j_per_token"] = energy.energy_j / tokens
        if energy.idle_power_w is None or not energy.window_s:
            gaps |= {"energy_above_idle_j_per_token": "the meter gave no idle power"}
        else:
            row["energy_above_idle_j_per_token"] = (energy.energy_j - energy.idle_power_w * energy.window_s) / tokens
        for column, bound_j in (("low", energy.energy_low_j), ("high", energy.energy_high_j)):
            if bound_j is None:
                gaps[f"energy_{column}_j_per_token"] = "the meter gave no interval"
            else:
                row[f"energy_{column}_j_per_token"] = bound_j / tokens
    else:
        gaps |= {"energy_j_per_token": "no token passed in the meter's window"}
    return row


def _ranked(record: CaseRecord, fastest: str, sides: Mapping[tuple[str, str, str], Comparison]) -> dict[str, Any]:
    side = sides.get((record.case.workload.id, record.case.label, fastest))
    if side is None:
        return {"fastest_impl": fastest}
    return {
        "fastest_impl": fastest,
        "ratio": side.ratio.value,
        "ratio_low": side.ratio.low,
        "ratio_high": side.ratio.high,
        "verdict": side.verdict.value,
    }
