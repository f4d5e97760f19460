"""Peak memory of a call beside what it should be by the analytic model, and what that is made of."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.memory import PARTS
from bench.report.figures.canvas import Picture, finish, fitted, grid, headline, log_axis
from bench.report.slices import evenly
from bench.report.style import BYTE_UNITS, HOLLOW, INK, MUTED, house_style, scale_for
from bench.report.view import View

MAX_PANELS = 4
_MODELLED = "allocator's peak by the analytic model"
_COLUMNS = ("peak_memory_bytes", "os_peak_bytes", "analytic_peak_bytes", "weight_bytes", "predicted_peak_bytes")
PART_COLOURS = dict(zip(PARTS, ("#00224e", "#434e6c", "#7d7c78", "#a59c74", "#d2c060", "#fee838"), strict=True))
"""A ramp of brightness: the colours of implementations mean implementations."""


def best_covered(view: View, rows: pd.DataFrame, limit: int) -> list[str]:
    """Workloads to stand for the sweep: those where the most implementations have rows, evenly taken, in order."""
    counts = rows.groupby("workload_id")["impl"].nunique()
    if counts.empty:
        return []
    most = set(counts.index[counts == counts.max()])
    return evenly([workload_id for workload_id in view.workloads if workload_id in most], limit)


def memory_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """Allocator's and system's peak of each implementation, with the analytic ones and the weights beside them."""
    rows = view.frame[view.frame["peak_memory_bytes"].fillna(0) > 0]
    shown = best_covered(view, rows, MAX_PANELS)
    if not shown:
        return None
    rows = rows[rows["workload_id"].isin(shown)]
    size, unit = scale_for(rows["peak_memory_bytes"], BYTE_UNITS)
    everything = [float(v) / size for name in _COLUMNS for v in rows[name].dropna() if v > 0]
    impls = [impl for impl in view.looks if impl in set(rows["impl"])]
    figure, panels = grid(len(shown), min(2, len(shown)), 0.75 + 0.27 * len(impls) + 0.6 / -(-len(shown) // 2))
    with house_style():
        for i, (panel, workload_id) in enumerate(zip(panels, shown, strict=True)):
            log_axis(panel, "x", everything, pad=1.1)
            panel.set_title(fitted(view.workloads[workload_id], min(2, len(shown))), fontsize=9)
            _draw(panel, view, rows[rows["workload_id"] == workload_id], impls, size)
            if i >= len(panels) - 2:
                panel.set_xlabel(f"{unit}  (further left is better)")
        figure.legend(
            handles=[
                Line2D([], [], color=MUTED, marker="o", linewidth=2.4, label="allocator's peak"),
                Line2D([], [], color=MUTED, marker="o", linewidth=0, markerfacecolor="none", label="system's peak"),
                Line2D(
                    [], [], color=INK, marker="|", markersize=11, linewidth=0, label="least that any needs (analytic)"
                ),
                Line2D(
                    [], [], color=INK, marker="D", markersize=7, linewidth=0, markerfacecolor="none", label=_MODELLED
                ),
                Line2D([], [], color=MUTED, marker="x", linewidth=0, label="weights, not in the peak"),
            ],
            loc="outside lower left",
            ncols=4,
            frameon=False,
            labelcolor=MUTED,
            fontsize=8,
        )
    title = "Peak memory of a call"
    headline(figure, title, view.slice_words)
    caption = (
        "The filled mark is the peak of bytes that the call allocated beyond the weights, counted by the allocator; it "
        "is exact and has no interval. The hollow one is the operating system's or driver's figure, which also sees "
        "scratch memory of libraries. The diamond is the allocator's peak by the implementation's analytic model; "
        "where the two differ, one of them does what nobody thought of. The upright line is the least "
        "that any implementation must allocate, and the cross the weights themselves."
    )
    if len(shown) < len(view.workloads):
        caption += f" {len(shown)} of {len(view.workloads)} workloads are drawn; the table has all."
    advice = (
        "Weights and system's peak together must fit the memory that you have. A filled mark far right of the upright "
        "line is padding and copies: take an implementation further left, a smaller capacity or fewer tokens a call."
    )
    return finish(figure, f"{slug_prefix}memory", title, caption, advice)


def memory_parts_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """What the peak of each implementation is made of by its analytic model, beside the measured peak."""
    rows = view.frame[view.frame["predicted_peak_bytes"].fillna(0) > 0]
    shown = best_covered(view, rows, MAX_PANELS)
    if not shown:
        return None
    rows = rows[rows["workload_id"].isin(shown)]
    size, unit = scale_for(rows["predicted_peak_bytes"], BYTE_UNITS)
    impls = [impl for impl in view.looks if impl in set(rows["impl"])]
    figure, panels = grid(len(shown), min(2, len(shown)), 0.75 + 0.27 * len(impls) + 0.6 / -(-len(shown) // 2))
    with house_style():
        for i, (panel, workload_id) in enumerate(zip(panels, shown, strict=True)):
            panel.set_title(fitted(view.workloads[workload_id], min(2, len(shown))), fontsize=9)
            _stack(panel, rows[rows["workload_id"] == workload_id], impls, size)
            panel.set_xlim(0, 1.05 * float(rows[["peak_memory_bytes", "predicted_peak_bytes"]].max().max()) / size)
            if i >= len(panels) - 2:
                panel.set_xlabel(f"{unit}  (further left is better)")
        patches = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
        measured = Line2D([], [], color=INK, marker="|", markersize=12, linewidth=0, label="measured")
        figure.legend(
            handles=[*patches, measured], loc="outside lower left", ncols=7, frameon=False, labelcolor=MUTED, fontsize=8
        )
    title = "What the peak is made of"
    headline(figure, title, view.slice_words)
    caption = (
        "Bars are the bytes alive at the worst moment of a call by each implementation's analytic model, from the "
        "routing that happened: the output, the routing, dispatched copies of tokens, activations, workspace and "
        "gradients. The upright line is the peak that the allocator measured. Weights and the input come before the "
        "call and are not in it. Implementations without a model have no bar."
    )
    advice = (
        "Work on the longest part: dispatched copies want a smaller capacity or grouped products, activations fewer "
        "tokens a call or, in training, recomputing, and workspace fewer rows at once. Where bar and line differ, "
        "believe the line."
    )
    return finish(figure, f"{slug_prefix}memory-parts", title, caption, advice)


def _stack(panel: Axes, rows: pd.DataFrame, impls: list[str], size: float) -> None:
    """One bar an implementation, its parts side by side from zero."""
    by_impl = rows.drop_duplicates("impl").set_index("impl")
    found = [(height, impl) for height, impl in enumerate(impls) if impl in by_impl.index]
    heights = [height for height, _ in found]
    begins = [0.0] * len(found)
    for part, colour in PART_COLOURS.items():
        widths = [float(by_impl.loc[impl, f"predicted_{part}_bytes"]) / size for _, impl in found]  # type: ignore[arg-type] # a scalar: the index is unique
        panel.barh(heights, widths, left=begins, height=0.62, color=colour, zorder=2)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    measured = [float(by_impl.loc[impl, "peak_memory_bytes"]) / size for _, impl in found]  # type: ignore[arg-type] # a scalar: the index is unique
    panel.plot(measured, heights, marker="|", markersize=13, markeredgewidth=1.6, color=INK, linewidth=0, zorder=3)
    panel.set_yticks(range(len(impls)), impls)
    panel.set_ylim(len(impls) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)


def _draw(panel: Axes, view: View, rows: pd.DataFrame, impls: list[str], size: float) -> None:
    """One row an implementation: a bar from the panel's edge to the allocator's peak, and the three figures beside."""
    by_impl = rows.drop_duplicates("impl").set_index("impl")
    left = panel.get_xlim()[0]
    for height, impl in enumerate(impls):
        if impl not in by_impl.index:
            continue
        look = view.looks[impl]
        peak, system, least, weights, modelled = (float(by_impl.loc[impl, name]) / size for name in _COLUMNS)  # type: ignore[arg-type] # a scalar: the index is unique
        panel.hlines(height, left, peak, color=look.colour, linewidth=2.4, alpha=0.45, zorder=2)
        panel.plot(
            peak,
            height,
            marker=look.marker,
            color=look.colour,
            markersize=5.5,
            markerfacecolor=HOLLOW if look.baseline else look.colour,
            zorder=5,
        )
        if system > 0:
            panel.plot(system, height, marker="o", color=look.colour, markersize=7, markerfacecolor="none", zorder=4)
        if least > 0:
            panel.plot(least, height, marker="|", color=INK, markersize=11, zorder=6)
        if modelled > 0:
            panel.plot(modelled, height, marker="D", color=INK, markersize=8.5, markerfacecolor="none", zorder=4)
        panel.plot(weights, height, marker="x", color=MUTED, markersize=5, zorder=3)
    panel.set_yticks(range(len(impls)), impls)
    panel.set_ylim(len(impls) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
