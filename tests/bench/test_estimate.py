"""Laws of the estimate: it keeps to the budget, and more work never needs less time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import load_sweep, presets
from bench.estimate import BEFORE_AND_AFTER_S, EstimatedTime, call_s, estimate

SIZES = {"layer.d_model": 512, "layer.d_ff": 512, "workload.num_tokens": 256, "layer.num_experts": 16}


def estimated(**changes: object) -> EstimatedTime:
    given_keys = {name.replace("__", "."): value for name, value in changes.items()}
    return estimate(load_sweep("smoke", {"workload.device": "cpu", "workload.threads": 2, **SIZES, **given_keys}))


@given(st.integers(5, 3600))
def test_a_run_takes_its_budget_and_no_more(budget_s: int) -> None:
    found = estimated(measure__budget=float(budget_s))
    assert found.most_s == budget_s + BEFORE_AND_AFTER_S
    assert 0.85 * budget_s <= found.least_s <= found.most_s


def test_a_budget_that_is_too_small_is_spent() -> None:
    found = estimated(measure__budget=10.0)
    assert found.needed_s > found.most_s == found.least_s


@pytest.mark.parametrize(
    "more",
    [
        {"workload__num_tokens": 512},
        {"layer__d_model": 1024},
        {"layer__num_experts": 32},
        {"measure__processes": 12},
        {"measure__min_rounds": 9},
        {"workload__direction": "train"},
        {"workload__threads": 1},
    ],
)
def test_more_work_needs_more_time(more: dict[str, object]) -> None:
    assert estimated(**more).needed_s > estimated().needed_s


def test_einsum_is_quadratic_in_the_tokens_and_padding_costs_time() -> None:
    sweep = load_sweep("smoke", {"workload.device": "cpu", **SIZES, "workload.num_tokens": [4096, 8192]})
    seconds = {(case.impl, case.workload.num_tokens): call_s(case) for case in sweep.cases}
    assert seconds["einsum", 8192] > 3 * seconds["einsum", 4096]
    assert seconds["loop", 8192] < 2.1 * seconds["loop", 4096]
    assert seconds["scatter_gather", 4096] > seconds["loop", 4096]


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_of_ours_takes_minutes(name: str) -> None:
    assert estimate(load_sweep(name, {"workload.device": "cpu"})).most_s <= 300


def test_profiles_and_checks_of_limits_come_after_the_budget() -> None:
    unchecked: dict[str, object] = {"workload.device": "cpu", "measure.check_limits": False}
    given: list[dict[str, object]] = [{"workload.device": "cpu"}, unchecked, unchecked | {"measure.profile": False}]
    found = [estimate(load_sweep("limits", overrides)) for overrides in given]
    assert found[0].after_s > 2 * found[1].after_s > 0
    assert found[2].after_s == 0
    assert len({one.most_s for one in found}) == 1
