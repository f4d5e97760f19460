"""Latency against peak memory, with the front of implementations that nothing beats in both."""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.axes import Axes

from bench.analysis.pareto import front
from bench.report.figures.canvas import Picture, finish, grid, headline, log_axis
from bench.report.figures.memory import best_covered
from bench.report.style import BYTE_UNITS, HOLLOW, INK, MUTED, TIME_UNITS, house_style, scale_for
from bench.report.view import View

MAX_PANELS = 4
_PANEL_IN = 2.75


def tradeoff_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """A panel for each of a few workloads; None where no workload has two points."""
    rows = view.timed[view.timed["peak_memory_bytes"].fillna(0) > 0]
    shown = best_covered(view, rows, MAX_PANELS)
    if not shown or rows.groupby("workload_id").size().max() < 2:
        return None
    rows = rows[rows["workload_id"].isin(shown)]
    time_size, time_unit = scale_for(rows["latency_s"], TIME_UNITS)
    byte_size, byte_unit = scale_for(rows["peak_memory_bytes"], BYTE_UNITS)
    figure, panels = grid(len(shown), min(2, len(shown)), _PANEL_IN)
    with house_style():
        for i, (panel, workload_id) in enumerate(zip(panels, shown, strict=True)):
            low, high = rows["latency_low_s"].min() / time_size, rows["latency_high_s"].max() / time_size
            log_axis(panel, "x", [low, high], pad=1.15)
            peaks = rows["peak_memory_bytes"] / byte_size
            log_axis(panel, "y", [peaks.min(), peaks.max()], pad=1.25)
            panel.set_title(view.workloads[workload_id], fontsize=9)
            _draw(panel, view, rows[rows["workload_id"] == workload_id], time_size, byte_size)
            if i % 2 == 0:
                panel.set_ylabel(f"peak memory, {byte_unit}  (lower is better)")
            if i >= len(panels) - 2:
                panel.set_xlabel(f"latency, {time_unit} a call  (further left is better)")
    title = "Time against memory"
    headline(figure, title, view.slice_words)
    caption = (
        "The best corner is at the lower left. The stepped line is the front: whatever is on it can only be beaten in "
        "time by paying memory, or in memory by paying time; what is above and right of the line is beaten. "
        "Baselines (hollow, grey) are shown for scale and are never on the front."
    )
    if len(shown) < len(view.workloads):
        caption += f" {len(shown)} of {len(view.workloads)} workloads are drawn; the table has all."
    return finish(figure, f"{slug_prefix}tradeoff", title, caption)


def _draw(panel: Axes, view: View, rows: pd.DataFrame, time_size: float, byte_size: float) -> None:
    """Points with their latency's interval, the front among exact layers, and a name beside each point."""
    exact = rows[(rows["semantics"] == "moe") & rows["exact"].astype(bool)]
    best = exact[front(exact["latency_s"], exact["peak_memory_bytes"])].sort_values("latency_s")
    on_front = list(zip(best["latency_s"] / time_size, best["peak_memory_bytes"] / byte_size, strict=True))
    steps: list[tuple[float, float]] = []
    if on_front:
        right, top = panel.get_xlim()[1], panel.get_ylim()[1]
        steps = [(on_front[0][0], top), *on_front, (right, on_front[-1][1])]
        panel.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=1, alpha=0.55, zorder=2)
    names: list[tuple[str, float, float]] = []
    for impl, look in view.looks.items():
        for row in rows[rows["impl"] == impl].to_dict("records"):
            x, low, high = (float(row[name]) / time_size for name in ("latency_s", "latency_low_s", "latency_high_s"))
            y = float(row["peak_memory_bytes"]) / byte_size
            panel.hlines(y, low, high, color=look.colour, zorder=3)
            panel.plot(
                x,
                y,
                marker=look.marker,
                color=look.colour,
                markersize=7,
                markerfacecolor=HOLLOW if look.baseline else look.colour,
                zorder=4,
            )
            names.append((impl, x, y))
    _name_points(panel, view, names, steps)


def _name_points(
    panel: Axes, view: View, names: list[tuple[str, float, float]], steps: list[tuple[float, float]]
) -> None:
    """Writes each name beside its point: the first place that covers no point, no name and no part of the front."""
    panel.figure.draw_without_rendering()  # type: ignore[union-attr] # places need the final layout; a Figure, never a SubFigure
    points_per_pixel = 72 / panel.figure.dpi
    placed = [panel.transData.transform((x, y)) * points_per_pixel for _, x, y in names]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in placed]
    corners = [panel.transData.transform(point) * points_per_pixel for point in steps]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        taken += [(x0, y0 - 1, x1, y0 + 1), (x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]
    box = panel.get_window_extent()
    inside = (
        box.x0 * points_per_pixel,
        box.y0 * points_per_pixel,
        box.x1 * points_per_pixel,
        box.y1 * points_per_pixel,
    )
    for (name, x, y), (px, py) in zip(names, placed, strict=True):
        width = 5.2 * len(name) + 2
        choices = [(8.0, 0.0, "left"), (-8.0, 0.0, "right"), (0.0, 10.0, "center"), (0.0, -11.0, "center")]
        choices += [(8.0, 10.0, "left"), (8.0, -11.0, "left"), (-8.0, 10.0, "right"), (-8.0, -11.0, "right")]
        scored = []
        for rank, (dx, dy, align) in enumerate(choices):
            left = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            area = (left, py + dy - 4.5, left + width, py + dy + 4.5)
            covered = sum(_overlap(area, other) for other in taken)
            outside = max(0.0, inside[0] - area[0]) + max(0.0, area[2] - inside[2])
            outside += max(0.0, inside[1] - area[1]) + max(0.0, area[3] - inside[3])
            scored.append((covered + 50 * outside, rank, dx, dy, align, area))
        _, _, dx, dy, align, area = min(scored)
        taken.append(area)
        panel.annotate(
            name,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
            size=8,
            color=MUTED if view.looks[name].baseline else INK,
            parse_math=False,
            zorder=6,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two rectangles (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
