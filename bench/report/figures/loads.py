"""How the load is spread over the experts: assignments kept and dropped, the fullest expert first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Patch

from bench.report.figures.canvas import Picture, finish, fitted, grid, headline
from bench.report.slices import evenly
from bench.report.style import INK, MUTED, house_style
from bench.report.view import View, describe
from bench.store.qualified import RoutingFacts

MAX_PANELS = 6
KEPT, DROPPED = "#56B4E9", "#D55E00"
_NO_MATTER = {"direction", "dtype", "device", "threads", "cache", "d_ff"}
"""Fields that a report names a workload by, and that do not change where tokens go."""


@dataclass(frozen=True)
class Load:
    """One routing that happened.

    Attributes:
        words: the workloads that it happened in.
        facts: as recorded.
        wanted: assignments of each expert, dropped ones included where they are known, the fullest first.
        kept: those that it kept, in the same order.
    """

    words: str
    facts: RoutingFacts
    wanted: Sequence[int]
    kept: Sequence[int]

    @property
    def entropy(self) -> float:
        """Of the load, over that of an even one: 1 is even, 0 is one expert for all."""
        shares = [count / sum(self.wanted) for count in self.wanted if count]
        whole = math.log(len(self.wanted))
        return -sum(share * math.log(share) for share in shares) / whole if whole else 1.0

    @property
    def num_idle(self) -> int:
        """Experts without a token."""
        return sum(count == 0 for count in self.kept)

    @property
    def num_dropping(self) -> int:
        """Experts that drop."""
        return sum(kept < wanted for kept, wanted in zip(self.kept, self.wanted, strict=True))


def loads(view: View) -> list[Load]:
    """Routings of a run that differ, in the order of the sweep."""
    found: dict[tuple[int, ...], Load] = {}
    fields = view.frame.drop_duplicates("workload_id").set_index("workload_id")
    for workload_id in view.workloads:
        facts = view.analysis.routings.get(workload_id)
        if facts is None or not sum(facts.tokens_per_expert):
            continue
        dropped = facts.dropped_per_expert or [0] * len(facts.tokens_per_expert)
        pairs = sorted(zip(facts.tokens_per_expert, dropped, strict=True), key=lambda pair: -sum(pair))
        key = (*facts.tokens_per_expert, -1, *dropped)
        row = fields.loc[workload_id]
        words = describe({name: row[name] for name in view.varying if name not in _NO_MATTER})
        kept = [kept for kept, _ in pairs]
        found.setdefault(key, Load(words or "every workload", facts, [sum(pair) for pair in pairs], kept))
    return list(found.values())


def loads_picture(view: View, found: Sequence[Load], slug_prefix: str = "") -> Picture | None:
    """A panel a routing, load over the mean; None where no routing is known."""
    shown = evenly(list(found), MAX_PANELS)
    if not shown:
        return None
    num_columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
    figure, panels = grid(len(shown), num_columns, 2.2, share_x=False)
    with house_style():
        for i, (panel, load) in enumerate(zip(panels, shown, strict=True)):
            mean = sum(load.wanted) / len(load.wanted)
            edges = np.arange(len(load.wanted) + 1)
            panel.stairs(np.array(load.wanted) / mean, edges, fill=True, color=DROPPED, linewidth=0, zorder=2)
            panel.stairs(np.array(load.kept) / mean, edges, fill=True, color=KEPT, linewidth=0, zorder=2)
            panel.axhline(1, color=INK, linewidth=1, zorder=3)
            panel.set_title(fitted(load.words, num_columns), fontsize=8.5)
            panel.set_xlim(0, len(load.wanted))
            panel.grid(visible=False, axis="x")
            panel.annotate(
                f"imbalance {load.facts.load_imbalance:.2f}\nentropy {load.entropy:.3f}",
                (0.97, 0.95),
                xycoords="axes fraction",
                ha="right",
                va="top",
                size=8,
                color=MUTED,
            )
            if i % num_columns == 0:
                panel.set_ylabel("load over the mean")
            if i >= len(shown) - num_columns:
                panel.set_xlabel("experts, the fullest first")
        panels[0].set_ylim(0, 1.08 * max(load.wanted[0] * len(load.wanted) / sum(load.wanted) for load in shown))
        handles = [Patch(color=KEPT, label="assignments kept"), Patch(color=DROPPED, label="dropped")]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, labelcolor=MUTED, fontsize=8)
    title = "How the load is spread over the experts"
    headline(figure, title, view.slice_words)
    cut = f" {len(shown)} of {len(found)} routings are drawn." if len(shown) < len(found) else ""
    return finish(
        figure,
        f"{slug_prefix}loads",
        title,
        "Each step is one expert, the fullest first; the line at 1 is the mean load. Imbalance is the fullest over the "
        "mean. Entropy is that of the load over that of an even one: 1 is even, and it falls when few experts get most "
        f"tokens. The upper part of a step is what found no slot.{cut}",
        "An implementation that pads every expert to the fullest pays for the whole rectangle under the first step, "
        "and one that works through the experts' real loads only for the steps: with a steep picture choose one of the "
        "latter, or a capacity. Idle experts at the right are weights that nobody reads.",
    )
