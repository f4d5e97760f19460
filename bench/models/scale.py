"""Making a layer smaller: its dimensions are divided, the number of experts and of choices stays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from bench.errors import RequestError

DIMENSIONS = ("d_model", "d_ff", "d_ff_shared")
"""What is divided: the widths. Experts, top-k, shared experts and groups are what makes a routing, and stay."""


def parse_scale(text: str) -> Fraction:
    """``1/4`` or ``0.25`` as a fraction.

    Raises:
        RequestError: it is no fraction above 0 and at most 1.
    """
    try:
        scale = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        scale = Fraction(0)
    if not 0 < scale <= 1:
        raise RequestError(f"--scale {text}: should be a fraction above 0 and at most 1, as in 1/4")
    return scale


def scaled(layer: Mapping[str, Any], scale: Fraction, *, name: str) -> dict[str, Any]:
    """The layer with every width multiplied by ``scale``.

    Args:
        layer: fields of :class:`impls.LayerSpec`.
        scale: above 0, at most 1.
        name: what the message calls the layer.

    Raises:
        RequestError: a width would not be a whole number; the message has the scales that work.
    """
    widths = {key: layer[key] for key in DIMENSIONS if layer.get(key) is not None}
    divided = {key: width * scale for key, width in widths.items()}
    broken = [f"{key} {widths[key]}" for key, width in divided.items() if width.denominator != 1]
    if broken:
        shared = math.gcd(*widths.values())
        works = ", ".join(f"1/{n}" for n in range(2, 65) if shared % n == 0)
        raise RequestError(
            f"--scale {scale}: {scale} of {' and '.join(broken)} of {name} is no whole number; "
            f"{f'these are: {works}' if works else 'no scale down to 1/64 gives one'}"
        )
    return {**layer, **{key: int(width) for key, width in divided.items()}}
