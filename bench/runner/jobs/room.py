"""Whether a job fits into this machine, asked before anything is allocated.

A process that takes more memory than there is gets killed without a word, on some systems together with others.
Refusing beforehand costs a row its time and nobody else anything.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bench.control_groups import available_bytes
from bench.units import bytes_


class ShortageError(MemoryError):
    """Something does not fit; the message says what, how much it needs and how much there is."""


def require_memory(what: str, needed_bytes: int, device: torch.device) -> None:
    """Raise :class:`ShortageError` unless ``needed_bytes`` fit into the free memory of ``device``."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
    else:
        free_bytes = available_bytes()
    _require(what, needed_bytes, free_bytes, f"of {device} memory")


def require_disk(what: str, needed_bytes: int, folder: Path) -> None:
    """Raise :class:`ShortageError` unless ``needed_bytes`` fit on the file system of ``folder``."""
    _require(what, needed_bytes, shutil.disk_usage(folder).free, "of disk for temporary files")


def _require(what: str, needed_bytes: int, free_bytes: int, where: str) -> None:
    if needed_bytes > free_bytes:
        raise ShortageError(
            f"{what}: at least {bytes_(needed_bytes)} {where} are needed, {bytes_(free_bytes)} are free; "
            "make the layer or num_tokens smaller"
        )
