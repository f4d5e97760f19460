import random

import pytest

from bench.analysis.carryover import carry_over, predecessors
from bench.store.schema import Arm, SamplesRecord

NAMES = ("a", "b", "c")
WARMUP_ROUNDS = 4


def process(
    replicate: int, effect: float, num_rounds: int = 60, warmup_rounds: int | None = WARMUP_ROUNDS
) -> SamplesRecord:
    """Rounds as the sampler makes them; ``a`` takes ``effect`` more time right after ``b``."""
    order, noise, before = random.Random(replicate), random.Random(f"noise/{replicate}"), ""
    latency_s: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(WARMUP_ROUNDS + num_rounds):
        names = list(NAMES)
        order.shuffle(names)
        for name in names:
            carried = effect if (name, before) == ("a", "b") else 0.0
            latency_s[name].append(1e-3 * (1 + carried) * noise.gauss(1, 0.01))
            before = name
    arms = {
        name: Arm(latency_s=values[WARMUP_ROUNDS:], warmup_s=values[:WARMUP_ROUNDS], warmup_rounds=warmup_rounds)
        for name, values in latency_s.items()
    }
    return SamplesRecord(
        environment_hash="e",
        unix_time_s=0,
        workload_id="w",
        replicate=replicate,
        arms=arms,
        order_seed=replicate,
        wall_s=1,
    )


def test_a_planted_carry_over_is_found_and_named() -> None:
    found = carry_over([process(replicate, 0.05) for replicate in range(12)], NAMES)
    assert (found[0].case_id, found[0].after, found[0].num_processes) == ("a", "b", 12)
    assert found[0].effect == pytest.approx(0.05, abs=0.01)
    assert {pair.case_id for pair in found} == {"a"}, "the other predecessors of a are those that it is held against"


def test_where_nothing_carries_over_nothing_is_found() -> None:
    false_alarms = sum(
        bool(carry_over([process(100 * trial + replicate, 0.0) for replicate in range(12)], NAMES))
        for trial in range(20)
    )
    assert false_alarms <= 2


def test_every_sample_has_the_predecessor_that_it_had() -> None:
    rounds = predecessors(process(3, 0.0))
    order, came = random.Random(3), []
    for _ in range(WARMUP_ROUNDS + 60):
        names = list(NAMES)
        order.shuffle(names)
        came += names
    want = [
        dict(zip(came[i : i + 3], came[i - 1 : i + 2], strict=True)) for i in range(3 * WARMUP_ROUNDS, len(came), 3)
    ]
    assert rounds == want


def test_what_ran_by_itself_has_no_predecessor() -> None:
    alone = [process(replicate, 0.5).model_copy(update={"isolated": True}) for replicate in range(12)]
    assert predecessors(alone[0]) == []
    assert carry_over(alone, NAMES) == []


def test_logs_that_do_not_tell_and_too_few_processes_give_no_finding() -> None:
    assert predecessors(process(0, 0.0, warmup_rounds=None)) == []
    assert carry_over([process(replicate, 0.5, warmup_rounds=None) for replicate in range(12)], NAMES) == []
    assert carry_over([process(replicate, 0.5) for replicate in range(5)], NAMES) == []
