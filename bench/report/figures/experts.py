"""Time of single experts against the tokens they get, for implementations that work expert by expert."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis.statistics import Floats
from bench.report.figures.canvas import Picture, finish, fitted, grid, headline
from bench.report.profiles.cases import Profiled, drawn_workloads
from bench.report.style import MUTED, TIME_UNITS, house_style, scale_for
from bench.report.view import View
from bench.units import latency

_DASHED = (0, (4.0, 2.0))


@dataclass(frozen=True)
class ExpertTimes:
    """One case's experts, those with the fewest tokens first; times are those of an unwatched call.

    Attributes:
        tokens: of each.
        seconds: forward and backward together.
        needed_s: what the roofs need for the arithmetic and bytes of each; empty where there are no roofs.
    """

    tokens: Floats
    seconds: Floats
    needed_s: Floats


def expert_times(case: Profiled) -> ExpertTimes | None:
    """None where the implementation does not work expert by expert, or the loads are not known."""
    loads = case.tokens_per_expert
    totals: defaultdict[int, Floats] = defaultdict(lambda: np.zeros(3))
    for part in case.profile.experts:
        if part.expert is not None and part.expert < len(loads):
            totals[part.expert] += (case.seconds(part), part.flops or 0, part.moved_bytes or 0)
    if not totals:
        return None
    experts = sorted(totals, key=lambda expert: loads[expert])
    seconds, flops, moved = np.stack([totals[expert] for expert in experts]).T
    needed = np.zeros(0)
    if case.roofs is not None:
        # nearly all of it is weights, which every call reads: they stay in the cache only if all of them fit
        bandwidth = case.roofs.bandwidth(fits=case.roofs.existing_fit)
        needed = np.maximum(flops / case.roofs.peak.value, moved / bandwidth)
    return ExpertTimes(np.array([float(loads[expert]) for expert in experts]), seconds, needed)


def experts_picture(view: View, cases: Sequence[Profiled], slug_prefix: str = "") -> Picture | None:
    """A panel a workload; None where nobody works expert by expert."""
    found = {case.case_id: times for case in cases if (times := expert_times(case)) is not None}
    shown = drawn_workloads([case for case in cases if case.case_id in found])
    if not shown:
        return None
    figure, panels = grid(len(shown), min(2, len(shown)), 2.6, share_x=False, share_y=False)
    drawn = [found[case.case_id] for group in shown for case in group]
    size, unit = scale_for(np.concatenate([times.seconds for times in drawn]), TIME_UNITS)
    with house_style():
        for i, (panel, group) in enumerate(zip(panels, shown, strict=True)):
            for case in group:
                _marks(panel, case, found[case.case_id], size)
            panel.set_title(fitted(group[0].workload, min(2, len(shown))), fontsize=9)
            panel.set_xlim(left=0)
            panel.set_ylim(0, 1.08 * max(float(found[case.case_id].seconds.max()) for case in group) / size)
            if i % 2 == 0:
                panel.set_ylabel(f"{unit} an expert  (lower is better)")
            if i >= len(shown) - 2:
                panel.set_xlabel("tokens that the expert gets")
        looks = {case.impl: case.look for group in shown for case in group}
        handles = [
            Line2D([], [], color=look.colour, marker=look.marker, markersize=5, linewidth=0, label=impl)
            for impl, look in looks.items()
        ]
        handles.append(
            Line2D([], [], color=MUTED, linestyle=_DASHED, linewidth=1.2, label="dashed: needed by the roofs")
        )
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, labelcolor=MUTED, fontsize=8)
    title = "Time of single experts"
    headline(figure, title, view.slice_words)
    return finish(
        figure,
        f"{slug_prefix}profile-experts",
        title,
        "Each mark is one expert of an implementation that calls its experts one after the other, forward and backward "
        "together. The dashed line of its colour is what the machine needs for the arithmetic and the bytes of an "
        "expert, at the measured matrix peak and at the bandwidth of the memory that all experts' weights fit. Each "
        "panel has its own height.",
        "Where the marks lie level at the left, an expert costs the same however few tokens it gets: its weights are "
        "read and its operators called all the same. Then fewer and larger experts, more tokens a call, or one grouped "
        "product help. Marks that rise along the line pay for arithmetic, as they should.",
    )


def expert_sentence(case: Profiled, times: ExpertTimes) -> str:
    """What an expert costs, in words."""
    middle, needed = float(np.median(times.seconds)), float(np.median(times.needed_s)) if times.needed_s.size else 0.0
    few, many = times.tokens[0], times.tokens[-1]
    text = (
        f"{case.impl} calls {len(times.tokens)} experts one after the other; the middle one takes {latency(middle)} "
        f"for {float(np.median(times.tokens)):.0f} tokens"
    )
    text += f", where the machine needs {latency(needed)}." if needed else "."
    if needed:
        beyond_s = float(np.maximum(times.seconds - times.needed_s, 0).sum())
        text += f" Over all of them, {latency(beyond_s)} of the call's {latency(case.profile.plain_s)} are beyond need."
    if many > few:
        text += (
            f" The one with the fewest tokens ({few:.0f}) takes {latency(float(times.seconds[0]))}, the one with the "
            f"most ({many:.0f}) {latency(float(times.seconds[-1]))}."
        )
    return text


def _marks(panel: Axes, case: Profiled, times: ExpertTimes, size: float) -> None:
    if times.needed_s.size:
        panel.plot(
            times.tokens,
            times.needed_s / size,
            color=case.look.colour,
            linestyle=_DASHED,
            linewidth=1.2,
            zorder=2,
        )
    panel.scatter(
        times.tokens,
        times.seconds / size,
        s=16,
        marker=case.look.marker,
        color=case.look.colour,
        alpha=0.8,
        linewidth=0,
        zorder=3,
    )
