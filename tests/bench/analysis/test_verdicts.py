"""Verdicts, winners and the control, from runs whose truth is known."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_maker import making

from bench.analysis.comparisons import against, compare, flipped
from bench.analysis.control import judge
from bench.analysis.model import Comparison, Verdict, Winner
from bench.analysis.winners import find_winners
from bench.cases import Workload
from bench.store.qualified import RoutingFacts
from bench.store.schema import CaseRecord, SamplesRecord

WORKLOAD = making.workload()


def cases(*impls: str, workload: Workload = WORKLOAD, **fields: Any) -> dict[str, CaseRecord]:
    return {record.case_id: record for record in (making.case(impl, workload, **fields) for impl in impls)}


def compare_two(loop_s: float, grouped_s: float, *, num_processes: int = 12, noise: float = 0.004) -> Comparison:
    """``grouped`` against ``loop``."""
    records = making.timed(WORKLOAD, {"loop": loop_s, "grouped": grouped_s}, num_processes=num_processes, noise=noise)
    (comparison,) = compare({WORKLOAD.id: records}, cases("loop", "grouped"))
    return comparison


def decide(**true_s: float) -> Winner:
    comparisons = compare({WORKLOAD.id: making.timed(WORKLOAD, true_s)}, cases(*true_s))
    (winner,) = find_winners({WORKLOAD.id: true_s}, comparisons)
    return winner


def test_a_clear_difference_is_found_with_its_ratio() -> None:
    comparison = compare_two(1e-3, 0.7e-3)
    assert (comparison.impl, comparison.base) == ("grouped", "loop")
    assert comparison.verdict is Verdict.FASTER
    assert comparison.ratio.low < 0.7 < comparison.ratio.high < 1
    assert not comparison.negligible
    assert (comparison.num_processes, comparison.more_processes, comparison.reason) == (12, None, "")


def test_identical_code_in_enough_processes_is_the_same() -> None:
    comparison = compare_two(1e-3, 1e-3, num_processes=40)
    assert comparison.verdict is Verdict.SAME
    assert 0.99 < comparison.ratio.low < 1 < comparison.ratio.high < 1.01


def test_a_difference_inside_the_band_is_found_and_called_negligible() -> None:
    comparison = compare_two(1e-3, 1.004e-3, num_processes=100)
    assert comparison.verdict is Verdict.SLOWER
    assert comparison.negligible
    assert comparison.ratio.high < 1.01


def test_a_wide_interval_is_inconclusive_and_says_how_many_more_processes() -> None:
    comparison = compare_two(1e-3, 1.005e-3, noise=0.03)
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert comparison.more_processes is not None
    assert comparison.more_processes > 0
    assert "contains 1" in comparison.reason


def test_more_spread_around_the_same_ratio_needs_more_processes() -> None:
    shape = np.linspace(-1, 1, 12)
    needed: list[int | None] = []
    for spread in (0.02, 0.05, 0.1, 0.5):
        records = [
            making.samples(WORKLOAD, replicate, {"loop": [1.0], "grouped": [float(np.exp(0.004 + spread * z))]})
            for replicate, z in enumerate(shape)
        ]
        (comparison,) = compare({WORKLOAD.id: records}, cases("loop", "grouped"))
        needed.append(comparison.more_processes)
    few, more, many, hopeless = needed
    assert hopeless is None
    assert 0 < (few or 0) < (more or 0) < (many or 0)


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_fewer_than_six_processes_get_no_verdict(num_processes: int) -> None:
    comparison = compare_two(1e-3, 0.1e-3, num_processes=num_processes)
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert "6" in comparison.reason
    assert comparison.more_processes == (None if num_processes == 1 else 6 - num_processes)


def test_withheld_verdicts_are_inconclusive_and_say_why() -> None:
    records = making.timed(WORKLOAD, {"loop": 1.0, "grouped": 0.5})
    (comparison,) = compare({WORKLOAD.id: records}, cases("loop", "grouped"), withheld="the control did not pass")
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert comparison.reason == "the control did not pass"
    assert comparison.more_processes is None
    assert comparison.ratio.value == pytest.approx(0.5, rel=0.02)


def test_more_comparisons_widen_every_interval() -> None:
    alone = compare_two(1e-3, 1.004e-3)
    many = [making.workload(seed=seed) for seed in range(20)]
    samples = {w.id: making.timed(w, {"loop": 1e-3, "grouped": 1e-3}, seed=number) for number, w in enumerate(many)}
    samples[WORKLOAD.id] = making.timed(WORKLOAD, {"loop": 1e-3, "grouped": 1.004e-3})
    known = {
        case_id: record for w in [*many, WORKLOAD] for case_id, record in cases("loop", "grouped", workload=w).items()
    }
    same = against(compare(samples, known))[WORKLOAD.id, "grouped", "loop"]
    assert same.ratio.value == pytest.approx(alone.ratio.value)
    assert same.ratio.low < alone.ratio.low
    assert same.ratio.high > alone.ratio.high
    assert same.p_value == pytest.approx(alone.p_value)


@given(st.floats(0.5, 2.0), st.integers(0, 1000), st.integers(2, 14))
@settings(deadline=None, max_examples=40)
def test_swapping_the_arms_inverts_the_ratio_and_flips_the_verdict(ratio: float, seed: int, num_processes: int) -> None:
    records = making.timed(WORKLOAD, {"loop": 1.0, "grouped": ratio}, num_processes=num_processes, seed=seed)
    known = cases("loop", "grouped")
    loop, grouped = known
    exchanged = [
        record.model_copy(update={"arms": {loop: record.arms[grouped], grouped: record.arms[loop]}})
        for record in records
    ]
    (straight,) = compare({WORKLOAD.id: records}, known)
    swapped = flipped(*compare({WORKLOAD.id: exchanged}, known))
    assert (swapped.verdict, swapped.negligible) == (straight.verdict, straight.negligible)
    for name in ("value", "low", "high"):
        assert getattr(swapped.ratio, name) == pytest.approx(getattr(straight.ratio, name))
    assert flipped(flipped(straight)).verdict is straight.verdict


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_the_order_of_records_and_arms_is_irrelevant(shuffler: random.Random) -> None:
    records = making.timed(WORKLOAD, {"loop": 1.0, "grouped": 0.99, "einsum": 1.5})
    known = cases("loop", "grouped", "einsum")
    shuffled: list[SamplesRecord] = []
    for record in shuffler.sample(records, k=len(records)):
        arms = list(record.arms.items())
        shuffler.shuffle(arms)
        shuffled.append(record.model_copy(update={"arms": dict(arms)}))
    assert compare({WORKLOAD.id: shuffled}, known) == compare({WORKLOAD.id: records}, known)


def test_each_pair_is_compared_once_and_found_from_both_sides() -> None:
    true_s = {"loop": 1.0, "grouped": 0.5, "einsum": 2.0, "dense": 0.2}
    comparisons = compare({WORKLOAD.id: making.timed(WORKLOAD, true_s)}, cases(*true_s))
    assert len(comparisons) == 6
    sides = against(comparisons)
    assert len(sides) == 12
    assert sides[WORKLOAD.id, "einsum", "grouped"].ratio.value == pytest.approx(4, rel=0.02)
    assert sides[WORKLOAD.id, "grouped", "einsum"].verdict is Verdict.FASTER


def test_baselines_quantised_layers_and_drops_have_other_semantics() -> None:
    dropping = making.qualified(
        routing=RoutingFacts(tokens_per_expert=[1] * 8, dropped_fraction=0.5, load_imbalance=1.0)
    )
    known = cases("loop", "grouped", "dense")
    known |= cases("quantised", exact=False) | cases("dropping", qualified=dropping)
    true_s = dict.fromkeys((record.case.impl for record in known.values()), 1.0)
    pairs = {
        frozenset((c.impl, c.base))
        for c in compare({WORKLOAD.id: making.timed(WORKLOAD, true_s)}, known)
        if c.same_semantics
    }
    assert pairs == {frozenset(("loop", "grouped"))}


def test_the_winner_is_faster_than_each_other() -> None:
    winner = decide(loop=1.42e-3, grouped=1e-3, einsum=3e-3)
    assert winner.impl == "grouped"
    assert winner.contenders == ()
    assert winner.sentence.startswith("grouped is 1.4")
    assert "as fast as loop, corrected interval 1.4" in winner.sentence
    assert "over 12 processes; and faster than the other one." in winner.sentence


def test_two_that_cannot_be_told_apart_leave_no_winner() -> None:
    winner = decide(loop=1e-3, grouped=1e-3, einsum=3e-3)
    assert winner.impl is None
    assert set(winner.contenders) == {"loop", "grouped"}
    assert winner.sentence.startswith("No single winner: ")
    assert "einsum" not in winner.sentence


def test_the_others_of_a_lone_contender_are_named() -> None:
    """Faster than one of two, unknown against the other: nobody beats it, but it does not win."""
    true_s = {"loop": 1e-3, "grouped": 2e-3}
    comparisons = compare({WORKLOAD.id: making.timed(WORKLOAD, true_s)}, cases(*true_s))
    (winner,) = find_winners({WORKLOAD.id: {**true_s, "einsum": 1.5e-3}}, comparisons)
    assert winner.impl is None
    assert winner.contenders == ("loop", "einsum")
    assert winner.sentence == "No single winner: loop and einsum never ran in the same round."


def test_one_or_none_is_no_contest() -> None:
    one, none = find_winners({"w": {"loop": 1.0}, "v": {}}, [])
    assert (one.impl, one.contenders) == (None, ("loop",))
    assert "only exact implementation" in one.sentence
    assert (none.impl, none.contenders) == (None, ())


def test_a_sound_control_passes_and_says_what_can_be_seen() -> None:
    control = judge(making.control())
    assert control.passed
    assert control.twin is not None
    assert control.slowed is not None
    assert control.twin.low < 1 < control.twin.high
    assert control.slowed.value == pytest.approx(1.05, abs=0.005)
    assert control.noise_floor == pytest.approx((control.twin.high - control.twin.low) / 2)
    assert "planted slowdown of 5.00 % was measured as +4.98 %" in control.sentence


def test_twins_that_differ_fail_the_control() -> None:
    control = judge(making.control(twin=1.03))
    assert not control.passed
    assert "identical code differed by +3.06 %" in control.sentence


def test_twins_that_differ_surely_but_within_the_band_do_not() -> None:
    assert judge(making.control(twin=1.005)).passed


def test_a_planted_slowdown_that_is_not_found_fails_the_control() -> None:
    control = judge(making.control(slowed=1.0))
    assert not control.passed
    assert "was not found" in control.sentence


@pytest.mark.parametrize("num_processes", [0, 1])
def test_no_control_is_no_pass(num_processes: int) -> None:
    control = judge(making.control(num_processes=num_processes))
    assert not control.passed
    assert control.twin is None
    assert "no verdict is given" in control.sentence
    assert dataclasses.asdict(control)["noise_floor"] is None
