"""Every stage under the machine's measured roofs: those with products by FLOP/s, those that only move by bytes/s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.report.figures.canvas import Picture, finish, grid, headline, log_axis
from bench.report.figures.causes import STAGE_COLOURS
from bench.report.figures.roof import FLOP_UNITS, draw_roofs, sheet_peaks, sheet_words
from bench.report.profiles.cases import Profiled, case_words, drawn_workloads
from bench.report.style import INK, MUTED, house_style, scale_for
from bench.report.view import View
from bench.store.profiles import StageTime

LEAST_SHARE = 0.005
"""Stages shorter than this share of the call are not drawn: their times are mostly the clock's."""
_BYTE_RATES = ((1e6, "MB/s"), (1e9, "GB/s"), (1e12, "TB/s"))


@dataclass(frozen=True)
class StageMark:
    """One stage of one case, in time of an unwatched call."""

    case: Profiled
    stage: StageTime
    seconds: float

    @property
    def words(self) -> str:
        """``experts, backward``."""
        return self.stage.stage if self.stage.phase == "forward" else f"{self.stage.stage}, backward"


def stage_marks(cases: Sequence[Profiled]) -> list[StageMark]:
    """Stages long enough to be judged."""
    return [
        StageMark(case, stage, case.seconds(stage))
        for case in cases
        for stage in case.profile.stages
        if stage.seconds >= LEAST_SHARE * case.profile.whole_s and stage.seconds > 0
    ]


def _work(mark: StageMark) -> tuple[int, int]:
    """Operations and bytes; 0 also where they are not known, as of compiled code."""
    return mark.stage.flops or 0, mark.stage.moved_bytes or 0


def above_roof(cases: Sequence[Profiled]) -> list[str]:
    """Sentences on stages that are faster than the best repetition of a ceiling allows."""
    found = []
    for mark in stage_marks(cases):
        roofs, (flops, moved) = mark.case.roofs, _work(mark)
        if roofs is None:
            continue
        bandwidth = (roofs.cache or roofs.memory).high if roofs.cache_bytes else roofs.memory.high
        ratio = max(flops / roofs.peak.high, moved / bandwidth) / mark.seconds
        if ratio > 1:
            found.append(
                f"{mark.words} of {case_words(mark.case)} runs at {ratio:.2f} times its roof. That is a fault of the "
                "ceiling, measured while the machine was slower, or of the case: bytes that never left an inner cache, "
                "or were counted and not moved. Run the ceilings again on a quiet machine, and compare with the same "
                'case under cache = "cold".'
            )
    return found


def stage_roof_picture(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> Picture | None:
    """The stages with matrix products on the roofs of the place that most cases ran on; None without roofs."""
    place, shown = _one_place(view, cases)
    marks = [mark for mark in stage_marks(shown) if all(_work(mark))]
    if place is None or not marks:
        return None
    device, threads = place
    peaks = [peak.value for (what, *at), peak in view.analysis.ceilings.items() if what == "matmul" and at[0] == device]
    size, unit = scale_for(peaks, FLOP_UNITS)
    bandwidths = [peak.value for (what, *_), peak in view.analysis.ceilings.items() if what != "matmul"]
    intensities = [flops / moved for flops, moved in map(_work, marks)]
    speeds = [_work(mark)[0] / mark.seconds for mark in marks]
    figure, (panel,) = grid(1, 1, 4.3)
    with house_style():
        log_axis(panel, "x", [*intensities, *(max(peaks) / bandwidth for bandwidth in bandwidths)], pad=2)
        log_axis(panel, "y", [min(speeds) / size, max(*peaks, *sheet_peaks(view), *speeds) / size], pad=1.6)
        draw_roofs(panel, view, device, threads, size)
        for mark, x, speed in zip(marks, intensities, speeds, strict=True):
            _mark(panel, mark, x, speed / size)
        panel.set_xlabel("operations a byte that its operators moved, FLOP/B")
        panel.set_ylabel(f"{unit}  (higher is better)")
        _draw_legend(panel, marks)
    title = "Roofline of the stages"
    headline(figure, title, view.slice_words)
    return finish(
        figure,
        f"{slug_prefix}profile-roofline",
        title,
        "A mark is one stage of one case: its colour is the stage, its shape the implementation, hollow in the "
        "backward pass. Operations and bytes are those that its operators really did and moved, padding and copies "
        "included, so a mark high up may still do useless work; the roofline of cases counts the useful ones. The line "
        "of a roof is the best process' median, the shade reaches to its best repetition." + sheet_words(view),
        "Under a slope, move fewer bytes or do more with each; under the flat roof, use a shorter number format or do "
        "less; far below both, the shapes are too small to keep the processor busy: more tokens an expert, or fewer "
        "and larger experts. A stage above its roof is a fault of the ceiling or of the case, and is named below.",
    )


def bandwidth_picture(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> Picture | None:
    """The stages without matrix products by bytes a second, beside the measured bandwidths; None without any."""
    place, shown = _one_place(view, cases)
    marks = [mark for mark in stage_marks(shown) if not mark.stage.flops and mark.stage.moved_bytes]
    if place is None or not marks:
        return None
    device, threads = place
    ceilings = {
        what: peak
        for (what, at, _, many), peak in view.analysis.ceilings.items()
        if (at, many) == (device, threads) and what != "matmul"
    }
    names = sorted({mark.words for mark in marks}, key=lambda name: ("backward" in name, name))
    speeds = [_work(mark)[1] / mark.seconds for mark in marks]
    size, unit = scale_for([*speeds, *(peak.value for peak in ceilings.values())], _BYTE_RATES)
    figure, (panel,) = grid(1, 1, 1.1 + 0.34 * len(names))
    impls = list(dict.fromkeys(mark.case.impl for mark in marks))
    with house_style():
        log_axis(panel, "x", [min(speeds) / size, max([*speeds, *(p.high for p in ceilings.values())]) / size], pad=1.3)
        for what, peak in ceilings.items():
            panel.axvspan(peak.value / size, peak.high / size, color=MUTED, alpha=0.14, linewidth=0)
            panel.axvline(peak.value / size, color=INK, linewidth=1.3)
            words = {"memory": "main memory", "cache": "cache"}.get(what, what)
            panel.annotate(
                words, (peak.value / size, 1.0), (-3, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", size=8, color=MUTED,
            )  # fmt: skip
        for mark, speed in zip(marks, speeds, strict=True):
            lane = (impls.index(mark.case.impl) - (len(impls) - 1) / 2) * 0.6 / max(1, len(impls))
            _mark(panel, mark, speed / size, names.index(mark.words) + lane)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(f"{unit} that its operators read and wrote  (further right is better)")
        _draw_legend(panel, marks)
    title = "Stages that only move bytes"
    headline(figure, title, view.slice_words)
    return finish(
        figure,
        f"{slug_prefix}profile-bandwidth",
        title,
        "Stages without a matrix product cannot stand on a roofline of operations. Here they are by the bytes that "
        "their operators moved a second; the upright lines are the measured bandwidths, the shade reaches to the best "
        "repetition.",
        "At a line, only moving less helps: another layout, fewer copies. Far left of it, the stage is made of many "
        "small operators and its time is calls: fewer operators, compilation, or more tokens.",
    )


def _one_place(view: View, cases: Sequence[Profiled]) -> tuple[tuple[str, int] | None, list[Profiled]]:
    """Device and threads that the first drawn layer with roofs ran on, and the drawn layers that ran there too.

    Baselines share their markers with layers, and are told apart by being hollow, which here is the backward pass.
    """
    groups = drawn_workloads(cases)
    drawn = [case for group in groups for case in group if case.roofs is not None and not case.look.baseline]
    where = view.frame.drop_duplicates("case_id").set_index("case_id")[["device", "threads"]]
    places = {str(case_id): (str(device), int(threads)) for case_id, device, threads in where.itertuples()}
    if not drawn:
        return None, []
    place = places[drawn[0].case_id]
    return place, [case for case in drawn if places[case.case_id] == place]


def _mark(panel: Axes, mark: StageMark, x: float, y: float) -> None:
    colour = STAGE_COLOURS.get(mark.stage.stage, STAGE_COLOURS["other"])
    backward = mark.stage.phase == "backward"
    panel.scatter(
        x, y, s=34, marker=mark.case.look.marker, facecolor="none" if backward else colour, edgecolor=colour,
        linewidth=1.2, zorder=4,
    )  # fmt: skip


def _draw_legend(panel: Axes, marks: Sequence[StageMark]) -> None:
    """Stages by colour and implementations by shape, beside the panel."""
    stages = dict.fromkeys(mark.stage.stage for mark in marks)
    looks = {mark.case.impl: mark.case.look for mark in marks}
    handles = [
        *(
            Line2D([], [], color=STAGE_COLOURS.get(stage, STAGE_COLOURS["other"]), linewidth=5, label=stage)
            for stage in sorted(stages)
        ),
        *(
            Line2D([], [], color=MUTED, marker=look.marker, linewidth=0, markersize=6, label=impl)
            for impl, look in looks.items()
        ),
    ]
    panel.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=INK, fontsize=8
    )
