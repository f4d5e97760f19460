"""Ctrl-C and termination as something to wait for, so that a run stops between two steps and never inside one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - a request of the user, not an error; the runner turns it into one
    """The user wants the run to stop."""


class Interrupt:
    """While entered, the first SIGINT or SIGTERM makes waits raise :class:`Interrupted`; a second one acts as before.

    Outside the main thread, where Python lets nobody handle signals, it never fires.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._reader, self._writer = -1, -1

    def __enter__(self) -> Interrupt:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable from the signal on, for ``poll``."""
        return self._reader

    def check(self) -> None:
        """Raise :class:`Interrupted` if the user wants to stop."""
        if self._received is not None:
            raise Interrupted(self._received.name)

    def sleep(self, seconds: float) -> None:
        """Wait, and raise :class:`Interrupted` as soon as the user wants to stop."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.check()
            select.select([self._reader], [], [], left_s)
        self.check()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"!")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
