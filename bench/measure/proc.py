"""The resident memory of this process and its peak, from Linux's /proc; torch-free."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROC_SELF = Path("/proc/self")


def os_peak_gap(proc_self: Path = PROC_SELF) -> str:
    """Why this system cannot tell the peak of resident memory, as ``code: sentence``; empty where it can."""
    if sys.platform != "linux":
        return "not_supported: the peak of resident memory can be reset on Linux only"
    try:
        os.close(os.open(proc_self / "clear_refs", os.O_WRONLY))
    except FileNotFoundError:
        return f"not_supported: this kernel has no {proc_self}/clear_refs"
    except OSError as error:
        return f"no_permission: {proc_self}/clear_refs: {error.strerror}"
    return ""


def reset_peak(proc_self: Path = PROC_SELF) -> None:
    """Make the peak of resident memory start again from what is resident now; proc(5)."""
    (proc_self / "clear_refs").write_text("5")


def resident_bytes(proc_self: Path = PROC_SELF) -> int:
    """Resident memory now."""
    return _status_bytes("VmRSS", proc_self)


def peak_resident_bytes(proc_self: Path = PROC_SELF) -> int:
    """Highest resident memory since the last reset."""
    return _status_bytes("VmHWM", proc_self)


def _status_bytes(key: str, proc_self: Path) -> int:
    for line in (proc_self / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{proc_self}/status has no {key}")
