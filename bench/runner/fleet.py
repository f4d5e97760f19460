"""Fork servers in advance: several load torch at the same time, and never while something is measured.

A server loads for about a second, on one core. A run needs more than a dozen of them, one after the other; started
so, they would take a tenth of a short run. So whoever needs the next one starts as many of those to come as there are
cores, and waits for all of them before anything is measured. Those that are not used yet sleep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import methodcaller
from types import TracebackType

from bench.runner.servers import ForkServer, ServerLostError

MAX_AT_ONCE = 4


class Fleet:
    """Servers that are ready, in the order of their start; a context manager that leaves none behind.

    Args:
        new_server: gives one that is not started yet.
        num_cores: how many can load at the same time without waiting for each other.
    """

    def __init__(self, new_server: Callable[[], ForkServer], num_cores: int) -> None:
        self._new_server = new_server
        self._at_once = max(1, min(MAX_AT_ONCE, num_cores))
        self._waiting: deque[ForkServer] = deque()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._waiting:
            self._waiting.popleft().close()

    def take(self, num_wanted: int) -> ForkServer:
        """The next server, ready; it is the caller's to close.

        Call this only while nothing is measured.

        Args:
            num_wanted: how many will be taken, this one included: no more than these are started.

        Raises:
            ServerLostError: where none of those that were started gets ready; one that does not costs only itself.
            Interrupted: where the user wants to stop.
        """
        if not self._waiting:
            self._start(min(num_wanted, self._at_once))
        return self._waiting.popleft()

    def _start(self, number: int) -> None:
        self._waiting.extend(self._new_server() for _ in range(number))
        for step in (methodcaller("launch"), methodcaller("start")):
            for server in tuple(self._waiting):
                try:
                    step(server)
                except ServerLostError:
                    self._waiting.remove(server)
                    if not self._waiting:
                        raise
