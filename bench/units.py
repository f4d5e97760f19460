"""Numbers for people: SI values to short texts with a unit, and durations back."""

from __future__ import annotations

import math
import re

SECONDS_PER = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES_PER = {
    "B": 1,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``3m``, ``1.5h`` or ``1h 30m``.

    Raises:
        ValueError: saying what a duration looks like.
    """
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError("should be a duration with its unit, such as '90s', '3m', '1.5h' or '1h 30m'")
    return math.fsum(float(number) * SECONDS_PER[unit] for number, unit in parts)


def parse_bytes(text: str) -> float:
    """Bytes of a size such as ``512 MiB``, ``2GiB`` or ``1.5GB``.

    Raises:
        ValueError: saying what a size looks like.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2] not in BYTES_PER or float(found[1]) == 0:
        raise ValueError("should be a size with its unit, such as '512MiB', '2GiB' or '1.5GB'")
    return float(found[1]) * BYTES_PER[found[2]]


def duration(seconds: float) -> str:
    """A stretch of time, to the second and from an hour on to the minute: ``8s``, ``2m 05s``, ``1h 02m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h {minutes % 60:02d}m"


def latency(seconds: float) -> str:
    """A short time with three significant digits: ``12.3 µs``, ``1.23 ms``, ``4.56 s``."""
    return _scaled(seconds, (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)))


def bytes_(num_bytes: float) -> str:
    """A size in binary units: ``512 B``, ``4.1 MiB``."""
    return _scaled(num_bytes, (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40)))


def rate(per_second: float, unit: str) -> str:
    """Something per second: ``12.3 k tokens/s``, ``1.20 TFLOP/s`` for the unit ``FLOP/s``."""
    text = _scaled(per_second, (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15)))
    separator = "" if unit.startswith(("FLOP", "B/")) else " "
    return f"{text.rstrip()}{separator if text[-1].isalpha() else ' '}{unit}"


def percent(share: float) -> str:
    """A share of one as a percentage: ``12.5 %``."""
    return f"{three_digits(100 * share)} %"


def signed_percent(share: float) -> str:
    """A relative change with its sign: ``+5.02 %``, ``-0.29 %``."""
    return f"{100 * share:+.2f} %"


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent, or ``0``."""
    if value == 0:
        return "0"
    rounded = abs(float(f"{value:.3g}"))  # infinite for the largest numbers too
    digits = max(0, 2 - math.floor(math.log10(rounded))) if math.isfinite(rounded) else 0
    return f"{value:.{digits}f}"


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """``value`` in the largest unit in which it is at least one."""
    name, size = units[0]
    for candidate, candidate_size in units[1:]:
        # 999.6 of the smaller unit would round to 1000
        if abs(float(f"{value:.3g}")) >= candidate_size:
            name, size = candidate, candidate_size
    return f"{three_digits(value / size)} {name}"
