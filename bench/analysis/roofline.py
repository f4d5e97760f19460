"""The hardware's limit: how long a case would take if it ran at the ceilings that were measured in the same run.

A call cannot end before its useful operations have been done at the matrix peak, nor before the bytes that it cannot
avoid have moved at the bandwidth: the larger of the two times is what the machine needs at least, and its share of the
latency is ``roofline_fraction``. Weights that a warm case reads again and again stay in the last-level cache where they
fit; such a case is held against the cache's bandwidth, because against main memory's it would beat the impossible.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model, CACM 52 (2009).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.analysis.interval import Estimate
from bench.cases import Workload
from bench.store.schema import CeilingRecord

CeilingKey = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The measured peaks of a run.

    Attributes:
        peaks: by ``(what, device, dtype, threads)``, operations or bytes per second.
        cache_bytes: by ``(device, threads)``, the largest working set that the cache's bandwidth was measured on, and
            hence the largest that is known to fit.
    """

    peaks: Mapping[CeilingKey, Estimate]
    cache_bytes: Mapping[tuple[str, int], int]

    @classmethod
    def of(cls, records: Iterable[CeilingRecord]) -> Ceilings:
        """Collect the ceilings: the median of the best process, between the worst process and the best repetition.

        A ceiling is what the hardware can do, so a process that was held up says nothing about it; the median inside
        one keeps a single misread repetition out.
        """
        found: defaultdict[CeilingKey, list[list[float]]] = defaultdict(list)
        cache_bytes: dict[tuple[str, int], int] = {}
        for record in records:
            if not record.per_s:
                continue
            found[record.what, record.device, record.dtype, record.threads].append(record.per_s)
            if record.what == "cache":
                place = record.device, record.threads
                cache_bytes[place] = max(cache_bytes.get(place, 0), record.working_set_bytes)
        peaks = {}
        for key, processes in sorted(found.items()):
            medians = [float(np.median(process)) for process in processes]
            peaks[key] = Estimate(max(medians), low=min(medians), high=max(map(max, processes)))
        return cls(peaks, cache_bytes)

    def needed_s(self, workload: Workload, flops: float, moved_bytes: float) -> float | str:
        """Seconds that the machine needs at least for one call, or the reason why that is not known."""
        matmul = self.peaks.get(("matmul", workload.device, workload.dtype, workload.threads))
        if matmul is None:
            return f"no matmul ceiling for {workload.dtype} on {_place(workload)} in this run"
        in_cache = workload.cache == "warm" and moved_bytes <= self.cache_bytes.get(
            (workload.device, workload.threads), 0
        )
        bandwidth = self._bandwidth("cache" if in_cache else "memory", workload)
        if bandwidth is None:
            return f"no memory ceiling for {_place(workload)} in this run"
        return max(flops / matmul.value, moved_bytes / bandwidth)

    def roofs(self, workload: Workload) -> tuple[float, float, float | None, int] | str:
        """Matrix peak (FLOP/s), memory's and the cache's bandwidth (B/s), and the bytes known to fit the cache.

        The cache's is None where it was not measured; a text says why there are no roofs.
        """
        matmul = self.peaks.get(("matmul", workload.device, workload.dtype, workload.threads))
        memory = self._bandwidth("memory", workload)
        if matmul is None or memory is None:
            return f"no ceilings for {workload.dtype} on {_place(workload)} in this run"
        fits = self.cache_bytes.get((workload.device, workload.threads), 0)
        return matmul.value, memory, self._bandwidth("cache", workload), fits

    def _bandwidth(self, what: str, workload: Workload) -> float | None:
        # Bytes are bytes: a bandwidth that was measured in another number format will do.
        return max(
            (
                peak.value
                for (kind, device, _, threads), peak in self.peaks.items()
                if (kind, device, threads) == (what, workload.device, workload.threads)
            ),
            default=None,
        )


def _place(workload: Workload) -> str:
    return f"{workload.device} with {workload.threads} thread{'s' * (workload.threads != 1)}"
