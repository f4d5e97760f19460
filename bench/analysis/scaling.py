"""Fitted scaling exponents: the slope of latency or memory against one axis of the sweep, on logarithmic scales.

One slope is fitted in every process, to that process' own medians, and the interval is Student's t over processes: what
one process adds to all its samples alike moves the line up or down and leaves the slope. Peaks of memory do not vary
between processes, so their slopes have no interval. A slope says how the cost grows over the values that were measured;
beside it stands the slope between the two largest, because theories of growth (:mod:`bench.analysis.theory`) are about
the far end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.interval import Estimate
from bench.analysis.model import Exponent
from bench.analysis.statistics import ERROR_RATE, Floats, Rounds, Spread, latency_by_replicate
from bench.analysis.theory import theory
from bench.cases import LATER_FIELDS

AXES = ("num_tokens", "num_experts", "top_k", "capacity_factor", "d_model", "d_ff", "threads")
MIN_POINTS = 3
"""Two points give a slope whatever the cost's shape is; three can at least disagree."""
WORKLOAD_FIELDS = (
    *AXES, "activation", "router", "norm_topk_prob", "num_shared_experts", "router_bias", "expert_bias", "routing",
    "dtype", "device", "direction", "cache", "seed", *LATER_FIELDS,
)  # fmt: skip


def fit_exponents(frame: pd.DataFrame, samples: Iterable[Sequence[Rounds]]) -> list[Exponent]:
    """Every exponent that a run can show.

    Args:
        frame: the table of the run.
        samples: its processes, those of one workload together.
    """
    ok = frame[frame["latency_s"].notna()]
    varying = [name for name in WORKLOAD_FIELDS if ok[name].nunique() > 1]
    axes = [axis for axis in AXES if axis in varying and ok[axis].nunique() >= MIN_POINTS]
    if not axes:
        return []
    units = {case: units for group in samples for case, units in latency_by_replicate(group).items()}
    return [exponent for axis in axes for exponent in _along(axis, ok, varying, units)]


def _along(
    axis: str, ok: pd.DataFrame, varying: Sequence[str], units: dict[str, dict[int, float]]
) -> Iterator[Exponent]:
    """The exponents along one axis: one a quantity, slice and implementation."""
    numbers = pd.to_numeric(ok[axis], errors="coerce")  # dropless has no place on a logarithmic axis
    others = [name for name in varying if name != axis]
    columns = dict.fromkeys([*others, "impl", "case_id", "peak_memory_bytes", "capacity_factor"])
    rows = ok[list(columns)].assign(_at=numbers)[numbers > 0]
    for key, found in rows.groupby([*others, "impl"], sort=True):
        if len(found) < MIN_POINTS:
            continue
        group = found.sort_values("_at")
        *values, impl = key
        fixed = dict(zip(others, values, strict=True))
        at = np.log(group["_at"].to_numpy(dtype=float))
        peaks = group["peak_memory_bytes"].to_numpy(dtype=float)
        own = [units.get(case, {}) for case in group["case_id"]]
        replicates = sorted(set(own[0]).intersection(*own[1:]))
        latencies = np.array([[of_case[replicate] for of_case in own] for replicate in replicates])
        if len(replicates):
            yield _exponent("latency", axis, str(impl), fixed, group, at, np.log(latencies))
        if np.all(peaks > 0):
            yield _exponent("memory", axis, str(impl), fixed, group, at, np.log(peaks)[np.newaxis])


def _exponent(
    quantity: Any, axis: str, impl: str, fixed: dict[str, Any], group: pd.DataFrame, at: Floats, costs: Floats
) -> Exponent:
    """One exponent from the logarithms of the axis and, a row a process, of the cost."""
    exact = quantity == "memory"
    capacities = group["capacity_factor"]
    claimed = theory(quantity, axis, impl, dropless=bool((capacities == "none").any()))
    return Exponent(
        quantity=quantity,
        axis=axis,
        impl=impl,
        fixed=fixed,
        span=(float(np.exp(at[0])), float(np.exp(at[-1]))),
        num_points=at.size,
        fitted=_estimate(_slopes(at, costs), exact=exact),
        at_end=_estimate(_slopes(at[-2:], costs[:, -2:]), exact=exact),
        num_processes=0 if exact else len(costs),
        theory=None if claimed is None else claimed.exponent,
        why="" if claimed is None else claimed.why,
    )


def _slopes(at: Floats, costs: Floats) -> Floats:
    """Least-squares slope of every row of ``costs`` against ``at``."""
    centred = at - at.mean()
    return np.asarray(costs @ centred / (centred @ centred))


def _estimate(slopes: Floats, *, exact: bool) -> Estimate:
    """Mean slope with its t interval over processes; one process alone has an interval without ends."""
    mean = float(slopes.mean())
    half_width = 0.0 if exact else float(Spread.of([slopes]).half_width(1 - ERROR_RATE)[0])
    return Estimate(mean, mean - half_width, mean + half_width)
