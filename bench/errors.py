"""What can go wrong for a user, each with the exit code that the command line returns.

::

    MoebenchError              1  a case or the tool failed
    ├── RequestError           2  what was asked cannot be honoured
    │   ├── ConfigError        2  a configuration is wrong; lists every fault
    │   └── ResultsError       2  results cannot be read or written
    └── RunInterruptedError  130  stopped by the user; what was measured is kept

Messages name the thing, what was found, what was expected, and what to do. The command line prints them without a
traceback; anything that is not a :class:`MoebenchError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    FAILED = 1
    CANNOT = 2
    REGRESSION = 3
    WRONG_NUMERICS = 4
    INTERRUPTED = 130


class MoebenchError(Exception):
    """A failure with a message for the user."""

    exit_code = Exit.FAILED


class RequestError(MoebenchError):
    """What was asked cannot be honoured: an unknown name, a bad value, an absent device."""

    exit_code = Exit.CANNOT


class ConfigError(RequestError):
    """A configuration is wrong.

    Attributes:
        faults: every fault, each as ``place: what was found, what is allowed``.
    """

    def __init__(self, source: str, faults: list[str]) -> None:
        self.source = source
        self.faults = faults
        super().__init__(
            f"{source} has {len(faults)} fault{'s' * (len(faults) != 1)}:\n" + "\n".join(f"  {f}" for f in faults)
        )


class ResultsError(RequestError):
    """A results folder cannot be read or written."""


class RunInterruptedError(MoebenchError):
    """Stopped by the user; everything measured so far is kept."""

    exit_code = Exit.INTERRUPTED
