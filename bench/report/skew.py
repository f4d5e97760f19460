"""What uneven load costs: latency under the most skewed routing over that under the least, by implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.slices import evenly, slices
from bench.report.style import TIMES, TO
from bench.report.tables import Cell, Table
from bench.report.view import View, describe
from bench.units import three_digits

MAX_ROWS = 24
LEAST_STRETCH = 1.05
"""Routings whose imbalances differ by less are alike, and their latencies say nothing of skew."""


@dataclass(frozen=True)
class Skew:
    """The table, and in a sentence what it says of the slice whose load differs most; None of it is a verdict."""

    table: Table
    sentence: str


def skew_costs(view: View) -> Skew | None:
    """None where no slice of the sweep has two routings of different imbalance."""
    frame = view.timed.copy()
    frame["load_imbalance"] = frame.groupby("workload_id")["load_imbalance"].transform("max")
    pieces, _ = slices(frame[frame["load_imbalance"].notna()], "routing")
    found = []
    for piece in pieces:
        ordered = piece.rows.sort_values("load_imbalance")
        low, high = ordered.iloc[0], ordered.iloc[-1]
        if high["load_imbalance"] < LEAST_STRETCH * low["load_imbalance"]:
            continue
        latency = piece.rows.set_index(["impl", "workload_id"])["latency_s"].to_dict()
        ratios = {
            impl: latency[impl, high["workload_id"]] / latency[impl, low["workload_id"]]
            for impl in view.looks
            if (impl, high["workload_id"]) in latency and (impl, low["workload_id"]) in latency
        }
        words = f"{low['routing']} ({low['load_imbalance']:.2f}) to {high['routing']} ({high['load_imbalance']:.2f})"
        stretch = high["load_imbalance"] / low["load_imbalance"]
        if ratios:
            found.append((stretch, " · ".join(filter(None, [describe(piece.fixed), words])), words, ratios))
    if not found:
        return None
    impls = [impl for impl in view.looks if any(impl in ratios for *_, ratios in found)]
    shown = evenly(found, MAX_ROWS)
    rows = [(words, [_cell(ratios, impl) for impl in impls]) for _, words, _, ratios in shown]
    # of equal stretches the one that costs most: where a capacity drops, skew means less work
    _, where, _, ratios = max(found, key=lambda one: (round(one[0], 3), max(one[3].values())))
    return Skew(Table(impls, rows, len(found) - len(shown)), _sentence(where, ratios, view, impls))


def _cell(ratios: dict[str, float], impl: str) -> Cell:
    return Cell(f"{three_digits(ratios[impl])}{TIMES}" if impl in ratios else TO, kind="" if impl in ratios else "none")


def _sentence(where: str, ratios: dict[str, float], view: View, impls: Sequence[str]) -> str:
    layers = sorted((ratios[impl], impl) for impl in impls if impl in ratios and not view.looks[impl].baseline)
    if not layers:
        return ""
    costs = ", ".join(f"{impl} {three_digits(ratio)}{TIMES}" for ratio, impl in layers)
    return f"Where the load differs most, {where}, the skewed call takes so many times the even one: {costs}."
