"""The targets on this machine, for real: bounded, and only with ``tox run -e live``.

What depends on the neighbours of the moment is printed for information; what has to hold on any machine that passes its
own self-test is asserted.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from bench.analysis import load
from bench.analysis.statistics import ERROR_RATE, Spread, paired_units
from bench.cli import main
from bench.environment import usable_cores
from bench.measure.latency import sample_rounds
from bench.measure.opening import open_device
from bench.runner.interrupt import Interrupt
from bench.runner.progress import Silent
from bench.runner.protocol import ControlJob
from bench.runner.servers import ForkServer
from bench.selftest import run_self_test
from bench.store.schema import ControlRecord

pytestmark = pytest.mark.live
SPIN_S = 2e-3
FALSE_POSITIVE_PROCESSES = 36


def spin() -> None:
    """Take :data:`SPIN_S`, by the clock that measures it too."""
    end_s = time.perf_counter() + SPIN_S
    while time.perf_counter() < end_s:
        pass


def test_live_spin_is_measured_within_a_microsecond_or_half_a_percent(capsys: pytest.CaptureFixture[str]) -> None:
    arm = sample_rounds(
        {"spin": spin},
        open_device("cpu", 1),
        order_seed=0,
        time_budget_s=5.0,
        min_rounds=100,
        max_rounds=2000,
        announce=lambda _arm, _what: None,
    )["spin"]
    error_s = statistics.median(arm.latency_s) - SPIN_S
    with capsys.disabled():
        print(
            f"\nspin for {SPIN_S * 1e3:g} ms: median off by {error_s * 1e6:+.2f} µs over {len(arm.latency_s)} samples"
        )
    assert abs(error_s) <= max(1e-6, 0.005 * SPIN_S)


def test_live_planted_slowdown_of_two_percent_is_found_within_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_self_test(
        "cpu", usable_cores(), budget_s=55.0, planted_slowdown=0.02, progress=Silent(), seed=time.time_ns()
    )
    with capsys.disabled():
        print(f"\n{found.num_processes} processes in {found.wall_s:.0f} s: {found.control.sentence}")
    assert found.wall_s <= 60
    assert found.control.slowed is not None
    assert found.control.slowed.low > 1


def test_live_planted_slowdown_of_one_percent_in_twenty_processes_for_information(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run_self_test(
        "cpu",
        usable_cores(),
        budget_s=90.0,
        planted_slowdown=0.01,
        processes=20,
        progress=Silent(),
        seed=time.time_ns(),
    )
    with capsys.disabled():
        print(f"\n{found.num_processes} processes in {found.wall_s:.0f} s: {found.control.sentence}")
    assert found.num_processes == 20
    assert found.control.slowed is not None
    assert found.control.slowed.high > 1


def test_live_false_positives_for_information(capsys: pytest.CaptureFixture[str]) -> None:
    """Draws of 12 from fresh processes that timed identical twins, arms swapped at random."""
    records = []
    with Interrupt() as interrupt:
        for replicate in range(FALSE_POSITIVE_PROCESSES):
            job = ControlJob(
                device="cpu", threads=1, planted_slowdown=0.05, order_seed=replicate, time_budget_s=0.4
            )  # fmt: skip
            with ForkServer(interrupt) as server:
                answer = server.execute(job, 60.0)
            assert answer.arms is not None, answer.reason
            records.append(
                ControlRecord(
                    environment_hash="",
                    unix_time_s=0.0,
                    replicate=replicate,
                    arms=answer.arms,
                    planted_slowdown=0.05,
                    wall_s=0.0,
                )
            )
    units = paired_units(records)["base", "twin"]
    rng = np.random.default_rng(0)
    draws = [rng.permutation(units)[:12] * rng.choice([-1.0, 1.0], 12) for _ in range(2000)]
    spread = Spread.of(draws)
    share = (np.abs(spread.mean) > spread.half_width(1 - ERROR_RATE)).mean()
    with capsys.disabled():
        print(
            f"\nidentical code in {len(units)} processes: spread {100 * units.std(ddof=1):.2f} %, mean "
            f"{100 * units.mean():+.2f} %; 12 of them, arms swapped, called different in {100 * share:.1f} % of draws"
        )
    assert len(units) == FALSE_POSITIVE_PROCESSES


def test_live_overhead_of_a_small_sweep_for_information(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "smoke", "--device", "cpu", "--budget", "60s", "--quiet", "--results", str(tmp_path)]
    assert main(command) == 0
    analysis = load(Path(capsys.readouterr().out.splitlines()[-1]))
    with capsys.disabled():
        print(f"\nsmoke, 60 s: {100 * (analysis.in_samples_fraction or 0):.0f} % of the wall time inside samples")
        print(analysis.control.sentence)
    assert analysis.in_samples_fraction is not None
    assert analysis.in_samples_fraction > 0
