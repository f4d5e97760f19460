"""How long a sweep will take, before anything is measured: for ``--dry-run`` and for nothing else.

A run uses its budget: it plans the first look at its intervals near the end, and goes on to the end where some are
still too wide (:mod:`bench.runner.schedule`). So the time follows from the budget and from what checking takes. What
must be assumed is whether the budget is enough; the speeds for that are in this one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.cases import Case, Workload
from bench.config import Sweep
from bench.cost import ELEMENT_BYTES, Cost, cost_of_call
from bench.runner.schedule import (
    COMPILED_CASE_GUESS_S,
    FIRST_LOOK_SHARE,
    MIN_CONTROL_S,
    ROUNDS_OVERHEAD,
    TRUTH_FLOPS_PER_S,
    truth_max_flops,
)
from impls.registry import ENTRIES

BEFORE_AND_AFTER_S = 3.0
"""Loading, the first server, the summary: not charged to the budget, or not by much."""
SERVER_START_S = 1.6
CEILINGS_S = 3.0
QUALIFY_S = 0.2
QUALIFY_CALLS = 8
COMPILE_S = 14.0
"""Of one case at its check, forward: explaining, compiling, and compiling again for other numbers of tokens.

As seen on a two-core EPYC virtual machine: 11 to 18 s for layers that are one graph.
"""
PIECES = {"loop": 2.4, "einsum": 1.6, "scatter_gather": 1.4}
"""So much longer where the graph is broken: it is compiled in pieces, and again for other tokens."""
BACKWARD = 2.0
"""So much longer with a backward."""
TUNING = {"default": 1.0, "max-autotune": 1.5}
PROFILE_S = 4.0
"""Of one case's profile, beside its calls."""
CHECK_S = 18.0
"""Of pulling levers at one case in six processes or more, beside the calls; with them 42 s, the mean of thirty."""
CALLS_UNDER_A_PROFILER = 40
CALLS_WITH_LEVERS = 170
JOB_S = 0.05
CASE_IN_JOB_S = 0.025
DRAW_S_PER_WEIGHT = 14e-9
COMPARE_BYTES_PER_S = 4e9
"""Every process compares the weights with what was stored, once a case."""
CALL_OVERHEAD_S = 100e-6
EXPERT_OVERHEAD_S = 20e-6
# rates well below what good kernels reach, because most implementations are not good kernels
FLOPS_PER_S_PER_THREAD = 60e9
HALF_SPEEDUP = 2.0
"""Of 16-bit formats over float32: several where the processor has matrix units, one where it has not."""
FLOPS_PER_S_CUDA = 20e12
BYTES_PER_S = 10e9
BYTES_PER_S_CUDA = 1e12
PADDED = frozenset({"scatter_gather", "einsum"})
PADDING = 1.5
"""Slots of a buffer sized to the fullest expert, over the assignments that fill it, with an untrained router."""


@dataclass(frozen=True, slots=True)
class EstimatedTime:
    """Seconds that a sweep takes: at least, at most, what timing every row needs, and what of that is compiling.

    ``after_s`` is for profiles and checks of limits, which come after it and are no part of the budget.
    """

    least_s: float
    most_s: float
    needed_s: float
    compile_s: float = 0.0
    after_s: float = 0.0


def estimate(sweep: Sweep) -> EstimatedTime:
    """The time that a sweep will take on a machine of ordinary speed."""
    measure = sweep.measure
    workloads: dict[Workload, list[Case]] = {}
    for case in sweep.cases:
        if case.workload.layer.impossible is None:
            workloads.setdefault(case.workload, []).append(case)
    max_flops = truth_max_flops(measure.budget_s, len(workloads))
    check_s = SERVER_START_S + CEILINGS_S + sum(_check_s(w, cases, max_flops) for w, cases in workloads.items())
    process_s = SERVER_START_S + MIN_CONTROL_S
    process_s += sum(_job_s(cases, measure.min_rounds, isolate=measure.isolate) for cases in workloads.values())
    needed_s = check_s + measure.processes * process_s
    budget_s = measure.budget_s
    first_look_s = min(check_s, budget_s) + FIRST_LOOK_SHARE * max(0.0, budget_s - check_s)
    least_s = budget_s if needed_s > budget_s else first_look_s
    compiled = [case for cases in workloads.values() for case in cases if case.compile != "none"]
    compiling_s = sum(compile_s(case) + measure.processes * COMPILED_CASE_GUESS_S for case in compiled)
    return EstimatedTime(
        least_s + BEFORE_AND_AFTER_S,
        budget_s + BEFORE_AND_AFTER_S,
        needed_s + BEFORE_AND_AFTER_S,
        compiling_s,
        sum(_after_s(sweep, case) for cases in workloads.values() for case in cases),
    )


def _after_s(sweep: Sweep, case: Case) -> float:
    """Profiling a case, and pulling levers at it."""
    if not sweep.measure.profile:
        return 0.0
    profile_s = PROFILE_S + compile_s(case) + CALLS_UNDER_A_PROFILER * call_s(case)
    checked = sweep.measure.check_limits and case.compile == "none"
    return profile_s + (CHECK_S + CALLS_WITH_LEVERS * call_s(case) if checked else 0.0)


def _check_s(workload: Workload, cases: Iterable[Case], max_flops: float) -> float:
    """Making a workload's tensors and truths, and checking its cases."""
    moe = _cost(workload, "moe")
    num_weights = moe.weight_bytes / ELEMENT_BYTES[workload.dtype]
    semantics = {_semantics(case) for case in cases}
    truths_s = sum(min(_cost(workload, name).flops, max_flops) / TRUTH_FLOPS_PER_S for name in semantics)
    checks_s = sum(
        QUALIFY_S + compile_s(case) + 2 * moe.weight_bytes / COMPARE_BYTES_PER_S + QUALIFY_CALLS * call_s(case)
        for case in cases
    )
    return DRAW_S_PER_WEIGHT * num_weights + truths_s + checks_s


def _job_s(cases: Sequence[Case], min_rounds: int, *, isolate: bool) -> float:
    """Timing the cases of one workload in one process, or one each, with as few rounds as may be."""
    return JOB_S * (len(cases) if isolate else 1) + sum(
        CASE_IN_JOB_S
        + (COMPILED_CASE_GUESS_S if case.compile != "none" else 0.0)
        + _cost(case.workload, "moe").weight_bytes / COMPARE_BYTES_PER_S
        + ROUNDS_OVERHEAD * min_rounds * call_s(case)
        for case in cases
    )


def compile_s(case: Case) -> float:
    """Assumed seconds of compiling a case where no kernels were made before; 0 where it is not compiled."""
    if case.compile == "none":
        return 0.0
    backward = BACKWARD if case.workload.direction == "train" else 1.0
    return COMPILE_S * PIECES.get(case.impl, 1.0) * backward * TUNING[case.compile]


def call_s(case: Case) -> float:
    """Assumed seconds of one call, from its analytic work with balanced experts."""
    workload, spec = case.workload, case.workload.layer
    cost = _cost(workload, _semantics(case))
    flops, moved_bytes = float(cost.flops), float(cost.moved_bytes)
    if case.impl in PADDED:
        slots = PADDING * max(spec.num_experts, workload.num_tokens * spec.top_k)
        flops += slots * 6 * spec.d_model * spec.d_ff
        moved_bytes += cost.weight_bytes
        if case.impl == "einsum":
            flops += 4 * workload.num_tokens * slots * spec.d_model
    cuda = workload.device == "cuda"
    rate = FLOPS_PER_S_CUDA if cuda else FLOPS_PER_S_PER_THREAD * workload.threads
    if workload.dtype != "float32":
        rate *= HALF_SPEEDUP
    bandwidth = BYTES_PER_S_CUDA if cuda else BYTES_PER_S
    touched = min(spec.num_experts, workload.num_tokens * spec.top_k)
    return CALL_OVERHEAD_S + touched * EXPERT_OVERHEAD_S + flops / rate + moved_bytes / bandwidth


def _semantics(case: Case) -> str:
    entry = ENTRIES.get(case.impl)
    return entry.semantics if entry else "moe"


def _cost(workload: Workload, semantics: str) -> Cost:
    """The cost of a call whose experts share the assignments evenly."""
    spec = workload.layer
    assignments = workload.num_tokens * spec.top_k
    loads_E = [(assignments + expert) // spec.num_experts for expert in range(spec.num_experts)]
    return cost_of_call(workload, semantics, loads_E)
