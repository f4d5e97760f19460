"""Bytes alive during one call, by what they are for: a stacked area above what is there all the time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from bench.report.figures.canvas import Picture, finish, grid, headline
from bench.report.figures.causes import BACKWARD_ALPHA, STAGE_COLOURS
from bench.report.profiles.cases import Profiled
from bench.report.style import BYTE_UNITS, INK, MUTED, TIME_UNITS, house_style, scale_for
from bench.report.view import View
from bench.store.profiles import Timeline
from bench.units import bytes_

CATEGORY_COLOURS = {
    "routing": "#CC79A7",
    "dispatched tokens": "#D55E00",
    "kept for backward": "#0072B2",
    "workspace": "#56B4E9",
    "output": "#E69F00",
    "gradients": "#009E73",
}
SPARE_COLOUR = "#8b949e"
MAX_PANELS = 6
MAX_STRETCH = 4.0
"""Panels whose peaks differ by more each have a height of their own."""
MAX_MOMENTS = 110
"""Of a timeline this many are drawn, each the fullest of its stretch: more would only make the page heavier."""


def timeline_picture(view: View, group: Sequence[Profiled], number: int, slug_prefix: str = "") -> Picture | None:
    """Memory over time of the cases of one workload, a panel an implementation; None where none has a timeline."""
    cases = [case for case in group if case.profile.timeline is not None and case.profile.timeline.at_s][:MAX_PANELS]
    if not cases:
        return None
    peaks = [case.profile.timeline.peak_bytes for case in cases if case.profile.timeline]
    own_height = max(peaks) > MAX_STRETCH * min(peaks)  # in one height, the small ones would not be seen
    scales = [scale_for([peak if own_height else max(peaks)], BYTE_UNITS) for peak in peaks]
    time_size, time_unit = scale_for([case.profile.plain_s for case in cases], TIME_UNITS)
    num_columns = min(2, len(cases))
    figure, panels = grid(len(cases), num_columns, 2.5, share_x=False, share_y=not own_height)
    present: dict[str, str] = {}
    with house_style():
        for i, (panel, case) in enumerate(zip(panels, cases, strict=True)):
            timeline = case.profile.timeline
            assert timeline is not None
            present |= {name: CATEGORY_COLOURS.get(name, SPARE_COLOUR) for name in timeline.bytes_alive}
            size, unit = scales[i]
            top = max(1.0, (peaks[i] if own_height else max(peaks)) / size)
            _draw(panel, case, timeline, size=size, time_size=time_size, top=top)
            if own_height or i % num_columns == 0:
                panel.set_ylabel(f"{unit} alive  (lower is better)")
            if i >= len(cases) - num_columns:
                panel.set_xlabel(f"{time_unit} from the beginning of the call")
        order = [name for name in (*CATEGORY_COLOURS, *present) if name in present]
        handles = [Patch(color=present[name], label=name) for name in dict.fromkeys(order)]
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, labelcolor=MUTED, fontsize=8)
    title = f"Memory during a call: {cases[0].workload}"
    headline(figure, title, view.slice_words)
    return finish(
        figure,
        f"{slug_prefix}profile-memory-{number}",
        title,
        "Height is how many bytes are alive, coloured by what they are for; the triangle marks the most, and the "
        "operator that made it. Beneath zero stand the call's stages, paler in the backward pass, and what is there "
        "all the time, not to scale. "
        f"{'Each panel has its own height' if own_height else 'All panels share the height'}; each has its own time, "
        "scaled to a call that nobody watches. Order and bytes are exact, moments are those of the stages.",
        "Look under the triangle. Mostly workspace: intermediate results of the experts, which another activation or "
        "fewer rows at once make smaller. Dispatched tokens: padding or copies; a smaller capacity or grouped products "
        "need none. Kept for backward: recomputing trades it for time. Gradients: as large as the weights, whatever "
        "the implementation.",
    )


def _draw(panel: Axes, case: Profiled, timeline: Timeline, *, size: float, time_size: float, top: float) -> None:
    rows = {name: np.asarray(row, dtype=float) / size for name, row in timeline.bytes_alive.items()}
    at = np.asarray(timeline.at_s) * case.scale / time_size
    moments = _moments(np.sum(list(rows.values()), axis=0) if rows else np.zeros_like(at), timeline.peak_index)
    edges = np.concatenate([[0.0], at[moments]])
    ceiling = np.zeros(len(moments))
    for layer, name in enumerate(sorted(rows, key=_rank)):
        # each from zero and behind the one before: half the points of a band with a floor of its own
        ceiling = ceiling + rows[name][moments]
        colour = CATEGORY_COLOURS.get(name, SPARE_COLOUR)
        panel.stairs(ceiling, edges, fill=True, color=colour, linewidth=0, zorder=2 - layer / 100)
    end = float(at[-1]) or 1.0
    _stages(panel, timeline, at, end, top)
    existing = " + ".join(f"{name} {bytes_(size_)}" for name, size_ in timeline.existing_bytes.items() if size_)
    panel.axhspan(-0.36 * top, -0.235 * top, color=MUTED, alpha=0.14, linewidth=0)
    panel.annotate(
        f"always there: {existing}",
        (0.012, -0.3 * top),
        xycoords=("axes fraction", "data"),
        va="center",
        size=7.5,
        color=MUTED,
    )
    peak = timeline.peak_bytes / size
    peak_at = float(at[timeline.peak_index])
    panel.plot(peak_at, peak + 0.035 * top, marker="v", color=INK, markersize=5, zorder=5)
    panel.annotate(
        f"{bytes_(timeline.peak_bytes)}: {timeline.peak_made_by}",
        (0.5, 1.0),
        xycoords="axes fraction",
        ha="center",
        va="bottom",
        xytext=(0, -2),
        textcoords="offset points",
        size=7.5,
        color=MUTED,
    )
    panel.set_title(case.impl, pad=14)
    panel.set_xlim(0, end)
    panel.set_ylim(-0.36 * top, 1.14 * top)
    panel.set_yticks([tick for tick in panel.get_yticks() if 0 <= tick <= 1.1 * top])
    panel.grid(visible=False, axis="x")


def _stages(panel: Axes, timeline: Timeline, at: NDArray[np.float64], end: float, top: float) -> None:
    """A strip of the stages along the foot, named where there is room."""
    names = timeline.stages
    changes = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    for first, last in pairwise(changes):
        begin, until = float(at[first - 1]) if first else 0.0, float(at[last - 1])
        phase, _, stage = names[first].partition(" ")
        panel.barh(
            -0.06 * top,
            until - begin,
            left=begin,
            height=0.05 * top,
            color=STAGE_COLOURS.get(stage, SPARE_COLOUR),
            alpha=1.0 if phase == "forward" else BACKWARD_ALPHA,
            linewidth=0,
            zorder=2,
        )
        if until - begin > 0.16 * end:
            words = stage if phase == "forward" else f"{stage}, backward"
            panel.text((begin + until) / 2, -0.15 * top, words, ha="center", va="center", size=7.5, color=MUTED)


def _rank(name: str) -> int:
    """What lives longest lies at the bottom."""
    order = ("output", "kept for backward", "gradients", "routing", "dispatched tokens", "workspace")
    return order.index(name) if name in order else len(order)


def _moments(total: NDArray[np.float64], peak: int) -> list[int]:
    """Of every stretch the fullest moment, the first, the last and the peak."""
    count = len(total)
    if count <= MAX_MOMENTS:
        return list(range(count))
    edges = np.linspace(0, count, MAX_MOMENTS + 1).astype(int).tolist()
    fullest = {begin + int(total[begin:end].argmax()) for begin, end in pairwise(edges) if end > begin}
    return sorted(fullest | {0, peak, count - 1})
