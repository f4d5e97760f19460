"""Scratch space: the folder where workloads' weights, tokens and truths lie while a run needs them.

It is a temporary folder, deleted when the run ends; what a killed run has left is deleted by the next one. A folder is
in use while its owner holds a lock on it, which the system releases when the owner dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bench.cases import Workload

PREFIX = "moebench-scratch-"
# Between making a folder and locking it lie microseconds; a folder this old without a lock has lost its owner.
STALE_AFTER_S = 60.0
KEEP_FREE = 0.1
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class NoSpaceError(Exception):
    """There is too little disk for a workload's files; the message says how much is needed and free."""


class Scratch:
    """Folders for workloads; a context manager that leaves nothing behind.

    Args:
        parent: where to make the folder; the system's temporary folder if None.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        self._made: dict[str, Path] = {}

    def __enter__(self) -> Scratch:
        remove_stale(self._parent)
        self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._lock)

    def holds(self, workload: Workload) -> bool:
        """Whether the workload's files are there."""
        if workload.id not in self._made:
            return False
        self._made[workload.id] = self._made.pop(workload.id)
        return True

    def reserve(self, workload: Workload) -> Path:
        """An empty folder for the workload's files, and room for them: the longest unused ones make way.

        Raises:
            NoSpaceError: where even the whole scratch space is too little.
        """
        needed_bytes = estimated_bytes(workload)
        while (free := self._free_bytes()) < needed_bytes:
            if not self._made:
                raise NoSpaceError(
                    f"its weights and tokens need about {needed_bytes / 2**20:.0f} MiB of disk and {self._parent} has "
                    f"{max(0, free) / 2**20:.0f} MiB to spare; set TMPDIR to a folder on a larger disk"
                )
            self.drop(next(iter(self._made)))
        folder = self._root / workload.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._made[workload.id] = folder
        return folder

    def folder(self, workload: Workload) -> Path:
        """The folder of a workload that :meth:`holds`."""
        return self._made[workload.id]

    def other(self, name: str) -> Path:
        """An empty folder for something else than a workload, until the end."""
        folder = self._root / f"other-{name}"
        folder.mkdir()
        return folder

    def drop(self, workload_id: str) -> None:
        """Delete a workload's files."""
        shutil.rmtree(self._made.pop(workload_id), ignore_errors=True)

    def _free_bytes(self) -> int:
        usage = shutil.disk_usage(self._root)
        return int(usage.free - KEEP_FREE * usage.total)


def remove_stale(parent: Path) -> list[Path]:
    """Delete the scratch folders under ``parent`` whose owners are dead, and say which."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            state = folder.lstat()
            if state.st_uid != os.getuid() or time.time() - state.st_mtime < STALE_AFTER_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # not a folder, not ours, or just deleted by its owner
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        finally:
            os.close(lock)
    return removed


def estimated_bytes(workload: Workload) -> int:
    """About what a workload's files take: weights and tokens, and the float64 truth of outputs and gradients."""
    layer = workload.layer
    width = layer.num_experts * layer.d_ff + layer.shared_d_ff
    num_weights = layer.d_model * (width * (3 if layer.gated else 2) + layer.num_experts)
    num_activations = 2 * workload.num_tokens * layer.d_model
    stored = (num_weights + num_activations) * ITEM_BYTES[workload.dtype]
    truth = 8 * (num_activations + (num_weights if workload.direction == "train" else 0))
    return stored + truth
