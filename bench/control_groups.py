"""The control groups that this process is in, which limit a container: their folders, and the memory they leave.

Versions 1 and 2, by the kernel's own files; torch-free. A limit of any level above the own one holds too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# limit and use of version 2, then of version 1
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def levels(root: Path, groups: str, controller: str) -> Iterator[Path]:
    """Folders of every level that bears on ``controller``, the own one first.

    Args:
        root: where control groups are mounted.
        groups: what ``/proc/self/cgroup`` says.
        controller: as in ``cpu`` and ``memory``.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder
            if folder == base:
                break


def available_bytes(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """Memory that this process can still take: the machine's, or what a control group leaves where that is less."""
    found = [psutil.virtual_memory().available]
    for folder in levels(sys / "fs/cgroup", read(proc / "self/cgroup") or "", "memory"):
        for limit, used in MEMORY_FILES:
            most, taken = read(folder / limit) or "", read(folder / used) or ""
            if most.isdigit() and taken.isdigit():  # "max" is no limit
                found.append(int(most) - int(taken) + _dropped_at_need_bytes(folder))
    return max(0, min(found))


def _dropped_at_need_bytes(folder: Path) -> int:
    """Copies of files, which count as used and make room for whoever needs it."""
    for line in (read(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file" and value.isdigit():
            return int(value)
    return 0


def read(path: Path) -> str | None:
    """A file's text, without the end of its last line; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
