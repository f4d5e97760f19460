"""Sweeps over ``fake_jobs``, and a command line that runs one: ``python fake_sweep.py RESULTS RESUME IMPL,IMPL``."""

import sys
from pathlib import Path

from bench.cases import Case, Workload
from bench.config import Measure, Sweep
from bench.errors import MoebenchError
from bench.runner.progress import Silent
from bench.runner.sweep import run_sweep
from impls.spec import LayerSpec


def make_sweep(
    impls: list[str],
    num_workloads: int = 2,
    *,
    top_k: int = 1,
    processes: int = 3,
    budget_s: float = 600.0,
    half_width: float = 0.99,
    timeout_s: float = 60.0,
    isolate: bool = False,
) -> Sweep:
    cases = [
        Case(
            impl=impl,
            workload=Workload(layer=LayerSpec(d_model=4, d_ff=4, num_experts=2, top_k=top_k), num_tokens=1 + number),
        )
        for number in range(num_workloads)
        for impl in impls
    ]
    measure = Measure(
        budget_s=budget_s,
        processes=processes,
        half_width=half_width,
        timeout_s=timeout_s,
        min_rounds=2,
        energy_window_s=1.0,
        isolate=isolate,
    )
    return Sweep(source="fake", given={"impls": impls}, seed=7, cases=cases, measure=measure)


if __name__ == "__main__":
    results, resume, impls = sys.argv[1:]
    try:
        outcome = run_sweep(
            make_sweep(impls.split(",")),
            results=Path(results),
            command=["fake"],
            progress=Silent(),
            resume=Path(resume) if resume else None,
            jobs="fake_jobs",
        )
    except MoebenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(outcome.folder)
