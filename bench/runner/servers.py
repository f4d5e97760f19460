"""Fresh processes for jobs: the runner's side of the fork servers.

A :class:`ForkServer` is one exec'd process with torch imported; every job runs in a child forked from it, so it starts
in some 30 ms. :meth:`ForkServer.execute` gives an answer in every case: a worker that crashes, hangs, prints without
end, sends garbage or ends silently becomes an :class:`~bench.runner.protocol.Answer` with that status and a reason.
The runner blocks in ``poll`` meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from bench.environment import without_folders
from bench.errors import MoebenchError
from bench.runner.channel import Channel
from bench.runner.conversation import Conversation, how_it_ended
from bench.runner.interrupt import Interrupt
from bench.runner.protocol import Answer, Job
from bench.runner.worker import JOBS_MODULE
from bench.store.schema import Status

START_TIMEOUT_S = 180.0
EXIT_TIMEOUT_S = 10.0
OUTPUT_TAIL_BYTES = 4096
REASON_OUTPUT_CHARS = 400
# A worker that keeps announcing is stopped after this many times the silence it is allowed.
MAX_SILENCES = 5


class ServerLostError(MoebenchError):
    """A fork server did not start, or ended by itself."""


class ForkServer:
    """One process that forks workers; a context manager that leaves no process behind.

    Args:
        interrupt: makes every wait end when the user wants to stop.
        jobs: module whose ``perform`` does the jobs.
        preload: modules that the process imports once, so that its workers need not.
    """

    def __init__(self, interrupt: Interrupt, jobs: str = JOBS_MODULE, preload: Iterable[str] = ()) -> None:
        self._interrupt = interrupt
        self._jobs = jobs
        self._preload = tuple(preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._tail = bytearray()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process if it is not running, and wait until it is ready.

        Raises:
            ServerLostError: with the last words of the process.
        """
        self.launch()
        if self._ready:
            return
        try:
            self._await_ready()
        except ServerLostError as error:
            self.close()
            raise ServerLostError(f"{error}; is torch installed and working?{self._last_words()}") from None
        self._ready = True

    def launch(self) -> None:
        """Start the process if it is not running, without waiting: several may load at the same time.

        Raises:
            ServerLostError: where the system gives no more processes.
        """
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "bench.runner.server", "--lifeline", str(theirs.fileno())]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, "--jobs", self._jobs, "--preload", *self._preload],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal is for the runner, which then decides
                )
            except OSError as error:
                ours.close()
                raise ServerLostError(f"a fork server cannot be started: {error.strerror}") from error
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._lifeline = Channel(ours)
        self._tail.clear()
        self._ready = False

    def _await_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._word() is None:
            if (left_s := deadline_s - time.monotonic()) <= 0:
                raise ServerLostError(f"a fork server was not ready after {START_TIMEOUT_S:.0f} s")
            self._wait(left_s)

    def execute(self, job: Job, silence_s: float) -> Answer:
        """Do ``job`` in a fresh process.

        Args:
            job: what to do.
            silence_s: a worker that says nothing for this long is stopped.

        Returns:
            The worker's answer; or, with any status but ``ok``, what became of it. ``case_id`` of a failure is the case
            that was announced last.

        Raises:
            ServerLostError: where no worker can be started.
            Interrupted: where the user wants to stop.
        """
        self.start()
        self._tail.clear()
        oom_kills = count_oom_kills()
        ours, theirs = socket.socketpair()
        ours.settimeout(EXIT_TIMEOUT_S)
        talk = Conversation(Channel(ours))
        try:
            with theirs:
                socket.send_fds(self._lifeline.socket, [b"S"], [theirs.fileno()])
            # A worker that is dead or deaf by now is found out by listening.
            with contextlib.suppress(OSError):
                talk.channel.send(job)
            status = self._listen(talk, silence_s)
        except (ServerLostError, BrokenPipeError, ConnectionResetError):
            # A worker can take its server with it; the next job starts another.
            self.close()
            return talk.failure(Status.CRASHED, f"its server process ended unexpectedly{self._last_words()}")
        finally:
            talk.channel.close()
        if talk.answer is not None:
            return talk.checked_answer(job)
        outcome, reason = talk.fault or how_it_ended(status, out_of_memory=count_oom_kills() > oom_kills)
        return talk.failure(outcome, reason + self._last_words())

    def close(self) -> None:
        """End the process and whatever runs in it."""
        if self._process is None:
            return
        self._lifeline.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def _listen(self, talk: Conversation, silence_s: float) -> int:
        """Follow the worker until it is dead, and give its wait status; what it said is in ``talk``."""
        heard_s = time.monotonic()
        last_s = heard_s + MAX_SILENCES * silence_s
        while not talk.over:
            if (status := self._exit_status()) is not None:
                talk.hear_rest()
                return status
            now_s = time.monotonic()
            if now_s >= min(heard_s + silence_s, last_s):
                talk.time_out(silence_s, only_talks=now_s >= last_s)
            elif self._wait(min(heard_s + silence_s, last_s) - now_s, talk.channel):
                talk.hear()
                heard_s = time.monotonic()
        return self._end_child(kill=talk.fault is not None)

    def _end_child(self, *, kill: bool) -> int:
        for kill_now in (kill, True):
            if kill_now:
                self._lifeline.socket.sendall(b"K")
            deadline_s = time.monotonic() + EXIT_TIMEOUT_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                if (status := self._exit_status()) is not None:
                    return status
                self._wait(left_s)
        raise ServerLostError("a worker process cannot be ended")

    def _exit_status(self) -> int | None:
        word = self._word()
        if word is not None and word.startswith(b"exited "):
            return int(word.split()[1])
        return None

    def _word(self) -> bytes | None:
        """The next line that the server said, or None where it has said nothing."""
        word = self._lifeline.line()
        if word is None and self._lifeline.closed_by_peer:
            raise ServerLostError("a fork server ended unexpectedly")
        return word

    def _wait(self, seconds: float, channel: Channel | None = None) -> bool:
        """Block until the server or ``channel`` has something to say; True where it is the channel."""
        poller = select.poll()
        for source in (self._interrupt, self._lifeline, self._output, channel):
            if source is not None:
                poller.register(source, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(seconds * 1000)}
        self._interrupt.check()
        if self._output in ready:
            self._drain(1)
        if self._lifeline.fileno() in ready:
            self._lifeline.fill()
        return channel is not None and channel.fileno() in ready

    def _drain(self, num_reads: int = 64) -> None:
        """Read what workers print, so that they never block, and keep its end."""
        for _ in range(num_reads):
            try:
                printed = os.read(self._output, 65536)
            except BlockingIOError:
                return
            if not printed:
                return
            self._tail += printed
            del self._tail[:-OUTPUT_TAIL_BYTES]

    def _last_words(self) -> str:
        if self._process is not None:
            self._drain()
        words = " ".join(self._tail.decode(errors="replace").split())
        words = "".join(character if character.isprintable() else "?" for character in words)
        return f"; its last words: …{without_folders(words)[-REASON_OUTPUT_CHARS:]}" if words else ""


def count_oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for lack of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in vmstat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
