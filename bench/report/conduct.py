"""How each implementation behaves apart from its time: one row an implementation, and why lint calls some slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from bench.analysis.findings import Found
from bench.report.style import TIMES, TO
from bench.report.view import View, without_paths
from bench.units import bytes_

COLUMNS = (
    "waits",
    "same bits",
    "deterministic",
    "path",
    "products / useful",
    "workspace",
    "operators",
)


@dataclass(frozen=True)
class Conduct:
    """The section.

    Attributes:
        rows: implementation, and a text for each of :data:`COLUMNS`.
        findings: printable name, and what was found.
        allocators: what hands out memory, with the settings that decide how; more than one where a run was resumed.
        on_cpu: whether waits are those that the calls would have on a GPU.
    """

    rows: list[tuple[str, list[str]]]
    findings: list[tuple[str, Found]]
    allocators: list[str]
    on_cpu: bool
    columns: tuple[str, ...] = COLUMNS


def make_conduct(view: View) -> Conduct | None:
    """The section of one run; None where no case was looked at, as in older runs."""
    seen = view.frame[view.frame["allocator"].map(lambda value: isinstance(value, str) and bool(value))]
    if seen.empty:
        return None
    by_impl = seen.groupby("impl", sort=False)
    return Conduct(
        rows=[(impl, _texts(by_impl.get_group(impl))) for impl in view.looks if impl in by_impl.groups],
        findings=[(view.names.get(found.impl, found.impl), found) for found in view.analysis.findings],
        allocators=[without_paths(text) for text in dict.fromkeys(seen["allocator"])],
        on_cpu=set(seen["device"]) == {"cpu"},
    )


def _texts(rows: pd.DataFrame) -> list[str]:
    paths = dict.fromkeys(path for path in rows["path"] if isinstance(path, str) and path)
    return [
        _range(rows["host_syncs"], "{:.0f}".format),
        _same_bits(rows["distinct_results"]),
        _deterministic(rows),
        ", ".join(paths) or "the only one",
        _range(rows["work_ratio"], "{:.2f}".format),
        _range(rows["workspace_bytes"], bytes_),
        _range(rows["num_operators"], "{:.0f}".format),
    ]


def _range(values: pd.Series[float], text: Callable[[float], str]) -> str:
    known = values.dropna()
    if known.empty:
        return TO
    low, high = text(known.min()), text(known.max())
    return low if low == high else f"{low} to {high}"


def _same_bits(distinct: pd.Series[float]) -> str:
    known = distinct.dropna()
    if known.empty:
        return TO
    differ = int((known > 1).sum())
    return f"no, in {differ} of {len(known)} cases" if differ else "yes"


def _deterministic(rows: pd.DataFrame) -> str:
    """What torch's deterministic algorithms cost; they may not exist for what a layer does."""
    known = rows["deterministic_ratio"].dropna()
    none = [text for text in rows["gaps"] if isinstance(text, str) and "no deterministic path" in text]
    if none:
        return f"none in {len(none)} of {len(rows)} cases"
    return TO if known.empty else f"{TIMES} {known.median():.2f}"
