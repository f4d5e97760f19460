"""Small multiples of one quantity against one axis of the sweep: a line with its interval band an implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.report.figures.canvas import Picture, finish, fraction, grid, headline, log_axis
from bench.report.slices import Slice, evenly, slices
from bench.report.style import (
    HOLLOW,
    INK,
    MUTED,
    RATE_UNITS,
    TIME_UNITS,
    Look,
    house_style,
    scale_for,
    spread,
)
from bench.report.view import FIELD_WORDS, View, describe, field_value

MAX_PANELS = 9
MAX_PANELS_OF_MANY = 4
MANY_VALUES = 16
_PANEL_IN = 2.55


@dataclass(frozen=True)
class Quantity:
    """What stands on the vertical axis.

    Attributes:
        slug: part of the file's name.
        column: of the frame.
        word: for titles.
        better: which way is better.
        units: sizes and names to choose from.
        per: what follows the unit.
        interval: columns of the bounds.
    """

    slug: str
    column: str
    word: str
    better: str
    units: tuple[tuple[float, str], ...]
    per: str
    interval: tuple[str, str]


LATENCY = Quantity(
    "latency", "latency_s", "Latency", "lower is better", TIME_UNITS, " a call", ("latency_low_s", "latency_high_s")
)
THROUGHPUT = Quantity(
    "throughput",
    "tokens_per_s",
    "Throughput",
    "higher is better",
    RATE_UNITS,
    "tokens/s",
    ("tokens_low_per_s", "tokens_high_per_s"),
)


def axis_picture(view: View, quantity: Quantity, axis: str, slug_prefix: str = "") -> Picture | None:
    """One quantity against one axis, a panel a slice; None where no slice has two values of both."""
    frame = _with_bounds(view.frame)
    positive = frame[frame[quantity.column].notna() & (frame[quantity.column] > 0)]
    limit = MAX_PANELS if positive[axis].nunique() <= MANY_VALUES else MAX_PANELS_OF_MANY
    shown, num_slices = slices(positive, axis, limit)
    if not shown:
        return None
    rows = pd.concat([piece.rows for piece in shown])
    size, unit = scale_for(rows[quantity.column], quantity.units)
    positions = _positions(axis, sorted(rows[axis].unique()))

    figure, panels = grid(len(shown), _num_columns(len(shown)), _PANEL_IN if len(shown) > 1 else 3.4)
    num_columns = _num_columns(len(shown))
    bounds = list(quantity.interval)
    extent = rows[[quantity.column, *bounds]].to_numpy(dtype=float) / size
    with house_style():
        for panel in panels:
            log_axis(panel, "y", [float(np.nanmin(extent)), float(np.nanmax(extent))], pad=1.06)
            _x_axis(panel, axis, positions)
        for i, (panel, piece) in enumerate(zip(panels, shown, strict=True)):
            ends = _draw(panel, view.looks, piece, quantity, size, positions, axis)
            panel.set_title(describe(piece.fixed) or "", fontsize=9)
            if i % num_columns == num_columns - 1 or i == len(panels) - 1:
                _label_ends(panel, view.looks, ends)
            if i % num_columns == 0:
                panel.set_ylabel(f"{unit}{quantity.per}  ({quantity.better})")
            if i >= len(panels) - num_columns:
                panel.set_xlabel(_axis_words(axis))
    word = FIELD_WORDS[axis]
    title = f"{quantity.word} against {word}"
    headline(figure, title, view.slice_words)
    cut = f" {len(shown)} of {num_slices} slices are drawn; the table has all." if len(shown) < num_slices else ""
    by_value = axis == "capacity_factor"  # dropless has no place on a logarithmic axis
    caption = (
        f"Follow one colour from left to right to see what a larger {_axis_words(axis).split(':')[0]} does; "
        f"{quantity.better}. Solid lines compute the layer, grey dashed ones are baselines that do something else. "
        "The band is the interval; where none is seen it is narrower than the line. "
        f"{'The vertical axis is' if by_value else 'Both axes are'} logarithmic, and all panels share theirs.{cut}"
    )
    return finish(figure, f"{slug_prefix}{quantity.slug}-{axis.replace('_', '-')}", title, caption)


def _with_bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the bounds of the throughput, which is the tokens of a call over its latency."""
    return frame.assign(
        tokens_low_per_s=frame["tokens_per_s"] * frame["latency_s"] / frame["latency_high_s"],
        tokens_high_per_s=frame["tokens_per_s"] * frame["latency_s"] / frame["latency_low_s"],
    )


def _num_columns(num_panels: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(num_panels, 3)


def _axis_words(axis: str) -> str:
    return {
        "capacity_factor": "capacity factor",
        "num_experts": "number of experts",
        "num_tokens": "number of tokens in a call",
        "top_k": "top-k: experts a token is sent to",
    }.get(axis, axis)


def _positions(axis: str, values: list[Any]) -> dict[Any, float]:
    """Where each value of the axis stands: at itself, or evenly spaced where it has no logarithm (dropless, 0)."""
    if axis == "capacity_factor" or min(values) <= 0:
        return {value: i + 1.0 for i, value in enumerate(values)}
    return {value: float(value) for value in values}


def _x_axis(panel: Axes, axis: str, positions: dict[Any, float]) -> None:
    """Ticks at the values that were measured."""
    logarithmic = all(position == value for value, position in positions.items())
    places = list(positions.values())
    if logarithmic:
        panel.set_xscale("log")
        margin = (places[-1] / places[0]) ** 0.05
        panel.set_xlim(places[0] / margin, places[-1] * margin)
    else:
        panel.set_xlim(places[0] - 0.2, places[-1] + 0.2)
    ticks = evenly(list(positions.items()), 7)
    panel.set_xticks([place for _, place in ticks], [field_value(axis, value) for value, _ in ticks])
    panel.set_xticks([], minor=True)


def _draw(
    panel: Axes,
    looks: dict[str, Look],
    piece: Slice,
    quantity: Quantity,
    size: float,
    positions: dict[Any, float],
    axis: str,
) -> dict[str, tuple[float, float]]:
    """Draws every implementation's line into a panel; gives the last point of each."""
    ends = {}
    for order, (impl, look) in enumerate(reversed(looks.items())):
        rows = piece.rows[piece.rows["impl"] == impl].sort_values(axis)
        if rows.empty:
            continue
        x = [positions[value] for value in rows[axis]]
        y = rows[quantity.column].to_numpy(dtype=float) / size
        panel.plot(
            x,
            y,
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.2 if look.baseline else 1.8,
            marker=look.marker,
            markersize=4.6,
            markerfacecolor=HOLLOW if look.baseline else look.colour,
            markeredgecolor=look.colour,
            zorder=3 + order / 100,
        )
        low, high = (rows[name].to_numpy(dtype=float) / size for name in quantity.interval)
        panel.fill_between(x, low, high, color=look.colour, alpha=0.22, linewidth=0, zorder=2)
        panel.vlines(x, low, high, color=look.colour, linewidth=1, zorder=3)
        ends[impl] = (x[-1], float(y[-1]))
    return ends


def _label_ends(panel: Axes, looks: dict[str, Look], ends: dict[str, tuple[float, float]]) -> None:
    """Writes the name of each line to its right, spread apart, with a leader to the line's end."""
    names = list(ends)
    heights = [fraction(panel, ends[name][1]) for name in names]
    places = spread(heights, 0.085, 0.0, 1.0)
    for name, place in zip(names, places, strict=True):
        panel.annotate(
            name,
            xy=ends[name],
            xytext=(1.045, place),
            textcoords="axes fraction",
            va="center",
            size=8,
            color=MUTED if looks[name].baseline else INK,
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": looks[name].colour,
                "linewidth": 0.8,
                "shrinkA": 1.0,
                "shrinkB": 3.0,
                "relpos": (0.0, 0.5),
            },
        )
