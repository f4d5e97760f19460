"""Sweeps: reads a TOML file or preset, checks it, and expands it into cases.

A list in the file is an axis; the sweep is the product of its axes, less what ``[[exclude]]`` matches. Cases come
workload by workload, so that the implementations to be compared stand side by side, and in the same order every time.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.cases import Case, Workload
from bench.document import Document, LayerTable, Measure, WorkloadTable
from bench.errors import ConfigError, RequestError
from bench.faults import nearest, sentences
from bench.gpus import why_no_cuda
from bench.models import Selection
from impls import registry
from impls.spec import LayerSpec

__all__ = ["Measure", "Preset", "Sweep", "load_sweep", "parse_sweep", "presets"]

MAX_CASES = 10_000
LAYER_AXES = tuple(LayerTable.model_fields)
WORKLOAD_AXES = tuple(name for name in WorkloadTable.model_fields if name not in ("impls", "compile", "seed"))


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to measure, and how well.

    Attributes:
        source: name of the preset, or of the TOML file as it was given.
        given: the document after overrides. What depends on the machine (``all``, device, threads) is written out, so
            that the same document gives the same cases again, here or elsewhere.
        seed: draws weights, tokens, routing and the order of rounds.
        cases: every case, workload by workload; those with ``spec.impossible`` are among them.
        measure: how long and how exactly to measure.
        left_out: what ``all`` does not stand for here and which axes gave way to a model, in sentences.
    """

    source: str
    given: dict[str, Any]
    seed: int
    cases: list[Case]
    measure: Measure
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def title(self) -> str:
        """The source, and the label of the model whose layer it was given."""
        label = self.given.get("label")
        return f"{self.source}, {label}" if label else self.source

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know of that layer."""
        return tuple(self.given.get("notes", ()))


@dataclass(frozen=True, slots=True)
class Preset:
    """A sweep that comes with moebench.

    Attributes:
        name: what to call it by.
        title: what is swept.
        question: what it answers.
        story: what to expect, and how to read the result.
        text: the sweep's document.
    """

    name: str
    title: str
    question: str
    story: str
    text: str


def presets() -> dict[str, Preset]:
    """The sweeps that come with moebench, by name."""
    found = {}
    for file in sorted(resources.files("bench").joinpath("presets").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            text, name = file.read_text(encoding="utf-8"), file.name.removesuffix(".toml")
            document = tomllib.loads(text)
            found[name] = Preset(name, document["title"], document["question"], document.get("story", ""), text)
    return found


def load_sweep(
    source: str | Path, overrides: Mapping[str, object] | None = None, *, model: Selection | None = None
) -> Sweep:
    """The sweep of a preset's name or a TOML file.

    Args:
        source: a preset's name, or the path of a TOML file.
        overrides: ``table.key`` -> the value or list of values to use instead of the file's.
        model: a real model's layer to use instead of the file's; overrides apply to it.

    Raises:
        ConfigError: with every fault of the document.
        RequestError: where there is no such file or preset, no such device, or nothing left to measure.
    """
    text = _read(str(source))
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or lists without end
        raise ConfigError(str(source), [f"not valid TOML: {error}"]) from None
    return parse_sweep(document, source=str(source), overrides=overrides, model=model)


def parse_sweep(
    document: Mapping[str, Any],
    *,
    source: str,
    overrides: Mapping[str, object] | None = None,
    model: Selection | None = None,
) -> Sweep:
    """The sweep of a document that is already read: the Python interface's and a resumed run's way in.

    Raises:
        ConfigError, RequestError: as :func:`load_sweep`.
    """
    overrides = overrides or {}
    given, faults = _override(model.put_into(document, overrides) if model else document, overrides)
    checked = None
    try:
        # the file knows the keys of its own (`budget`), not the attributes that they end up in (`budget_s`)
        checked = Document.model_validate(given, by_alias=True, by_name=False)
    except ValidationError as error:
        faults += sentences(error, Document)
    if faults or checked is None:
        raise ConfigError(f"{source} with the given overrides" if overrides else source, faults)

    devices = [_usable_device(name) for name in checked.workload.device]
    if checked.measure.nvtx and "cpu" in devices:
        raise RequestError(
            f"{source}: NVTX ranges are for NVIDIA's tools, which watch a GPU, and this sweep runs on the CPU; "
            "profile without --nvtx, or with --device cuda"
        )
    if checked.measure.check_limits and not checked.measure.profile:
        raise RequestError(
            f"{source}: check_limits checks what profiles name, and this sweep makes none; set measure.profile=true "
            "as well, or use `moebench profile --check-limits`"
        )
    impls, left_out = _all_named(checked.workload.impls, checked.layer.router)
    given["workload"] |= {
        "impls": _written(impls),
        "device": _written(devices),
        "threads": _written(checked.workload.threads),
    }
    cases = _expand(checked, impls, devices)
    possible = [case for case in cases if case.workload.layer.impossible is None]
    if not cases:
        raise RequestError(f"{source}: nothing is left to measure, [[exclude]] takes every case away")
    if not possible:
        reasons = sorted({str(case.workload.layer.impossible) for case in cases})
        raise RequestError(
            f"{source}: no combination can run: {'; '.join(reasons)}. Lower [layer] top_k or raise num_experts."
        )
    if model:
        left_out += model.displaced(document, overrides)
    return Sweep(source, given, checked.workload.seed, cases, checked.measure, left_out)


def _read(source: str) -> str:
    available = presets()
    if source in available:
        return available[source].text
    try:
        return Path(source).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = list(available)
        raise RequestError(
            f"there is no preset and no file {source!r}; presets are {', '.join(names)}{nearest(source, names)}"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {source!r}: {error}") from None


def _override(document: Mapping[str, Any], overrides: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """A copy of the document with the overrides in it, and what is wrong with their names."""
    given = {name: dict(value) if isinstance(value, Mapping) else value for name, value in document.items()}
    tables = ("layer", "workload", "measure")
    faults = []
    for name, value in overrides.items():
        table, separator, key = name.partition(".")
        if not separator or table not in tables:
            options = ", ".join(f"{option}.KEY" for option in tables)
            faults.append(f"--set {name}: should be one of {options}{nearest(table, tables)}")
        elif isinstance(given.setdefault(table, {}), dict):
            given[table][key] = value
    return given, faults


def _usable_device(name: str) -> str:
    reason = why_no_cuda() if name != "cpu" else None
    if name == "auto":
        return "cpu" if reason else "cuda"
    if reason:
        raise RequestError(f"[workload] device: cuda was asked for, but {reason}; 'cpu' and 'auto' work here")
    return name


def _written(values: list[Any] | tuple[Any, ...]) -> Any:
    """An axis as a file has it: one value plain, several as a list."""
    unique = list(dict.fromkeys(values))
    return unique[0] if len(unique) == 1 else unique


def _expand(document: Document, impls: tuple[str, ...], devices: list[str]) -> list[Case]:
    layer, workload = document.layer, document.workload
    axes = {name: getattr(layer, name) for name in LAYER_AXES}
    axes |= {name: getattr(workload, name) for name in WORKLOAD_AXES} | {"device": devices}
    axes |= {"impls": impls, "compile": workload.compile}
    num_cases = math.prod(len(values) for values in axes.values())
    if num_cases > MAX_CASES:
        raise RequestError(f"the axes multiply to {num_cases} cases, above {MAX_CASES}: shorten some of the lists")
    exclusions = [
        _exclusion(table.model_dump(exclude_unset=True), workload.device, devices) for table in document.exclude
    ]
    cases: dict[str, Case] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        point["cache"] = _cache(point["cache"], point["device"])
        if not any(_matches(point, exclusion) for exclusion in exclusions):
            case = _case(point, workload.seed)
            cases.setdefault(case.id, case)
    return list(cases.values())


def _all_named(impls: Iterable[str], routers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The implementations with ``all`` spelt out, and what it leaves out: what could only be rows without a result."""
    reasons = {name: registry.missing(name) or registry.idle(name, routers) for name in registry.names()}
    usable = [name for name, reason in reasons.items() if reason is None]
    named = tuple(dict.fromkeys(name for impl in impls for name in (usable if impl == "all" else [impl])))
    left_out = [f"'all' leaves out {name}: {reason}" for name, reason in reasons.items() if reason]
    return named, tuple(left_out) if "all" in impls else ()


def _exclusion(table: dict[str, Any], device_names: Sequence[str], devices: Sequence[str]) -> dict[str, Any]:
    """An exclusion in terms of what the axes expand to: ``all`` spelt out, ``auto`` replaced by what it means here."""
    if "impls" in table:
        table["impls"] = [name for impl in table["impls"] for name in (registry.names() if impl == "all" else [impl])]
    if "device" in table:
        meaning = dict(zip(device_names, devices, strict=True))
        table["device"] = [meaning.get(name, name) for name in table["device"]]
    return table


def _cache(cache: str, device: str) -> str:
    if cache == "auto":
        return "cold" if device == "cuda" else "warm"
    return cache


def _matches(point: Mapping[str, Any], exclusion: Mapping[str, Any]) -> bool:
    """Whether the point has one of the values of every key; an empty exclusion matches nothing."""
    return bool(exclusion) and all(point[name] in values for name, values in exclusion.items())


def _case(point: Mapping[str, Any], seed: int) -> Case:
    layer = LayerSpec(**{name: point[name] for name in LAYER_AXES})
    workload = Workload(layer=layer, seed=seed, **{name: point[name] for name in WORKLOAD_AXES})
    return Case(impl=point["impls"], workload=workload, compile=point["compile"])
