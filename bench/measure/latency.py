"""Latency of several implementations, sampled in randomised interleaved rounds: every round runs each once.

Whatever drifts (clocks, temperature, neighbours) then drifts for all of them, and the ratio within a round stays fair.
All raw samples are kept.

**Warm-up.** Arms are warmed up in interleaved rounds too. An arm is *steady* once the later half of its warm-up shows
no trend: cut that half in two, and either the medians of the two quarters agree within 1 %, or each lies within the
other quarter's range (they differ by less than the arm's own noise). At least :data:`MIN_WARMUP` samples and
:data:`WARMUP_FLOOR` of the time budget are looked at, so that a burst of very short calls does not pass for a steady
state. Warm-up ends when every arm is steady, or when :data:`WARMUP_CAP` of the budget is spent; arms that were not
steady by then are judged once more with their rounds, and labelled ``steady=False`` if there is still a trend, None
if all samples together are too few to tell.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from bench.measure.device import Call, Device, Timing
from bench.store.schema import Arm

MIN_WARMUP = 16
WARMUP_FLOOR = 0.02
WARMUP_CAP = 0.25
STEADY_TOLERANCE = 0.01
MAX_INNER_CALLS = 10_000
# Announcing wakes the reader, which costs it some 10 us of a processor: nothing beside a sample this long.
ANNOUNCED_SAMPLE_S = 0.05
LONG_SAMPLE_S = 0.1

Announce = Callable[[str, str], None]


class ArmError(RuntimeError):
    """One arm's call raised; the exception itself is the ``__cause__``.

    Attributes:
        arm: which one.
    """

    def __init__(self, arm: str) -> None:
        self.arm = arm
        super().__init__(f"{arm} failed while it was timed")


def is_steady(samples: Sequence[float]) -> bool | None:
    """Whether the later half of ``samples`` shows no trend; None where fewer than :data:`MIN_WARMUP` cannot tell."""
    if len(samples) < MIN_WARMUP:
        return None
    quarter = len(samples) // 4
    before, after = samples[-2 * quarter : -quarter], samples[-quarter:]
    median_before, median_after = statistics.median(before), statistics.median(after)
    if abs(median_after - median_before) <= STEADY_TOLERANCE * median_before:
        return True
    return min(before) <= median_after <= max(before) and min(after) <= median_before <= max(after)


def sample_rounds(
    arms: Mapping[str, Call],
    device: Device,
    *,
    order_seed: int,
    time_budget_s: float,
    min_rounds: int,
    max_rounds: int,
    overrun_s: float | None = None,
    cold: bool = False,
    before: Callable[[str], None] | None = None,
    announce: Announce,
) -> dict[str, Arm]:
    """Warm up and time every arm; entry ``i`` of every arm's ``latency_s`` is from round ``i``.

    Args:
        arms: name -> what to call. A call must not keep its output alive.
        device: where they run.
        order_seed: seed of the order within rounds.
        time_budget_s: warm-up and rounds together end when the next round would pass it.
        min_rounds: rounds made even when the budget is spent.
        max_rounds: rounds made at most.
        overrun_s: ``min_rounds`` are given up when this much more than the budget is spent; one round is always made.
        cold: flush the caches before every sample, outside of its time. A cold sample is always a single call.
        before: called with the arm before every sample, outside of its time.
        announce: told ``(arm, what)`` before an arm's first call, ``("", "rounds")`` before the rounds, and the arm
            before each of its samples that takes :data:`ANNOUNCED_SAMPLE_S` or more. Never called within a sample.

    Raises:
        ArmError: a call raised.
    """
    overrun_s = math.inf if overrun_s is None else overrun_s
    return _Sampler(arms, device, random.Random(order_seed), cold, before, announce).sample(
        time_budget_s, overrun_s, min_rounds, max_rounds
    )


class _Sampler:
    def __init__(
        self,
        arms: Mapping[str, Call],
        device: Device,
        order: random.Random,
        cold: bool,
        before: Callable[[str], None] | None,
        announce: Announce,
    ) -> None:
        self.arms = arms
        self.device = device
        self.order = order
        self.cold = cold
        self.before = before
        self.announce = announce
        self.inner_calls = dict.fromkeys(arms, 1)
        self.announced: set[str] = set()  # arms slow enough to be announced before each sample

    def sample(self, time_budget_s: float, overrun_s: float, min_rounds: int, max_rounds: int) -> dict[str, Arm]:
        if not self.arms:
            return {}
        start_s = self.device.now_s()
        warmup: dict[str, list[float]] = {}
        for name in self.arms:
            self.announce(name, "first call")
            warmup[name] = [self._one(name)]
        for name in self.arms:
            self.announce(name, "warm-up")
            warmup[name] += self._choose_inner_calls(name)
        self.announce("", "rounds")
        with _no_garbage_collection():
            warmup_rounds = self._warm_up(warmup, start_s, time_budget_s)
            steady = {name: is_steady(samples) for name, samples in warmup.items()}
            rounds = self._rounds(start_s + time_budget_s, overrun_s, min_rounds, max_rounds)
        result = {}
        for name in self.arms:
            timings = [timing[name] for timing in rounds]
            latency_s = [timing.device_s for timing in timings]
            host_s = [timing.host_s for timing in timings if timing.host_s is not None]
            result[name] = Arm(
                latency_s=latency_s,
                warmup_s=warmup[name],
                inner_calls=self.inner_calls[name],
                steady=steady[name] or is_steady(warmup[name] + latency_s),
                host_s=statistics.median(host_s) if host_s else None,
                warmup_rounds=warmup_rounds,
            )
        return result

    def _one(self, name: str) -> float:
        """Seconds of one call in one sample, on its own."""
        reader = self._issue(name)
        try:
            self.device.synchronize()
        except Exception as error:  # what goes wrong on a device is told when it is waited for
            raise ArmError(name) from error
        return self._per_call(name, reader()).device_s

    def _issue(self, name: str) -> Callable[[], Timing]:
        try:
            if self.before is not None:
                self.before(name)
            if self.cold:
                self.device.flush_cache()
            return self.device.sample(self.arms[name], self.inner_calls[name])
        except Exception as error:
            raise ArmError(name) from error

    def _per_call(self, name: str, timing: Timing) -> Timing:
        num_calls = self.inner_calls[name]
        return Timing(timing.device_s / num_calls, None if timing.host_s is None else timing.host_s / num_calls)

    def _choose_inner_calls(self, name: str) -> list[float]:
        """Batch calls until a sample is long against the clock; gives the seconds a call that were seen on the way.

        The fastest of three decides: a single hiccup must not pass for a long call. One that is longer than any
        hiccup is not repeated.
        """
        seen: list[float] = []
        while True:
            num_calls = self.inner_calls[name]
            tries: list[float] = []
            while len(tries) < 3 and not (tries and min(tries) * num_calls >= LONG_SAMPLE_S):
                tries.append(self._one(name))
            seen += tries
            sample_s = min(tries) * num_calls
            if sample_s >= ANNOUNCED_SAMPLE_S:
                self.announced.add(name)
            if self.cold or sample_s >= self.device.min_sample_s or num_calls == MAX_INNER_CALLS:
                return seen
            wanted = (
                math.ceil(1.2 * num_calls * self.device.min_sample_s / sample_s) if sample_s > 0 else 10 * num_calls
            )
            self.inner_calls[name] = min(max(wanted, num_calls + 1), MAX_INNER_CALLS)

    def _warm_up(self, warmup: dict[str, list[float]], start_s: float, time_budget_s: float) -> int:
        """Add rounds to ``warmup`` until it is over; gives their number."""
        num_rounds = 0
        while (spent_s := self.device.now_s() - start_s) < WARMUP_CAP * time_budget_s:
            if spent_s >= WARMUP_FLOOR * time_budget_s and all(map(is_steady, warmup.values())):
                break
            for name, timing in self._round().items():
                warmup[name].append(timing.device_s)
            num_rounds += 1
        return num_rounds

    def _rounds(self, deadline_s: float, overrun_s: float, min_rounds: int, max_rounds: int) -> list[dict[str, Timing]]:
        rounds: list[dict[str, Timing]] = []
        begun_s = self.device.now_s()
        while len(rounds) < max_rounds:
            now_s = self.device.now_s()
            mean_round_s = (now_s - begun_s) / len(rounds) if rounds else 0.0
            last_s = deadline_s if len(rounds) >= min_rounds else deadline_s + overrun_s
            if rounds and now_s + mean_round_s > last_s:
                break
            rounds.append(self._round())
        return rounds

    def _round(self) -> dict[str, Timing]:
        """Every arm once, in a new random order, with a single synchronisation at the end."""
        names = list(self.arms)
        self.order.shuffle(names)
        readers = {}
        for name in names:
            if name in self.announced:
                self.announce(name, "rounds")
            readers[name] = self._issue(name)
        self.device.synchronize()
        return {name: self._per_call(name, reader()) for name, reader in readers.items()}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
