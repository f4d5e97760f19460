"""How much two runs of the same code differ on one machine, when one is made after the other.

A machine drifts: clocks, neighbours, where memory happens to lie. All processes of a run share that, so no number of
them averages it out, and a test over the processes of two runs (Welch's) calls identical code different in 33 % of the
recorded cases (``tests/data/noise``). What has to be known is the standard deviation of a run's own mean, from run to
run. It comes from, in this order:

1. **earlier runs of the machine**: runs of the same commit in the same environment, case by case; and the base arm of
   the self-test, which is the same work in every run, whatever code is measured. The larger of the two counts. Cases
   of one run drift together, so the degrees of freedom are those of the runs, however many cases there are.
2. **the recorded noise**, where fewer than :data:`MIN_FREEDOM` degrees of freedom are known: blocks of twelve processes
   on a shared two-core virtual machine had a standard deviation of 24 % over three minutes, 13 % between neighbours.
   :data:`DEFAULT_DEVIATION` calls 0.0 % of neighbouring and 4.6 % of all pairs of those blocks different.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.analysis.comparisons import MIN_PROCESSES
from bench.analysis.statistics import latency_units
from bench.comparing.likeness import environment_differences
from bench.errors import ResultsError
from bench.store.log import find_runs, read_run
from bench.store.schema import AnyRecord, CaseRecord, ControlRecord, RunInfo, SamplesRecord, Status
from bench.units import percent

DEFAULT_DEVIATION = 0.20
DEFAULT_FREEDOM = 8.0
MIN_FREEDOM = 3
MAX_RUNS = 30
# The self-test takes a smaller piece of work on a crowded machine, at least eight times smaller: other work.
SAME_WORK = math.log(3)


@dataclass(frozen=True, slots=True)
class Spread:
    """The standard deviation of a run's mean log latency, from run to run.

    Attributes:
        deviation: as a natural logarithm, so 0.02 is about 2 %.
        freedom: degrees of freedom of that.
        sentence: where it comes from, for a person.
    """

    deviation: float
    freedom: float
    sentence: str


DEFAULT = Spread(DEFAULT_DEVIATION, DEFAULT_FREEDOM, "")


@dataclass(frozen=True, slots=True)
class PastRun:
    """What one run says about the spread.

    Attributes:
        info: whose it is.
        code: what tells one version of the code from another; empty where that is not known.
        cases: mean log latency by case id, of this project's own implementations.
        control: mean log latency of the self-test's base arm, and what tells its work from another's; None where it
            was not run.
    """

    info: RunInfo
    code: str
    cases: Mapping[str, float]
    control: tuple[float, tuple[object, ...]] | None


def past_run(info: RunInfo, records: Sequence[AnyRecord]) -> PastRun:
    """The means of a run."""
    last = {record.case_id: record for record in records if isinstance(record, CaseRecord)}
    # the commit says nothing of a file outside of it
    own = [key for key, record in last.items() if record.status is Status.OK and ".py" not in record.case.impl]
    samples = [record for record in records if isinstance(record, SamplesRecord)]
    cases = {
        case_id: float(np.log(units).mean())
        for case_id, units in latency_units(samples, allowed=own).items()
        if units.size >= MIN_PROCESSES
    }
    controls = [record for record in records if isinstance(record, ControlRecord)]
    base = latency_units(controls, allowed=["base"]).get("base")
    control = None
    if base is not None and base.size >= MIN_PROCESSES:
        first = controls[0]
        work = (first.planted_slowdown, first.device, _threads(info) if first.threads is None else first.threads)
        control = (float(np.log(base).mean()), work)
    return PastRun(info, _code(info), cases, control)


def read_past_runs(folders: Iterable[Path], like: RunInfo, *, but: Iterable[str] = ()) -> list[PastRun]:
    """The latest runs under ``folders`` that were made on the same machine in a like environment.

    Runs that cannot be read do not count: there are others, or the default.
    """
    found = {run.folder.resolve(): run for folder in folders for run in find_runs(folder)}
    wanted = {}
    for run in sorted(found.values(), key=lambda run: run.info.created_unix_s if run.info else 0.0, reverse=True):
        if run.info is None or run.info.run_id in wanted or run.info.run_id in but:
            continue
        if run.info.machine == like.machine and not environment_differences(run.info, like)[0]:
            wanted[run.info.run_id] = run.folder
    runs = []
    for folder in list(wanted.values())[:MAX_RUNS]:
        try:
            info, records, _ = read_run(folder)
        except ResultsError:
            continue  # its log is gone or unreadable; `moebench show` says so when it is asked for that run
        runs.append(past_run(info, records))
    return runs


def known_spread(base: PastRun, new: PastRun, others: Sequence[PastRun]) -> Spread:
    """The spread for comparing ``base`` with ``new``.

    The cases of the two themselves do not count, they are what is asked about; their self-tests do.
    """
    estimates = [_of_cases(others), _of_control([base, new, *others], new)]
    enough = [estimate for estimate in estimates if estimate.freedom >= MIN_FREEDOM]
    if enough:
        return max(enough, key=lambda estimate: estimate.deviation)
    deviation = max(DEFAULT_DEVIATION, *(estimate.deviation for estimate in estimates))
    return Spread(
        deviation,
        DEFAULT_FREEDOM,
        f"The run-to-run spread of this machine is not known from earlier runs, so {percent(deviation)} is assumed, as "
        f"recorded on a busy virtual machine; {MIN_FREEDOM + 1} runs of one commit in the results folder would say it",
    )


def _of_cases(runs: Sequence[PastRun]) -> Spread:
    """Pooled over the cases that runs of the same code share."""
    means: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        if run.code:
            for case_id, mean in run.cases.items():
                means[run.code, case_id].append(mean)
    groups = {key: np.array(values) for key, values in means.items() if len(values) > 1}
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups.values())
    count = sum(values.size - 1 for values in groups.values())
    most: defaultdict[str, int] = defaultdict(int)
    for (code, _), values in groups.items():
        most[code] = max(most[code], values.size - 1)
    deviation = math.sqrt(squares / count) if count else 0.0
    num_runs = sum(most.values()) + len(most)
    return Spread(
        deviation,
        float(sum(most.values())),
        f"Runs of this machine with the same code differ by {percent(deviation)} (standard deviation, from {num_runs} "
        f"earlier runs and {len(groups)} case{'s' * (len(groups) != 1)})",
    )


def _of_control(runs: Sequence[PastRun], like: PastRun) -> Spread:
    """Of the self-test's base arm, over all runs that gave it the same work."""
    values = [
        run.control[0]
        for run in runs
        if run.control is not None
        and like.control is not None
        and run.control[1] == like.control[1]
        and abs(run.control[0] - like.control[0]) < SAME_WORK
    ]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Spread(
        deviation,
        float(max(0, len(values) - 1)),
        f"The same work, the self-test's, differs by {percent(deviation)} from run to run on this machine (standard "
        f"deviation, from {len(values)} runs)",
    )


def _threads(info: RunInfo) -> object:
    workload = info.config.get("workload")
    return workload.get("threads") if isinstance(workload, Mapping) else None


def _code(info: RunInfo) -> str:
    if info.git_commit is not None:
        return "" if info.git_commit.endswith("-dirty") else f"{info.git_commit} {info.environment_hash}"
    packages = info.environment.get("packages")
    version = packages.get("moebench") if isinstance(packages, Mapping) else None
    return f"{version} {info.environment_hash}" if version else ""
