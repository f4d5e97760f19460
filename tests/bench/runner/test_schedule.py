import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.runner import schedule

ROUNDS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(1e-4, 10), min_size=1, max_size=8)


def test_looks_are_declared_and_end() -> None:
    assert schedule.looks(12) == [12, 18, 24, 30, 36]
    assert schedule.looks(2) == [2, 3, 4, 5, 6]


@settings(deadline=None)
@given(round_s=ROUNDS, time_s=st.floats(-10, 1000), num_replicates=st.integers(1, 36), min_rounds=st.integers(1, 20))
def test_workloads_get_no_more_than_there_is_and_their_least_rounds_where_there_is_enough(
    round_s: dict[str, float], time_s: float, num_replicates: int, min_rounds: int
) -> None:
    overheads = schedule.Overheads()
    shares = schedule.shares(time_s, num_replicates, round_s, min_rounds, overheads)
    need_s = {key: schedule.ROUNDS_OVERHEAD * min_rounds * seconds for key, seconds in round_s.items()}
    enough = sum(shares.values()) >= sum(need_s.values())
    assert all(share >= (need_s[key] * (1 - 1e-9) if enough else 0) for key, share in shares.items())
    assert sum(shares.values()) <= max(0, time_s / num_replicates) * (1 + 1e-9)


def test_a_round_that_seemed_long_does_not_take_the_time_of_the_others() -> None:
    shares = schedule.shares(60, 12, {"hiccup": 4.0, "a": 0.01, "b": 0.01}, 5, schedule.Overheads())
    assert shares["a"] > 0.03 * sum(shares.values())


def test_the_least_time_of_a_run_counts_no_more_processes_than_a_verdict_needs() -> None:
    overheads = schedule.Overheads()
    assert schedule.least_s([0.1], 12, 5, overheads) == schedule.least_s([0.1], 6, 5, overheads)
    assert schedule.least_s([0.1], 12, 5, overheads) > schedule.least_s([0.1], 3, 5, overheads)


def test_slower_rounds_get_more_time_and_faster_ones_more_rounds() -> None:
    shares = schedule.shares(100, 1, {"slow": 0.4, "fast": 0.1}, 1, schedule.Overheads())
    assert shares["slow"] > shares["fast"]
    assert shares["slow"] / 0.4 < shares["fast"] / 0.1


def test_a_simulated_run_reaches_its_replicates_within_its_time() -> None:
    """Jobs take their time and an overhead that the schedule has to learn."""
    overheads, now_s, deadline_s = schedule.Overheads(), 0.0, 120.0
    for replicate in range(12):
        overheads.saw_start(1.5)
        shares = schedule.shares(deadline_s - now_s, 12 - replicate, {"a": 0.01, "b": 0.03}, 5, overheads)
        now_s += 1.5 + schedule.control_share(sum(shares.values()))
        for key, share_s in shares.items():
            now_s += share_s + 0.5
            overheads.saw_job(key, share_s + 0.5, share_s)
    assert now_s == pytest.approx(deadline_s, rel=0.02)
