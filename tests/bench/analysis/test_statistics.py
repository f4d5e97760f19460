"""Units, intervals and corrections, each against a definition or scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_maker import making
from scipy import stats

from bench.analysis.statistics import (
    MOST_PROCESSES,
    Spread,
    deviation_interval,
    false_coverage_level,
    half_widths,
    latency_units,
    median_interval,
    paired_units,
    processes_needed,
    smallest_effect,
    t_factor,
)
from bench.cases import Case

latencies = st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=3)


def ids(*impls: str) -> list[str]:
    return [Case(impl=impl, workload=making.workload()).id for impl in impls]


def test_a_process_gives_the_median_of_its_paired_log_ratios() -> None:
    loop, grouped = ids("loop", "grouped")
    record = making.samples(making.workload(), 0, {"loop": [2.0, 3.0, 80.0], "grouped": [1.0, 1.0, 2.0]})
    pair, sign = ((loop, grouped), 1) if loop < grouped else ((grouped, loop), -1)
    assert paired_units([record])[pair] == pytest.approx([sign * math.log(3)])


def test_processes_of_their_own_are_paired_by_their_medians() -> None:
    latencies = {"loop": [2.0, 3.0, 80.0, 3.0, 3.0], "grouped": [1.0, 1.5, 2.0]}
    record = making.samples(making.workload(), 0, latencies, isolated=True)
    (units,) = paired_units([record]).values()
    assert np.abs(units) == pytest.approx([math.log(2)])
    with pytest.raises(ValueError, match="different numbers of rounds"):
        making.samples(making.workload(), 0, latencies)


def test_records_of_one_replicate_are_one_unit() -> None:
    workload = making.workload()
    records = [
        making.samples(workload, replicate, {"loop": [seconds], "grouped": [1.0]})
        for replicate, seconds in ((0, 2.0), (0, 8.0), (1, 4.0))
    ]
    (units,) = paired_units(records).values()
    assert np.abs(units) == pytest.approx([math.log(4), math.log(4)])
    assert latency_units(records)[ids("loop")[0]] == pytest.approx([5.0, 4.0])


def test_arms_that_do_not_count_and_arms_without_rounds_are_left_out() -> None:
    loop, grouped = ids("loop", "grouped")
    workload = making.workload()
    record = making.samples(workload, 0, {"loop": [1.0], "grouped": [1.0], "einsum": [1.0]})
    assert set(paired_units([record], allowed=[loop, grouped])) == {tuple(sorted((loop, grouped)))}
    assert paired_units([making.samples(workload, 0, {"loop": [], "grouped": []})]) == {}


@given(st.lists(st.tuples(latencies, latencies), min_size=2, max_size=5), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_scaling_all_times_changes_no_ratio(processes: list[tuple[list[float], list[float]]], scale: float) -> None:
    workload = making.workload()

    def units(factor: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        records = [
            making.samples(
                workload, number, {"loop": [factor * s for s in loop], "grouped": [factor * s for s in grouped]}
            )
            for number, (loop, grouped) in enumerate(processes)
        ]
        (found,) = paired_units(records).values()
        return found

    assert units(scale) == pytest.approx(units(1.0), abs=1e-9)


def test_the_interval_and_the_p_value_are_scipys() -> None:
    units = np.random.default_rng(0).normal(0.01, 0.02, 12)
    spread = Spread.of([units])
    expected = stats.ttest_1samp(units, 0.0)
    low, high = expected.confidence_interval(0.9)
    assert spread.p_values()[0] == pytest.approx(expected.pvalue)
    assert spread.mean[0] - spread.half_width(0.9)[0] == pytest.approx(low)
    assert spread.mean[0] + spread.half_width(0.9)[0] == pytest.approx(high)


def test_one_process_says_nothing_and_processes_without_spread_are_certain() -> None:
    spread = Spread.of([np.array([0.5]), np.array([0.5, 0.5]), np.array([0.0, 0.0])])
    assert spread.half_width(0.95).tolist() == [math.inf, 0.0, 0.0]
    assert spread.p_values().tolist() == [1.0, 0.0, 1.0]


@given(
    st.lists(st.floats(-0.05, 0.05), min_size=1, max_size=40),
    st.floats(0.001, 0.05),
    st.integers(6, 20),
)
@settings(deadline=None, max_examples=200)
def test_a_corrected_interval_excludes_one_exactly_where_the_corrected_test_rejects(
    means: list[float], deviation: float, count: int
) -> None:
    spread = Spread(np.array(means), np.full(len(means), deviation), np.full(len(means), float(count)))
    p_values = spread.p_values()
    level = false_coverage_level(p_values)
    rejected = stats.false_discovery_control(p_values) <= 0.05
    # The bound itself is met by accident only, and then either answer is right to rounding.
    apart = np.abs(p_values - (1 - level)) > 1e-9
    assert ((np.abs(spread.mean) > spread.half_width(level)) == rejected)[apart].all()


def test_a_single_comparison_is_not_corrected() -> None:
    assert false_coverage_level(np.array([0.2])) == pytest.approx(0.95)
    assert false_coverage_level(np.array([])) == pytest.approx(0.95)
    assert false_coverage_level(np.array([0.9, 0.8])) == pytest.approx(0.975)


@pytest.mark.parametrize("count", [6, 7, 12, 25, 60])
def test_the_interval_of_a_median_is_the_binomial_one(count: int) -> None:
    units = np.random.default_rng(count).exponential(size=count)
    median, low, high = median_interval(units)
    expected: Any = stats.quantile_test(units, q=float(np.median(units)), p=0.5).confidence_interval(0.95)
    assert median == np.median(units)
    assert (low, high) == (expected.low, expected.high)


def test_few_processes_give_their_whole_range() -> None:
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (2.0, 1.0, 3.0)
    assert median_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


@given(st.floats(0.001, 0.1), st.floats(0.0001, 0.2), st.floats(0.9, 0.9999), st.floats(0.5, 0.95))
@settings(deadline=None, max_examples=50)
def test_the_forecast_is_the_least_number_that_is_enough(
    need: float, deviation: float, level: float, chance: float
) -> None:
    (total,) = processes_needed(np.array([need]), np.array([deviation]), level, chance).tolist()
    counts = np.array([total - 1.0, float(total)])
    reach = deviation * (t_factor(counts, level) + stats.t.isf(1 - chance, np.maximum(counts - 1, 1)) / np.sqrt(counts))
    if total <= MOST_PROCESSES:
        assert reach[1] < need
    if total > 2:
        assert reach[0] >= need


def test_the_forecast_grows_with_the_spread_and_shrinks_with_the_need() -> None:
    spreads = np.linspace(0, 0.5, 40)
    assert (np.diff(processes_needed(np.full(40, 0.01), spreads, 0.95, 0.8)) >= 0).all()
    assert (np.diff(processes_needed(spreads + 1e-9, np.full(40, 0.01), 0.95, 0.8)) <= 0).all()


def test_a_need_that_is_already_missed_is_never_met() -> None:
    assert processes_needed(np.array([-0.001, 0.0]), np.array([0.01, 0.01]), 0.95, 0.8).tolist() == [
        MOST_PROCESSES + 1,
        MOST_PROCESSES + 1,
    ]


@pytest.mark.parametrize("count", [2, 6, 12, 20, 200])
def test_the_smallest_effect_is_found_with_the_chance_that_is_asked_for(count: int) -> None:
    effect = smallest_effect(0.01, count, chance=0.9)
    units = np.random.default_rng(count).normal(effect, 0.01, (20_000, count))
    spread = Spread(units.mean(axis=1), units.std(axis=1, ddof=1), np.full(len(units), float(count)))
    assert (spread.mean > spread.half_width(0.95)).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("count", [6, 12, 60])
def test_the_interval_of_a_deviation_covers_it(count: int) -> None:
    units = np.random.default_rng(count).normal(0, 0.02, (4000, count))
    bounds = np.array([deviation_interval(float(unit.std(ddof=1)), count) for unit in units])
    assert ((bounds[:, 0] <= 0.02) & (bounds[:, 1] >= 0.02)).mean() == pytest.approx(0.9, abs=0.02)


def test_half_widths_are_those_of_the_ratio_to_the_fastest() -> None:
    loop, grouped, einsum = ids("loop", "grouped", "einsum")
    records = making.timed(making.workload(), {"loop": 2e-3, "grouped": 1e-3, "einsum": 3e-3}, noise=0.01)
    widths = half_widths(records)
    units = np.array([np.median(np.log(r.arms[loop].latency_s) - np.log(r.arms[grouped].latency_s)) for r in records])
    low, high = stats.ttest_1samp(units, 0.0).confidence_interval(0.95)
    assert widths[loop] == pytest.approx((math.exp(high) - math.exp(low)) / 2 / math.exp(units.mean()))
    assert widths[grouped] == max(widths[loop], widths[einsum])
    assert widths[loop] < 0.02, "drift of 30 % that is common to a round does not count"


def test_half_widths_before_two_processes_are_infinite() -> None:
    workload = making.workload()
    alone = making.timed(workload, {"loop": 1e-3}, num_processes=12)
    assert half_widths([]) == {}
    assert set(half_widths(making.timed(workload, {"loop": 1.0, "grouped": 2.0}, num_processes=1)).values()) == {
        math.inf
    }
    assert 0.1 < half_widths(alone)[ids("loop")[0]] < 0.4, "nothing to pair with: the latency drifts by 30 %"


def test_half_widths_do_not_depend_on_the_order_of_records() -> None:
    records = making.timed(making.workload(), {"loop": 2e-3, "grouped": 1e-3})
    assert half_widths(records) == half_widths(records[::-1])
