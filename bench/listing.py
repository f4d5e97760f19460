"""``moebench list``: the implementations, presets, models and runs that there are, for people or as JSON."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import units
from bench.config import presets
from bench.errors import Exit
from bench.models import Model, models
from bench.store.log import find_runs
from bench.table import Table
from impls.registry import ENTRIES, NO_ADAPTER, missing, names
from impls.spec import LayerSpec

KINDS = ("impls", "presets", "models", "runs")


def list_command(what: str | None, *, results: Path, as_json: bool) -> int:
    """Print one listing, or all of them."""
    kinds = (what,) if what else KINDS
    listings = {kind: listing(kind, results) for kind in kinds}
    if as_json:
        print(json.dumps(listings[what] if what else listings, indent=1))
        return Exit.OK
    from bench.console import data, print_table

    for index, (kind, entries) in enumerate(listings.items()):
        if index:
            print()
        if kind == "presets":
            _print_presets(entries)
        elif kind == "models":
            print_table(data(), _models_table(), title=kind)
            print("† has values that no configuration file confirms; --json names them and the other fields")
        elif entries:
            print_table(data(), _table(entries), title=kind)
        else:
            print(f"{kind}: none under {results}; `moebench run smoke` makes one")
    return Exit.OK


def listing(kind: str, results: Path) -> list[dict[str, Any]]:
    """The entries of one kind, as plain values."""
    if kind == "impls":
        return [_impl(name) for name in names()] + [
            {"name": name, "semantics": None, "summary": "no adapter", "unavailable": reason}
            for name, reason in NO_ADAPTER.items()
        ]
    if kind == "presets":
        return [
            {"name": p.name, "title": p.title, "question": p.question, "story": p.story} for p in presets().values()
        ]
    if kind == "models":
        return [_model(model) for model in models().values()]
    return [
        {
            "run_id": found.folder.name,
            "source": found.info.title if found.info else None,
            "machine": found.info.machine if found.info else None,
            "created": _utc(found.info.created_unix_s) if found.info else None,
            "folder": str(found.folder),
            "problem": found.problem,
        }
        for found in find_runs(results)
    ]


def _impl(name: str) -> dict[str, Any]:
    entry = ENTRIES.get(name)
    if entry is None:
        return {"name": name, "semantics": None, "summary": "from an installed package", "unavailable": None}
    return {
        "name": name,
        "semantics": entry.semantics,
        "summary": entry.summary,
        "unavailable": missing(name),
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        **{
            key: value
            for key, value in model.spec.to_dict().items()
            if not key.startswith("capacity") and key != "router_seed"
        },
        "layer_parameters": model.num_layer_parameters,
        "layers": model.layers,
        "model_layers": model.model_layers,
        "config": model.config,
        "unconfirmed": list(model.unconfirmed),
        "note": model.note or None,
    }


def _models_table() -> Table:
    """The sizes that tell models apart, and what one layer weighs."""
    headings = ("name", "d_model", "d_ff", "experts", "top_k", "shared", "router", "layers", "bf16 layer", "config")
    rows = [
        [
            model.name,
            *(str(model.layer[key]) for key in ("d_model", "d_ff", "num_experts", "top_k")),
            _shared(model.spec),
            model.spec.router,
            f"{'?' if model.layers is None else model.layers} of {model.model_layers}",
            units.bytes_(2 * model.num_layer_parameters),
            model.config + (" †" if model.unconfirmed else ""),
        ]
        for model in models().values()
    ]
    return Table("", headings, rows)


def _shared(spec: LayerSpec) -> str:
    if not spec.num_shared_experts:
        return ""
    width = spec.d_ff if spec.d_ff_shared is None else spec.d_ff_shared
    return f"{spec.num_shared_experts} x {width}{' gated' * spec.shared_gate}"


def _print_presets(entries: Sequence[Mapping[str, Any]]) -> None:
    """Name and title, and below them the question and the story, which are too long for a table's cells."""
    for entry in entries:
        print(f"{entry['name']:10} {entry['title']}")
        for text in (entry["question"], entry["story"]):
            print(textwrap.fill(text, width=110, initial_indent=" " * 11, subsequent_indent=" " * 11))


def _table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Only the columns in which some entry has something."""
    columns = [name for name in entries[0] if any(entry[name] for entry in entries)]
    return Table("", columns, [[str(entry[name] or "") for name in columns] for entry in entries])


def _utc(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))
