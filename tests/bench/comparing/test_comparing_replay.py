"""Identical code, one run after the other, as it was recorded: how often a comparison of two runs is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from comparing_maker import info, recorded, workload
from numpy.typing import NDArray

from bench.analysis.model import Verdict
from bench.comparing.deciding import decide
from bench.comparing.spread import DEFAULT, PastRun, Spread, known_spread
from bench.comparing.two_runs import _effects

LOGS = recorded()
PROCESSES = 12


def blocks(offset: int) -> list[NDArray[np.float64]]:
    return [LOGS[at : at + PROCESSES] for at in range(offset, LOGS.size - PROCESSES + 1, PROCESSES)]


def is_verdict(base: NDArray[np.float64], new: NDArray[np.float64], spread: Spread) -> bool:
    (decision,) = decide(_effects([(base, new)], spread))
    return decision.verdict is not Verdict.INCONCLUSIVE


def past(number: int, block: NDArray[np.float64], *, commit: str = "c") -> PastRun:
    return PastRun(info(f"r{number}"), commit, {"case": float(block.mean())}, None)


def neighbours(spread: Spread) -> float:
    found = [is_verdict(b, n, spread) for o in range(PROCESSES) for b, n in zip(blocks(o), blocks(o)[1:], strict=False)]
    return float(np.mean(found))


def test_the_processes_alone_call_identical_code_different_every_third_time() -> None:
    assert 0.25 <= neighbours(Spread(0.0, DEFAULT.freedom, "")) <= 0.40


def test_what_is_assumed_of_an_unknown_machine_is_wrong_at_most_five_times_in_a_hundred() -> None:
    assert neighbours(DEFAULT) <= 0.05


def test_any_two_blocks_are_called_different_at_most_seven_times_in_a_hundred() -> None:
    all_blocks = blocks(0)
    pairs = [(b, n) for i, b in enumerate(all_blocks) for n in all_blocks[i + 1 :]]
    assert np.mean([is_verdict(b, n, DEFAULT) for b, n in pairs]) <= 0.07


@pytest.mark.parametrize("num_earlier", [4, 6, 8])
def test_what_earlier_runs_say_keeps_false_verdicts_rare(num_earlier: int) -> None:
    found = []
    for offset in range(PROCESSES):
        runs = blocks(offset)
        for at in range(num_earlier, len(runs) - 1):
            earlier = [past(number, block) for number, block in enumerate(runs[at - num_earlier : at])]
            spread = known_spread(past(90, runs[at]), past(91, runs[at + 1]), earlier)
            assert spread.freedom == num_earlier - 1
            found.append(is_verdict(runs[at], runs[at + 1], spread))
    assert np.mean(found) <= 0.05


def test_cases_that_drift_together_are_corrected_over() -> None:
    rng = np.random.default_rng(1)
    alarms = []
    for number in range(40):
        base, new = blocks(0)[number : number + 2]
        units = [(base + rng.normal(0, 0.01, 12), new + rng.normal(0, 0.01, 12)) for _ in range(20)]
        decisions = decide(_effects(units, DEFAULT))
        alarms.append(any(decision.verdict is not Verdict.INCONCLUSIVE for decision in decisions))
    assert np.mean(alarms) <= 0.05


def test_a_doubling_is_found_even_where_nothing_is_known() -> None:
    found = []
    for base, new in zip(blocks(0), blocks(0)[1:], strict=False):
        (decision,) = decide(_effects([(base, new + np.log(3))], DEFAULT))
        found.append(decision.verdict is Verdict.SLOWER)
    assert np.mean(found) >= 0.95


def test_a_quiet_machine_shows_small_differences() -> None:
    rng = np.random.default_rng(2)
    means = rng.normal(0, 0.004, 10)
    runs = [mean + rng.normal(0, 0.003, 12) for mean in means]
    spread = known_spread(past(90, runs[8]), past(91, runs[9]), [past(n, block) for n, block in enumerate(runs[:8])])
    assert spread.deviation < 0.01
    assert is_verdict(runs[8], runs[9] + 0.05, spread)
    assert not is_verdict(runs[8], runs[9], spread)


def test_runs_of_other_code_say_nothing_about_the_spread() -> None:
    earlier = [past(number, block, commit=f"c{number}") for number, block in enumerate(blocks(0)[:6])]
    spread = known_spread(past(90, LOGS[:12]), past(91, LOGS[12:24]), earlier)
    assert spread.deviation == DEFAULT.deviation
    assert "not known from earlier runs" in spread.sentence


def test_the_control_counts_whatever_code_was_measured() -> None:
    rng = np.random.default_rng(3)
    work = (0.05, "cpu", 1)
    runs = [PastRun(info(f"r{n}"), f"c{n}", {}, (float(v), work)) for n, v in enumerate(rng.normal(0, 0.03, 6))]
    spread = known_spread(runs[0], runs[1], runs[2:])
    assert spread.freedom == 5
    assert 0.01 < spread.deviation < 0.06
    other = PastRun(info("other"), "x", {}, (-5.0, work))  # the smaller block of a crowded machine
    assert known_spread(runs[0], runs[1], [*runs[2:], other]) == spread


def test_the_larger_of_two_known_spreads_counts() -> None:
    work = (0.05, "cpu", 1)
    runs = [
        PastRun(info(f"r{n}"), "c", {workload().id: 0.1 * n}, (0.001 * n, work)) for n in range(5)
    ]  # fmt: skip
    assert known_spread(runs[0], runs[1], [*runs[2:], *runs[:2]]).deviation > 0.1
