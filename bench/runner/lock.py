"""One measurement at a time on one machine's device: two at once would disturb each other."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import RequestError, ResultsError
from bench.runner.interrupt import Interrupt

WAIT_LIMIT_S = 3600.0
POLL_S = 1.0


@contextmanager
def only_run(
    machine_folder: Path, device: str, interrupt: Interrupt, say: Callable[[str], None], limit_s: float = WAIT_LIMIT_S
) -> Iterator[None]:
    """Hold the lock of a device while entered; the system releases it when the process dies.

    Args:
        machine_folder: ``results/<machine>``.
        device: what is measured.
        interrupt: ends the wait.
        say: tells the user that another run is being waited for, and which.
        limit_s: how long to wait for it.

    Raises:
        RequestError: where the other run is still there after ``limit_s``.
        ResultsError: where the lock's file cannot be written.
    """
    path = machine_folder / f".{device.replace(':', '-')}.lock"
    try:
        machine_folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ResultsError(f"{path}: cannot write: {error.strerror}; choose another folder with --results") from error
    try:
        _acquire(lock, device, interrupt, say, limit_s)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()}, since {time.strftime('%H:%M:%S')}".encode(), 0)
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _acquire(lock: int, device: str, interrupt: Interrupt, say: Callable[[str], None], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode(errors="replace") or "just started"
        else:
            return
        if time.monotonic() >= deadline_s:
            raise RequestError(
                f"another run ({holder}) still measures on this machine's {device} after {limit_s:.0f} s; "
                "two at once would disturb each other: wait for it or stop it"
            )
        if not told:
            say(f"another run ({holder}) is measuring on this machine's {device}; waiting for it to end")
            told = True
        interrupt.sleep(POLL_S)
