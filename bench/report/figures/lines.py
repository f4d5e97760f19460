"""Small multiples of one quantity against one axis of the sweep: a line with its interval band an implementation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from bench.report.figures.axes import advice, axis_label, axis_title, how_to_follow
from bench.report.figures.canvas import Picture, enclosing, finish, fitted, grid, headline, log_axis
from bench.report.slices import Slice, evenly, slices
from bench.report.style import (
    HOLLOW,
    INK,
    MUTED,
    RATE_UNITS,
    TIME_UNITS,
    Look,
    house_style,
    log_ticks,
    plain,
    scale_for,
    spread,
)
from bench.report.view import CATEGORIES, WORKLOAD_FIELDS, View, describe, field_value

MAX_PANELS = 9
MAX_PANELS_OF_MANY = 4
MANY_VALUES = 16
MAX_VALUES = 48
"""So many values of the axis are drawn; between more, nobody tells marks apart."""
MANY_ROWS = 5000
"""Above so many rows a report draws fewer panels, so that it is made in seconds: what is left out is in the table."""
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


_COLUMNS = (
    "impl", "workload_id", *WORKLOAD_FIELDS, "latency_s", "latency_low_s", "latency_high_s", "tokens_per_s",
    "load_imbalance",
)  # fmt: skip


def axis_picture(view: View, quantity: Quantity, axis: str, slug_prefix: str = "") -> Picture | None:
    """One quantity against one axis, a panel a slice; None where no slice has two values of both."""
    frame = _with_bounds(view.frame[list(_COLUMNS)])
    if axis == "routing":  # a baseline does not route, yet stands where its workload's layers do
        frame["load_imbalance"] = frame.groupby("workload_id")["load_imbalance"].transform("max")
        frame = frame[frame["load_imbalance"].notna()]
    positive = frame[frame[quantity.column].notna() & (frame[quantity.column] > 0)]
    num_values = positive[axis].nunique()
    many = num_values > MANY_VALUES or len(positive) > MANY_ROWS
    limit = MAX_PANELS_OF_MANY if many else MAX_PANELS
    shown, num_slices = slices(positive, axis, limit)
    if not shown:
        return None
    if num_values > MAX_VALUES:
        kept = evenly(sorted(positive[axis].unique()), MAX_VALUES)
        shown = [Slice(piece.fixed, piece.rows[piece.rows[axis].isin(kept)]) for piece in shown]
    rows = pd.concat([piece.rows for piece in shown])
    size, unit = scale_for(rows[quantity.column], quantity.units)
    scale = _axis_scale(axis, rows, alone=len(shown) == 1)

    figure, panels = grid(len(shown), _num_columns(len(shown)), _PANEL_IN if len(shown) > 1 else 3.4)
    num_columns = _num_columns(len(shown))
    bounds = list(quantity.interval)
    extent = enclosing(rows[quantity.column] / size, rows[bounds] / size)
    with house_style():
        for panel in panels:
            log_axis(panel, "y", extent, pad=1.06)
            scale.apply(panel)
        for i, (panel, piece) in enumerate(zip(panels, shown, strict=True)):
            ends = _draw(panel, view.looks, piece, quantity, size, scale)
            panel.set_title(fitted(describe(piece.fixed), num_columns), fontsize=9)
            if i % num_columns == num_columns - 1 or i == len(panels) - 1:
                _label_ends(panel, view.looks, ends)
            if i % num_columns == 0:
                panel.set_ylabel(f"{unit}{quantity.per}  ({quantity.better})")
            if i >= len(panels) - num_columns:
                panel.set_xlabel(axis_label(axis))
    title = f"{quantity.word} against {axis_title(axis)}"
    headline(figure, title, view.slice_words)
    cut = f" {len(shown)} of {num_slices} slices are drawn; the table has all." if len(shown) < num_slices else ""
    if num_values > MAX_VALUES:
        cut += f" {MAX_VALUES} of {num_values} values are drawn."
    caption = (
        f"{how_to_follow(axis)}; {quantity.better}. Solid lines compute the layer, grey dashed ones are baselines that "
        "do something else. The band is the interval: where none is seen it is narrower than the line, and a wide one "
        "leaves the panel. "
        f"{'Both axes are' if scale.logarithmic else 'The vertical axis is'} logarithmic, and all panels share "
        f"theirs.{cut}"
    )
    return finish(
        figure, f"{slug_prefix}{quantity.slug}-{axis.replace('_', '-')}", title, caption, advice(axis, quantity.slug)
    )


def _with_bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the bounds of the throughput, which is the tokens of a call over its latency."""
    return frame.assign(
        tokens_low_per_s=frame["tokens_per_s"] * frame["latency_s"] / frame["latency_high_s"],
        tokens_high_per_s=frame["tokens_per_s"] * frame["latency_s"] / frame["latency_low_s"],
    )


def _num_columns(num_panels: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(num_panels, 3)


@dataclass(frozen=True)
class _Scale:
    """The horizontal axis.

    Attributes:
        column: of the frame, whose values `places` are the keys of.
        places: where each value stands.
        ticks: place and label.
        logarithmic: whether values stand at themselves.
    """

    column: str
    places: dict[Any, float]
    ticks: list[tuple[float, str]]
    logarithmic: bool

    def apply(self, panel: Axes) -> None:
        """Sets scale, limits and ticks of a panel."""
        first, last = min(self.places.values()), max(self.places.values())
        if self.logarithmic:
            panel.set_xscale("log")
            margin = (last / first) ** 0.05
            panel.set_xlim(first / margin, last * margin)
        else:
            panel.set_xlim(first - 0.2, last + 0.2)
        panel.set_xticks([place for place, _ in self.ticks], [label for _, label in self.ticks])
        panel.set_xticks([], minor=True)


def _axis_scale(axis: str, rows: pd.DataFrame, *, alone: bool) -> _Scale:
    """Values at themselves on a logarithmic axis, or evenly spaced where they have no logarithm."""
    if axis == "routing":
        places = {value: float(value) for value in sorted(rows["load_imbalance"].unique())}
        named = rows.sort_values("load_imbalance").drop_duplicates("load_imbalance")
        labels = [(float(x), f"{x:.3g}\n{name}") for x, name in zip(named["load_imbalance"], named[axis], strict=True)]
        first, last = labels[0][0], labels[-1][0]
        if last / first < 1.01:  # nothing to place them by
            return _Scale(axis, *_evenly_placed(axis, sorted(rows[axis].unique())), logarithmic=False)
        ticks = (
            _apart(labels, 0.010) if alone else [(t, plain(t)) for t in log_ticks(first, last) if first <= t <= last]
        )
        return _Scale("load_imbalance", places, ticks, logarithmic=True)
    values = sorted(rows[axis].unique(), key=lambda value: _ORDER.get(value, value))
    if axis in CATEGORIES or axis == "capacity_factor" or min(values) <= 0:
        return _Scale(axis, *_evenly_placed(axis, values), logarithmic=False)
    places = {value: float(value) for value in values}
    ticks = _apart([(float(value), field_value(axis, value)) for value in values], 0.010 if alone else 0.033)
    return _Scale(axis, places, ticks, logarithmic=True)


_ORDER = {"float32": "0", "bfloat16": "1", "float16": "2", "warm": "0", "cold": "1"}
"""Words that have an order of their own."""


def _evenly_placed(axis: str, values: list[Any]) -> tuple[dict[Any, float], list[tuple[float, str]]]:
    places = {value: i + 1.0 for i, value in enumerate(values)}
    return places, [(place, field_value(axis, value)) for value, place in evenly(list(places.items()), 7)]


def _apart(labels: list[tuple[float, str]], width: float) -> list[tuple[float, str]]:
    """Of labels on a logarithmic axis, the outermost and those between that leave room: ``width`` of it a character."""
    length = math.log(labels[-1][0] / labels[0][0]) or 1.0

    def room(left: tuple[float, str], right: tuple[float, str]) -> bool:
        num_characters = max(len(line) for _, label in (left, right) for line in label.split("\n"))
        return math.log(right[0] / left[0]) / length >= width * (num_characters + 1)

    kept = [labels[-1]]
    for label in reversed(labels[1:-1]):
        if room(label, kept[-1]) and room(labels[0], label):
            kept.append(label)
    return [labels[0], *kept[::-1]] if len(labels) > 1 else labels


def _draw(
    panel: Axes,
    looks: dict[str, Look],
    piece: Slice,
    quantity: Quantity,
    size: float,
    scale: _Scale,
) -> dict[str, tuple[float, float]]:
    """Draws every implementation's line into a panel; gives the last point of each."""
    ends = {}
    for order, (impl, look) in enumerate(reversed(looks.items())):
        rows = piece.rows[piece.rows["impl"] == impl]
        if rows.empty:
            continue
        rows = rows.assign(_x=rows[scale.column].map(scale.places)).sort_values("_x")
        x = rows["_x"].to_list()
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
    tips = (panel.transScale + panel.transLimits).transform([ends[name] for name in names])  # as shares of the panel
    heights = spread([float(height) for _, height in tips], 0.085, 0.0, 1.0)
    for name, (x, y), height in zip(names, tips, heights, strict=True):
        # beneath the marks, so that it seems to begin at the edge of one
        panel.plot(
            [x, 1.04], [y, height], color=looks[name].colour, linewidth=0.8, transform=panel.transAxes, clip_on=False,
            zorder=2.5,
        )  # fmt: skip
        panel.annotate(
            name,
            xy=(1.045, height),
            xycoords="axes fraction",
            va="center",
            size=8,
            color=MUTED if looks[name].baseline else INK,
            annotation_clip=False,
            parse_math=False,
        )
