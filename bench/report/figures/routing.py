"""What the routing did to the workloads: assignments dropped, and how uneven the experts' load was."""

from __future__ import annotations

from bench.report.figures.canvas import Picture, finish, grid, headline
from bench.report.slices import evenly
from bench.report.style import MUTED, house_style
from bench.report.view import View

MAX_WORKLOADS = 24
_COLOUR = "#56B4E9"


def routing_picture(view: View, slug_prefix: str = "") -> Picture | None:
    """Dropped share and load imbalance of each workload; None where nothing is dropped and the load is even."""
    frame = view.frame
    facts = frame[frame["load_imbalance"].notna()].drop_duplicates("workload_id").set_index("workload_id")
    uneven = facts[(facts["dropped_fraction"].fillna(0) > 0) | (facts["load_imbalance"] > 1.001)]
    if uneven.empty:
        return None
    ids = evenly([workload_id for workload_id in view.workloads if workload_id in facts.index], MAX_WORKLOADS)
    figure, (dropped, imbalance) = grid(2, 2, 0.85 + 0.21 * len(ids), share_x=False)
    columns = (
        (dropped, 100 * facts.loc[ids, "dropped_fraction"].astype(float), "% of assignments dropped", 0.0),
        (
            imbalance,
            facts.loc[ids, "load_imbalance"].astype(float),
            "fullest expert over the mean load  (1 is even)",
            1.0,
        ),
    )
    with house_style():
        for panel, values, words, start in columns:
            panel.barh(range(len(ids)), values - start, left=start, height=0.62, color=_COLOUR, alpha=0.85)
            for row, value in enumerate(values):
                text = f"{value:.1f} %" if panel is dropped else f"{value:.2f}"
                panel.annotate(
                    text, (value, row), (4, 0), textcoords="offset points", va="center", size=7.5, color=MUTED
                )
            panel.set_xlabel(words)
            panel.set_xlim(start, start + max(0.1, float((values - start).max())) * 1.18)
            panel.grid(visible=False, axis="y")
            panel.tick_params(axis="y", length=0)
        dropped.set_yticks(range(len(ids)), [view.workloads[workload_id] for workload_id in ids])
        dropped.set_ylim(len(ids) - 0.4, -0.6)
    title = "Drops and load imbalance"
    headline(figure, title, view.slice_words)
    caption = (
        "Left: the share of the tokens' assignments that found their expert full and contributed nothing. Right: how "
        "much fuller the fullest expert was than the mean, before dropping. Both come from the routing that happened "
        "and are the same for every implementation of the layer. Workloads that drop compute something else than those "
        "that do not, so the two are never ranked together."
    )
    if len(ids) < len(view.workloads):
        caption += f" {len(ids)} of {len(view.workloads)} workloads are drawn; the table has all."
    advice = (
        "Drops are tokens that lose an expert: raise the capacity, or balance the router, until the model bears them. "
        "Where the imbalance is large, avoid implementations that pad every expert to the fullest."
    )
    return finish(figure, f"{slug_prefix}routing", title, caption, advice)
