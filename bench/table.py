"""The short table of a run for people: one row a case, only the axes that vary, values with their units."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from bench import units
from bench.cases import Case, Workload
from bench.plain_text import cell, one_line
from impls.spec import LayerSpec

if TYPE_CHECKING:  # the analysis loads pandas, which listings do without
    import pandas as pd

    from bench.analysis.model import Analysis

AXES = (*LayerSpec.__dataclass_fields__, *(name for name in Workload.model_fields if name != "layer"))
SHORT = {"num_experts": "experts", "num_tokens": "tokens", "capacity_factor": "capacity"}
ALWAYS_SAID = ("capacity_factor", "dtype", "device", "direction", "threads")
"""Axes without which no time means anything, also where they are as by default."""
DEFAULTS = {
    **{field.name: field.default for field in dataclasses.fields(LayerSpec)},
    **{name: field.get_default() for name, field in Workload.model_fields.items()},
}


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and cells as text, what is the same in every row, and what else a reader must know."""

    held_equal: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def short_table(analysis: Analysis) -> Table:
    """The rows of a run in the order of its cases."""
    frame = analysis.frame
    varying = [name for name in AXES if frame[name].astype(str).nunique() > 1]
    held = held_equal({name: _text(frame[name].iloc[0]) for name in AXES if name not in varying and len(frame)})
    headings = ["impl", *(SHORT.get(name, name) for name in varying), "latency", "± %", "throughput"]
    headings += ["peak memory", "time / best", "verdict or reason"]
    rows = []
    for row in frame.to_dict("records"):
        cells = [str(row["impl"]), *(str(row[name]) for name in varying)]
        rows.append([*cells, *_measured(row, withheld=not analysis.control.passed)])
    return Table(", ".join(filter(None, [analysis.info.label, held])), headings, rows)


def held_equal(values: Mapping[str, str]) -> str:
    """What is the same in every row, in words: what says something, and how many others are as by default."""
    said = {name: value for name, value in values.items() if name in ALWAYS_SAID or value != _text(DEFAULTS[name])}
    words = [f"{SHORT.get(name, name)} {value}" for name, value in said.items()]
    if others := len(values) - len(said):
        words.append(f"{others} other{'s' * (others != 1)} as by default")
    return ", ".join(words)


def workload_names(frame: pd.DataFrame) -> dict[str, str]:
    """What tells each workload from the others of the run, by workload id; empty where there is one only."""
    varying = [name for name in AXES if frame[name].astype(str).nunique() > 1]
    first_rows = frame.drop_duplicates("workload_id").to_dict("records")
    return {
        str(row["workload_id"]): ", ".join(f"{SHORT.get(name, name)} {row[name]}" for name in varying)
        for row in first_rows
    }


def sweep_table(cases: Sequence[Case]) -> Table:
    """The cases of a sweep that is still to be measured."""
    points = [{"impl": case.label, **_axes(case.workload)} for case in cases]
    varying = [name for name in AXES if len({point[name] for point in points}) > 1]
    held = held_equal({name: points[0][name] for name in AXES if name not in varying})
    headings = ["impl", *(SHORT.get(name, name) for name in varying)]
    rows = [[point[name] for name in ("impl", *varying)] for point in points]
    reasons = [case.workload.layer.impossible or "" for case in cases]
    if any(reasons):
        headings.append("cannot run because")
        rows = [[*row, reason] for row, reason in zip(rows, reasons, strict=True)]
    return Table(held, headings, rows)


def _axes(workload: Workload) -> dict[str, str]:
    """The workload's fields as text, the layer's among them."""
    values = workload.layer.to_dict() | workload.model_dump(exclude={"layer"})
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def markdown(table: Table) -> str:
    """The table in Markdown, with cells that cannot break it."""
    lines = [list(table.headings), ["---"] * len(table.headings), *table.rows]
    text = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
    return f"{text}\n\nHeld equal: {_escaped(table.held_equal)}."


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as comma-separated values, which neither a terminal nor a spreadsheet takes for commands."""
    text = io.StringIO()
    write_csv(frame, text)
    return text.getvalue()


def write_csv(frame: pd.DataFrame, file: IO[str], *, header: bool = True) -> None:
    """Writes what :func:`csv_text` gives, piece by piece: the text of a large run is larger than its frame."""
    safe = frame.copy(deep=False)
    for column in safe.select_dtypes(exclude="number"):
        texts = (value for value in safe[column].unique() if isinstance(value, str))
        changed = {text: shown for text in texts if (shown := cell(text)) != text}
        if changed:
            safe[column] = [changed.get(value, value) for value in safe[column]]
    safe.to_csv(file, index=False, header=header)


def _measured(row: Mapping[Hashable, Any], *, withheld: bool) -> list[str]:
    if row["status"] != "ok":
        return [str(row["status"]), "", "", "", "", str(row["reason"])]
    latency_s, low_s, high_s = row["latency_s"], row["latency_low_s"], row["latency_high_s"]
    width = "" if _absent(low_s) else f"{50 * (high_s - low_s) / latency_s:.1f}"
    verdict = "" if _absent(row["verdict"]) else str(row["verdict"])
    if row["impl"] == row["fastest_impl"]:
        verdict = "best"
    if withheld and verdict:
        verdict = "withheld"
    return [
        "not timed" if _absent(latency_s) else units.latency(latency_s),
        width,
        "" if _absent(row["tokens_per_s"]) else units.rate(row["tokens_per_s"], "tokens/s"),
        "" if _absent(row["peak_memory_bytes"]) else units.bytes_(row["peak_memory_bytes"]),
        "" if _absent(row["ratio"]) else units.three_digits(row["ratio"]),
        verdict,
    ]


def _absent(value: object) -> bool:
    """Whether a cell of the frame is empty, in any of pandas' ways."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>"


def _escaped(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
