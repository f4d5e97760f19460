"""What the two limit sliders choose from: the measured configurations of a run, as plain numbers for the page.

Under a limit of memory and one of latency, the best configuration of an implementation is the one with the most tokens
a second. These are estimates of different workloads side by side, never a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.report.slices import evenly
from bench.report.style import BYTE_UNITS, TIME_UNITS, scale_for
from bench.report.view import AXES, CATEGORIES, FIELD_WORDS, View, field_value

MAX_CONFIGURATIONS = 1500
MAX_CHOICES = 40


@dataclass(frozen=True)
class Picker:
    """Configurations, and what the sliders and menus offer.

    Attributes:
        columns: of each configuration: the varying settings, in words.
        choices: of each column, the values that a menu offers.
        rows: implementation, texts of the columns, latency with bounds in seconds, peak in bytes, tokens a second.
        impls: in drawing order.
        baselines: those of them that compute something else.
        num_left_out: configurations that are not among the rows.
        time_unit, byte_unit: size and name of the units of the page.
    """

    columns: list[str]
    choices: list[list[str]]
    rows: list[list[Any]]
    impls: list[str]
    baselines: list[str]
    num_left_out: int
    time_unit: tuple[float, str]
    byte_unit: tuple[float, str]


def make_picker(view: View) -> Picker | None:
    """None where fewer than two configurations have both a latency and a peak."""
    rows = view.timed[view.timed["peak_memory_bytes"] > 0]
    if len(rows) < 2:
        return None
    total = len(rows)
    rows = rows.iloc[evenly(list(range(total)), MAX_CONFIGURATIONS)]
    fields = [name for name in (*AXES, *CATEGORIES) if name in view.varying]
    texts = {name: rows[name].map(lambda value, name=name: field_value(name, value)).tolist() for name in fields}
    order = {name: rows[name].rank(method="dense").tolist() for name in fields}
    choices = [list(dict(sorted(set(zip(order[name], texts[name], strict=True)))).values()) for name in fields]
    numbers = rows[["latency_s", "latency_low_s", "latency_high_s", "peak_memory_bytes", "tokens_per_s"]]
    return Picker(
        columns=[FIELD_WORDS.get(name, name) for name in fields],
        choices=[found if 1 < len(found) <= MAX_CHOICES else [] for found in choices],
        rows=[
            [impl, list(words), *(_short(number) for number in own)]
            for impl, words, own in zip(
                rows["impl"],
                zip(*texts.values(), strict=True) if fields else [()] * len(rows),
                numbers.itertuples(index=False),
                strict=True,
            )
        ],
        impls=[impl for impl in view.looks if impl in set(rows["impl"])],
        baselines=[impl for impl, look in view.looks.items() if look.baseline],
        num_left_out=total - len(rows),
        time_unit=scale_for(rows["latency_s"], TIME_UNITS),
        byte_unit=scale_for(rows["peak_memory_bytes"], BYTE_UNITS),
    )


def _short(number: float) -> float | None:
    """Four digits, which is more than is printed; null for what is not known."""
    return None if math.isnan(number) else float(f"{number:.4g}")
