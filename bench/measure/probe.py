"""What this machine can measure, found without torch and without initialising CUDA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a run could measure here.

    Attributes:
        name: what.
        ok: whether it can be measured.
        code: reason code where it cannot (``not_supported``, ``no_permission``, ``library_absent`` ...).
        detail: a sentence for the user: what was found, and what to do about it.
    """

    name: str
    ok: bool
    code: str
    detail: str


def probe() -> list[Capability]:
    """Every capability, present or absent."""
    return []
