"""``moebench check``: runs the battery on implementations and says what it found, for people or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.conformance.battery import DEFAULT_TOKENS, Outcome, Probe, battery, layer_fields
from bench.conformance.session import run_battery
from bench.errors import Exit, RequestError, RunInterruptedError
from bench.faults import nearest
from bench.gpus import why_no_cuda
from bench.overrides import parse_value
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.servers import ForkServer
from impls import registry

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
MAX_FAULTS = 3  # of one probe; a wrong output makes every gradient wrong
MAX_GROUPS = 6  # mistakes that are shown in full
MAX_NAMED = 4  # probes that show the same mistake


@dataclass(frozen=True, slots=True)
class Checked:
    """One implementation and how its probes ended."""

    impl: str
    outcomes: Sequence[Outcome]

    @property
    def counts(self) -> Counter[str]:
        """Probes by how they ended."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def exit_code(self) -> Exit:
        """Wrong numbers weigh more than a crash."""
        if self.counts["wrong"]:
            return Exit.WRONG_NUMERICS
        if any(self.counts[status] for status in ("crashed", "error", "timeout")) or not self.counts["right"]:
            return Exit.FAILED
        return Exit.OK


def check_command(
    impls: Sequence[str],
    *,
    tokens: str | None,
    dtype: str | None,
    device: str,
    assignments: Sequence[str],
    seed: int,
    as_json: bool,
) -> int:
    """Check implementations one after the other; gives the exit code of the worst."""
    from bench.console import talk

    probes = _probes(tokens, dtype, device, assignments, seed)
    for impl in impls:
        _require(impl)
    found = []
    try:
        with Interrupt() as interrupt, ForkServer(interrupt) as server:
            for impl in impls:
                talk().print(f"checking {impl}: {len(probes)} probes", markup=False)
                found.append(Checked(impl, run_battery(impl, probes, server)))
                if not as_json:
                    print("\n".join(lines(found[-1])))
    except Interrupted:
        raise RunInterruptedError("stopped; the probes so far are lost, they take seconds") from None
    if as_json:
        print(json.dumps([_plain(one) for one in found], indent=1))
    codes = {one.exit_code for one in found}
    return next((code for code in (Exit.WRONG_NUMERICS, Exit.FAILED) if code in codes), Exit.OK)


def lines(checked: Checked) -> list[str]:
    """The result for people: a headline, then what is wrong, then what was not tried, then what is slow."""
    outcomes, counts = checked.outcomes, checked.counts
    words = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status])
    verdict = {Exit.OK: "right", Exit.WRONG_NUMERICS: "WRONG", Exit.FAILED: "not usable"}[checked.exit_code]
    found = [f"{checked.impl}: {verdict}. {len(outcomes)} probes: {words}"]
    for outcome in outcomes:
        if outcome.status in ("crashed", "error", "timeout"):
            found += [f"  {outcome.status}: {outcome.label}: {outcome.where}", f"      {outcome.reason}"]
    groups = _alike([outcome for outcome in outcomes if outcome.status == "wrong"])
    for group in groups[:MAX_GROUPS]:
        found += _wrong(group)
    if len(groups) > MAX_GROUPS:
        rest = sum(len(group) for group in groups[MAX_GROUPS:])
        found.append(f"  and {rest} more wrong probes in {len(groups) - MAX_GROUPS} other ways: --json has all")
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.status == "unsupported")
    found += [f"  not supported, {count} probes: {reason}" for reason, count in reasons.items()]
    for outcome in outcomes:
        for finding in outcome.findings:
            found += [f"  slow, {finding.rule}: {finding.evidence}", f"      {finding.fix}"]
    return found


def _alike(wrong: Sequence[Outcome]) -> list[list[Outcome]]:
    """Wrong probes that point to the same mistake, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in wrong:
        groups.setdefault(tuple(outcome.causes), []).append(outcome)
    return list(groups.values())


def _wrong(group: Sequence[Outcome]) -> list[str]:
    """One mistake: the first probe that shows it in full, the others by name."""
    first, others = group[0], group[1:]
    found = [f"  wrong: {first.label}: {first.where}"]
    found += [f"      {fault}" for fault in first.faults[:MAX_FAULTS]]
    if len(first.faults) > MAX_FAULTS:
        found.append(f"      and {len(first.faults) - MAX_FAULTS} more")
    found += [f"      likely: {cause}" for cause in first.causes]
    if others:
        named = "; ".join(outcome.label for outcome in others[:MAX_NAMED])
        more = f"; and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        found.append(
            f"      {'the same' if first.causes else 'wrong too'} in {len(others)} other probes: {named}{more}"
        )
    return found


_WORDS = {
    "right": "right",
    "wrong": "wrong",
    "crashed": "crashed",
    "error": "ended with an error",
    "timeout": "hung",
    "unsupported": "not supported",
}


def _plain(checked: Checked) -> Mapping[str, object]:
    return {
        "impl": checked.impl,
        "exit_code": int(checked.exit_code),
        "counts": dict(checked.counts),
        "probes": [outcome.model_dump(mode="json") for outcome in checked.outcomes],
    }


def _require(impl: str) -> None:
    """Refuse a name that leads nowhere, or to what is not installed, before anything starts."""
    if ".py" not in impl and impl not in registry.names():
        raise RequestError(f"no implementation is named {impl!r}{nearest(impl, registry.names())}")
    if absent := registry.missing(impl):  # known without importing torch
        raise RequestError(f"{impl} cannot run here: {absent}")
    if impl in registry.ENTRIES:
        return
    try:
        absent = registry.resolve(impl).missing()
    except (registry.UnknownImplementation, registry.InvalidImplementation) as error:
        raise RequestError(str(error)) from error
    except ImportError as error:
        raise RequestError(f"{impl} needs a package that cannot be imported: {error}") from error
    if absent:
        raise RequestError(f"{impl} cannot run here: {absent}")


def _probes(tokens: str | None, dtype: str | None, device: str, assignments: Sequence[str], seed: int) -> list[Probe]:
    if device == "cuda" and (why := why_no_cuda()):
        raise RequestError(f"--device cuda: {why}")
    layer: dict[str, object] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        field = name.strip().removeprefix("layer.")
        if not separator or not name.strip().startswith("layer.") or field not in layer_fields():
            raise RequestError(
                f"--set {assignment}: check takes layer.NAME=VALUE, with NAME one of {', '.join(layer_fields())}"
            )
        value = parse_value(text)
        if isinstance(value, list):
            raise RequestError(f"--set {assignment}: check takes one value a key")
        layer[field] = None if value == "none" else value
    try:
        return battery(
            layer,
            tokens=[_number(part) for part in tokens.split(",")] if tokens else (DEFAULT_TOKENS,),
            dtypes=[_dtype(part.strip()) for part in dtype.split(",")] if dtype else tuple(DTYPES),
            device=device,
            seed=seed,
        )
    except (ValueError, TypeError) as error:
        raise RequestError(f"--set: {error}") from error


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise RequestError(f"--tokens {text}: should be whole numbers, as in 64 or 64,512")
    return int(text)


def _dtype(text: str) -> str:
    name = SHORT_DTYPES.get(text, text)
    if name not in DTYPES:
        raise RequestError(f"--dtype {text}: should be one of {', '.join([*DTYPES, *SHORT_DTYPES])}")
    return name
