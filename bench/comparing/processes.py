"""The harness's side of a version's process: starts it, asks it, and gives a reason when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.comparing import version_worker
from bench.comparing.versions import Version
from bench.environment import without_folders
from bench.runner.channel import Channel, ChannelError
from bench.runner.conversation import how_it_ended
from bench.runner.interrupt import Interrupt
from bench.runner.servers import START_TIMEOUT_S, count_oom_kills
from bench.store.schema import Status

MAX_LINE_BYTES = 1024 * 1024
LAST_WORDS_CHARS = 300
EXIT_TIMEOUT_S = 10.0


class VersionFailedError(Exception):
    """A version could not do what it was asked.

    Attributes:
        status, reason: as a case's record has them.
        dead: whether its process is gone.
    """

    def __init__(self, status: Status, reason: str, *, dead: bool) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.dead = dead


class VersionProcess:
    """One version's process; a context manager that leaves nothing behind.

    Args:
        version: which.
        log: file that takes what it prints.
        interrupt: ends every wait when the user wants to stop.
        timeout_s: an answer that takes longer is a failure; what the start takes, importing torch, does not count.
    """

    def __init__(self, version: Version, log: Path, interrupt: Interrupt, timeout_s: float) -> None:
        self.version = version
        self._log = log
        self._interrupt = interrupt
        self._timeout_s = timeout_s
        self._ready = False
        self._oom_kills = count_oom_kills()
        ours, theirs = socket.socketpair()
        ours.settimeout(EXIT_TIMEOUT_S)
        self._channel = Channel(ours, MAX_LINE_BYTES)
        command = [sys.executable, "-P", version_worker.__file__, "--channel", str(theirs.fileno())]
        if version.path is not None:
            command += ["--path", str(version.path)]
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the harness, which then decides
            )

    def __enter__(self) -> VersionProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The process's answer; this one sleeps meanwhile.

        Raises:
            VersionFailedError: it answered with a failure, died, said nonsense, or took too long.
            Interrupted: the user wants to stop.
        """
        if not self._ready:
            self._listen("start", START_TIMEOUT_S)
            self._ready = True
        with contextlib.suppress(OSError):  # one that is dead by now is found out by listening
            self._channel.socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
        line = self._listen(do, self._timeout_s)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._dead(Status.CRASHED, "it said something that is no answer")
        if "status" in answer:
            reason = without_folders(str(answer.get("reason") or "it gave no reason"))
            raise VersionFailedError(Status(answer["status"]), reason, dead=False)
        return answer

    def require_unchanged(self) -> None:
        """Raise :class:`VersionFailedError` where the version has written to the weights or tokens it was given."""
        if changed := self.ask("changed")["names"]:
            reason = f"it changed {changed} in place, which all implementations of the workload share"
            raise VersionFailedError(Status.WRONG_RESULT, without_folders(str(reason)), dead=False)

    def close(self) -> None:
        """End the process and whatever it started."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self, do: str, timeout_s: float) -> bytes:
        deadline_s = time.monotonic() + timeout_s
        poller = select.poll()
        for source in (self._interrupt, self._channel):
            poller.register(source, select.POLLIN)
        while True:
            try:
                if (line := self._channel.line()) is not None:
                    return line
            except ChannelError as error:
                raise self._dead(Status.CRASHED, f"it {error}") from None
            if self._channel.closed_by_peer:
                raise self._ended()
            if (left_s := deadline_s - time.monotonic()) <= 0:
                reason = f"no answer for {timeout_s:g} s to: {do}"
                if self._ready:
                    reason += "; [measure] timeout raises the limit"
                raise self._dead(Status.TIMEOUT, reason)
            ready = {descriptor for descriptor, _ in poller.poll(left_s * 1000)}
            self._interrupt.check()
            if self._channel.fileno() in ready:
                self._channel.fill()

    def _ended(self) -> VersionFailedError:
        try:
            code = self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self._dead(Status.CRASHED, "it closed its channel without an answer")
        wait_status = -code if code < 0 else code << 8
        status, reason = how_it_ended(wait_status, out_of_memory=count_oom_kills() > self._oom_kills)
        return self._dead(status, reason)

    def _dead(self, status: Status, reason: str) -> VersionFailedError:
        """The failure, with the process's last words; it is ended for certain."""
        self.close()
        words = " ".join(self._log.read_bytes()[-4096:].decode(errors="replace").split())
        words = without_folders("".join(c if c.isprintable() else "?" for c in words))[-LAST_WORDS_CHARS:]
        return VersionFailedError(status, f"{reason}; its last words: …{words}" if words else reason, dead=True)
