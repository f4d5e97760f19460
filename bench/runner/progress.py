"""How a run tells its user where it is. The runner calls these between measurements only, never during one."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who shows the progress of a run; implemented in :mod:`bench.console`."""

    def update(self, *, phase: str, current: str, done_s: float, left_s: float) -> None:
        """Show the state between two measurements.

        Args:
            phase: ``qualify``, ``time``, ``ceilings``, ``energy`` ...
            current: the case or workload that comes next, short enough for one line.
            done_s: seconds since the start of the run.
            left_s: seconds that are probably left.
        """

    def note(self, text: str) -> None:
        """Say something that the user must read: a failed case, a skipped part."""

    def stop(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """Shows nothing: for ``--quiet`` and for Python callers."""

    def update(self, *, phase: str, current: str, done_s: float, left_s: float) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Do nothing."""
