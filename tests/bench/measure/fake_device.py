"""Devices for tests: one whose clock is the test's, and an asynchronous one that misbehaves when not waited for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.measure.device import Call, Timing


class VirtualDevice:
    """A synchronous device on which time passes only when a call says so, with ``spend``."""

    def __init__(self, min_sample_s: float = 20e-6) -> None:
        self.torch_device: Any = None
        self.min_sample_s = min_sample_s
        self.time_s = 0.0
        self.num_flushes = 0
        self.in_sample = False

    def spend(self, seconds: float) -> None:
        self.time_s += seconds

    def now_s(self) -> float:
        return self.time_s

    def synchronize(self) -> None:
        pass

    def flush_cache(self) -> None:
        self.num_flushes += 1
        self.spend(0.5)

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        start_s = self.time_s
        self.in_sample = True
        for _ in range(num_calls):
            call()
        self.in_sample = False
        timing = Timing(self.time_s - start_s, None)
        return lambda: timing

    def issue(self, call: Call) -> Callable[[], bool]:
        call()
        return lambda: True

    def idle(self, seconds: float) -> None:
        self.spend(seconds)

    def identity(self) -> dict[str, str | int]:
        return {"kind": "virtual"}


class AsynchronousDevice(VirtualDevice):
    """A queue and a worker thread. Work moves the device's own clock when the worker comes to it, not when issued.

    Reading a sample without having synchronised gives whatever the events hold at that moment: garbage, not an error.
    """

    def __init__(self) -> None:
        super().__init__(min_sample_s=50e-6)
        self.device_time_s = 0.0
        self.num_synchronisations = 0
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            time.sleep(0)  # the host gets ahead
            item()
            self._queue.task_done()

    def close(self) -> None:
        self._queue.put(None)
        self._worker.join()

    def kernel(self, seconds: float) -> Call:
        def run() -> None:
            self.device_time_s += seconds

        return lambda: self._queue.put(run)

    def now_s(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        self.num_synchronisations += 1
        self._queue.join()

    def sample(self, call: Call, num_calls: int) -> Callable[[], Timing]:
        marks = [0.0, 0.0]
        host_start_s = time.perf_counter()
        self._queue.put(lambda: marks.__setitem__(0, self.device_time_s))
        for _ in range(num_calls):
            call()
        self._queue.put(lambda: marks.__setitem__(1, self.device_time_s))
        host_s = time.perf_counter() - host_start_s
        return lambda: Timing(marks[1] - marks[0], host_s)
