"""The rules: one function a known reason, from what was measured of a call to a finding or nothing.

A rule speaks of what it saw, never of the source: a layer is not to blame for how it is written, only for what it does.
Limits stand where a layer that does the thing a little is not slow for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bench.measure.operators import Operators
from bench.store.qualified import Finding
from bench.units import bytes_

LEAST_FULL_GRADIENTS = 4
LEAST_WAITS = 4


@dataclass(frozen=True, slots=True)
class Situation:
    """What one call did, and what it was asked for.

    Attributes:
        operators: what it did.
        num_experts: E.
        busy_experts: experts that had a token.
        row_bytes: bytes of the T * K rows of width D that the experts take.
        stacked_bytes: bytes of the experts' weights, and so of their gradients.
        threads: torch's threads after the call.
        cores: processors that this process may use.
    """

    operators: Operators
    num_experts: int
    busy_experts: int
    row_bytes: int
    stacked_bytes: int
    threads: int
    cores: int


def lint(situation: Situation) -> list[Finding]:
    """Every known reason that the measurements show, the gravest first."""
    return [finding for rule in RULES if (finding := rule(situation)) is not None]


def _quadratic_indexing(s: Situation) -> Finding | None:
    """``w[e]``: autograd gives every part of a stacked weight a gradient of the whole weight's size."""
    made, num_bytes = s.operators.full_gradients, s.operators.full_gradient_bytes
    if made < LEAST_FULL_GRADIENTS or num_bytes <= 2 * s.stacked_bytes:
        return None
    return Finding(
        rule="quadratic_indexing",
        evidence=(
            f"the backward made {made} gradients of the full size of a stacked weight, {bytes_(num_bytes)} for"
            f" {bytes_(s.stacked_bytes)} of weights ({s.num_experts} experts): its cost grows with the square of the"
            " number of experts"
        ),
        fix="take the experts apart once, `w.unbind(0)`, and use the parts; `w[e]` has a gradient as large as `w`",
    )


def _waits_by_expert(s: Situation) -> Finding | None:
    waits = s.operators.waits.total()
    if waits < max(LEAST_WAITS, s.busy_experts):
        return None
    names = _most(s.operators.waits)
    return Finding(
        rule="waits_by_expert",
        evidence=(
            f"one call waits for the device {waits} times on a GPU ({names}), with {s.busy_experts} experts at work:"
            " the waits grow with the experts"
        ),
        fix="sort the assignments by expert and read all counts with one `.tolist()`, or keep offsets on the device",
    )


def _one_hot_dispatch(s: Situation) -> Finding | None:
    found = s.operators.one_hot
    if found is None:
        return None
    shape = " x ".join(map(str, found.shape))
    return Finding(
        rule="one_hot_dispatch",
        evidence=(
            f"a tensor of {shape} ({bytes_(found.num_bytes)}) has only {found.num_nonzero} entries that are not zero,"
            f" and holds {found.num_bytes / max(1, s.row_bytes):.0f} times the bytes of the rows that it moves"
        ),
        fix="move rows by index (`index_select` of sorted assignments) and not by products with a one-hot tensor",
    )


def _interleaved_gate(s: Situation) -> Finding | None:
    if not s.operators.strided_activations:
        return None
    return Finding(
        rule="interleaved_gate",
        evidence=f"{s.operators.strided_activations} activations read every second number of a row",
        fix="lay the gate's rows before the up rows, once in `prepare()`, and split the product in halves",
    )


def _float64(s: Situation) -> Finding | None:
    if not s.operators.float64:
        return None
    names = _most(s.operators.float64)
    return Finding(
        rule="float64",
        evidence=f"{s.operators.float64.total()} operators computed in float64 ({names})",
        fix="compute in the tokens' number format, and in float32 where it must be finer",
    )


def _copied_weights(s: Situation) -> Finding | None:
    copied, strided = s.operators.weight_copies.total(), s.operators.strided_weights
    if not copied and not strided:
        return None
    parts = []
    if copied:
        parts.append(f"every call copies expert weights {copied} times, {bytes_(s.operators.weight_copy_bytes)}")
    if strided:
        parts.append(f"{strided} products take a weight that lies neither in rows nor in columns, which copies it")
    return Finding(
        rule="weights_copied",
        evidence=" and ".join(parts),
        fix="derive the layout that the products want once, in `prepare()`; a plain transpose needs no copy",
    )


def _threads_above_cores(s: Situation) -> Finding | None:
    if s.threads <= s.cores:
        return None
    return Finding(
        rule="threads_above_cores",
        evidence=f"operators run with {s.threads} threads on {s.cores} cores",
        fix="use as many threads as there are cores: more wait for each other",
    )


def _most(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(3))


RULES: tuple[Callable[[Situation], Finding | None], ...] = (
    _quadratic_indexing,
    _waits_by_expert,
    _one_hot_dispatch,
    _interleaved_gate,
    _float64,
    _copied_weights,
    _threads_above_cores,
)
