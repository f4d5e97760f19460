"""The timeline of a call whose every byte is known, and of ledgers written by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled_layers import NUM_TOKENS, SPEC, make_step

from bench.profiling.ledger import Allocation, Entry, Ledger
from bench.profiling.measure import count
from bench.profiling.spans import Place
from bench.profiling.timeline import MAX_MOMENTS, make_timeline
from bench.store.profiles import Timeline
from impls.stages import stage

ROW = 4 * NUM_TOKENS * SPEC.d_model  # bytes of one (T, D) tensor
WEIGHT = 4 * SPEC.d_model**2


def timeline_of(weight: torch.Tensor, *, train: bool) -> Timeline:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with stage("route"):
            scores = x.sum(1, keepdim=True)
        with stage("dispatch"):
            x = x.flip(0)
        with stage("experts"):
            x = (x @ weight).exp()
        with stage("combine"):
            return x * scores

    counted = count(make_step(forward, [weight], train=train))
    return make_timeline(counted.ledger, counted.places, counted.durations_s, {}, {"weights": WEIGHT, "input": ROW})


def test_forward_bytes_are_alive_by_what_they_are_for() -> None:
    timeline = timeline_of(torch.randn(SPEC.d_model, SPEC.d_model), train=False)
    at_peak = {name: rows[timeline.peak_index] for name, rows in timeline.bytes_alive.items()}
    assert max(timeline.bytes_alive["routing"]) == 4 * NUM_TOKENS
    assert max(timeline.bytes_alive["dispatched tokens"]) == ROW
    assert max(timeline.bytes_alive["workspace"]) == 2 * ROW
    assert max(timeline.bytes_alive["output"]) == ROW
    assert "kept for backward" not in timeline.bytes_alive
    # at the exponential: flipped tokens, product and exponential are there, and the scores
    assert timeline.peak_bytes == sum(at_peak.values()) == 3 * ROW + 4 * NUM_TOKENS
    assert timeline.existing_bytes == {"weights": WEIGHT, "input": ROW}


def test_a_train_step_keeps_what_its_backward_needs_and_ends_with_the_gradients() -> None:
    timeline = timeline_of(torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True), train=True)
    # the product's exponential is needed twice and is one tensor; the tokens are needed for the weight's gradient
    assert max(timeline.bytes_alive["kept for backward"]) == ROW
    assert max(timeline.bytes_alive["dispatched tokens"]) == ROW
    assert timeline.bytes_alive["gradients"][-1] == WEIGHT + ROW
    assert timeline.bytes_alive["gradients"][0] == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=3 * MAX_MOMENTS))
def test_thinning_keeps_the_peak(sizes: list[int]) -> None:
    ledger = Ledger()
    count_ = len(sizes)
    for number, num_bytes in enumerate(sizes):
        ledger.entries.append(Entry("aten::mul", (), None, 1))
        died = number + 1 + number % 7
        ledger.allocations.append(
            Allocation(num_bytes, number + 1, number, (num_bytes,), "uint8", died if died < count_ else None)
        )
    ledger.forward_end = count_
    timeline = make_timeline(ledger, [Place("forward", "experts")] * count_, [1.0] * count_, {}, {})
    alive = [
        sum(a.num_bytes for a in ledger.allocations[max(0, n - 7) : n + 1] if a.died is None or a.died > n)
        + sum(a.num_bytes for a in ledger.allocations[: max(0, n - 7)] if a.died is None)
        for n in range(count_)
    ]
    assert timeline.peak_bytes == max(alive)
    assert sum(rows[timeline.peak_index] for rows in timeline.bytes_alive.values()) == max(alive)
    assert len(timeline.at_s) <= MAX_MOMENTS + 3
    assert timeline.at_s == sorted(timeline.at_s)
