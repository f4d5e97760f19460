"""Who wins a workload, where somebody does: one plain sentence with the ratio and its interval.

Only exact implementations of the layer are ranked. Baselines compute something else and quantised layers compute it
to fewer digits: they are compared for information (see :mod:`bench.analysis.comparisons`) and never win.
The interval in a sentence is the corrected one, which is wider than 95 % would be for one comparison alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.analysis.comparisons import against, flipped
from bench.analysis.model import Comparison, Verdict, Winner


def find_winners(rankable: Mapping[str, Mapping[str, float]], comparisons: Sequence[Comparison]) -> list[Winner]:
    """Decide every workload.

    Args:
        rankable: for every workload, the exact implementations that were timed, with their latency in seconds.
        comparisons: of the run.

    Returns:
        One a workload, in the order of ``rankable``.
    """
    sides = against(comparisons)
    return [_decide(workload_id, latencies, sides) for workload_id, latencies in rankable.items()]


def _decide(
    workload_id: str, latencies: Mapping[str, float], sides: Mapping[tuple[str, str, str], Comparison]
) -> Winner:
    ranked = sorted(latencies, key=lambda impl: (latencies[impl], impl))
    if not ranked:
        return Winner(workload_id, None, (), "No winner: no exact implementation was timed.")
    if len(ranked) == 1:
        sentence = f"No winner: {ranked[0]} is the only exact implementation that was timed."
        return Winner(workload_id, None, tuple(ranked), sentence)

    def faster(impl: str, base: str) -> bool:
        side = sides.get((workload_id, impl, base))
        return side is not None and side.verdict is Verdict.FASTER

    for impl in ranked:
        others = [other for other in ranked if other != impl]
        if all(faster(impl, other) for other in others):
            return Winner(workload_id, impl, (), _won([sides[workload_id, impl, other] for other in others]))
    contenders = tuple(impl for impl in ranked if not any(faster(other, impl) for other in ranked))
    first = contenders[0] if contenders else ranked[0]
    open_with = [other for other in ranked if other != first and not faster(first, other)]
    sentence = _undecided(first, open_with, [sides.get((workload_id, first, other)) for other in open_with])
    return Winner(workload_id, None, contenders, sentence)


def _won(beaten: Sequence[Comparison]) -> str:
    closest = flipped(max(beaten, key=lambda comparison: comparison.ratio.value))
    ratio = closest.ratio
    sentence = (
        f"{closest.base} is {digits(ratio.value)}\N{MULTIPLICATION SIGN} as fast as {closest.impl},"
        f" corrected interval {digits(ratio.low)}-{digits(ratio.high)} over {closest.num_processes} processes"
    )
    if closest.negligible:
        sentence += ", a negligible difference (within ±1 %)"
    if len(beaten) > 1:
        sentence += f"; and faster than the other {_count(len(beaten) - 1)}"
    return sentence + "."


def _undecided(first: str, others: Sequence[str], comparisons: Sequence[Comparison | None]) -> str:
    known = [comparison for comparison in comparisons if comparison is not None]
    names = _list([first, *others])
    if not known:
        return f"No single winner: {names} never ran in the same round."
    closest = known[0]
    ratio = closest.ratio
    figures = (
        f"{closest.impl} to {closest.base}: ratio {digits(ratio.value)},"
        f" corrected interval {digits(ratio.low)}-{digits(ratio.high)}"
    )
    if len(known) == len(others) and all(comparison.verdict is Verdict.SAME for comparison in known):
        return f"No single winner: {names} take the same time within ±1 % ({figures})."
    more = [comparison.more_processes for comparison in known if comparison.more_processes is not None]
    advice = f"; about {max(more)} more processes would decide" if more else ""
    reasons = sorted({comparison.reason for comparison in known if comparison.reason})
    reason = f": {reasons[0]}" if len(reasons) == 1 else ""
    return f"No single winner: {names} cannot be told apart{reason} ({figures}{advice})."


def digits(ratio: float) -> str:
    """A ratio with as many digits as tell it from 1."""
    # Near 1, two decimals would print an interval that excludes 1 as if it touched it.
    if 0.9 < ratio < 1.1:
        return f"{ratio:.3f}"
    return f"{ratio:.2f}" if 0.1 < ratio < 10 else f"{ratio:.3g}"


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _count(number: int) -> str:
    return "one" if number == 1 else str(number)
