"""What limits a case, on profiles whose truth is known."""

from typing import Any

import pytest

from bench.analysis.divisions import FAR, NEAR, CaseLimit, Limit, nearness
from bench.analysis.interval import Estimate
from bench.analysis.limits import find_limit
from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.store.profiles import FirstTouches, OperatorTime, Profile, StageTime, Timeline
from impls.spec import LayerSpec

PEAK, MEMORY, CACHE, CACHE_BYTES = 1e12, 1e10, 1e11, 10_000_000
WORKLOAD = Workload(layer=LayerSpec(d_model=8, d_ff=8, num_experts=2, top_k=1), num_tokens=4)
CEILINGS = Ceilings(
    {
        (what, "cpu", "float32", WORKLOAD.threads): Estimate(value, low=value, high=value)
        for what, value in {"matmul": PEAK, "memory": MEMORY, "cache": CACHE}.items()
    },
    {("cpu", WORKLOAD.threads): CACHE_BYTES},
)


def operator(host_s: float, **given: Any) -> OperatorTime:
    fields = {"phase": "forward", "stage": "experts", "name": "aten::x", "shapes": "", "calls": 1, "moved_bytes": 1}
    return OperatorTime(**{**fields, "host_s": host_s, **given})


def limit(
    *operators: OperatorTime,
    idle_s: float = 0.0,
    profiler_s: float = 0.0,
    events: int = 0,
    pages: FirstTouches | None = None,
    weights: int = 0,
    cache: str = "warm",
) -> CaseLimit:
    whole_s = sum(row.host_s for row in operators) + idle_s
    stage = StageTime(
        phase="forward", stage="experts", host_s=whole_s, idle_s=idle_s, launches=1, flops=0, moved_bytes=0
    )
    timeline = Timeline(
        at_s=[], stages=[], bytes_alive={}, existing_bytes={"weights": weights}, peak_bytes=0, peak_index=0,
        peak_made_by="", largest=[],
    )  # fmt: skip
    profile = Profile(
        calls=1, plain_s=whole_s - profiler_s, whole_s=whole_s, stages=[stage], experts=[], operators=list(operators),
        timeline=timeline, events=events, pages=pages,
    )  # fmt: skip
    found = find_limit(profile, WORKLOAD.model_copy(update={"cache": cache}), CEILINGS)
    assert isinstance(found, CaseLimit)
    return found


def test_products_at_the_peak_are_arithmetic() -> None:
    found = limit(operator(1.0, flops=10**12))
    assert (found.whole.limit, found.whole.share) == (Limit.COMPUTE, 1.0)
    assert found.sentence.startswith("Limited by arithmetic: 100% compute.")


@pytest.mark.parametrize(("reached", "expected"), [(NEAR, Limit.COMPUTE), (FAR, Limit.BELOW_ROOF)], ids=["near", "far"])
def test_products_below_the_peak_are_arithmetic_while_they_are_near_it(reached: float, expected: Limit) -> None:
    found = limit(operator(1.0, flops=round(reached * PEAK)))
    assert found.whole.limit is expected
    assert found.whole.seconds[Limit.COMPUTE] == pytest.approx(reached)
    assert found.whole.seconds[Limit.BELOW_ROOF] == pytest.approx(1 - reached)
    assert found.whole.by_resource()[Limit.COMPUTE] == pytest.approx(1.0 if reached == NEAR else reached)


def test_nearness_falls_without_a_step() -> None:
    assert [nearness(share) for share in (0.0, FAR, 0.25, NEAR, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_weights_that_fit_are_read_at_the_caches_speed_and_others_at_memorys() -> None:
    read = {"flops": 1, "moved_bytes": 10**9, "existing_bytes": 10**9, "calls": 1000}
    small = limit(operator(0.01, **read), weights=CACHE_BYTES)
    large = limit(operator(0.1, **read), weights=CACHE_BYTES + 1)
    assert small.whole.limit is Limit.CACHE
    assert large.whole.limit is Limit.MEMORY
    assert [small.whole.share, large.whole.share] == pytest.approx([1.0, 1.0])


def test_a_cold_case_reads_from_memory_whatever_its_size() -> None:
    read = operator(1e-4, moved_bytes=10**6, existing_bytes=10**6)
    assert limit(read, weights=10**6, cache="cold").whole.limit is Limit.MEMORY


def test_what_the_call_itself_made_comes_from_the_cache_where_one_operator_fits() -> None:
    assert limit(operator(0.01, moved_bytes=10**9, calls=100)).whole.limit is Limit.CACHE
    assert limit(operator(0.1, moved_bytes=10**9, calls=1)).whole.limit is Limit.MEMORY


def test_time_without_an_operator_is_the_hosts_less_what_the_profiler_costs() -> None:
    assert limit(operator(0.1, flops=10**11), idle_s=0.3).whole.limit is Limit.HOST
    found = limit(operator(0.1, flops=10**11), idle_s=0.3, profiler_s=0.25)
    assert found.whole.seconds[Limit.HOST] == pytest.approx(0.05)
    assert found.whole.limit is Limit.COMPUTE


def test_calling_operators_is_the_hosts_too() -> None:
    views = operator(100e-6, calls=100, moved_bytes=0)
    adds = operator(400e-6, calls=100, moved_bytes=round(200e-6 * CACHE))
    found = limit(views, adds)
    assert found.whole.seconds[Limit.HOST] == pytest.approx(200e-6)


def test_operators_whose_work_needs_less_than_calling_them_are_the_hosts() -> None:
    found = limit(operator(100e-6, calls=100, moved_bytes=0), operator(900e-6, calls=100, moved_bytes=100))
    assert found.whole.limit is Limit.HOST
    assert found.whole.share == pytest.approx(1.0)


def test_what_a_product_takes_longer_than_in_the_cache_is_memorys() -> None:
    read = {"flops": 10**11, "moved_bytes": 10**9, "near_s": 0.15}
    found = limit(operator(0.5, existing_bytes=10**9, **read), weights=10**9).whole.by_resource()
    assert found[Limit.MEMORY] == pytest.approx(0.35)
    assert found[Limit.COMPUTE] == pytest.approx(0.15)
    quicker = limit(operator(0.1, existing_bytes=10**9, **read), weights=10**9).whole.by_resource()
    assert (quicker[Limit.MEMORY], quicker[Limit.COMPUTE]) == pytest.approx((0.0, 0.1))


def test_what_does_not_follow_the_arithmetic_is_not_compute() -> None:
    """A product at half of its peak, of which a fifth follows the work: the rest is packing, at no roof."""
    found = limit(operator(1.0, flops=5 * 10**11, near_s=1.0, follows_s=0.2)).whole
    assert found.limit is Limit.BELOW_ROOF
    assert found.seconds[Limit.COMPUTE] == pytest.approx(0.2)
    assert found.seconds[Limit.BELOW_ROOF] == pytest.approx(0.8)
    follows = limit(operator(1.0, flops=5 * 10**11, near_s=1.0, follows_s=1.0)).whole
    assert (follows.limit, follows.share) == (Limit.COMPUTE, 1.0)


def test_what_stays_is_the_caches_where_reading_there_takes_it() -> None:
    bytes_read = 10**9
    row = {"flops": 10**9, "moved_bytes": bytes_read, "existing_bytes": bytes_read, "calls": 1000}
    found = limit(operator(1.2 * bytes_read / CACHE, near_s=1.0, follows_s=0.0, **row), weights=CACHE_BYTES).whole
    assert found.limit is Limit.CACHE
    assert found.share == pytest.approx(1.0)


def test_a_product_of_weights_that_fit_waits_for_no_memory() -> None:
    small = {"flops": 10**7, "moved_bytes": 10**6, "existing_bytes": 10**6, "near_s": 1e-5}
    found = limit(operator(1e-3, **small), weights=10**6).whole.by_resource()
    assert found[Limit.MEMORY] == 0
    assert found[Limit.BELOW_ROOF] > 0.9e-3


def test_first_touches_are_counted_in_plain_calls_and_placed_where_the_ledger_saw_them() -> None:
    """The ledger's call touched 300 pages, a plain one 200: operators have two thirds of what they had there."""
    pages = FirstTouches(num_pages=200, touch_s=1e-3, return_s=0.25e-3)
    found = limit(
        operator(0.5, flops=10**10, first_touches=300), operator(0.4, flops=4 * 10**11), idle_s=0.2, pages=pages
    )
    seconds = found.whole.seconds
    assert seconds[Limit.FIRST_TOUCH] == pytest.approx(0.25)
    assert seconds[Limit.HOST] == pytest.approx(0.15)  # giving pages back is in no operator
    assert sum(seconds.values()) == pytest.approx(1.1)


def test_more_first_touches_than_the_ledger_saw_are_those_of_operators_that_allocated() -> None:
    """A plain call touches 300 pages, the ledger's 100: the rest by what was allocated and not seen to be touched."""
    pages = FirstTouches(num_pages=300, touch_s=1e-3, return_s=0.0, page_bytes=1000)
    seen = operator(0.5, flops=10**11, first_touches=100, allocated_bytes=200_000)
    unseen = operator(0.5, flops=10**11, first_touches=0, allocated_bytes=300_000)
    found = limit(seen, unseen, operator(0.2, flops=10**11), pages=pages)
    assert found.whole.seconds[Limit.FIRST_TOUCH] == pytest.approx(0.3)
    assert sum(found.whole.seconds.values()) == pytest.approx(1.2)
    brief = limit(seen, unseen.model_copy(update={"host_s": 0.1}), pages=pages)
    assert brief.whole.seconds[Limit.FIRST_TOUCH] == pytest.approx(0.15 + 0.1), "as long as it takes, and no longer"


def test_no_operator_touches_more_than_it_allocated() -> None:
    pages = FirstTouches(num_pages=1000, touch_s=1e-3, return_s=0.0, page_bytes=1000)
    found = limit(operator(0.5, flops=10**11, first_touches=0, allocated_bytes=100_000), pages=pages)
    assert found.whole.seconds[Limit.FIRST_TOUCH] == pytest.approx(0.1)


def test_nothing_is_touched_where_plain_calls_touch_nothing() -> None:
    pages = FirstTouches(num_pages=0, touch_s=1e-3, return_s=1e-3)
    found = limit(operator(0.5, flops=5 * 10**11, first_touches=300), pages=pages)
    assert found.whole.seconds[Limit.FIRST_TOUCH] == 0


def test_memory_that_is_touched_for_the_first_time_can_be_the_limit() -> None:
    pages = FirstTouches(num_pages=800, touch_s=1e-3, return_s=0.0)
    found = limit(operator(1.0, flops=10**11, first_touches=800), pages=pages)
    assert found.whole.limit is Limit.FIRST_TOUCH
    assert found.whole.share == pytest.approx(0.8)
    assert "MALLOC_TRIM_THRESHOLD_" in found.sentence


def test_the_profilers_events_cost_those_whose_they_are() -> None:
    """Of ten events eight are in the product: so much of the profiler's time is its, the rest the host's."""
    found = limit(operator(1.0, flops=2 * 10**11, events=8), idle_s=0.5, profiler_s=1.0, events=10)
    assert found.whole.seconds[Limit.COMPUTE] == pytest.approx(0.2)
    assert found.whole.seconds[Limit.BELOW_ROOF] == pytest.approx(0.0)
    assert found.whole.seconds[Limit.HOST] == pytest.approx(0.3)


def test_resources_with_nearly_the_same_time_are_named_together() -> None:
    even = limit(operator(0.5, flops=5 * 10**11), idle_s=0.42)
    assert even.whole.limits == (Limit.COMPUTE, Limit.HOST)
    assert even.sentence.startswith("Limited by arithmetic and the host alike: 54% compute, 46% host.")
    assert "Less arithmetic helps" in even.sentence
    assert "Fewer operators help" in even.sentence
    uneven = limit(operator(0.5, flops=5 * 10**11), idle_s=0.38)
    assert uneven.whole.limits == (Limit.COMPUTE,)
    # as far from each other, under a profiler that took as much time as the call
    watched = limit(operator(0.5, flops=5 * 10**11), idle_s=0.38 + 0.88, profiler_s=0.88)
    assert watched.whole.seconds == pytest.approx(uneven.whole.seconds)
    assert watched.whole.limits == (Limit.COMPUTE, Limit.HOST)


def test_the_causes_add_up_to_the_time() -> None:
    rows = (operator(0.5, flops=10**11), operator(0.2, moved_bytes=10**8), operator(1e-6, moved_bytes=0))
    found = limit(*rows, idle_s=0.1)
    assert sum(found.whole.seconds.values()) == pytest.approx(0.800001)
    assert sum(found.whole.by_resource().values()) == pytest.approx(0.800001)
    assert [division.stage for division in found.stages] == ["experts"]


def test_without_ceilings_the_reason_is_given() -> None:
    profile = Profile(calls=1, plain_s=1.0, whole_s=1.0, stages=[], experts=[], operators=[])
    assert "no ceilings for float32" in str(find_limit(profile, WORKLOAD, Ceilings({}, {})))
