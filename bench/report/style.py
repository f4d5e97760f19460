"""How pictures look: one colour, marker and dash for each implementation everywhere, and plain logarithmic ticks.

Colours of implementations are those of Okabe and Ito (Color Universal Design, 2008), which readers with any colour
vision can tell apart and which stand out on white and on black. Baselines compute something else on purpose, so they
are grey, dashed and hollow. Text and lines use the few inks below; the same names occur in ``assets/figures.css``,
which exchanges them in dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl

from bench.cases import VARIANTS, uncompiled

INK = "#1c2128"
MUTED = "#656d76"
GRID = "#dfe3e8"
HOLLOW = "#ffffff"

_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the same data gives the same file everywhere
    "font.size": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in somebody's name is a dollar sign
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
}


def house_style(hash_salt: str | None = None) -> AbstractContextManager[None]:
    """Context in which figures are made and, with the salt that fixes the ids in an SVG, saved."""
    settings = {**_SETTINGS, "svg.hashsalt": hash_salt}
    return mpl.rc_context(settings)  # type: ignore[arg-type] # keys are plain strings before matplotlib 3.11


Marker = str | tuple[int, Literal[0, 1, 2], int]
"""matplotlib's code of a marker: a letter, or (points, 1, degrees) of a star."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one implementation is drawn in every picture and table.

    Attributes:
        colour: of line, marker and band.
        marker: matplotlib's code of the marker.
        dash: matplotlib's line style.
        baseline: whether it computes something else on purpose: drawn hollow, thin and dashed.
    """

    colour: str
    marker: Marker
    dash: str | tuple[int, tuple[float, ...]] = "-"
    baseline: bool = False


_PEER = (0, (6.0, 1.6))

LOOKS: dict[str, Look] = {
    "grouped": Look("#0072B2", "o"),
    "scatter_gather": Look("#D55E00", "s"),
    "einsum": Look("#009E73", "^"),
    "loop": Look("#E69F00", "D"),
    "batched": Look("#CC79A7", "P"),
    "loop_indexed": Look("#B59F00", "v"),
    "dense_masked": Look("#56B4E9", "h"),
    "expert_choice": Look("#56B4E9", "*"),
    "hf_eager": Look("#B59F00", "<", _PEER),
    "hf_batched_mm": Look("#CC79A7", "p", _PEER),
    "hf_grouped_mm": Look("#0072B2", ">", _PEER),
    "mixture_of_experts": Look("#009E73", "d", _PEER),
    "st_moe": Look("#009E73", "v", _PEER),
    "pytorch_mixtures": Look("#E69F00", "*", _PEER),
    "dense": Look("#7d8590", "o", (0, (4.0, 2.0)), baseline=True),
    "dense_total": Look("#7d8590", "s", (0, (1.2, 1.6)), baseline=True),
    "ensemble": Look("#a08a74", "^", (0, (4.0, 2.0)), baseline=True),
    "ensemble_weighted": Look("#a08a74", "v", (0, (1.2, 1.6)), baseline=True),
}
"""The table of all names that the repository brings; its order is the order of every list and column.

A peer has the colour of ours that works the same way, and is dashed. Markers tell apart what shares a colour.
"""

_COMPILED: dict[str, tuple[Marker, tuple[int, tuple[float, ...]]]] = {
    VARIANTS["default"]: ((4, 1, 0), (0, (1.2, 1.2))),
    VARIANTS["max-autotune"]: ((4, 1, 45), (0, (5.0, 1.4, 1.2, 1.4))),
}
"""Marker and dash of a compiled layer, which keeps the colour of what it was compiled from."""

_SPARE_COLOURS = ("#CC79A7", "#56B4E9", "#B59F00")
_SPARE_MARKERS = ("X", "H", "8")  # nobody's in the table


def looks_for(semantics: dict[str, str]) -> dict[str, Look]:
    """The look of every implementation, in drawing order, given what each computes (``moe`` or a baseline's label).

    Names that the repository does not know take the spare colours and markers in alphabetical order. A compiled layer
    comes right after the same layer uncompiled.
    """
    plain_names = {uncompiled(name): meaning for name, meaning in semantics.items()}
    looks = _looks_uncompiled(plain_names)
    return {
        base + variant: look if not variant else _compiled_look(look, variant)
        for base, look in looks.items()
        for variant in VARIANTS.values()
        if base + variant in semantics
    }


def _compiled_look(look: Look, variant: str) -> Look:
    marker, dash = _COMPILED[variant]
    return Look(look.colour, marker, dash, look.baseline)


def _looks_uncompiled(semantics: dict[str, str]) -> dict[str, Look]:
    known = {name: look for name, look in LOOKS.items() if name in semantics}
    others = sorted(set(semantics) - set(known))
    spare = {
        name: Look(
            _SPARE_COLOURS[i % len(_SPARE_COLOURS)] if semantics[name] == "moe" else "#7d8590",
            _SPARE_MARKERS[i // len(_SPARE_COLOURS) % len(_SPARE_MARKERS)],
            "-" if semantics[name] == "moe" else (0, (2.5, 1.5)),
            baseline=semantics[name] != "moe",
        )
        for i, name in enumerate(others)
    }
    layers = {n: look for n, look in {**known, **spare}.items() if not look.baseline}
    return {**layers, **{n: look for n, look in {**known, **spare}.items() if look.baseline}}


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis that enclose ``low`` to ``high``: 1-2-5 steps, or whole decades past four of them.

    The first is at or below ``low``, the last at or above ``high``, so there are always two.
    """
    assert 0 < low <= high, (low, high)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = (1, 2, 5) if high / low <= 2e3 else (1, 3) if high / low <= 2e4 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    first = max(i for i, tick in enumerate(ticks) if tick <= low)
    last = min(i for i, tick in enumerate(ticks) if tick >= high)
    return ticks[first : max(last, first + 1) + 1]


def plain(value: float) -> str:
    """A tick's number without an exponent: ``0.002``, ``5``, ``20,000``."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.10f}".rstrip("0").rstrip(".")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves label positions as little as needed so that neighbours are ``gap`` apart and inside ``low`` to ``high``.

    Order is kept. Where all do not fit, the gap shrinks to what does.
    """
    if not positions:
        return []
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    placed: list[list[float]] = []  # clusters of labels that touch: [sum of wished first positions, count]
    for rank, i in enumerate(order):
        placed.append([positions[i] - rank * gap, 1.0])
        while len(placed) > 1 and placed[-2][0] / placed[-2][1] > placed[-1][0] / placed[-1][1]:
            total, count = placed.pop()
            placed[-1][0] += total
            placed[-1][1] += count
    starts = [total / count for total, count in placed for _ in range(int(count))]
    top = high - (len(positions) - 1) * gap
    result = [0.0] * len(positions)
    for rank, (i, start) in enumerate(zip(order, starts, strict=True)):
        result[i] = min(max(start, low), top) + rank * gap
    return result


def scale_for(values: Iterable[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The unit, of ``(size, name)`` from small to large, in which the middle value is at least 1."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2] if ordered else 0.0
    return max((unit for unit in units if unit[0] <= middle), default=units[0])


TIMES = "\N{MULTIPLICATION SIGN}"
TO = "\N{EN DASH}"

TIME_UNITS = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
BYTE_UNITS = ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"))
RATE_UNITS = ((1.0, ""), (1e3, "thousand "), (1e6, "million "))
ENERGY_UNITS = ((1e-6, "µJ"), (1e-3, "mJ"), (1.0, "J"))
