"""One analysis made ready to be drawn and printed: rows in a fixed order, axes of the sweep, names fit for sharing.

A report is shown to others, so whatever looks like an absolute path is cut to its last part before anything reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.interval import Estimate
from bench.analysis.model import Analysis, Comparison, Winner
from bench.cases import LATER_FIELDS
from bench.report.style import Look, looks_for

AXES = ("num_experts", "top_k", "capacity_factor", "num_tokens", "d_model", "d_ff", "threads")
CATEGORIES = ("routing", "dtype", "direction", "cache", "device")
"""Axes whose values are words; routings are placed by the load imbalance that they made."""
WORKLOAD_FIELDS = (
    *AXES,
    "activation",
    "router",
    "norm_topk_prob",
    "num_shared_experts",
    "router_bias",
    "expert_bias",
    "routing",
    "dtype",
    "device",
    "direction",
    "cache",
    "seed",
    *LATER_FIELDS,
)
_FLAGS = {
    "norm_topk_prob": ("top-k weights not renormalised", "top-k weights renormalised"),
    "router_bias": ("", "router with bias"),
    "expert_bias": ("", "experts with biases"),
    "shared_gate": ("", "gated shared experts"),
    "selection_bias": ("", "selection bias"),
}
FIELD_WORDS = {
    "num_experts": "experts",
    "top_k": "top-k",
    "capacity_factor": "capacity",
    "num_tokens": "tokens",
    "d_model": "d_model",
    "d_ff": "d_ff",
    "threads": "threads",
}
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w./<])(?:~|/(?!/)|file:///|[A-Za-z]:[\\/])(?:[^\s'\"`,;:()<>]*[\\/])+([^\s'\"`,;:()<>\\/]*)"
)


def without_paths(text: str) -> str:
    """The text with every absolute path cut to its last part, so that no user or folder name is shared."""
    return _ABSOLUTE_PATH.sub(lambda match: match[1] or "…", text)


def shareable(texts: pd.Series[str]) -> pd.Series[str]:
    """A column of texts without paths; what is no text stays. Reasons repeat, so each is looked at once."""
    shown = {text: without_paths(text) for text in texts.unique() if isinstance(text, str)}
    return texts.map(lambda text: shown.get(text, text))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """A name to print for each implementation: ``any/folder/layer.py:Mine`` is ``layer.py:Mine``; never two alike."""
    result: dict[str, str] = {}
    for name in sorted(names):
        short = PurePath(name).name if "/" in name or "\\" in name else name
        twins = sum(taken == short or taken.startswith(f"{short} #") for taken in result.values())
        result[name] = f"{short} #{twins + 1}" if twins else short
    return result


def capacity_value(value: Any) -> float:
    """A capacity factor as a number that sorts: dropless (``none``, null) is infinity."""
    if value is None or value == "none" or (isinstance(value, float) and math.isnan(value)):
        return math.inf
    return float(value)


def field_value(name: str, value: Any) -> str:
    """One value of a workload's field in words."""
    if name == "capacity_factor":
        return "dropless" if math.isinf(value) else f"{value:g}"
    if name == "d_ff_shared" and (value is None or math.isnan(value)):  # a table's missing number is not None
        return "as d_ff"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(fields: Mapping[str, Any]) -> str:
    """Fields of a workload in words, ``8 experts · top-k 2 · dropless``."""
    words = []
    for name, value in fields.items():
        text = field_value(name, value)
        if name in {"num_experts", "num_tokens", "threads"}:
            noun = FIELD_WORDS[name]
            words.append(f"{text} {noun.removesuffix('s') if text == '1' else noun}")
        elif name == "capacity_factor":
            words.append(text if text == "dropless" else f"capacity {text}")
        elif name in FIELD_WORDS:
            words.append(f"{FIELD_WORDS[name]} {text}")
        elif name == "routing":
            words.append("routed by the router" if text == "router" else f"{text} routing")
        elif name in {"router", "cache"}:
            words.append(f"{text} {name}")
        elif name in _FLAGS:
            words.append(_FLAGS[name][bool(value)] or f"no {name.replace('_', ' ')}")
        elif name == "num_shared_experts":
            words.append(f"{text} shared expert{'s' * (text != '1')}")
        elif name == "seed":
            words.append(f"seed {text}")
        elif name in LATER_FIELDS:
            words.append(f"{name.replace('_', ' ')} {text}")
        else:
            words.append(text)
    return " · ".join(words)


@dataclass(frozen=True)
class View:
    """What figures, tables and sentences read.

    Attributes:
        analysis: where it comes from.
        frame: a copy of the analysis' frame with printable names, reasons without paths, and capacity as a number
            (infinity is dropless).
        names: implementation -> printable name.
        looks: printable name -> how it is drawn, in drawing order.
        varying: fields of the workload that take more than one value, most important first.
        workloads: id -> words that tell it from the others of this run, in the order of the sweep's axes.
        winners: workload id -> outcome.
        comparisons: workload id -> its pairs, as the analysis has them.
    """

    analysis: Analysis
    frame: pd.DataFrame
    names: dict[str, str]
    looks: dict[str, Look]
    varying: tuple[str, ...]
    workloads: dict[str, str]
    winners: dict[str, Winner]
    comparisons: dict[str, list[Comparison]]

    @property
    def fixed(self) -> dict[str, Any]:
        """Fields of the workload that are the same in every row."""
        if self.frame.empty:
            return {}
        first = self.frame.iloc[0]
        return {name: first[name] for name in WORKLOAD_FIELDS if name not in self.varying}

    @property
    def slice_words(self) -> str:
        """What pictures say beneath their title: the fixed sizes and settings, without those that are off."""
        quiet = {"norm_topk_prob", "seed", "cache", "router"}
        fixed = self.fixed
        off = {name for name in ("router_bias", "expert_bias", "num_shared_experts") if not fixed.get(name, True)}
        off |= {name for name, usual in LATER_FIELDS.items() if fixed.get(name) == usual}
        off |= {name for name, usual in LATER_FIELDS.items() if usual is None and pd.isna(fixed.get(name))}
        words = describe({name: value for name, value in fixed.items() if name not in quiet | off})
        label = without_paths(self.analysis.info.label)
        return " · ".join(filter(None, [label, words]))

    @cached_property
    def timed(self) -> pd.DataFrame:
        """Rows that have a latency; they are many and often asked for, and nobody may change them."""
        return self.frame[self.frame["latency_s"].notna()]

    def ratio(self, workload_id: str, impl: str, base: str) -> Estimate | None:
        """Latency of ``impl`` over that of ``base`` with its paired interval, or None where there is no pair."""
        if (found := self.comparison(workload_id, impl, base)) is not None:
            return found.ratio
        if (turned := self.comparison(workload_id, base, impl)) is not None:
            return Estimate(1 / turned.ratio.value, 1 / turned.ratio.high, 1 / turned.ratio.low)
        return None

    def comparison(self, workload_id: str, impl: str, base: str) -> Comparison | None:
        """The pair of two printable names in this order, or None where there is none."""
        pairs = self.comparisons.get(workload_id, ())
        return next((c for c in pairs if (self.names[c.impl], self.names[c.base]) == (impl, base)), None)

    def fastest(self, workload_id: str) -> str | None:
        """What others are compared with on one workload: the winner, else the first contender."""
        winner = self.winners.get(workload_id)
        if winner is None:
            return None
        name = winner.impl or next(iter(winner.contenders), None)
        return self.names.get(name) if name is not None else None


def make_view(analysis: Analysis) -> View:
    """Makes an analysis ready for the report; the analysis itself is not changed."""
    frame = analysis.frame.copy(deep=False)  # whole columns are exchanged, and the others shared
    names = short_names(frame["impl"].unique())
    frame["capacity_factor"] = [capacity_value(value) for value in frame["capacity_factor"]]
    frame["impl"] = frame["impl"].map(names)
    frame["reason"] = shareable(frame["reason"].fillna(""))
    varying = tuple(name for name in WORKLOAD_FIELDS if frame[name].nunique(dropna=False) > 1)
    by = list(varying) or ["workload_id"]
    unique = frame.drop_duplicates("workload_id").sort_values(by, kind="stable")
    shown = unique[list(varying)].to_dict("records")
    words = [describe(fields) or "the only workload" for fields in ({str(k): v for k, v in f.items()} for f in shown)]
    firsts = frame.drop_duplicates("impl")[["impl", "semantics"]].itertuples(index=False)
    semantics = {impl: meaning if isinstance(meaning, str) and meaning else "moe" for impl, meaning in firsts}
    comparisons: dict[str, list[Comparison]] = {}
    for comparison in analysis.comparisons:
        comparisons.setdefault(comparison.workload_id, []).append(comparison)
    return View(
        analysis=analysis,
        frame=frame,
        names=names,
        looks=looks_for(semantics),
        varying=varying,
        workloads=dict(zip(unique["workload_id"], words, strict=True)),
        winners={winner.workload_id: winner for winner in analysis.winners},
        comparisons=comparisons,
    )
