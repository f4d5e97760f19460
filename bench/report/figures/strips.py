"""Every workload at a glance: one row an implementation, one mark a workload, the middle one marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.analysis.interval import Estimate
from bench.report.figures.canvas import Picture, enclosing, finish, grid, headline, log_axis
from bench.report.slices import evenly
from bench.report.style import ENERGY_UNITS, HOLLOW, INK, MUTED, house_style, scale_for
from bench.report.view import View

MAX_WORKLOADS = 60


@dataclass(frozen=True)
class _Mark:
    impl: str
    height: float
    estimate: Estimate


def ratio_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """How many times the fastest's time each implementation takes, on every workload."""

    def ratio(workload_id: str, impl: str) -> Estimate | None:
        fastest = view.fastest(workload_id)
        if fastest is None:
            return None
        return Estimate(1.0, 1.0, 1.0) if impl == fastest else view.ratio(workload_id, impl, fastest)

    marks = _marks(view, ratio)
    if len({mark.impl for mark in marks}) < 2:
        return None
    figure, panel = _strip(view, marks)
    with house_style():
        log_axis(panel, "x", _extent(marks), pad=1.02)
        panel.axvline(1.0, color=INK, linewidth=1)
        panel.set_xlabel("times the fastest's latency on the same workload  (further left is better)")
    title = "Which implementation?"
    headline(figure, title, _slice_words(view))
    caption = (
        "Each mark is one workload; the line through it is the interval from paired rounds. At 1 the implementation is "
        "the fastest of those that compute the layer, at 2 it takes twice the time. The tall tick is the median. "
        "Hollow grey marks are baselines: they compute something else, so they may stand left of 1 and never win."
    )
    advice = (
        "Start from the implementation whose marks lie furthest left, and look your own workload up in the table "
        "below: where marks of two share a place, take either, or choose by memory. Marks far right of their tall tick "
        "are workloads to avoid that implementation on."
    )
    return finish(figure, f"{slug_prefix}overview", title, caption, advice)


def ceiling_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """The share of the measured ceilings that each implementation reaches, on every workload."""
    marks = _column_marks(view, "roofline_fraction", 100.0)
    if not marks:
        return None
    figure, panel = _strip(view, marks)
    with house_style():
        highest = _extent(marks)[1]
        panel.set_xlim(0, max(100.0, highest * 1.03))
        if highest > 100:
            panel.axvline(100, color=INK, linewidth=1)
        panel.set_xlabel("% of the speed that this machine's measured ceilings allow  (further right is better)")
    title = "How far from the hardware's limit"
    headline(figure, title, _slice_words(view))
    caption = (
        "100 % would be a call as short as its useful operations and unavoidable bytes need at the ceilings measured "
        "in this run. Each mark is one workload, with its interval; the tall tick is the median. "
        "Hollow grey marks are baselines."
    )
    where = "the profiles below say where" if view.analysis.profiles else "run again with --profile to see where"
    advice = (
        "Far left, the time goes into something else than useful work: try an implementation further right, more "
        f"tokens a call, or fewer and larger experts; {where}. Near 100 % only less arithmetic or fewer bytes help."
    )
    return finish(figure, f"{slug_prefix}ceiling-share", title, caption, advice)


def energy_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """Energy of a token on every workload."""
    size, unit = scale_for(view.frame["energy_j_per_token"].dropna(), ENERGY_UNITS)
    marks = _column_marks(view, "energy_j_per_token", 1 / size, ("energy_low_j_per_token", "energy_high_j_per_token"))
    if not marks:
        return None
    figure, panel = _strip(view, marks)
    with house_style():
        log_axis(panel, "x", _extent(marks), pad=1.05)
        panel.set_xlabel(f"{unit} a token  (further left is better)")
    title = "Energy of a token"
    headline(figure, title, _slice_words(view))
    caption = (
        "Each mark is one workload; the line through it is the interval that the meter's resolution and sampling "
        "leave, and the tall tick is the median. Idle power is part of it. Hollow grey marks are baselines."
    )
    advice = (
        "Where energy ranks as time does, take the fastest: a shorter call also saves the idle power. Where a slower "
        "one needs less, it is the choice under a limit of power; where intervals overlap, measure with a larger "
        "--budget, which gives the meter longer."
    )
    return finish(figure, f"{slug_prefix}energy", title, caption, advice)


def _extent(marks: list[_Mark]) -> list[float]:
    bounds = [bound for mark in marks for bound in (mark.estimate.low, mark.estimate.high)]
    return enclosing([mark.estimate.value for mark in marks], bounds)


def _slice_words(view: View) -> str:
    total = view.timed["workload_id"].nunique()
    shown = min(total, MAX_WORKLOADS)
    count = (
        f"{total} timed workload{'s' * (total != 1)}"
        if shown == total
        else f"{shown} of {total} timed workloads, evenly taken"
    )
    return f"{count} · {view.slice_words}"


def _column_marks(view: View, column: str, scale: float, bounds: tuple[str, str] | None = None) -> list[_Mark]:
    """Marks of a column with its bounds; without them it is inverse in the latency and takes that one's."""
    names = ["workload_id", "impl", "latency_s", "latency_low_s", "latency_high_s", column, *(bounds or ())]
    timed = view.frame.loc[view.frame["workload_id"].isin(_shown(view)), list(dict.fromkeys(names))]
    timed = timed[timed[column].notna()]
    value = timed[column]
    low = timed[bounds[0]] if bounds else value * timed["latency_s"] / timed["latency_high_s"]
    high = timed[bounds[1]] if bounds else value * timed["latency_s"] / timed["latency_low_s"]
    estimates = {
        (workload_id, impl): Estimate(*(scale * number for number in numbers))
        for workload_id, impl, *numbers in zip(
            timed["workload_id"], timed["impl"], value, low.fillna(value), high.fillna(value), strict=True
        )
    }
    return _marks(view, lambda workload_id, impl: estimates.get((workload_id, impl)))


def _shown(view: View) -> list[str]:
    """The workloads that have marks: of the timed ones :data:`MAX_WORKLOADS`, evenly taken."""
    timed = set(view.timed["workload_id"].unique())
    return evenly([workload_id for workload_id in view.workloads if workload_id in timed], MAX_WORKLOADS)


def _marks(view: View, estimate: Callable[[str, str], Estimate | None]) -> list[_Mark]:
    """The marks of the shown workloads, each at its own height within the rows."""
    ids = _shown(view)
    heights = np.linspace(-0.3, 0.3, len(ids)) if len(ids) != 1 else [0.0]
    return [
        _Mark(impl, float(height), found)
        for impl in view.looks
        for workload_id, height in zip(ids, heights, strict=True)
        if (found := estimate(workload_id, impl)) is not None
    ]


def _strip(view: View, marks: list[_Mark]) -> tuple[Figure, Axes]:
    """A row for each implementation with its marks and its median."""
    impls = [impl for impl in view.looks if any(mark.impl == impl for mark in marks)]
    figure, (panel,) = grid(1, 1, 0.75 + 0.42 * len(impls))
    with house_style():
        for row, impl in enumerate(impls):
            look = view.looks[impl]
            own = [mark for mark in marks if mark.impl == impl]
            heights = [row + mark.height for mark in own]
            panel.hlines(
                heights,
                [mark.estimate.low for mark in own],
                [mark.estimate.high for mark in own],
                color=look.colour,
                linewidth=1.1,
                zorder=3,
            )
            panel.scatter(
                [mark.estimate.value for mark in own],
                heights,
                s=22 if len(own) < 30 else 13,
                marker=look.marker,
                facecolor=HOLLOW if look.baseline else look.colour,
                edgecolor=look.colour,
                linewidth=1,
                zorder=4,
            )
            middle = float(np.median([mark.estimate.value for mark in own]))
            panel.vlines([middle], row - 0.42, row + 0.42, color=look.colour, linewidth=2.6, alpha=0.55, zorder=2)
        panel.set_yticks(range(len(impls)), impls)
        panel.set_ylim(len(impls) - 0.4, -0.6)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        for label, impl in zip(panel.get_yticklabels(), impls, strict=True):
            label.set_color(MUTED if view.looks[impl].baseline else INK)
    return figure, panel
