"""Cuts a sweep into small multiples: which axes have something to show, and which slices to show them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report.view import AXES, CATEGORIES, WORKLOAD_FIELDS


@dataclass(frozen=True)
class Slice:
    """Rows that differ in one axis and the implementation only.

    Attributes:
        fixed: the fields that tell this slice from the others.
        rows: its rows.
    """

    fixed: dict[str, Any]
    rows: pd.DataFrame


def slices(frame: pd.DataFrame, axis: str, limit: int | None = None) -> tuple[list[Slice], int]:
    """Slices along ``axis`` that have at least two values of it, in the order of the other fields, and their number.

    With a limit at most so many are given: of those with the most values of the axis, evenly spaced ones.
    """
    workloads = frame.drop_duplicates("workload_id")  # far fewer than rows
    if workloads[axis].nunique() < 2:
        return [], 0
    others = [name for name in WORKLOAD_FIELDS if name != axis and workloads[name].nunique(dropna=False) > 1]
    if not others:
        return [Slice({}, frame)], 1
    groups = workloads.groupby(others, sort=True, dropna=False)
    number = groups.ngroup().to_numpy()
    counts = groups[axis].nunique().to_numpy()
    found = [i for i, count in enumerate(counts) if count > 1]
    chosen = found
    if limit is not None and len(found) > limit:
        chosen = evenly([i for i in found if counts[i] == counts.max()], limit)
    pieces = [frame[frame["workload_id"].isin(workloads["workload_id"][number == i])] for i in chosen]
    return [Slice({name: rows.iloc[0][name] for name in others}, rows) for rows in pieces], len(found)


def evenly(items: list[Any], limit: int) -> list[Any]:
    """At most ``limit`` items, first and last included, evenly spaced."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / max(1, limit - 1))] for i in range(limit)]


def shown_axes(frame: pd.DataFrame) -> dict[str, str]:
    """Axis -> empty, or the reason why it has no picture, for the axes that every report speaks of or the sweep has."""
    result: dict[str, str] = {}
    for axis in (*AXES, *CATEGORIES):
        num_values = frame[axis].nunique()
        if slices(frame, axis, limit=1)[1]:
            result[axis] = ""
        elif num_values > 1:
            result[axis] = "no two measured workloads differ in it alone"
        elif axis in AXES[:3]:
            result[axis] = "it has one value among the timed cases" if num_values == 1 else "nothing was timed"
    return result
