"""Two costs against each other, with the front of implementations that nothing beats in both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from bench.analysis.pareto import front
from bench.report.figures.canvas import Picture, enclosing, finish, fitted, grid, headline, log_axis, place
from bench.report.figures.memory import best_covered
from bench.report.style import BYTE_UNITS, ENERGY_UNITS, HOLLOW, INK, MUTED, TIME_UNITS, house_style, scale_for
from bench.report.view import View

MAX_PANELS = 4
_PANEL_IN = 2.9
Point = tuple[float, float]


@dataclass(frozen=True)
class Cost:
    """What one axis of a trade-off stands for; less is better of each.

    Attributes:
        slug: part of the file's name.
        column: of the frame.
        word: for the title.
        label: of the axis, before the unit.
        units: sizes and names to choose from.
        per: what follows the unit.
        bounds: columns of the interval; empty where the value is exact.
    """

    slug: str
    column: str
    word: str
    label: str
    units: tuple[tuple[float, str], ...]
    per: str = ""
    bounds: tuple[str, ...] = ()


TIME = Cost("time", "latency_s", "Time", "latency", TIME_UNITS, " a call", ("latency_low_s", "latency_high_s"))
MEMORY = Cost("memory", "peak_memory_bytes", "Memory", "peak memory", BYTE_UNITS)
ENERGY = Cost(
    "energy",
    "energy_j_per_token",
    "Energy",
    "energy",
    ENERGY_UNITS,
    " a token",
    ("energy_low_j_per_token", "energy_high_j_per_token"),
)
TRADEOFFS = ((TIME, MEMORY), (TIME, ENERGY), (MEMORY, ENERGY))


def tradeoff_picture(view: View, first: Cost, second: Cost, slug_prefix: str = "") -> Picture | None:
    """A panel for each of a few workloads; None where no workload has two points with both costs."""
    timed = view.timed
    rows = timed[(timed[first.column] > 0) & (timed[second.column] > 0)]
    shown = best_covered(view, rows, MAX_PANELS)
    if not shown or rows.groupby("workload_id").size().max() < 2:
        return None
    rows = rows[rows["workload_id"].isin(shown)]
    scales = [scale_for(rows[cost.column], cost.units) for cost in (first, second)]
    sizes = scales[0][0], scales[1][0]
    figure, panels = grid(len(shown), min(2, len(shown)), _PANEL_IN)
    drawn = []
    with house_style():
        for i, (panel, workload_id) in enumerate(zip(panels, shown, strict=True)):
            for which, cost, size in zip("xy", (first, second), sizes, strict=True):
                extent = enclosing(rows[cost.column] / size, rows[[cost.column, *cost.bounds]] / size)
                log_axis(panel, which, extent, pad=1.2)
            panel.set_title(fitted(view.workloads[workload_id], min(2, len(shown))), fontsize=9)
            drawn.append(_draw(panel, view, rows[rows["workload_id"] == workload_id], (first, second), sizes))
            if i % 2 == 0:
                panel.set_ylabel(f"{second.label}, {scales[1][1]}{second.per}  (lower is better)")
            if i >= len(panels) - 2:
                panel.set_xlabel(f"{first.label}, {scales[0][1]}{first.per}  (further left is better)")
        place(figure)  # names stand where they cover nothing, which depends on the final size of the panels
        for panel, (points, lines) in zip(panels, drawn, strict=True):
            _name_points(panel, view, points, lines)
    title = f"{first.word} against {second.word.lower()}"
    headline(figure, title, view.slice_words)
    caption = (
        "The best corner is at the lower left. The stepped line is the front: whatever is on it can only be beaten in "
        f"{first.word.lower()} by paying {second.word.lower()}, or the other way round; what is above and right of the "
        "line is beaten. Lines through a mark are its intervals. "
        "Baselines (hollow, grey) are shown for scale and are never on the front."
    )
    if len(shown) < len(view.workloads):
        caption += f" {len(shown)} of {len(view.workloads)} workloads are drawn; the table has all."
    slug = "tradeoff" if (first, second) == TRADEOFFS[0] else f"tradeoff-{first.slug}-{second.slug}"
    advice = (
        f"Choose on the line only: of the marks whose {second.label} you can afford, the one with the least "
        f"{first.label}. Where one mark is the whole line, there is nothing to trade."
    )
    return finish(figure, slug_prefix + slug, title, caption, advice)


def _draw(
    panel: Axes, view: View, rows: pd.DataFrame, costs: tuple[Cost, Cost], sizes: tuple[float, float]
) -> tuple[list[tuple[str, float, float]], list[tuple[Point, Point]]]:
    """Draws points with their intervals and the front among exact layers; gives the points by name, and the lines."""
    scaled = rows.assign(_x=rows[costs[0].column] / sizes[0], _y=rows[costs[1].column] / sizes[1])
    exact = scaled[(scaled["semantics"] == "moe") & scaled["exact"].astype(bool)]
    best = exact[front(exact["_x"], exact["_y"])].sort_values("_x")
    on_front = list(zip(best["_x"], best["_y"], strict=True))
    steps: list[tuple[float, float]] = []
    if on_front:
        right, top = panel.get_xlim()[1], panel.get_ylim()[1]
        steps = [(on_front[0][0], top), *on_front, (right, on_front[-1][1])]
        panel.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=1, alpha=0.55, zorder=2)
    names: list[tuple[str, float, float]] = []
    whiskers: list[tuple[Point, Point]] = []
    for impl, look in view.looks.items():
        for row in scaled[scaled["impl"] == impl].to_dict("records"):
            x, y = float(row["_x"]), float(row["_y"])
            for cost, size in zip(costs, sizes, strict=True):
                if cost.bounds:
                    low, high = (float(row[name]) / size for name in cost.bounds)
                    ends = ((low, y), (high, y)) if cost is costs[0] else ((x, low), (x, high))
                    panel.plot(*zip(*ends, strict=True), color=look.colour, linewidth=1.5, zorder=3)
                    whiskers.append(ends)
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
    return names, [*itertools.pairwise(steps), *whiskers]


def _name_points(
    panel: Axes, view: View, names: list[tuple[str, float, float]], lines: list[tuple[Point, Point]]
) -> None:
    """Writes each name beside its point: the first place that covers no point, no name and no line."""
    points_per_pixel = 72 / panel.figure.dpi
    placed = [panel.transData.transform((x, y)) * points_per_pixel for _, x, y in names]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in placed]
    for ends in lines:
        (x0, y0), (x1, y1) = (panel.transData.transform(end) * points_per_pixel for end in ends)
        if y0 == y1:
            taken.append((min(x0, x1), y0 - 1, max(x0, x1), y0 + 1))
        else:  # a step of the front goes right, then down
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
        corners = [(side * step, rise) for step, rise in ((8.0, 11.0), (14.0, 22.0), (20.0, 34.0)) for side in (1, -1)]
        choices += [(dx, sign * rise, "left" if dx > 0 else "right") for dx, rise in corners for sign in (1, -1)]
        scored = []
        for rank, (dx, dy, align) in enumerate(choices):
            left = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            area = (left, py + dy - 4.5, left + width, py + dy + 4.5)
            covered = sum(_overlap(area, other) for other in taken)
            outside = max(0.0, inside[0] - area[0]) + max(0.0, area[2] - inside[2])
            outside += max(0.0, inside[1] - area[1]) + max(0.0, area[3] - inside[3])
            scored.append((covered + 50 * outside, rank, dx, dy, align, area))
        _, rank, dx, dy, align, area = min(scored)
        leader = {"arrowstyle": "-", "color": view.looks[name].colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4}
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
            arrowprops=leader if rank >= 4 else None,  # beside its point a name needs none
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two rectangles (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
