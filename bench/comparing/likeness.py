"""Whether two runs may be compared at all: what must be equal, what is only told, and what is being compared.

Times of another processor, driver, torch or thread count say nothing about the code. A difference in anything that
decides how fast the same code runs blocks a comparison; what rarely matters (the Python patch release, the kernel) is
told. What is not known to be harmless blocks. A fact that only one of the runs recorded cannot differ: it is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases import Case, stable_id
from bench.store.schema import RunInfo

SETTINGS = ("device", "dtype", "threads", "cache", "seed")
"""Fields of a workload that are settings of a run rather than axes of a question."""
TOLD = (
    "memory_bytes",
    "swap_bytes",
    "system.os",
    "system.kernel",
    "python",
    "packages",
    "cpu.microcode",
    "cpu.virtual",
)
_BLOCKING_PACKAGE = "packages.torch"
_COMPARED = ("packages.moebench", "gaps")


@dataclass(frozen=True, slots=True)
class Differences:
    """How two runs differ in what is not being compared.

    Attributes:
        blocking: each difference that makes times incomparable, with what was found in each.
        told: each that is worth knowing.
        settings: fields of the workload in which the runs share no value.
    """

    blocking: Sequence[str]
    told: Sequence[str]
    settings: Sequence[str]


def find_differences(base: RunInfo, new: RunInfo, base_cases: Sequence[Case], new_cases: Sequence[Case]) -> Differences:
    """Everything in which the machine, the software and the settings of two runs differ."""
    blocking, told = environment_differences(base, new)
    settings = []
    for name in SETTINGS:
        found = [sorted({str(getattr(case.workload, name)) for case in cases}) for cases in (base_cases, new_cases)]
        if all(found) and not set(found[0]) & set(found[1]):
            settings.append(name)
            blocking.append(f"{name}: {', '.join(found[0])} in BASE, {', '.join(found[1])} in NEW")
    return Differences(blocking, told, settings)


def environment_differences(base: RunInfo, new: RunInfo) -> tuple[list[str], list[str]]:
    """Blocking differences of machine, software and way of measuring, and those that are only told."""
    blocking: list[str] = []
    told: list[str] = []
    if base.machine != new.machine:
        blocking.append(f"machine: {base.machine} in BASE, {new.machine} in NEW")
    if base.isolated != new.isolated:
        ways = ["processes of its own" if run.isolated else "turns with the others" for run in (base, new)]
        blocking.append(f"isolate: every implementation was timed in {ways[0]} in BASE, in {ways[1]} in NEW")
    ours, theirs = _flat(base.environment), _flat(new.environment)
    lacking = {"BASE": 0, "NEW": 0}
    for name in sorted({*ours, *theirs}):
        if name.startswith(_COMPARED):
            continue
        if name not in ours or name not in theirs:
            if name.startswith("settings."):
                sides = [_shown(side.get(name, "not set")) for side in (ours, theirs)]
                blocking.append(f"{name}: {sides[0]} in BASE, {sides[1]} in NEW")
            else:
                lacking["BASE" if name not in ours else "NEW"] += 1
        elif ours[name] != theirs[name]:
            sentence = f"{name}: {_shown(ours[name])} in BASE, {_shown(theirs[name])} in NEW"
            (told if name.startswith(TOLD) and name != _BLOCKING_PACKAGE else blocking).append(sentence)
    told += [
        f"{side} does not say {count} fact{'s' * (count != 1)} of its environment that the other says"
        for side, count in lacking.items()
        if count
    ]
    return blocking, told


def matching_key(case: Case, ignored: Sequence[str]) -> str:
    """What two cases must have in common to be compared; the case's id where nothing is ignored."""
    if not ignored:
        return case.id
    workload = {name: value for name, value in case.workload.lasting().items() if name not in ignored}
    return stable_id({"impl": case.label, "workload": workload})


def nearest_difference(case: Case, others: Sequence[Case]) -> str:
    """In what the most similar case of the other side differs, where that is one or two fields; else empty."""
    ours = _fields(case)
    best: list[str] = []
    for other in others:
        theirs = _fields(other)
        names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        if len(names) <= 2 and (not best or len(names) < len(best)):
            best = [f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names]
    return f"the other side's most similar case has {' and '.join(best)}" if best else ""


def _fields(case: Case) -> dict[str, Any]:
    workload = case.workload.lasting()
    return {"impl": case.label, **{k: v for k, v in workload.items() if k != "layer"}, **workload["layer"]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
