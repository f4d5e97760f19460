"""``moebench advise``: the recommendation in sentences for people, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import units
from bench.analysis.advise import Advice, Candidate, Choice, Limits, advise, interval
from bench.analysis.interval import Estimate
from bench.analysis.model import Comparison
from bench.analysis.winners import digits
from bench.errors import Exit, RequestError
from bench.runs import analysis_of
from bench.table import SHORT, workload_names

T = TypeVar("T")


def advise_command(
    run: str,
    asked: Mapping[str, Any],
    *,
    memory_limit: str | None,
    latency_limit: str | None,
    results: Path,
    as_json: bool,
) -> int:
    """Print which implementation to use, how sure that is, and what others would cost; gives the exit code."""
    limits = Limits(
        _parsed("--memory-limit", memory_limit, units.parse_bytes),
        _parsed("--latency-limit", latency_limit, units.parse_duration),
    )
    analysis = analysis_of(run, results)
    answers = advise(analysis, asked, limits)
    if as_json:
        print(json.dumps([plain(answer) for answer in answers], indent=1))
    else:
        names = workload_names(analysis.frame)
        for answer in answers:
            print(sentence(answer, names))
        print(analysis.control.sentence)
    if any(choice.reference for answer in answers for choice in answer.choices):
        return Exit.OK
    return Exit.CANNOT


def _parsed(option: str, text: str | None, parse: Callable[[str], T]) -> T | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise RequestError(f"{option} {text}: {error}") from None


def sentence(answer: Advice, names: Mapping[str, str]) -> str:
    """The answer in words.

    Args:
        answer: to one question.
        names: what tells each workload of the run from the others, by workload id.
    """
    parts = [_about(choice, names[choice.workload_id]) for choice in answer.choices]
    if not answer.between:
        return parts[0]
    wanted = ", ".join(f"{SHORT.get(axis, axis)} {value}" for axis, value in answer.between.items())
    head = f"{wanted} was not measured. Its measured neighbours "
    head += f"agree: use {answer.impl}." if answer.impl else "do not give one answer, so there is none: measure it."
    return "\n".join([head, *(f"  {part}" for part in parts)])


def _about(choice: Choice, name: str) -> str:
    where = f"{name}: " if name else ""
    if choice.reference is None:
        return f"{where}nothing is within the limits. {_what_would(choice.candidates)}"
    by_name = {candidate.impl: candidate for candidate in choice.candidates}
    if choice.impl:
        text = f"{where}use {choice.impl}, {_takes(by_name[choice.impl])}. {choice.why}"
    else:
        contenders = ", ".join(f"{impl} {_takes(by_name[impl])}" for impl in choice.contenders)
        text = f"{where}no winner, any of these: {contenders}. {choice.why}"
    costs = [_cost(comparison) for comparison in choice.others if comparison.impl not in choice.contenders]
    if costs:
        text += f" In time, choosing otherwise costs: {', '.join(costs)}."
    ruled_out = [f"{candidate.impl} ({candidate.ruled_out})" for candidate in choice.candidates if candidate.ruled_out]
    return text + (f" Ruled out: {', '.join(ruled_out)}." if ruled_out else "")


def _takes(candidate: Candidate) -> str:
    assert candidate.latency is not None, "only what was timed is within limits"
    memory = "" if candidate.memory_bytes is None else f" and {units.bytes_(candidate.memory_bytes)} with its weights"
    return f"{interval(candidate.latency)}{memory}"


def _cost(comparison: Comparison) -> str:
    ratio = comparison.ratio
    return f"{comparison.impl} {digits(ratio.value)}\N{MULTIPLICATION SIGN} ({digits(ratio.low)}-{digits(ratio.high)})"


def _what_would(candidates: Sequence[Candidate]) -> str:
    """What the limits would have to be."""
    measured = [f"{c.impl} {c.ruled_out}" for c in candidates if c.latency is not None]
    return f"Measured: {'; '.join(measured)}."


def plain(answer: Advice) -> dict[str, Any]:
    """The answer as plain values for JSON, in SI units."""
    return {
        "use": answer.impl,
        "not_measured": dict(answer.between),
        "measured": [_plain_choice(choice) for choice in answer.choices],
    }


def _plain_choice(choice: Choice) -> dict[str, Any]:
    others = {comparison.impl: comparison for comparison in choice.others}
    return {
        "workload_id": choice.workload_id,
        "workload": {axis: getattr(value, "item", lambda v=value: v)() for axis, value in choice.workload.items()},
        "use": choice.impl,
        "contenders": list(choice.contenders),
        "why": choice.why,
        "candidates": [_plain_candidate(c, others.get(c.impl)) for c in choice.candidates],
    }


def _plain_candidate(candidate: Candidate, cost: Comparison | None) -> dict[str, Any]:
    return {
        "impl": candidate.impl,
        "ruled_out": candidate.ruled_out,
        **_bounds("latency", candidate.latency, "_s"),
        "memory_bytes": candidate.memory_bytes,
        **_bounds("ratio", cost.ratio if cost else None, ""),
        "verdict": cost.verdict.value if cost else None,
    }


def _bounds(name: str, estimate: Estimate | None, unit: str) -> dict[str, float | None]:
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    ends = ("", "_low", "_high")
    return {f"{name}{end}{unit}": value for end, value in zip(ends, values, strict=True)}
