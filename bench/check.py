"""Whether an implementation computed the layer: outputs and gradients against the float64 truth, routing by value.

The error of a tensor is the norm of its difference over the norm of the truth. A gradient whose truth is nearly zero
(a router that cannot change its choice, say) has no norm worth dividing by: it is measured against
:data:`NEARLY_ZERO` of the largest weight gradient.

A router's gradient is made of inner products with rounded expert outputs, and of differences between those; with few
tokens they can cancel to any degree, the rounding does not. It is measured against its norm before cancellation
(:class:`impls.truth.Truth`) where that is larger. And few tokens average few rounding errors: n tokens are allowed
``1 + 1 / sqrt(n)`` times the tolerance.

Errors are summed in float64, a bounded piece at a time, so that checking needs no second copy of the weights.

Which of two equal scores top-k takes is nobody's contract. So the truth is computed for given expert ids, and
:func:`bench.routing_check.routing_fault` asks apart whether the ids are a right choice.

T tokens, n tokens that the truth was computed for, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
NEARLY_ZERO = 1e-2

_PIECE = 1 << 20  # elements compared at once: 8 MiB in float64, so a check fits beside any layer


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome of a comparison.

    Attributes:
        fault: what is wrong and where, in a sentence; empty where the result is right.
        relative_error: the worst over all tensors; None where it cannot be a number (a wrong shape, a NaN).
        worst_tensor: which one that was: ``output``, ``input`` or a weight's name.
    """

    fault: str
    relative_error: float | None
    worst_tensor: str


@dataclass(frozen=True, slots=True)
class _Error:
    """Norms by row (token or expert) of one tensor."""

    difference_by_row: torch.Tensor
    truth_by_row: torch.Tensor

    @property
    def difference(self) -> float:
        return float(self.difference_by_row.norm())

    @property
    def truth(self) -> float:
        return float(self.truth_by_row.norm())


def check_result(
    output_TD: torch.Tensor,
    gradients: Mapping[str, torch.Tensor | None],
    *,
    truth_output_nD: torch.Tensor,
    truth_gradients: Mapping[str, torch.Tensor],
    tokens_n: torch.Tensor,
    like_TD: torch.Tensor,
    uncancelled: Mapping[str, float] | None = None,
    tolerance: float | None = None,
) -> Checked:
    """Compare an output, and in ``train`` every gradient, with the truth.

    Args:
        output_TD: what the implementation returned for all T tokens.
        gradients: by name of the weight, and ``input``; None is a gradient of zero, as autograd means it.
        truth_output_nD: float64 output of the tokens ``tokens_n``.
        truth_gradients: float64 gradients that must be matched, that of ``input`` for all T tokens; empty in
            ``forward``.
        tokens_n: which tokens the truth was computed for.
        like_TD: the layer's input, whose shape and dtype the output must have; its dtype sets the tolerance.
        uncancelled: norms before cancellation by name of the weight, where they are known.
        tolerance: the relative error that an inexact implementation states for itself; None for an exact one, whose
            number format sets it.
    """
    fault = _form_fault("output", output_TD, like_TD.shape, like_TD.dtype)
    if fault:
        return Checked(fault, None, "output")
    errors = {"output": _error(output_TD[tokens_n.to(output_TD.device)], truth_output_nD)}
    for name, truth in truth_gradients.items():
        found = gradients[name]
        if found is None:
            found = torch.zeros((), dtype=like_TD.dtype).expand(truth.shape)
        fault = _form_fault(f"gradient of {name}", found, truth.shape, like_TD.dtype)
        if fault:
            return Checked(fault, None, name)
        errors[name] = _error(found, truth)
    allowed = max(tolerance or 0.0, allowed_error(like_TD.dtype, len(tokens_n)))
    return _judge(errors, tokens_n, allowed, uncancelled or {})


def allowed_error(dtype: torch.dtype, num_tokens: int) -> float:
    """The relative error that a right layer may have: the dtype's tolerance, and more where few tokens are checked."""
    return TOLERANCE[dtype] * (1 + 1 / math.sqrt(max(1, num_tokens)))


def _form_fault(name: str, found: object, shape: torch.Size, dtype: torch.dtype) -> str:
    if not isinstance(found, torch.Tensor):
        return f"{name} is a {type(found).__name__}, expected a tensor"
    if found.shape != shape or found.dtype != dtype:
        return f"{name} is {found.dtype} {tuple(found.shape)}, expected {dtype} {tuple(shape)}"
    return ""


def _error(found: torch.Tensor, truth: torch.Tensor) -> _Error:
    rows, columns = truth.shape[0], math.prod(truth.shape[1:])
    difference_R = torch.zeros(rows, dtype=torch.float64)
    truth_R = torch.zeros(rows, dtype=torch.float64)
    for where, (a, b) in _pieces(found.detach().reshape(rows, columns), truth.reshape(rows, columns)):
        difference_R[where] += (a - b).square().sum(dim=1)
        truth_R[where] += b.square().sum(dim=1)
    return _Error(difference_R.sqrt_(), truth_R.sqrt_())


def _pieces(
    found_RC: torch.Tensor, truth_RC: torch.Tensor
) -> Iterator[tuple[slice, tuple[torch.Tensor, torch.Tensor]]]:
    """Matching float64 blocks of at most about :data:`_PIECE` elements, on the CPU, with the rows they belong to."""
    num_rows, num_columns = truth_RC.shape
    columns = max(1, min(num_columns, _PIECE))
    rows = max(1, _PIECE // columns)
    for row in range(0, num_rows, rows):
        for column in range(0, num_columns, columns):
            block = (slice(row, row + rows), slice(column, column + columns))
            yield block[0], (found_RC[block].to("cpu", torch.float64), truth_RC[block].to("cpu", torch.float64))


def _judge(
    errors: Mapping[str, _Error], tokens_n: torch.Tensor, tolerance: float, uncancelled: Mapping[str, float]
) -> Checked:
    for name, error in errors.items():
        if not error.difference_by_row.isfinite().all():
            bad = (~error.difference_by_row.isfinite()).nonzero().flatten()
            return Checked(f"{_title(name)} is not finite, {_place(name, bad, errors, tokens_n)}", None, name)
    weight_gradients = [error.truth for name, error in errors.items() if name not in ("output", "input")]
    floor = NEARLY_ZERO * max(weight_gradients, default=0.0)
    worst_tensor, worst, scale = "output", 0.0, 0.0
    for name, error in errors.items():
        norm = error.truth if name == "output" else max(error.truth, floor, uncancelled.get(name, 0.0))
        if norm == 0 and error.difference > 0:
            bad = error.difference_by_row.nonzero().flatten()
            return Checked(f"{_title(name)} must be zero and is not, {_place(name, bad, errors, tokens_n)}", None, name)
        relative = error.difference / norm if norm else 0.0
        if relative > worst:
            worst_tensor, worst, scale = name, relative, norm
    if worst <= tolerance:
        return Checked("", worst, worst_tensor)
    error = errors[worst_tensor]
    # a row counts as wrong against its own norm or, where that is small, against the share of an average row
    allowed_R = tolerance * error.truth_by_row.clamp_min(scale / len(error.truth_by_row) ** 0.5)
    bad = (error.difference_by_row > allowed_R).nonzero().flatten()
    if not len(bad):  # every row is a little wrong
        bad = error.difference_by_row.argmax().reshape(1)
    return Checked(
        f"{_title(worst_tensor)} is off by {worst:.2g} of its norm where {tolerance:.2g} is allowed, "
        f"{_place(worst_tensor, bad, errors, tokens_n)}",
        worst,
        worst_tensor,
    )


def _title(name: str) -> str:
    return name if name == "output" else f"gradient of {name}"


def _place(name: str, bad: torch.Tensor, errors: Mapping[str, _Error], tokens_n: torch.Tensor) -> str:
    """Where a tensor is wrong, for a person: ``first at token 17 (3 of 512 tokens)``."""
    first, num_rows = int(bad[0]), len(errors[name].truth_by_row)
    row = "token" if name in ("output", "input") else "row" if name.startswith("shared_") else "expert"
    if name == "output":
        first = int(tokens_n[first])
    return f"first at {row} {first} ({len(bad)} of {num_rows} {row}s)"
