"""Fork servers that are forked from the test instead of exec'd: a run over fake jobs then takes a tenth of a second.

Everything else is as in a real run: the same server loop, lifelines, workers and signals.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_jobs
import psutil
import pytest

from bench import environment
from bench.runner.server import Server

PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """What :class:`~bench.runner.servers.ForkServer` uses of a ``Popen``."""

    def __init__(self, _command: list[str], *, pass_fds: list[int], **_options: Any) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(pass_fds[0], writer)
            finally:
                os._exit(0)
        os.close(writer)
        self.stdout = os.fdopen(reader, "rb")
        self._status: int | None = None

    @staticmethod
    def _serve(lifeline: int, output: int) -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for standard in (1, 2):
            os.dup2(output, standard)
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if descriptor not in (0, 1, 2, lifeline):
                with contextlib.suppress(OSError):  # the one that listed the folder
                    os.close(descriptor)
        Server(socket.socket(fileno=lifeline), fake_jobs.perform).run()

    def wait(self, timeout: float = 60.0) -> int:
        deadline_s = time.monotonic() + timeout
        while self._status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._status = status
            elif time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired("forked", timeout)
            else:
                time.sleep(0.0005)
        return self._status

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def fork_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have runs of this test fork their servers, and find out once only what machine this is."""
    described, machine = environment.describe(), environment.machine_key()
    monkeypatch.setattr(environment, "describe", lambda: described)
    monkeypatch.setattr(environment, "machine_key", lambda: machine)
    monkeypatch.setattr(environment, "git_commit", lambda: None)
    options = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "STDOUT", "TimeoutExpired")}
    monkeypatch.setattr("bench.runner.servers.subprocess", SimpleNamespace(Popen=Forked, **options))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


class Orphans:
    """The processes that this one's children leave behind: while entered, the system gives them to us."""

    def __enter__(self) -> "Orphans":
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)

    def all_end(self, within_s: float = 60.0) -> bool:
        """Whether every one of them ends by itself."""
        deadline_s = time.monotonic() + within_s
        while pids := self._now() - self._before:
            for pid in pids:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.001)
        return True

    @staticmethod
    def _now() -> set[int]:
        return {child.pid for child in psutil.Process().children()}
