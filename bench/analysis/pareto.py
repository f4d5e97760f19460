"""The trade-off between time and memory: which implementations nobody beats in both."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front(latency_s: ArrayLike, memory_bytes: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other dominates: at least as good in both and better in one; NaN is never marked."""
    points = np.column_stack([np.asarray(latency_s, dtype=float), np.asarray(memory_bytes, dtype=float)])
    marked = np.zeros(len(points), dtype=bool)
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    order = known[np.lexsort((points[known, 1], points[known, 0]))]
    least_memory, at_latency = np.inf, np.nan
    for index in order:
        latency, memory = points[index]
        if memory < least_memory:
            least_memory, at_latency = memory, latency
            marked[index] = True
        else:
            marked[index] = memory == least_memory and latency == at_latency
    return marked
