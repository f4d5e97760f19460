"""The answer in words: the headline, the numbers beneath it, and a sentence for each workload."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from dataclasses import dataclass

from bench.analysis.model import Winner
from bench.report.style import TIMES, TO
from bench.report.view import View, without_paths
from bench.units import percent, three_digits

MAX_SENTENCES = 40
_GAP = re.compile(r"; (?=[a-z_]+: )")


@dataclass(frozen=True)
class Tile:
    """One key number: what it is, its value, and what to know about it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Sentence:
    """The outcome of one workload; `decided` says whether somebody won."""

    workload: str
    text: str
    decided: bool


def wins(view: View) -> Counter[str]:
    """How many workloads each implementation won, most first."""
    won = Counter(view.names[w.impl] for w in view.winners.values() if w.impl is not None)
    return Counter(dict(sorted(won.items(), key=lambda item: (-item[1], item[0]))))


def headline(view: View) -> str:
    """The whole run in one sentence."""
    total = len(view.winners)
    if view.timed.empty:
        return "Nothing was timed in this run."
    if not view.analysis.control.passed:
        if view.analysis.control.twin is None:
            return "Latencies without verdicts: this run has no self-test."
        return "No verdict: this run's self-test did not pass."
    won = wins(view)
    if not won:
        return f"No implementation is a clear winner on {'any of ' * (total > 1)}{_workloads(total)}."
    best, count = next(iter(won.items()))
    if count == total:
        return f"{best} is the fastest layer on " + (f"all {total} workloads." if total > 1 else "this workload.")
    leaders = [name for name, times in won.items() if times == count]
    if len(leaders) > 1:
        return f"{' and '.join(leaders)} are each the fastest layer on {count} of {_workloads(total)}."
    return f"{best} is the fastest layer on {count} of {_workloads(total)}."


def lede(view: View) -> str:
    """What the headline leaves out: the others' wins, the undecided, and the lead."""
    total, won = len(view.winners), wins(view)
    if view.timed.empty or not view.analysis.control.passed:
        return without_paths(view.analysis.control.sentence)
    if not won:
        return "The sentences below say why, and what would decide."
    parts = []
    best = next(iter(won))
    others = [f"{name} on {count}" for name, count in won.items() if name != best]
    if others and len(set(won.values())) > 1:
        parts.append(f"Elsewhere {', '.join(others)}.")
    undecided = total - won.total()
    if undecided:
        parts.append(f"On {_workloads(undecided)} there is no single winner.")
    leads = _leads(view, best)
    if leads:
        middle = statistics.median(leads)
        span = (
            f", from {three_digits(min(leads))}{TIMES} to {three_digits(max(leads))}{TIMES}" if len(leads) > 1 else ""
        )
        verb = "takes" if len(leads) == 1 else "typically takes"
        parts.append(f"Where {best} wins, the next layer {verb} {three_digits(middle)}{TIMES} its time{span}.")
    return " ".join(parts)


def tiles(view: View) -> list[Tile]:
    """The key numbers."""
    result, won, total = [], wins(view), len(view.winners)
    if won and view.analysis.control.passed:
        best, count = next(iter(won.items()))
        result.append(Tile("Fastest most often", best, f"{count} of {_workloads(total)}"))
        leads = _leads(view, best)
        if leads:
            note = "median; next layer's time over the winner's"
            result.append(Tile("Lead over the next", f"{three_digits(statistics.median(leads))}{TIMES}", note))
    floor = view.analysis.control.noise_floor
    if floor is not None:
        result.append(Tile("Noise floor", percent(floor), "smaller differences cannot be seen in this run"))
    timed, cases = len(view.timed), len(view.frame)
    rest = "every case was timed" if timed == cases else f"{cases - timed} were not; the report says why"
    result.append(Tile("Cases timed", f"{timed:,} of {cases:,}", rest))
    processes = view.timed["num_processes"].dropna()
    if len(processes) and processes.max() > 0:
        low, high = int(processes.min()), int(processes.max())
        span = f"{low}" if low == high else f"{low}{TO}{high}"
        result.append(Tile("Processes a case", span, "independent; the intervals are over these"))
    return result


def sentences(view: View) -> list[Sentence]:
    """One sentence a workload, in the order of the sweep."""
    found = [(view.workloads[i], view.winners[i]) for i in view.workloads if i in view.winners]
    return [Sentence(words, _printable(view, winner), winner.impl is not None) for words, winner in found]


def gaps(view: View) -> list[tuple[str, str, int]]:
    """What ``ok`` rows lack: column, reason, number of rows."""
    counted: Counter[tuple[str, str]] = Counter()
    for text, rows in Counter(view.frame["gaps"].fillna("")).items():
        for part in _GAP.split(text) if text else ():
            column, _, reason = part.partition(": ")
            counted[column, without_paths(reason)] += rows
    return [(column, reason, count) for (column, reason), count in sorted(counted.items())]


def _printable(view: View, winner: Winner) -> str:
    """The winner's sentence with printable names."""
    text = winner.sentence
    for name, short in view.names.items():
        text = text.replace(name, short) if name != short else text
    return without_paths(text)


def _leads(view: View, best: str) -> list[float]:
    """On each workload that ``best`` won: the time of the closest ranked implementation over its own."""
    ratios: dict[str, float] = {}
    for comparison in view.analysis.comparisons:
        winner = view.winners.get(comparison.workload_id)
        if winner is None or winner.impl is None or view.names[winner.impl] != best or not comparison.same_semantics:
            continue
        if winner.impl not in {comparison.impl, comparison.base}:
            continue
        turned = comparison.impl == winner.impl
        ratio = 1 / comparison.ratio.value if turned else comparison.ratio.value
        ratios[comparison.workload_id] = min(ratio, ratios.get(comparison.workload_id, ratio))
    return list(ratios.values())


def _workloads(count: int) -> str:
    return f"{count} workload{'s' * (count != 1)}"
