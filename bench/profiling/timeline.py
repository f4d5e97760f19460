"""Turns a ledger's allocations into bytes alive over time, by what they are for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bench.profiling.ledger import Allocation, Entry, Ledger
from bench.profiling.spans import Place
from bench.store.profiles import Tensors, Timeline

CATEGORIES = ("routing", "dispatched tokens", "kept for backward", "workspace", "output", "gradients")
MAX_MOMENTS = 600
NUM_LARGEST = 8


def categorise(allocation: Allocation, ledger: Ledger, places: Sequence[Place]) -> str:
    """What a tensor is for, from the stage that made it and how long it lived."""
    place, forward_end = places[allocation.born], ledger.forward_end
    if allocation.born >= forward_end:
        return "gradients" if allocation.died is None else "workspace"
    if allocation.pointer in ledger.outputs and (allocation.died is None or allocation.died >= forward_end):
        return "output"
    if place.stage == "route":
        return "routing"
    if place.stage == "dispatch":
        return "dispatched tokens"
    lives_on = allocation.died is None or allocation.died > forward_end
    return "kept for backward" if lives_on and forward_end < len(ledger.entries) else "workspace"


def make_timeline(
    ledger: Ledger,
    places: Sequence[Place],
    durations_s: Sequence[float],
    stages_s: Mapping[Place, float],
    existing_bytes: Mapping[str, int],
) -> Timeline:
    """The timeline of one call.

    Args:
        ledger: what was written down during it.
        places: of every operator.
        durations_s: of every operator under the ledger, whose sum in a stage is stretched to the stage's own time.
        stages_s: by place without an expert, the mean time in a call.
        existing_bytes: ``weights`` and ``input``.
    """
    count = len(ledger.entries)
    alive = {category: np.zeros(count + 1, dtype=np.int64) for category in CATEGORIES}
    kinds = [categorise(allocation, ledger, places) for allocation in ledger.allocations]
    for allocation, kind in zip(ledger.allocations, kinds, strict=True):
        alive[kind][allocation.born] += allocation.num_bytes
        if allocation.died is not None:
            alive[kind][allocation.died] -= allocation.num_bytes
    running = {category: changes[:count].cumsum() for category, changes in alive.items()}
    total = np.sum(list(running.values()), axis=0) if count else np.zeros(0, dtype=np.int64)
    peak = int(total.argmax()) if count else 0
    moments = _moments(total, peak)
    at_s = _clock(places, durations_s, stages_s)
    names = [f"{place.phase} {place.stage}" for place in places]
    return Timeline(
        at_s=[float(at_s[i]) for i in moments],
        stages=[names[i] for i in moments],
        bytes_alive={c: [int(rows[i]) for i in moments] for c, rows in running.items() if rows.any()},
        existing_bytes=dict(existing_bytes),
        peak_bytes=int(total[peak]) if count else 0,
        peak_index=moments.index(peak) if count else 0,
        peak_made_by=_made_by(ledger.entries[peak], places[peak]) if count else "",
        largest=_largest(ledger, kinds, places, peak),
    )


def _made_by(entry: Entry, place: Place) -> str:
    return f"{entry.name} in {place.stage} ({place.phase})"


def _clock(
    places: Sequence[Place], durations_s: Sequence[float], stages_s: Mapping[Place, float]
) -> NDArray[np.float64]:
    """When every operator ends."""
    wholes = [Place(place.phase, place.stage) for place in places]
    own_s: defaultdict[Place, float] = defaultdict(float)
    for whole, duration_s in zip(wholes, durations_s, strict=True):
        own_s[whole] += duration_s
    stretch = {whole: stages_s.get(whole, total_s) / total_s for whole, total_s in own_s.items() if total_s}
    return np.cumsum([s * stretch.get(whole, 1.0) for whole, s in zip(wholes, durations_s, strict=True)])


def _moments(total: NDArray[np.int64], peak: int) -> list[int]:
    """At most about :data:`MAX_MOMENTS` operators: of every stretch the one with the most alive, so no top is lost."""
    count = len(total)
    if count <= MAX_MOMENTS:
        return list(range(count))
    edges = np.linspace(0, count, MAX_MOMENTS + 1).astype(int)
    tops = {int(begin + total[begin:end].argmax()) for begin, end in pairwise(edges.tolist())}
    return sorted(tops | {0, peak, count - 1})


def _largest(ledger: Ledger, kinds: Sequence[str], places: Sequence[Place], peak: int) -> list[Tensors]:
    there = [
        (allocation, kind)
        for allocation, kind in zip(ledger.allocations, kinds, strict=True)
        if allocation.born <= peak and (allocation.died is None or allocation.died > peak)
    ]
    there.sort(key=lambda pair: -pair[0].num_bytes)
    return [
        Tensors(
            category=kind,
            shape="x".join(map(str, allocation.shape)) or "scalar",
            dtype=allocation.dtype,
            num_bytes=allocation.num_bytes,
            made_by=_made_by(ledger.entries[allocation.born], places[allocation.born]),
        )
        for allocation, kind in there[:NUM_LARGEST]
    ]
