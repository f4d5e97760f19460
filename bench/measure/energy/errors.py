"""Why an energy meter gives no value."""

from __future__ import annotations

from typing import Literal

Code = Literal[
    "library_absent",
    "no_permission",
    "not_supported",
    "mig",
    "virtualised",
    "below_resolution",
    "device_lost",
]


class MeterError(Exception):
    """No value, for a reason that is kept with the record.

    Attributes:
        code: for programs.
        detail: for the user.
    """

    def __init__(self, code: Code, detail: str) -> None:
        self.code: Code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}")
