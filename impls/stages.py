"""Marks the stages of a layer's work, so that a profiler can say where the time goes.

Outside :func:`recording` a mark costs a tenth of a microsecond and does nothing. Inside, it is a range of torch's
profiler whose name is :data:`PREFIX` and the stage's, and of NVTX where that was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch._C._profiler import _RecordFunctionFast  # the public record_function costs ten times as much: 13 us a range
from torch.profiler import record_function

Stage = Literal["route", "dispatch", "experts", "combine", "shared"]
STAGES: tuple[Stage, ...] = ("route", "dispatch", "experts", "combine", "shared")
PREFIX = "moebench:"
_NOTHING = nullcontext()
_recording = False
_nvtx = False


def stage(name: Stage, expert: int | None = None) -> AbstractContextManager[object]:
    """Mark what runs inside as part of a stage.

    Args:
        name: ``route`` (router, capacity), ``dispatch`` (tokens to their experts), ``experts`` (feed-forwards),
            ``combine`` (weighted sum) or ``shared`` (experts that see every token).
        expert: which expert, where they run one after the other; such a mark stands inside one of all experts.
    """
    if not _recording:
        return _NOTHING
    title = PREFIX + name if expert is None else f"{PREFIX}{name}#{expert}"
    return _nvtx_range(title) if _nvtx else _RecordFunctionFast(title)


@contextlib.contextmanager
def recording(*, nvtx: bool = False) -> Iterator[None]:
    """Make marks visible to torch's profiler and, with ``nvtx``, to NVIDIA's tools, while this is open."""
    global _recording, _nvtx
    before = _recording, _nvtx
    _recording, _nvtx = True, nvtx
    try:
        yield
    finally:
        _recording, _nvtx = before


@contextlib.contextmanager
def _nvtx_range(name: str) -> Iterator[None]:
    with record_function(name), torch.cuda.nvtx.range(name):
        yield
