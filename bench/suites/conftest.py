"""Options, cases and fixtures of the suites, and what the JSON file carries beside pytest-benchmark's own fields.

The options are the axes of a sweep (:mod:`bench.config`): a list is an axis, the suite is their product.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench import environment
from bench.config import Sweep, parse_sweep
from bench.errors import RequestError
from bench.overrides import parse_value
from bench.runner.schedule import truth_max_flops
from bench.runner.scratch import Scratch
from bench.runner.sweep import new_run_id
from bench.store.pytest_benchmark import KEY, SOURCE, SuiteInfo
from bench.store.schema import RunInfo
from bench.suites.workbench import Workbench, case_label

# One of every kind; with all of them a session would take more than a minute and a half on two cores.
IMPLS = ["dense", "loop", "scatter_gather", "einsum", "grouped", "ensemble"]
DOCUMENT: dict[str, Any] = {
    "layer": {
        "d_model": 64,
        "d_ff": 128,
        "num_experts": [8, 32],
        "top_k": [1, 2],
        "capacity_factor": ["none", 1.25],
    },
    # Warm, because pytest-benchmark flushes nothing. One thread, because several wait for each other at every operator
    # of such small layers, and on a busy machine they wait for milliseconds.
    "workload": {"impls": IMPLS, "num_tokens": 256, "cache": "warm", "threads": 1},
}
OPTIONS = {
    "--moe-impl": ("workload.impls", "grouped,loop", "implementations, or path/to/file.py:ClassName"),
    "--moe-experts": ("layer.num_experts", "8,64", "routed experts"),
    "--moe-top-k": ("layer.top_k", "1,2", "experts that every token is sent to"),
    "--moe-capacity": ("layer.capacity_factor", "none,1.25", "capacity factors; none drops nothing"),
    "--moe-d-model": ("layer.d_model", "512", "width of a token"),
    "--moe-d-ff": ("layer.d_ff", "1024", "hidden width of one expert"),
    "--moe-tokens": ("workload.num_tokens", "64,512", "tokens in one call"),
    "--moe-dtype": ("workload.dtype", "fp32,bf16", "number formats"),
    "--moe-device": ("workload.device", "cpu", "cpu or cuda; without it, cuda where there is one"),
    "--moe-routing": ("workload.routing", "balanced,zipf:1.2", "forced routing; without it, the layer's own router"),
    "--moe-threads": ("workload.threads", "2", "intra-operator threads on the CPU; one without it"),
    "--moe-seed": ("workload.seed", "0", "draws weights, tokens and routing"),
}
SWEEPS = pytest.StashKey[dict[str, Sweep]]()
STARTED_S = pytest.StashKey[float]()
WORKBENCH = pytest.StashKey[Workbench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The axes of the sweep."""
    group = parser.getgroup("moebench", "moebench: the cases to measure; a list is an axis")
    for option, (_, example, text) in OPTIONS.items():
        group.addoption(option, metavar=example, help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is collected, all faults at once."""
    given = {key: config.getoption(option, None) for option, (key, _, _) in OPTIONS.items()}
    overrides = {key: parse_value(text) for key, text in given.items() if text is not None}
    config.stash[STARTED_S] = time.time()
    try:
        config.stash[SWEEPS] = {
            direction: parse_sweep(
                DOCUMENT, source="bench/suites", overrides=overrides | {"workload.direction": direction}
            )
            for direction in ("forward", "train")
        }
    except RequestError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case; implementations of one workload stand side by side and share its files."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.config.stash[SWEEPS][metafunc.module.DIRECTION].cases
        metafunc.parametrize("case", cases, ids=case_label)


@pytest.fixture(scope="session")
def workbench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """What checks and times the cases."""
    sweeps = request.config.stash[SWEEPS].values()
    workloads = {case.workload.id for sweep in sweeps for case in sweep.cases}
    max_flops = truth_max_flops(min(sweep.measure.budget_s for sweep in sweeps), len(workloads))
    with Scratch() as scratch:
        bench = Workbench(scratch, environment.environment_hash(environment.describe()), max_flops)
        request.config.stash[WORKBENCH] = bench
        yield bench


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Replace the host's name by the machine's kind, so that files can be shared, and say in which environment."""
    machine_info["node"] = environment.machine_key()
    machine_info["moebench_environment"] = environment.environment_hash(environment.describe())


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what makes the file a run of moebench: where it was made, and the cases that were not timed."""
    bench = config.stash.get(WORKBENCH, None)
    if bench is None:  # only other tests' benchmarks ran
        return
    described = environment.describe()
    sweep = config.stash[SWEEPS]["forward"]
    run = RunInfo(
        run_id=new_run_id("pytest"),
        machine=environment.machine_key(),
        created_unix_s=config.stash[STARTED_S],
        command=["pytest", *config.invocation_params.args],
        source=SOURCE,
        config=sweep.given,
        seed=sweep.seed,
        git_commit=environment.git_commit(),
        environment=described,
        environment_hash=environment.environment_hash(described),
    )
    output_json[KEY] = SuiteInfo(run=run, not_timed=bench.not_timed).model_dump(mode="json")
