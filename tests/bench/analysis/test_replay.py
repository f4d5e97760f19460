"""The targets for errors of decision: replays of recorded noise and synthetic trials whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from replays import found_share, habits_table, log_calls, power_table, recorded_deviation, threshold_sentence
from run_maker import noise_units
from scipy import stats

from bench.analysis.comparisons import more_processes, verdict_of
from bench.analysis.control import twins_differ
from bench.analysis.model import Verdict
from bench.analysis.statistics import ERROR_RATE, Spread, false_coverage_level, smallest_effect
from bench.runner import schedule
from bench.runner.schedule import looks

Units = NDArray[np.float64]
RECORDED = noise_units()


def draw(trials: int, num_processes: int, seed: int) -> Units:
    """Units of identical code, (trials, processes): processes of the record, their two arms swapped at random."""
    rng = np.random.default_rng(seed)
    chosen = rng.random((trials, RECORDED.size)).argsort(axis=1)[:, :num_processes]
    return np.asarray(RECORDED[chosen] * rng.choice([-1.0, 1.0], (trials, num_processes)))


def summarise(units: Units) -> Spread:
    count = np.full(len(units), float(units.shape[1]))
    return Spread(units.mean(axis=1), units.std(axis=1, ddof=1), count)


def excludes_one(units: Units, level: float = 1 - ERROR_RATE) -> NDArray[np.bool_]:
    spread = summarise(units)
    return np.asarray(np.abs(spread.mean) > spread.half_width(level))


@pytest.mark.parametrize("num_processes", [6, 8, 12, 20])
def test_false_positives_on_identical_code_are_at_most_seven_percent(num_processes: int) -> None:
    assert excludes_one(draw(2000, num_processes, seed=1)).mean() <= 0.07


@pytest.mark.parametrize("num_processes", [6, 12])
def test_a_sweep_of_sixty_comparisons_raises_a_false_alarm_at_most_one_time_in_twenty(num_processes: int) -> None:
    p_values = summarise(draw(2000 * 60, num_processes, seed=2)).p_values().reshape(2000, 60)
    # A false alarm is any rejection; intervals and rejections agree (see test_statistics).
    alarms = (stats.false_discovery_control(p_values, axis=1) <= ERROR_RATE).any(axis=1)
    assert alarms.mean() <= 0.05
    assert (p_values <= ERROR_RATE).any(axis=1).mean() > 0.8, "uncorrected, nearly every sweep would raise one"


def test_a_sweep_of_sixty_pairs_among_shared_arms_raises_no_more_alarms() -> None:
    # Four workloads of six implementations: each arm takes part in five pairs, so p-values depend on one another.
    arms = draw(1000 * 4 * 6, 12, seed=3).reshape(1000, 4, 6, 12)
    first, second = np.triu_indices(6, k=1)
    pairs = (arms[:, :, first] - arms[:, :, second]).reshape(1000 * 60, 12)
    p_values = summarise(pairs).p_values().reshape(1000, 60)
    assert (stats.false_discovery_control(p_values, axis=1) <= ERROR_RATE).any(axis=1).mean() <= 0.05


@pytest.mark.parametrize(("slowdown", "num_processes", "power"), [(0.02, 12, 0.95), (0.01, 20, 0.90)])
def test_a_planted_slowdown_is_found(slowdown: float, num_processes: int, power: float) -> None:
    units = draw(2000, num_processes, seed=4) + np.log1p(slowdown)
    spread = summarise(units)
    assert (spread.mean - spread.half_width(1 - ERROR_RATE) > 0).mean() >= power


def test_the_control_accuses_identical_code_less_than_once_in_a_thousand_runs() -> None:
    trials = draw(3000, 6, seed=5)
    assert sum(twins_differ(units) for units in trials) <= 3


def test_intervals_cover_the_truth_under_drift_correlation_and_nesting() -> None:
    """500 trials: each process has an effect of its own on the ratio; rounds drift and are correlated within it."""
    rng = np.random.default_rng(6)
    trials, processes, rounds = 500, 12, 40
    truth = np.log(1.03)
    drift = np.cumsum(rng.normal(0, 0.02, (trials, processes, rounds)), axis=2) + rng.normal(
        0, 0.3, (trials, processes, 1)
    )
    shared = rng.normal(0, 0.01, (trials, processes, 1))
    noise = rng.normal(0, 0.02, (2, trials, processes, rounds))
    noise[..., 1:] = 0.6 * noise[..., :-1] + 0.8 * noise[..., 1:]
    slow_calls = rng.exponential(0.3, noise.shape) * (rng.random(noise.shape) < 0.05)
    a = truth + shared + drift + noise[0] + slow_calls[0]
    b = drift + noise[1] + slow_calls[1]
    spread = summarise(np.median(a - b, axis=2))
    covered = np.abs(spread.mean - truth) <= spread.half_width(0.95)
    assert 0.93 <= covered.mean() <= 0.97


def test_corrected_intervals_of_rejected_comparisons_rarely_miss() -> None:
    """Half of sixty comparisons differ by 1 %; of the intervals of the rejected ones, at most one in twenty misses."""
    planted = np.repeat([0.0, 0.01], 30)
    missed = []
    for trial in range(200):
        spread = summarise(draw(60, 12, seed=1000 + trial) + planted[:, None])
        half_width = spread.half_width(false_coverage_level(spread.p_values()))
        rejected = np.abs(spread.mean) > half_width
        misses = np.abs(spread.mean - planted) > half_width
        missed.append((misses & rejected).sum() / max(1, rejected.sum()))
    assert np.mean(missed) <= 0.05


@pytest.mark.parametrize("half_width", [0.02, 0.006, 0.004])
def test_stopping_at_declared_looks_once_the_interval_is_narrow_keeps_false_positives_low(half_width: float) -> None:
    units = draw(10_000, 36, seed=7)
    undecided, wrong = np.ones(len(units), dtype=bool), 0
    for look in looks(12):
        spread = summarise(units[:, :look])
        width = spread.half_width(1 - ERROR_RATE)
        stops = undecided & ((width <= half_width) | (look == looks(12)[-1]))
        wrong += int((stops & (np.abs(spread.mean) > width)).sum())
        undecided &= ~stops
    assert not undecided.any()
    assert wrong / len(units) <= 0.07


def test_twelve_processes_as_long_as_the_recorded_ones_fit_into_a_minute() -> None:
    first, second = log_calls("pairs.jsonl")
    sampling_s = float(np.median(np.exp(first).sum(axis=1) + np.exp(second).sum(axis=1))) * 1e-9
    process_s = schedule.START_GUESS_S + schedule.JOB_OVERHEAD_GUESS_S + schedule.MIN_CONTROL_S + sampling_s
    assert 12 * process_s <= 60


@pytest.mark.parametrize("mean", [0.0, 0.002, 0.008, 0.02])
def test_as_many_processes_as_are_forecast_decide_four_times_in_five(mean: float) -> None:
    deviation = 0.03
    (more,) = more_processes(Spread(np.array([mean]), np.array([deviation]), np.array([12.0])), 0.95)
    assert more is not None
    spread = summarise(np.random.default_rng(8).normal(mean, deviation, (2000, 12 + more)))
    half_width = spread.half_width(0.95)
    verdicts = [verdict_of(*ends) for ends in zip(spread.mean - half_width, spread.mean + half_width, strict=True)]
    assert np.mean([verdict is not Verdict.INCONCLUSIVE for verdict in verdicts]) >= 0.8


def test_habits_and_power_are_what_the_documentation_says() -> None:
    text = (Path(__file__).parents[3] / "docs/measuring.md").read_text(encoding="utf-8")
    assert habits_table() in text
    assert power_table() in text
    assert threshold_sentence() in " ".join(text.split())


def test_smallest_effects_agree_with_the_replay() -> None:
    for count in (12, 20, 36):
        effect = float(np.expm1(smallest_effect(recorded_deviation(), count, chance=0.9)))
        assert found_share(effect, count) == pytest.approx(0.9, abs=0.04)
