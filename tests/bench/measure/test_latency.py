from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from fake_device import AsynchronousDevice, VirtualDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measure.cpu import CpuDevice
from bench.measure.latency import ArmError, is_steady, sample_rounds
from bench.store.schema import Arm


def silent(arm: str, what: str) -> None:
    pass


def sample(arms: Mapping[str, Callable[[], object]], device: Any, **changes: Any) -> dict[str, Arm]:
    given: dict[str, Any] = {"order_seed": 0, "time_budget_s": 1.0, "min_rounds": 5, "max_rounds": 50}
    return sample_rounds(arms, device, **{**given, "announce": silent, **changes})


@pytest.fixture
def asynchronous() -> Iterator[AsynchronousDevice]:
    device = AsynchronousDevice()
    yield device
    device.close()


def test_every_round_runs_every_arm_once_in_a_new_order() -> None:
    device = VirtualDevice()
    ran: list[str] = []

    def arm(name: str, log: list[str]) -> Callable[[], None]:
        def call() -> None:
            log.append(name)
            device.spend(0.001)

        return call

    arms = {name: arm(name, ran) for name in "abcd"}
    result = sample(arms, device, time_budget_s=10.0, max_rounds=40)
    rounds = [tuple(ran[-4 * (i + 1) : len(ran) - 4 * i]) for i in range(40)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 10
    assert all(len(result[name].latency_s) == 40 for name in arms)
    again: list[str] = []
    sample({name: arm(name, again) for name in "abcd"}, device, time_budget_s=10.0, max_rounds=40)
    assert again == ran, "the order depends on order_seed alone"


def test_raw_samples_are_kept_in_round_order() -> None:
    device = VirtualDevice()
    draw = random.Random(1)
    spent: list[float] = []

    def call() -> None:
        spent.append(0.001 * draw.choice([1, 1, 1, 1, 30]))
        device.spend(spent[-1])

    arm = sample({"a": call}, device)["a"]
    assert [*arm.warmup_s, *arm.latency_s] == pytest.approx(spent)


def test_short_calls_are_batched_and_long_ones_are_not() -> None:
    device = VirtualDevice(min_sample_s=100e-6)
    arms = {"short": lambda: device.spend(1.7e-6), "long": lambda: device.spend(0.002)}
    result = sample(arms, device)
    assert result["long"].inner_calls == 1
    assert 100e-6 <= result["short"].inner_calls * 1.7e-6 <= 200e-6
    assert result["short"].latency_s == pytest.approx([1.7e-6] * len(result["short"].latency_s), rel=1e-6)


def test_cold_flushes_before_each_sample_outside_of_it_and_never_batches() -> None:
    device = VirtualDevice()
    num_calls = 0

    def call() -> None:
        nonlocal num_calls
        num_calls += 1
        device.spend(1e-6)

    arm = sample({"a": call}, device, cold=True, time_budget_s=100.0)["a"]
    assert arm.inner_calls == 1
    assert device.num_flushes == num_calls
    assert arm.latency_s == pytest.approx([1e-6] * len(arm.latency_s), rel=1e-4)


def test_rounds_end_at_the_budget_but_not_before_min_rounds() -> None:
    device = VirtualDevice()
    result = sample({"a": lambda: device.spend(0.1)}, device, time_budget_s=10.0, max_rounds=10_000)
    assert device.time_s == pytest.approx(10.0, abs=0.11)
    assert len(result["a"].latency_s) > 70
    slow = VirtualDevice()
    assert len(sample({"a": lambda: slow.spend(100.0)}, slow, min_rounds=7)["a"].latency_s) == 7


def test_min_rounds_are_given_up_where_they_take_far_longer_than_planned() -> None:
    device = VirtualDevice()
    result = sample({"a": lambda: device.spend(100.0)}, device, min_rounds=7, overrun_s=500.0)
    assert 1 <= len(result["a"].latency_s) < 7
    stalled = VirtualDevice()
    assert len(sample({"a": lambda: stalled.spend(100.0)}, stalled, min_rounds=7, overrun_s=0.0)["a"].latency_s) == 1


def test_long_calls_are_not_repeated_to_learn_that_they_are_long() -> None:
    device = VirtualDevice()
    assert len(sample({"a": lambda: device.spend(10.0)}, device, min_rounds=1)["a"].warmup_s) == 2


def test_warm_up_ramp_is_kept_out_of_the_samples() -> None:
    device = VirtualDevice()
    draw = random.Random(2)
    num_calls = 0

    def call() -> None:
        nonlocal num_calls
        num_calls += 1
        ramp = max(0.0, 1 - num_calls / 60)  # twice as slow at first
        device.spend(0.001 * (1 + ramp) * draw.lognormvariate(0, 0.01))

    arm = sample({"a": call}, device, max_rounds=200)["a"]
    assert arm.steady
    assert len(arm.warmup_s) > 60
    assert max(arm.latency_s) < 0.00105


def test_an_arm_that_never_gets_steady_is_labelled() -> None:
    device = VirtualDevice()
    num_calls = 0

    def call() -> None:
        nonlocal num_calls
        num_calls += 1
        device.spend(0.001 * 1.02**num_calls)

    arms = {"ramp": call, "flat": lambda: device.spend(0.001)}
    result = sample(arms, device)
    assert result["ramp"].steady is False
    assert result["flat"].steady


def test_few_samples_cannot_tell() -> None:
    assert is_steady([1.0] * 15) is None
    assert is_steady([1.0] * 16) is True


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([0.001, 0.05, 0.3]))
def test_noise_without_a_trend_gets_steady(seed: int, noise: float) -> None:
    device = VirtualDevice()
    draw = random.Random(seed)
    arm = sample({"a": lambda: device.spend(0.001 * draw.lognormvariate(0, noise))}, device)["a"]
    assert arm.steady


@given(start=st.floats(1e-6, 1.0), step=st.floats(0.03, 0.2), n=st.integers(16, 200))
@settings(deadline=None)
def test_a_steep_trend_is_never_steady(start: float, step: float, n: int) -> None:
    rising = [start * (1 + step * i) for i in range(n)]
    assert not is_steady(rising[:40])
    assert not is_steady(rising[:40][::-1])


def test_announced_before_first_calls_and_rounds_and_never_inside_a_sample() -> None:
    device = VirtualDevice()
    heard: list[tuple[str, str]] = []
    calls: list[str] = []

    def announce(arm: str, what: str) -> None:
        assert not device.in_sample
        if what == "first call":
            assert arm not in calls
        heard.append((arm, what))

    def arm(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            device.spend(seconds)

        return call

    sample({"quick": arm("quick", 0.001), "slow": arm("slow", 0.2)}, device, announce=announce, time_budget_s=20.0)
    assert [entry for entry in heard if entry[1] != "rounds"] == [
        ("quick", "first call"),
        ("slow", "first call"),
        ("quick", "warm-up"),
        ("slow", "warm-up"),
    ]
    assert ("", "rounds") in heard
    assert ("quick", "rounds") not in heard
    assert heard.count(("slow", "rounds")) > 5


def test_a_call_that_raises_names_its_arm() -> None:
    device = VirtualDevice()

    def fail() -> None:
        raise MemoryError("no more")

    with pytest.raises(ArmError, match="bad") as caught:
        sample({"good": lambda: device.spend(0.001), "bad": fail}, device)
    assert caught.value.arm == "bad"
    assert isinstance(caught.value.__cause__, MemoryError)


def test_garbage_collection_is_off_during_rounds_and_on_again_afterwards() -> None:
    device = VirtualDevice()
    enabled: list[bool] = []

    def call() -> None:
        enabled.append(gc.isenabled())
        device.spend(0.001)

    sample({"a": call}, device)
    assert not enabled[-1]
    assert gc.isenabled()


def test_no_arms() -> None:
    assert sample({}, VirtualDevice()) == {}


def test_asynchronous_calls_are_timed_on_the_device(asynchronous: AsynchronousDevice) -> None:
    arms = {"a": asynchronous.kernel(2.344e-3), "b": asynchronous.kernel(5e-3)}
    result = sample(arms, asynchronous, min_rounds=20, max_rounds=20)
    assert statistics.median(result["a"].latency_s) == pytest.approx(2.344e-3, rel=0.02)
    assert statistics.median(result["b"].latency_s) == pytest.approx(5e-3, rel=0.02)
    assert result["a"].host_s is not None
    unsynchronised = CpuDevice(1).sample(asynchronous.kernel(10.0), 1)().device_s
    assert unsynchronised < 10.0 / 1000, "a clock that does not wait reads the time of queueing"


def test_what_a_device_tells_only_when_it_is_waited_for_is_charged_to_the_call() -> None:
    device = VirtualDevice()
    issued: list[str] = []

    def synchronize() -> None:
        if issued[-1] == "bad":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.synchronize = synchronize  # type: ignore[method-assign]  # the device's own way to fail
    arms = {name: partial(issued.append, name) for name in ("good", "bad")}
    with pytest.raises(ArmError) as caught:
        sample(arms, device)
    assert caught.value.arm == "bad"
    assert "illegal memory access" in str(caught.value.__cause__)


def test_one_synchronisation_a_round(asynchronous: AsynchronousDevice) -> None:
    arms = {name: asynchronous.kernel(1e-3) for name in "abc"}
    before = asynchronous.num_synchronisations
    result = sample(arms, asynchronous, min_rounds=10, max_rounds=10)
    rounds_of_all = 10 + len(result["a"].warmup_s) - 4  # first call and three pilots are alone
    assert asynchronous.num_synchronisations - before == rounds_of_all + 3 * 4


@pytest.fixture
def _untraced() -> Iterator[None]:
    """Without the tracer of coverage, which adds microseconds to the meter's own steps."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def spin(seconds: float) -> float:
    """Keep the processor for a time; returns what it took by the clock."""
    nanoseconds = int(seconds * 1e9)
    start_ns = now_ns = time.perf_counter_ns()
    while now_ns - start_ns < nanoseconds:
        now_ns = time.perf_counter_ns()
    return (now_ns - start_ns) * 1e-9


def allowed_s(seconds: float) -> float:
    """A microsecond or half a percent; more where two readings of the clock around a call are a third of that apart."""
    errors_s = []
    for _ in range(100):
        begin_s = time.perf_counter()
        true_s = spin(50e-6)
        errors_s.append(time.perf_counter() - begin_s - true_s)
    return max(1e-6, 3 * statistics.median(errors_s), 0.005 * seconds)


@pytest.mark.usefixtures("_untraced")
def test_known_times_are_read_within_a_microsecond_or_half_a_percent() -> None:
    truth = {"50us": 50e-6, "1ms": 1e-3, "4ms": 4e-3}
    result = sample({name: partial(spin, s) for name, s in truth.items()}, CpuDevice(1), max_rounds=100)
    for name, seconds in truth.items():
        # The shortest: a busy machine makes spins longer, and nothing makes them shorter.
        assert abs(min(result[name].latency_s) - seconds) <= allowed_s(seconds)


@pytest.mark.usefixtures("_untraced")
@pytest.mark.parametrize("seconds", [50e-6, 1e-3, 4e-3])
def test_the_meters_own_error_is_within_a_microsecond_or_half_a_percent(seconds: float) -> None:
    """Every sample against the time that its own spin took: what a busy machine adds to a spin is in both.

    A slow phase of the machine makes the meter's own steps longer too; of five attempts one has to be outside of it.
    """
    spans_s: list[float] = []
    found = []
    for _ in range(5):
        spans_s.clear()
        allowance_s = allowed_s(seconds)
        arm = sample({"spin": lambda: spans_s.append(spin(seconds))}, CpuDevice(1), max_rounds=100)["spin"]
        assert arm.inner_calls == 1
        errors_s = [seen - true for seen, true in zip([*arm.warmup_s, *arm.latency_s], spans_s, strict=True)]
        assert min(errors_s) >= 0
        truth_s = statistics.median(spans_s[-len(arm.latency_s) :])
        off_s = max(statistics.median(errors_s), abs(statistics.median(arm.latency_s) - truth_s))
        found.append((off_s, allowance_s))
        if off_s <= allowance_s:
            return
    pytest.fail(f"the meter's median errors and what is allowed, in seconds: {found}")
