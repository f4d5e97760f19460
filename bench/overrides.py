"""Values from the command line as a sweep document would have them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping

from bench.errors import RequestError

SHORTCUTS = {
    "impl": "workload.impls",
    "tokens": "workload.num_tokens",
    "dtype": "workload.dtype",
    "device": "workload.device",
    "direction": "workload.direction",
    "routing": "workload.routing",
    "threads": "workload.threads",
    "compile": "workload.compile",
    "seed": "workload.seed",
    "budget": "measure.budget",
    "profile": "measure.profile",
    "nvtx": "measure.nvtx",
    "check-limits": "measure.check_limits",
    "isolate": "measure.isolate",
}


def overrides(assignments: Iterable[str], shortcuts: Mapping[str, str | None]) -> dict[str, object]:
    """``table.key`` -> value from ``--set`` assignments and from the shortcuts that were given.

    Raises:
        RequestError: an assignment is none, or something is set twice.
    """
    found: dict[str, object] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise RequestError(f"--set {assignment}: should be TABLE.KEY=VALUE, as in --set layer.num_experts=8,64")
        _put(found, name.strip(), text, f"--set {name.strip()}")
    for option, value in shortcuts.items():
        if value is not None:
            _put(found, SHORTCUTS[option], value, f"--{option}")
    return found


def parse_value(text: str) -> object:
    """``8`` -> 8, ``8,64`` -> [8, 64], ``none,1.25`` -> ["none", 1.25]; what is no TOML value is a text."""
    if text.strip().startswith("["):
        listed = _parse_one(text)
        return listed if isinstance(listed, list) else text
    values = [_parse_one(part.strip()) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _put(found: dict[str, object], name: str, text: str, option: str) -> None:
    if name in found:
        raise RequestError(f"{option}: {name} is set twice; give one list instead, as in A,B")
    found[name] = parse_value(text)


def _parse_one(text: str) -> object:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = document["value"]
    return value if isinstance(value, int | float | str | list) and len(document) == 1 else text
