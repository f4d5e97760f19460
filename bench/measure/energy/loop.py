"""A sustained loop of calls on a device that works on its own, counted by the fraction."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable

from bench.measure.device import Call, Device

POLL_S = 0.001
BATCH_S = 0.01
MAX_BATCH = 10_000
QUEUED_BATCHES = 2


class Loop:
    """Keeps ``device`` busy with ``call``: the next batch is always queued before the last one ends.

    Args:
        call: one call.
        device: where it runs.
    """

    def __init__(self, call: Call, device: Device) -> None:
        self._device = device
        self._call = call
        self._pending: deque[Callable[[], bool]] = deque()
        self.call_s = self._time_of_one_call()
        self._batch = max(1, min(MAX_BATCH, math.ceil(BATCH_S / self.call_s))) if self.call_s > 0 else MAX_BATCH
        self._ends_s = [device.now_s()]  # when the loop began, then the end of every batch

    def step(self) -> None:
        """Top up the queue, see what has finished, and leave the host alone for a millisecond."""
        while len(self._pending) < QUEUED_BATCHES:
            self._pending.append(self._device.issue(self._run_batch))
        self._wait()

    def finish(self) -> None:
        """Let what is queued come to its end."""
        while self._pending:
            self._wait()

    def _wait(self) -> None:
        self._device.idle(POLL_S)
        while self._pending and self._pending[0]():
            self._pending.popleft()
            self._ends_s.append(self._device.now_s())

    def calls_at(self, time_s: float) -> float:
        """Calls finished at a moment between the loop's start and its end, the one under way by its share of time."""
        done = min(bisect_right(self._ends_s, time_s), len(self._ends_s) - 1)
        start_s, end_s = self._ends_s[done - 1], self._ends_s[done]
        share = min(1.0, max(0.0, (time_s - start_s) / (end_s - start_s))) if end_s > start_s else 0.0
        return self._batch * (done - 1 + share)

    def _run_batch(self) -> None:
        for _ in range(self._batch):
            self._call()

    def _time_of_one_call(self) -> float:
        tries = []
        for _ in range(3):
            reader = self._device.sample(self._call, 1)
            self._device.synchronize()
            tries.append(reader().device_s)
        return min(tries)
