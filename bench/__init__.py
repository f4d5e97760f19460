"""The harness: sweeps, measures and compares Mixture-of-Experts layers, and reports what it found.

The functions below are the Python interface; they are loaded when they are first used, so that importing a
part of the harness does not import all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import compare, load, run, write_report

__all__ = ["compare", "load", "run", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    from bench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
