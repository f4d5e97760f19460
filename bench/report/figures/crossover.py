"""The crossover map: who wins where, over two axes of the sweep, and hatched where nobody does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bench.analysis.crossover import CrossoverMap, crossover_maps
from bench.report.figures.canvas import Picture, finish, fitted, grid, headline
from bench.report.slices import evenly
from bench.report.style import INK, MUTED, TIMES, house_style
from bench.report.view import AXES, FIELD_WORDS, WORKLOAD_FIELDS, View, describe, field_value
from bench.units import three_digits

MAX_PANELS = 6
MAX_VALUES = 14
_HATCH = "#a7b0ba"  # seen on white and on black, and behind every marker
_ORDER = ("num_tokens", "num_experts", "top_k", "d_model", "d_ff", "capacity_factor", "threads")


def map_axes(view: View) -> tuple[str, str] | None:
    """The two axes of the map: tokens and experts where both vary, else the next that do."""
    varying = [axis for axis in _ORDER if axis in view.varying and axis in AXES]
    return (varying[0], varying[1]) if len(varying) > 1 else None


def crossover_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """A panel a slice; None where fewer than two axes vary together."""
    axes = map_axes(view)
    if axes is None:
        return None
    x, y = axes
    decided = [winner for winner in view.analysis.winners if winner.impl or winner.contenders]
    maps = crossover_maps(view.frame, decided, WORKLOAD_FIELDS, x, y)
    if not maps:
        return None
    shown = evenly(maps, MAX_PANELS)
    xs = evenly(sorted({place[0] for found in shown for place in found.cells}), MAX_VALUES)
    ys = evenly(sorted({place[1] for found in shown for place in found.cells}), MAX_VALUES)
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    figure, panels = grid(len(shown), columns, 0.75 + min(0.55, 2.6 / len(ys) + 0.25) * len(ys))
    leads = _leads(view)
    with house_style():
        for i, (panel, found) in enumerate(zip(panels, shown, strict=True)):
            _draw(panel, view, found, xs, ys, leads if 9.0 / columns / len(xs) > 0.5 else {})
            panel.set_title(fitted(describe(found.fixed), columns), fontsize=9)
            panel.set_xticks(range(len(xs)), [field_value(x, value) for value in xs])
            panel.set_yticks(range(len(ys)), [field_value(y, value) for value in ys])
            if i >= len(panels) - columns:
                panel.set_xlabel(FIELD_WORDS[x])
            if i % columns == 0:
                panel.set_ylabel(FIELD_WORDS[y])
        names = {view.names[w.impl] for found in shown for w in found.cells.values() if w.impl is not None}
        handles: list[Any] = [
            Line2D([], [], color=look.colour, marker=look.marker, linewidth=0, markersize=7, label=f"{impl} wins")
            for impl, look in view.looks.items()
            if impl in names
        ]
        handles.append(Patch(facecolor="none", edgecolor=_HATCH, hatch="////", label="no single winner"))
        figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, labelcolor=MUTED, fontsize=8.5)
    title = f"Who wins where: {FIELD_WORDS[x]} and {FIELD_WORDS[y]}"
    headline(figure, title, view.slice_words)
    caption = (
        "Each cell is one workload. Its colour and marker are the implementation that is faster than each other one, "
        "and the number is the time of the next over the winner's. Hatched: nobody won, and the markers are those "
        "that could not be told apart. An empty cell was not compared. Where the colour changes, so does the answer."
    )
    if len(shown) < len(maps):
        caption += f" {len(shown)} of {len(maps)} slices are drawn; the table has all."
    advice = (
        "Find the cell of your own workload and take its winner. In a hatched cell, or beside a change of colour, "
        "choose by memory, or by the workload that you run most."
    )
    return finish(figure, f"{slug_prefix}crossover", title, caption, advice)


def _leads(view: View) -> dict[str, float]:
    """Of each workload that was won, the time of the closest ranked implementation over the winner's."""
    leads: dict[str, float] = {}
    for comparison in view.analysis.comparisons:
        winner = view.winners.get(comparison.workload_id)
        if winner is None or winner.impl not in (comparison.impl, comparison.base) or not comparison.same_semantics:
            continue
        ratio = comparison.ratio.value
        ratio = 1 / ratio if comparison.impl == winner.impl else ratio
        leads[comparison.workload_id] = min(ratio, leads.get(comparison.workload_id, math.inf))
    return leads


def _draw(
    panel: Axes, view: View, found: CrossoverMap, xs: Sequence[Any], ys: Sequence[Any], leads: dict[str, float]
) -> None:
    """The cells of one slice."""
    panel.set_xlim(-0.5, len(xs) - 0.5)
    panel.set_ylim(-0.5, len(ys) - 0.5)
    panel.grid(visible=False)
    panel.tick_params(length=0)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            winner = found.cells.get((x, y))
            if winner is None:
                continue
            corner = (i - 0.47, j - 0.46)
            if winner.impl is None:
                panel.add_patch(Rectangle(corner, 0.94, 0.92, facecolor="none", edgecolor=_HATCH, hatch="////", lw=0.4))
                names = [view.names[name] for name in winner.contenders[:4]]
                for step, name in enumerate(names):
                    look = view.looks[name]
                    at = i + (step - (len(names) - 1) / 2) * 0.2
                    panel.plot(at, j, marker=look.marker, color=look.colour, markersize=6.5, zorder=5)
                continue
            look = view.looks[view.names[winner.impl]]
            panel.add_patch(Rectangle(corner, 0.94, 0.92, facecolor=look.colour, alpha=0.32, lw=0))
            lead = leads.get(winner.workload_id)
            words = "" if lead is None else f"{three_digits(lead)}{TIMES}"
            panel.plot(i - (0.3 if words else 0), j, marker=look.marker, color=look.colour, markersize=7)
            panel.text(i - 0.16, j, words, va="center", size=8, color=INK)
