"""Stacked bars of profiled cases: their time by cause, and their time by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.analysis.divisions import Division, Limit
from bench.report.figures.canvas import Picture, finish, fitted, grid, headline
from bench.report.profiles.cases import Profiled, drawn_workloads
from bench.report.style import HOLLOW, INK, MUTED, TIME_UNITS, house_style, scale_for
from bench.report.view import View
from bench.units import latency

CAUSE_COLOURS = {
    Limit.COMPUTE: "#0072B2",
    Limit.MEMORY: "#D55E00",
    Limit.CACHE: "#E69F00",
    Limit.HOST: "#CC79A7",
    Limit.FIRST_TOUCH: "#009E73",
    Limit.BELOW_ROOF: "#8b949e",
}
STAGE_COLOURS = {
    "route": "#CC79A7",
    "dispatch": "#D55E00",
    "experts": "#0072B2",
    "combine": "#E69F00",
    "shared": "#56B4E9",
    "fused": "#F0E442",
    "gradients": "#009E73",
    "other": "#8b949e",
}
"""In pictures of profiles a colour is a cause, a stage or a category; implementations are named, or told by marker."""
BACKWARD_ALPHA = PALE_ALPHA = 0.5
_ROW_IN = 0.3
MAX_STRETCH = 4.0
"""A bar so many times as long as the middle one of its panel is cut: the others could not be read beside it."""

Part = tuple[float, str, float]
"""A stretch of a bar: seconds, colour and opacity."""


def causes_picture(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> Picture | None:
    """What limits each case: its time by cause. None where no case has a known limit."""
    known = [case for case in cases if case.limit is not None]
    shown = drawn_workloads(known)
    if not shown:
        return None
    patches = [Patch(color=colour, label=str(cause)) for cause, colour in CAUSE_COLOURS.items()]
    patches.append(Patch(color=CAUSE_COLOURS[Limit.COMPUTE], alpha=PALE_ALPHA, label="paler: lost near that roof"))
    return _bars(
        view,
        shown,
        draw=_cause_bar,
        end_s=lambda case: case.profile.plain_s,
        handles=patches,
        slug=f"{slug_prefix}profile-limits",
        title="What limits each case",
        caption="A bar is one call, divided by what its time was needed for. Compute is what its matrix products need "
        "at this machine's measured matrix peak; memory and cache what operators with more bytes than arithmetic need "
        "at the measured bandwidths; paler beside them stands what kernels near that roof took beyond it. Host is time "
        "in which no operator ran, and what calling operators costs. First touch is writing to memory that the system "
        "handed out anew. Below the roof is what is left: a kernel ran, far from anything that the machine can do. The "
        "longest stretch of one colour, pale part included, names the limit."
        f"{_cut(known, shown)}",
        advice="A mostly dark blue bar is as good as it gets: only less arithmetic helps. Orange wants fewer bytes or "
        "fewer passes, pink fewer operators or more tokens, green memory that is kept, and grey other shapes or "
        "another implementation. A long pale part is what a better kernel could still win. The sentences below say it "
        "case by case.",
    )


def _cause_bar(panel: Axes, row: int, case: Profiled, size: float, end_s: float) -> None:
    """The causes, and beside them the two largest in words."""
    assert case.limit is not None
    resources = case.limit.whole.by_resource()
    whole = sum(resources.values())
    scale = case.profile.plain_s / whole if whole else 0.0
    parts = [(scale * s, colour, alpha) for s, colour, alpha in _by_cause(case.limit.whole)]
    _bar(panel, row, parts, size, end_s)
    largest = sorted(((s / whole, cause) for cause, s in resources.items() if whole), reverse=True)
    words = [f"{100 * share:.0f} % {cause}" for share, cause in largest[:2] if share >= 0.05]
    cut = [f"{latency(case.profile.plain_s)}, not to scale"] * (case.profile.plain_s > end_s)
    place = min(case.profile.plain_s, end_s) / size
    _note(panel, place, row, " · ".join([*cut, *words, *["disturbed"] * case.disturbed]))


def _by_cause(division: Division) -> list[Part]:
    """Of each cause what its roof needs, and paler what kernels near that roof take beyond it."""
    parts = []
    for cause in Limit:
        lost = division.below.get(cause, 0.0)
        own = division.seconds[cause] - (sum(division.below.values()) if cause is Limit.BELOW_ROOF else 0.0)
        parts += [(own, CAUSE_COLOURS[cause], 1.0), (lost, CAUSE_COLOURS[cause], PALE_ALPHA)]
    return parts


def stages_picture(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> Picture | None:
    """Where a call's time goes, stage by stage; None where nothing was profiled."""
    shown = drawn_workloads(cases)
    if not shown:
        return None
    present = {part.stage for case in cases for part in case.profile.stages}
    phases = {part.phase for case in cases for part in case.profile.stages}
    fused = " Fused are kernels of compiled code that do the work of several stages." if "fused" in present else ""
    handles = [
        *(Patch(color=colour, label=stage) for stage, colour in STAGE_COLOURS.items() if stage in present),
        *([Patch(color="#8b949e", alpha=BACKWARD_ALPHA, label="paler: backward")] if "backward" in phases else []),
        Line2D([], [], color=INK, marker="|", markersize=11, linewidth=0, label="measured latency"),
    ]
    return _bars(
        view,
        shown,
        draw=_stage_bar,
        end_s=lambda case: max(case.profile.plain_s, case.latency.value if case.latency else 0.0),
        handles=handles,
        slug=f"{slug_prefix}profile-stages",
        title="Where the time goes, stage by stage",
        caption="A bar is one call: route chooses experts, dispatch brings tokens to them, experts are the "
        "feed-forwards, combine adds their outputs up, gradients adds to the weights' gradients and gives them back, "
        "and other is what no stage claims. Paler stretches are the backward pass. The stages were timed under the "
        "profiler, which slows them, and are scaled so that they add up to a call that nobody watches; by how much is "
        "in the table. On a GPU they are the time of kernels, which is not scaled: what a bar lacks, the device had "
        "nothing to do. The upright mark is the latency as this run timed it: far from the bar's end, the machine was "
        f"in another state.{fused}{_cut(cases, shown)}",
        advice="Work on the longest stretch. Long dispatch and combine mean that moving tokens costs more than "
        "computing: another implementation, or larger experts. Long experts are arithmetic or weights that are read, "
        "which the picture before this one tells apart. Long gradients mean that weights' gradients are allocated, "
        "given back or added up.",
    )


def _stage_bar(panel: Axes, row: int, case: Profiled, size: float, end_s: float) -> None:
    """The stages, and the measured latency with its interval, as far as that does not leave the panel."""
    longest = 1.1 * end_s
    stages = sorted(case.profile.stages, key=lambda part: part.phase != "forward")
    parts = [
        (
            case.seconds(part),
            STAGE_COLOURS.get(part.stage, STAGE_COLOURS["other"]),
            1.0 if part.phase == "forward" else BACKWARD_ALPHA,
        )
        for part in stages
    ]
    _bar(panel, row, parts, size, end_s)
    if case.profile.plain_s > end_s:
        cut = f"{latency(case.profile.plain_s)}, not to scale" + " · disturbed" * case.disturbed
        _note(panel, end_s / size, row, cut)
        return
    end = case.profile.plain_s
    if case.latency is not None:
        end = max(end, min(longest, case.latency.high))
        low, high = (min(longest, bound) / size for bound in (case.latency.low, case.latency.high))
        panel.hlines(row, low, high, color=INK, lw=1, zorder=3)
        if case.latency.value <= longest:
            panel.plot(
                case.latency.value / size, row, marker="|", color=INK, markersize=13, markeredgewidth=1.5, zorder=4
            )
    _note(panel, end / size, row, latency(case.profile.plain_s) + " · disturbed" * case.disturbed)


def _bars(
    view: View,
    shown: Sequence[Sequence[Profiled]],
    *,
    draw: Callable[[Axes, int, Profiled, float, float], None],
    end_s: Callable[[Profiled], float],
    handles: Sequence[Artist],
    slug: str,
    title: str,
    caption: str,
    advice: str,
) -> Picture:
    """A panel a workload and a bar a case: ``draw(panel, row, case, seconds a unit, seconds where bars end)``."""
    height = 0.62 + _ROW_IN * max(map(len, shown)) + 0.7 / len(shown)  # the last is for the legend
    figure, panels = grid(len(shown), 1, height, share_x=False)
    size, unit = scale_for([case.profile.plain_s for group in shown for case in group], TIME_UNITS)
    with house_style():
        for panel, group in zip(panels, shown, strict=True):
            end = _panel_end(list(map(end_s, group)))
            for row, case in enumerate(group):
                draw(panel, row, case, size, end)
            _rows(panel, group, end / size)
        panels[-1].set_xlabel(f"{unit} of a call that nobody watches  (each panel has its own scale)")
        figure.legend(
            handles=list(handles), loc="outside lower left", ncols=9, frameon=False, labelcolor=MUTED, fontsize=8
        )
    headline(figure, title, view.slice_words)
    return finish(figure, slug, title, caption, advice)


def _panel_end(ends_s: Sequence[float]) -> float:
    """Where the bars of a panel end: with the longest, or where that is far longer than the others, before."""
    return min(max(ends_s), MAX_STRETCH * median(ends_s))


def _bar(panel: Axes, row: int, parts: Sequence[Part], size: float, end_s: float) -> None:
    """One bar; past the panel's end it keeps its shares and loses its scale, which a gap says."""
    left, length = 0.0, sum(seconds for seconds, _, _ in parts)
    whole = min(length, end_s)
    for part_s, colour, alpha in parts:
        seconds = part_s * whole / length if length else 0.0
        if seconds > 0:
            panel.barh(row, seconds / size, left=left, height=0.66, color=colour, alpha=alpha, linewidth=0, zorder=2)
            left += seconds / size
        if seconds > 0.006 * whole:  # between slivers, dividers would be all that is seen
            panel.vlines(left, row - 0.33, row + 0.33, color=HOLLOW, linewidth=0.8, zorder=2.5)

    if length > end_s:
        for at in (0.955, 0.97):
            panel.plot([at * left, (at + 0.012) * left], [row + 0.4, row - 0.4], color=HOLLOW, linewidth=1.6, zorder=3)


def _note(panel: Axes, x: float, row: int, words: str) -> None:
    panel.annotate(words, (x, row), (7, 0), textcoords="offset points", va="center", size=8, color=MUTED)


def _rows(panel: Axes, group: Sequence[Profiled], end: float) -> None:
    panel.set_title(fitted(group[0].workload, 1), fontsize=9)
    panel.set_xlim(0, 1.32 * end)
    panel.set_ylim(len(group) - 0.4, -0.6)
    panel.set_yticks(range(len(group)), [case.impl for case in group])
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)


def _cut(cases: Sequence[Profiled], shown: Sequence[Sequence[Profiled]]) -> str:
    total = len({case.workload_id for case in cases})
    return f" {len(shown)} of {total} profiled workloads are drawn; profiles.csv has all." if len(shown) < total else ""
