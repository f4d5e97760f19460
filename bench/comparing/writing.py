"""A comparison as a table, as JSON, and as Markdown for a pull request. No absolute path is in any of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench import units
from bench.analysis.interval import Estimate
from bench.comparing.model import NOT_COMPARED, CaseComparison, Change, Comparison, Metric
from bench.environment import without_folders
from bench.store.schema import Status
from bench.table import Table, markdown, sweep_table

ABSOLUTE = re.compile(r"(?:^|(?<=[\s:='\"(]))[/~]\S*/")
IMPOSSIBLE = "cannot run because"
WORDS = {
    "slower": "slower",
    "faster": "faster",
    "broken": "not ok any more",
    "repaired": "ok now",
    "same": "the same",
    "inconclusive": "inconclusive",
    NOT_COMPARED: "not compared",
    "only_in_base": "only in BASE",
    "only_in_new": "only in NEW",
}
UNITS: dict[Metric, str] = {"latency": "latency_s", "memory": "peak_memory_bytes", "energy": "energy_j",
                            "accuracy": "relative_error"}  # fmt: skip


def summary(comparison: Comparison) -> str:
    """One line: the two sides, how many cases had which verdict, and what fails."""
    found = Counter(case.verdict for case in comparison.cases)
    counts = ", ".join(f"{found[verdict]} {word}" for verdict, word in WORDS.items() if found[verdict])
    line = f"{comparison.new} against {comparison.base}: {counts}"
    if comparison.limits:
        failing = sum(bool(case.fails) for case in comparison.cases)
        limits = " or ".join(f"'{limit}'" for limit in comparison.limits)
        line += f"; {failing} fail {limits}" if failing else f"; none fails {limits}"
    if comparison.forced:
        line += f" (forced in spite of {len(comparison.forced)} difference{'s' * (len(comparison.forced) != 1)})"
    return shareable(line)


def caveats(comparison: Comparison) -> list[str]:
    """What a reader must know beside the table, in sentences."""
    sentences = [f"Forced: {difference}." for difference in comparison.forced]
    sentences += comparison.caveats
    if not comparison.interleaved and any(case.verdict == "inconclusive" for case in comparison.cases):
        sentences.append(
            "Two runs made one after the other are two samples of a drifting machine. `moebench compare --interleave A "
            "B` keeps both versions alive at once and can tell far smaller differences."
        )
    return [shareable(sentence) for sentence in sentences]


def as_table(comparison: Comparison) -> Table:
    """One row a case: the axes that vary, both values, the change with its interval, the verdict."""
    cases = comparison.cases
    named = sweep_table([case.case for case in cases])
    columns = [index for index, heading in enumerate(named.headings) if heading != IMPOSSIBLE]
    memory, energy, accuracy = (
        any(case.change(metric).verdict not in (NOT_COMPARED, "same") for case in cases)
        for metric in ("memory", "energy", "accuracy")
    )
    extra: list[tuple[Metric, str]] = [("memory", "memory")] if memory else []
    extra += [("energy", "energy")] if energy else []
    extra += [("accuracy", "error")] if accuracy else []
    headings = [*(named.headings[i] for i in columns), "BASE", "NEW", "change", "interval", "verdict"]
    headings += [heading for _, heading in extra]
    headings.append("note")
    rows = []
    for case, name in zip(cases, named.rows, strict=True):
        row = [shareable(name[i]) for i in columns] + _latency(case) + [WORDS[case.verdict] + _negligible(case)]
        row += [_changed(case.change(metric)) for metric, _ in extra]
        rows.append([*row, _note(case)])
    return Table(shareable(named.held_equal), headings, rows)


def as_markdown(comparison: Comparison) -> str:
    """A summary in one line, the table, the caveats."""
    lines = [f"**{_plain(summary(comparison))}**", "", markdown(as_table(comparison))]
    if found := caveats(comparison):
        lines += ["", *(f"- {_plain(sentence)}" for sentence in found)]
    return "\n".join(lines)


def as_objects(comparison: Comparison) -> list[dict[str, Any]]:
    """One object a case, plain values in SI units; null where something is not known or not finite."""
    return [_object(case, comparison) for case in comparison.cases]


def _object(case: CaseComparison, comparison: Comparison) -> dict[str, Any]:
    workload = case.case.workload
    latency = case.change("latency")
    values: dict[str, Any] = {
        "case_id": case.case.id,
        "impl": case.case.label,
        **workload.layer.to_dict(),
        **workload.model_dump(exclude={"layer"}),
        "base": comparison.base,
        "new": comparison.new,
        "interleaved": comparison.interleaved,
        "forced": [shareable(difference) for difference in comparison.forced],
        "status_base": case.status_base,
        "status_new": case.status_new,
        "verdict": case.verdict,
        **_ratio("ratio", latency.ratio),
        "negligible": case.negligible,
        "p_value": case.p_value,
        "reason": case.reason,
        "more_processes": case.more_processes,
        "num_processes_base": case.num_processes_base,
        "num_processes_new": case.num_processes_new,
        "latency_s_base": latency.base,
        "latency_s_new": latency.new,
    }
    for metric in ("memory", "energy", "accuracy"):
        change = case.change(metric)
        unit = UNITS[metric]
        values |= {
            f"{unit}_base": change.base,
            f"{unit}_new": change.new,
            **_ratio(f"{metric}_ratio", change.ratio),
            f"{metric}_verdict": change.verdict,
            f"{metric}_reason": change.reason,
        }
    values["fails"] = list(case.fails)
    return {name: _json(value) for name, value in values.items()}


def _ratio(name: str, ratio: Estimate | None) -> dict[str, float | None]:
    bounds: Mapping[str, float | None] = (
        {"": ratio.value, "_low": ratio.low, "_high": ratio.high} if ratio else dict.fromkeys(("", "_low", "_high"))
    )
    return {f"{name}{end}": value for end, value in bounds.items()}


def _json(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return shareable(value) if isinstance(value, str) and not isinstance(value, Status) else value


def _latency(case: CaseComparison) -> list[str]:
    change = case.change("latency")
    cells = ["" if value is None else units.latency(value) for value in (change.base, change.new)]
    if change.ratio is None:
        return [*cells, "", ""]
    low, high = change.ratio.low - 1, change.ratio.high - 1
    reach = f"{units.signed_percent(low)} to {units.signed_percent(high)}" if high < 10 else "unbounded"
    return [*cells, units.signed_percent(change.ratio.value - 1), reach]


def _changed(change: Change) -> str:
    if change.ratio is None or change.verdict in ("same", NOT_COMPARED):
        return "" if change.verdict == NOT_COMPARED else change.verdict
    factor = change.ratio.value
    size = units.signed_percent(factor - 1) if 0.1 < factor < 10 else f"x {factor:.3g}"
    return f"{size} {change.verdict}"


def _negligible(case: CaseComparison) -> str:
    return " (negligible)" if case.negligible and case.verdict in ("faster", "slower") else ""


def _note(case: CaseComparison) -> str:
    parts = [f"FAILS {', '.join(case.fails)}"] if case.fails else []
    if case.reason:
        parts.append(case.reason)
    if case.more_processes is not None:
        parts.append(f"about {case.more_processes} more processes would decide")
    return shareable("; ".join(parts))


def shareable(text: str) -> str:
    """The text with the folders of absolute paths taken away: they tell whose machine it is."""
    return without_folders(text) if ABSOLUTE.search(text) else text


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("<", "&lt;").replace("*", "\\*").replace("\n", " ")
