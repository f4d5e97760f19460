"""Fitted scaling exponents with their intervals, beside what the theory says they tend to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis.model import Exponent
from bench.report.figures.axes import axis_title
from bench.report.figures.canvas import Picture, finish, grid, headline
from bench.report.slices import evenly
from bench.report.style import HOLLOW, INK, MUTED, house_style
from bench.report.view import View

MAX_PANELS = 4
MAX_SLICES = 12
_WORDS = {"latency": "latency", "memory": "peak memory"}


def exponents_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """A panel for each quantity and axis that has exponents, a row an implementation, a mark a slice."""
    groups: dict[tuple[str, str], list[Exponent]] = {}
    for found in view.analysis.exponents:
        groups.setdefault((found.quantity, found.axis), []).append(found)
    keys = list(groups)[:MAX_PANELS]
    if not keys:
        return None
    present = {view.names[found.impl] for key in keys for found in groups[key]}
    impls = [impl for impl in view.looks if impl in present]
    figure, panels = grid(len(keys), min(2, len(keys)), 0.8 + 0.36 * len(impls), share_x=False)
    with house_style():
        for panel, (quantity, axis) in zip(panels, keys, strict=True):
            _draw(panel, view, groups[quantity, axis], impls)
            panel.set_xlabel(f"exponent of {_WORDS[quantity]} in {axis_title(axis)}")
        figure.legend(
            handles=[
                Line2D([], [], color=MUTED, marker="o", linewidth=1.4, label="fitted, with interval"),
                Line2D([], [], color=MUTED, marker="o", linewidth=0, markerfacecolor=HOLLOW, label="at the far end"),
                Line2D([], [], color=INK, marker="|", markersize=12, linewidth=0, label="theory"),
            ],
            loc="outside lower left",
            ncols=3,
            frameon=False,
            labelcolor=MUTED,
            fontsize=8,
        )
    title = "How the cost grows"
    headline(figure, title, view.slice_words)
    caption = (
        "An exponent of 1 doubles the cost when the axis doubles, 2 makes it four times as much, 0 leaves it. Filled "
        "marks are fitted over all measured values, one mark a slice, and the line is the interval over processes; the "
        "small hollow mark is the slope between the two largest values alone. The upright stroke is what the "
        "operations tend to in the end: fixed costs of a call keep the fit below it, and where nothing is claimed "
        "there is none."
    )
    advice = (
        "Do not carry a lead at small sizes to larger ones where the leader's mark lies right of another's: time the "
        "size that you will use. Where the far end is right of the stroke, something besides the operations grows, and "
        "a profile of the largest size says what."
    )
    return finish(figure, f"{slug_prefix}exponents", title, caption, advice)


def _draw(panel: Axes, view: View, exponents: Sequence[Exponent], impls: Sequence[str]) -> None:
    """The rows of one panel."""
    extent = [0.0, 1.0]
    for row, impl in enumerate(impls):
        own = evenly([found for found in exponents if view.names[found.impl] == impl], MAX_SLICES)
        look = view.looks[impl]
        heights = row + (np.linspace(-0.26, 0.26, len(own)) if len(own) > 1 else np.zeros(len(own)))
        for height, found in zip(heights.tolist(), own, strict=True):
            fitted = found.fitted
            if np.isfinite([fitted.low, fitted.high]).all():
                panel.hlines(height, fitted.low, fitted.high, color=look.colour, linewidth=1.3, zorder=3)
                extent += [max(fitted.low, fitted.value - 0.6), min(fitted.high, fitted.value + 0.6)]
            face = HOLLOW if look.baseline else look.colour
            panel.plot(
                fitted.value,
                height,
                marker=look.marker,
                color=look.colour,
                markersize=5,
                markerfacecolor=face,
                zorder=4,
            )
            panel.plot(
                found.at_end.value,
                height,
                marker="o",
                color=look.colour,
                markersize=3,
                markerfacecolor=HOLLOW,
                zorder=3,
            )
            extent += [fitted.value, found.at_end.value]
        for theory in {found.theory for found in own} - {None}:
            panel.vlines(theory, row - 0.42, row + 0.42, color=INK, linewidth=1.8, alpha=0.75, zorder=2)
            extent.append(theory)
    panel.set_xlim(min(extent) - 0.12, max(extent) + 0.12)
    panel.set_yticks(range(len(impls)), impls)
    panel.set_ylim(len(impls) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
    for label, impl in zip(panel.get_yticklabels(), impls, strict=False):  # panels to the right have none
        label.set_color(MUTED if view.looks[impl].baseline else INK)
