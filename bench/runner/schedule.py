"""How a run divides its time: plain arithmetic on seconds, so that it can be tested without a clock.

The budget is for the whole run. What is left after qualification goes to replicates; the first look at the intervals
comes after ``processes`` of them and is planned at :data:`FIRST_LOOK_SHARE` of that time. The rest is for workloads
whose intervals are still too wide then, in blocks of half as many replicates, each as long as those before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FIRST_LOOK_SHARE = 0.85
MAX_REPLICATES_FACTOR = 3
# A machine that others use can slow a job a hundred times: more processes say more than the rounds that one lacks.
OVERRUN = 2.0
MIN_OVERRUN_S = 1.0
# The control must find its planted slowdown or no verdict is given, so it may not be the least precise of all.
CONTROL_SHARE = 0.08
MIN_CONTROL_S = 0.4
CEILING_SHARE = 0.02
MAX_CEILING_S = 2.0
NUM_CEILING_REPLICATES = 3
TRUTH_SHARE = 0.1
# A low estimate of one core's float64 rate: a truth that takes less time than planned harms nobody.
TRUTH_FLOPS_PER_S = 4e9
# Warm-up takes up to a quarter of a job's time, and inner loops are chosen before it.
ROUNDS_OVERHEAD = 1.5
START_GUESS_S = 1.5
JOB_OVERHEAD_GUESS_S = 0.15
# Every process traces a compiled layer anew, though it finds the kernels made: so long a case, as seen on two cores.
COMPILED_CASE_GUESS_S = 1.0
# How much longer than usual a worker may say nothing while a compiler works.
COMPILE_PATIENCE_S = {"none": 0.0, "default": 180.0, "max-autotune": 600.0}
SMOOTHING = 0.5


def looks(processes: int) -> list[int]:
    """Numbers of replicates after which the intervals are looked at; the last one ends the run at the latest."""
    block = max(1, processes // 2)
    return list(range(processes, MAX_REPLICATES_FACTOR * processes + 1, block))


@dataclass
class Overheads:
    """What is not sampling, as seen so far in this run: running means of seconds.

    Attributes:
        start_s: one start of a fork server.
        job_s: by workload: of timing it in one replicate, beyond the time it was given.
        guess_s: the same of a workload that was not seen yet.
    """

    start_s: float = START_GUESS_S
    job_s: dict[str, float] = field(default_factory=dict)
    guess_s: float = JOB_OVERHEAD_GUESS_S

    def saw_start(self, wall_s: float) -> None:
        """Learn from one start."""
        self.start_s += SMOOTHING * (wall_s - self.start_s)

    def saw_job(self, key: str, wall_s: float, time_budget_s: float) -> None:
        """Learn from one job."""
        before = self.job(key)
        self.job_s[key] = max(0.0, before + SMOOTHING * (wall_s - time_budget_s - before))

    def job(self, key: str) -> float:
        """Expected overhead of one job."""
        return self.job_s.get(key, self.guess_s)


def shares(
    time_s: float, num_replicates: int, round_s: Mapping[str, float], min_rounds: int, overheads: Overheads
) -> dict[str, float]:
    """Seconds of sampling for every workload in the next replicate.

    Every workload gets the time of its ``min_rounds``; what is left over is divided in proportion to the square root
    of a round's time, so that long rounds get more time and short ones more rounds. Where there is too little time for
    all ``min_rounds``, everything is divided so: one round that seemed long for a moment cannot take it all.

    Args:
        time_s: time left for all remaining replicates.
        num_replicates: how many those are.
        round_s: rough time of one round of each workload.
        min_rounds: rounds in one process, at least.
        overheads: what else a replicate costs.
    """
    fixed_s = overheads.start_s + sum(overheads.job(key) for key in round_s)
    sampling_s = max(0.0, (time_s / num_replicates - fixed_s) * (1 - CONTROL_SHARE))
    return divide(sampling_s, round_s, min_rounds)


def divide(sampling_s: float, round_s: Mapping[str, float], min_rounds: int) -> dict[str, float]:
    """Seconds of sampling for every key, as :func:`shares` describes it.

    Args:
        sampling_s: what there is to divide.
        round_s: rough time of one round of each.
        min_rounds: rounds, at least.
    """
    need_s = {key: ROUNDS_OVERHEAD * min_rounds * seconds for key, seconds in round_s.items()}
    spare_s = sampling_s - sum(need_s.values())
    if spare_s < 0:
        need_s, spare_s = dict.fromkeys(round_s, 0.0), sampling_s
    total_weight = sum(seconds**0.5 for seconds in round_s.values())
    return {key: need_s[key] + spare_s * seconds**0.5 / total_weight for key, seconds in round_s.items()}


def least_s(round_s: Iterable[float], processes: int, min_rounds: int, overheads: Overheads) -> float:
    """Seconds that it takes to time workloads in as many processes as a verdict needs, control included."""
    from bench.analysis.comparisons import MIN_PROCESSES  # only here: --dry-run plans without loading scipy and pandas

    workloads_s = sum(overheads.guess_s + ROUNDS_OVERHEAD * min_rounds * seconds for seconds in round_s)
    return min(processes, MIN_PROCESSES) * (overheads.start_s + MIN_CONTROL_S + workloads_s)


def overrun_s(share_s: float) -> float:
    """Seconds that a job may take beyond its share to make its least rounds."""
    return max(MIN_OVERRUN_S, OVERRUN * share_s)


def control_share(sampling_s: float) -> float:
    """Seconds of the control, beside a replicate's ``sampling_s``."""
    return max(MIN_CONTROL_S, CONTROL_SHARE * sampling_s)


def ceiling_share(budget_s: float, num_ceilings: int) -> float:
    """Seconds for one measurement of one ceiling, so that all of them stay a small part of the budget."""
    return min(MAX_CEILING_S, CEILING_SHARE * budget_s / max(1, num_ceilings))


def truth_max_flops(budget_s: float, num_workloads: int) -> float:
    """Operations that the truth of one workload may take, so that all of them stay a bounded part of the budget."""
    return TRUTH_SHARE * budget_s / max(1, num_workloads) * TRUTH_FLOPS_PER_S
