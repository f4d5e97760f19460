"""How long a sweep will take, before anything is measured: for ``--dry-run`` and for nothing else.

Fixed costs and an assumed speed of the processor, in this one place. The result is a range: a run that reaches the
wanted interval early ends near the lower end, one that does not ends when its budget is spent.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.cases import Case
from bench.config import Sweep
from bench.cost import cost_of_call
from impls.registry import ENTRIES

SERVER_START_S = 1.3
QUALIFY_S = 0.4
CEILINGS_AND_CONTROL_S = 5.0
CALL_OVERHEAD_S = 200e-6
# rates well below what good kernels reach, because most implementations are not good kernels
FLOPS_PER_S_PER_THREAD = 10e9
FLOPS_PER_S_CUDA = 20e12
WARMUP_ROUNDS = 3
TRUTH_CALLS = 3  # float64, expert by expert, against one call in the case's own number format


@dataclass(frozen=True, slots=True)
class EstimatedTime:
    """Seconds that a sweep takes: at least, and at most."""

    least_s: float
    most_s: float


def estimate(sweep: Sweep) -> EstimatedTime:
    """The time that a sweep will take on a machine of ordinary speed."""
    measure = sweep.measure
    possible = [case for case in sweep.cases if case.workload.layer.impossible is None]
    calls_s = [call_s(case) for case in possible]
    rounds = measure.processes * (measure.min_rounds + WARMUP_ROUNDS)
    least_s = (
        CEILINGS_AND_CONTROL_S
        + measure.processes * SERVER_START_S
        + len(possible) * QUALIFY_S
        + sum(calls_s) * (TRUTH_CALLS + rounds)
    )
    return EstimatedTime(min(least_s, measure.budget_s), measure.budget_s)


def call_s(case: Case) -> float:
    """Assumed seconds of one call, from its analytic operations with balanced experts."""
    workload, spec = case.workload, case.workload.layer
    entry = ENTRIES.get(case.impl)
    assignments = workload.num_tokens * spec.top_k
    loads_E = [(assignments + expert) // spec.num_experts for expert in range(spec.num_experts)]
    cost = cost_of_call(workload, entry.semantics if entry else "moe", loads_E)
    rate = FLOPS_PER_S_CUDA if workload.device == "cuda" else FLOPS_PER_S_PER_THREAD * workload.threads
    return CALL_OVERHEAD_S + cost.flops / rate
