"""The roofline: speed against arithmetic intensity, under the ceilings that were measured in the same run.

Where the card's data sheet is known, its roofs are drawn too, dashed and named: to look at, never to judge by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.analysis.datasheets import DataSheet, sheet_of_run
from bench.analysis.statistics import Floats
from bench.report.figures.canvas import Picture, finish, grid, headline, log_axis
from bench.report.slices import evenly
from bench.report.style import HOLLOW, INK, MUTED, house_style, scale_for
from bench.report.view import View
from bench.units import rate

MAX_PANELS = 4
MAX_WORKLOADS = 60
FLOP_UNITS = ((1e6, "MFLOP/s"), (1e9, "GFLOP/s"), (1e12, "TFLOP/s"))
_MEMORIES = {"memory": "main memory", "cache": "last-level cache"}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)))


def roof_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """A panel for each device and number of threads that has a matrix ceiling; None where there is none."""
    timed = view.timed
    rows = timed[(timed["flops"] > 0) & (timed["moved_bytes"] > 0)]
    places = [key[1:] for key in view.analysis.ceilings if key[0] == "matmul"]
    shown = [
        (device, threads)
        for device, threads in sorted({(device, threads) for device, _, threads in places})
        if ((rows["device"] == device) & (rows["threads"] == threads)).any()
    ][:MAX_PANELS]
    if not shown:
        return None
    known = set(rows["workload_id"])
    ids = evenly([workload_id for workload_id in view.workloads if workload_id in known], MAX_WORKLOADS)
    rows = rows[rows["workload_id"].isin(ids)]
    peaks = [peak.value for (what, *_), peak in view.analysis.ceilings.items() if what == "matmul"]
    tops = [*peaks, *sheet_peaks(view)]
    size, unit = scale_for(peaks, FLOP_UNITS)
    bandwidths = [peak.value for (what, *_), peak in view.analysis.ceilings.items() if what != "matmul"]
    knees = [max(peaks) / bandwidth for bandwidth in bandwidths]
    intensity = rows["flops"] / rows["moved_bytes"]
    figure, panels = grid(len(shown), min(2, len(shown)), 4.3 if len(shown) == 1 else 3.4)
    with house_style():
        for panel, (device, threads) in zip(panels, shown, strict=True):
            # from left of the first knee, so that the slopes and the flat roof are both seen
            log_axis(panel, "x", [min(float(intensity.min()), *knees), float(intensity.max())], pad=2.5)
            log_axis(panel, "y", [float((rows["flops"] / rows["latency_s"]).min()) / size, max(tops) / size], pad=1.6)
            draw_roofs(panel, view, device, threads, size)
            _marks(panel, view, rows[(rows["device"] == device) & (rows["threads"] == threads)], size)
            panel.set_xlabel("useful operations a byte that must be moved, FLOP/B")
            if len(shown) > 1:
                panel.set_title(f"{device}, {threads} thread{'s' * (threads != 1)}")
        panels[0].set_ylabel(f"{unit}  (higher is better)")
        _legend(panels[-1], view, set(rows["impl"]))
    title = "Roofline"
    headline(figure, title, view.slice_words)
    cut = f" {len(ids)} of {len(known)} workloads are drawn; the table has all." if len(ids) < len(known) else ""
    caption = (
        "No mark can lie above the roofs. A mark under a slope waits for bytes, a mark under the flat roof for "
        "arithmetic, and the distance straight up to the lowest roof is what an implementation gives away. Roofs were "
        "measured on this machine in this run: the line is the best process' median, the shade reaches to its best "
        "repetition. The upright line through a mark is its interval. Operations and bytes are the useful ones, "
        "counted from the routing that happened, the same for every implementation of the layer; hollow grey marks "
        f"are baselines with operations of their own.{sheet_words(view)}{cut}"
    )
    advice = (
        "Near a slope, make the call move fewer bytes: a shorter number format, or more tokens for weights that are "
        "read once. Near the flat roof, only less arithmetic helps; far below both, an implementation that wastes "
        "less, more tokens a call, or larger experts."
    )
    return finish(figure, f"{slug_prefix}roofline", title, caption, advice)


def sheet_peaks(view: View) -> list[float]:
    """Operations per second that the card's data sheet gives for the number formats whose ceiling was measured."""
    sheet = sheet_of_run(view.analysis.info.environment)
    measured = {dtype for what, device, dtype, _ in view.analysis.ceilings if what == "matmul" and device == "cuda"}
    return [] if sheet is None else [sheet.flops_per_s[dtype] for dtype in measured if dtype in sheet.flops_per_s]


def sheet_words(view: View) -> str:
    """What a caption says of the data sheet's roofs; empty where none are drawn."""
    if not sheet_peaks(view):
        return ""
    return (
        " The dashed grey roofs are the data sheet's, which no card sustains; they are there to compare with, and no "
        "share of a ceiling is taken of them."
    )


def draw_roofs(panel: Axes, view: View, device: str, threads: int, size: float) -> None:
    """The flat roof of each number format, and the slopes of the memories up to the highest roof."""
    sheet = sheet_of_run(view.analysis.info.environment) if device == "cuda" else None
    ceilings = {
        (what, dtype): peak
        for (what, at, dtype, num_threads), peak in view.analysis.ceilings.items()
        if (at, num_threads) == (device, threads)
    }
    flat = {dtype: peak for (what, dtype), peak in ceilings.items() if what == "matmul"}
    highest = max(peak.value for peak in flat.values())
    left, right = panel.get_xlim()
    if sheet is not None:
        _draw_sheet(panel, sheet, flat, size)
    for (dtype, peak), dash in zip(sorted(flat.items(), key=lambda item: -item[1].value), _DASHES * 2, strict=False):
        panel.axhspan(peak.value / size, peak.high / size, color=MUTED, alpha=0.14, linewidth=0)
        panel.axhline(peak.value / size, color=INK, linewidth=1.3, linestyle=dash)
        words = f"{dtype} matrix products, {rate(peak.value, 'FLOP/s')}"
        panel.annotate(
            words, (right, peak.value / size), (-4, 4), textcoords="offset points", ha="right", size=8, color=MUTED
        )
    slopes = defaultdict(list)
    for (what, _), peak in ceilings.items():
        if what != "matmul":
            slopes[what].append(peak)
    for what, peaks in slopes.items():
        best = max(peaks, key=lambda peak: peak.value)
        knee = min(right, highest / best.value)
        if knee <= left:
            continue
        x = np.geomspace(left, knee, 2)
        panel.fill_between(x, x * best.value / size, x * best.high / size, color=MUTED, alpha=0.14, linewidth=0)
        panel.plot(x, x * best.value / size, color=INK, linewidth=1.3)
        # the data sheet's slope is just above the memory's
        words, below = f"{_MEMORIES[what]}, {rate(best.value, 'B/s')}", sheet is not None and what == "memory"
        _along(panel, x, x * best.value / size, words, below=below)


def _draw_sheet(panel: Axes, sheet: DataSheet, dtypes: Iterable[str], size: float) -> None:
    """The data sheet's roofs for the number formats that were measured; the slope ends at the highest of them."""
    style: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (6, 4)), "zorder": 1.5}
    left, right = panel.get_xlim()
    known = {dtype: sheet.flops_per_s[dtype] for dtype in dtypes if dtype in sheet.flops_per_s}
    for dtype, peak in known.items():
        panel.axhline(peak / size, **style)
        words = f"{sheet.card} data sheet, {dtype}: {rate(peak, 'FLOP/s')}, {rate(sheet.bytes_per_s, 'B/s')}"
        panel.annotate(words, (left, peak / size), (4, 4), textcoords="offset points", ha="left", size=8, color=MUTED)
    knee = min(right, max(known.values(), default=0.0) / sheet.bytes_per_s)
    if knee > left:
        x = np.geomspace(left, knee, 2)
        panel.plot(x, x * sheet.bytes_per_s / size, **style)


def _along(panel: Axes, x: Floats, y: Floats, words: str, *, below: bool) -> None:
    """Writes along a slope what it is, in the middle of what is inside the panel."""
    bottom = panel.get_ylim()[0]
    start = max(x[0], x[0] * bottom / y[0])
    at = float(np.sqrt(start * x[1]))
    panel.text(
        at,
        at * y[0] / x[0] * (1 / 1.07 if below else 1.07),
        words,
        va="top" if below else "baseline",
        rotation=float(np.degrees(np.arctan(y[0] / x[0]))),  # of the data, turned to its angle on the page
        transform_rotates_text=True,
        rotation_mode="anchor",
        ha="center",
        size=8,
        color=MUTED,
    )


def _marks(panel: Axes, view: View, rows: pd.DataFrame, size: float) -> None:
    """Every case with its interval."""
    for impl, look in view.looks.items():
        own = rows[rows["impl"] == impl]
        if own.empty:
            continue
        x = own["flops"] / own["moved_bytes"]
        low, high = own["flops"] / own["latency_high_s"] / size, own["flops"] / own["latency_low_s"] / size
        panel.vlines(x, low, high, color=look.colour, linewidth=1.1, zorder=3)
        panel.scatter(
            x,
            own["flops"] / own["latency_s"] / size,
            s=20,
            marker=look.marker,
            facecolor=HOLLOW if look.baseline else look.colour,
            edgecolor=look.colour,
            linewidth=1,
            zorder=3 if look.baseline else 4,
            label=impl,
        )


def _legend(panel: Axes, view: View, present: set[str]) -> None:
    """Names beside the picture: marks of one implementation are scattered, so no label can stand at its end."""
    handles, labels = panel.get_legend_handles_labels()
    by_name = dict(zip(labels, handles, strict=True))
    names = [impl for impl in view.looks if impl in present and impl in by_name]
    panel.legend(
        [by_name[name] for name in names],
        names,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        labelcolor=INK,
        fontsize=8,
    )
