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
def test_every_workload_gets_its_least_rounds_and_together_no_more_than_there_is(
    round_s: dict[str, float], time_s: float, num_replicates: int, min_rounds: int
) -> None:
    overheads = schedule.Overheads()
    shares = schedule.shares(time_s, num_replicates, round_s, min_rounds, overheads)
    need_s = {key: schedule.ROUNDS_OVERHEAD * min_rounds * seconds for key, seconds in round_s.items()}
    assert all(shares[key] >= need_s[key] for key in round_s)
    assert sum(shares.values()) <= max(sum(need_s.values()), time_s / num_replicates) * (1 + 1e-9)


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
