"""What an exception means for a case: its status, and a reason that says where to look."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TypedDict

import torch

from bench.cases import Case
from bench.runner.jobs.room import ShortageError
from bench.runner.protocol import Answer
from bench.store.schema import Status
from impls.layer import Unsupported
from impls.registry import InvalidImplementation, UnknownImplementation, resolve

# Torch's CPU allocator, mmap and CUDA's libraries raise plain RuntimeErrors; their words are all that tells them apart.
_OUT_OF_MEMORY_WORDS = (
    "not enough memory", "out of memory", "Cannot allocate memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED",
)  # fmt: skip


class WrongResultError(Exception):
    """A case computed something else than it should.

    Attributes:
        relative_error: how far off; None where that is no number.
    """

    def __init__(self, fault: str, relative_error: float | None = None) -> None:
        super().__init__(fault)
        self.relative_error = relative_error


class Declared(TypedDict):
    """The fields of an answer that come from the implementation's class."""

    semantics: str
    exact: bool


def declared(case: Case | None) -> Declared:
    """What the case's class says of itself; the schema's defaults where there is no such class."""
    try:
        found = resolve(case.impl) if case else None
    except (ImportError, UnknownImplementation, InvalidImplementation):
        found = None
    return {"semantics": found.semantics, "exact": found.exact} if found else {"semantics": "moe", "exact": True}


def failed(error: BaseException, case: Case | None = None) -> Answer:
    """The answer that says how a job failed.

    Args:
        error: what was raised.
        case: the case that it is charged to, if any; the innermost line that is not torch's is named.
    """
    relative_error = None
    if isinstance(error, WrongResultError):
        status, reason, relative_error = Status.WRONG_RESULT, str(error), error.relative_error
    elif isinstance(error, Unsupported):
        status, reason = Status.UNSUPPORTED, error.reason
    elif isinstance(error, ShortageError):
        status, reason = Status.OUT_OF_MEMORY, str(error)
    else:
        status = Status.OUT_OF_MEMORY if is_out_of_memory(error) else Status.ERROR
        message = " ".join(str(error).split()) or "no message"
        reason = f"{type(error).__name__}: {message}{_where(error)}"
    return Answer(
        status=status,
        reason=reason,
        case_id=case.id if case else "",
        relative_error=relative_error,
        **declared(case),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or the device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def _where(error: BaseException) -> str:
    """The innermost line that the error went through outside of torch: an implementation's, where it is to blame."""
    torch_folder = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(torch_folder) and not frame.filename.startswith("<")
    ]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})"
