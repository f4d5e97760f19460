"""The targets for errors of decision: replays of recorded noise and synthetic trials whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from run_maker import noise_units
from scipy import stats

from bench.analysis.control import _twins_differ
from bench.analysis.statistics import ERROR_RATE, Spread, false_coverage_level

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
    assert sum(_twins_differ(units) for units in trials) <= 3


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
