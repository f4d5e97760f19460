"""Where the winner changes: the outcome of every workload laid out over two axes of the sweep, one map a slice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.analysis.model import Winner


@dataclass(frozen=True)
class CrossoverMap:
    """The outcomes of one slice.

    Attributes:
        fixed: the values of the other fields that vary in the run.
        cells: (value on the horizontal axis, value on the vertical one) -> outcome.
    """

    fixed: Mapping[str, Any]
    cells: Mapping[tuple[Any, Any], Winner]


def crossover_maps(
    frame: pd.DataFrame, winners: Iterable[Winner], fields: Sequence[str], x: str = "num_tokens", y: str = "num_experts"
) -> list[CrossoverMap]:
    """One map a slice, in the order of the other fields; none where either axis has one value only.

    Args:
        frame: one row a case.
        winners: the outcomes of its workloads; workloads without one have no cell.
        fields: the columns that make up a workload; those with several values cut the run into slices.
        x: the horizontal axis, of ``fields``.
        y: the vertical one.
    """
    outcomes = {winner.workload_id: winner for winner in winners}
    rows = frame[frame["workload_id"].isin(list(outcomes))].drop_duplicates("workload_id")
    others = [name for name in fields if name not in (x, y) and rows[name].nunique(dropna=False) > 1]
    groups = rows.groupby(others, sort=True, dropna=False) if others else [((), rows)]
    maps = []
    for key, group in groups:
        if group[x].nunique() < 2 or group[y].nunique() < 2:
            continue
        places = zip(group[x], group[y], strict=True)
        cells = {place: outcomes[workload_id] for place, workload_id in zip(places, group["workload_id"], strict=True)}
        maps.append(CrossoverMap(dict(zip(others, key, strict=True)), cells))
    return maps
