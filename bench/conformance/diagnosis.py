"""What is wrong with a result, in words: which tensor, where first, how much, and what such a pattern comes from.

T tokens, D d_model, E experts, K choices of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.check import NEARLY_ZERO, Checked
from bench.conformance.suspects import Scene, factor, suspect
from impls.routing import Routing

if TYPE_CHECKING:  # the jobs import this
    from bench.runner.jobs.shared import Shared
    from bench.runner.jobs.truth import StoredTruth


@dataclass(slots=True)
class Diagnosis:
    """Sentences.

    Attributes:
        faults: what differs, where and how much.
        causes: what it points to.
    """

    faults: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)


def diagnose(
    output: object,
    gradients: Mapping[str, Tensor | None],
    truth: StoredTruth,
    truth_gradients: Mapping[str, Tensor],
    shared: Shared,
    routing: Routing | None,
    checked: Checked,
    tolerance: float,
) -> Diagnosis:
    """Say what is wrong with a result that was found wrong.

    Args:
        output: what the layer gave, (T, D) if it is right in form.
        gradients: what it gave, by name; None is zero.
        truth: the right output.
        truth_gradients: the right gradients, of those that are judged.
        shared: the workload's tensors.
        routing: the right routing; None for what does not route.
        checked: the check's own verdict, for what has no numbers to compare.
        tolerance: the relative error that this layer may have here.
    """
    wanted = {"output": truth.output, **truth_gradients}
    found: dict[str, Tensor] = {}
    for name, right in wanted.items():
        given = output if name == "output" else gradients[name]
        given = torch.zeros(()).expand(right.shape) if given is None and name != "output" else given
        if not isinstance(given, Tensor) or given.shape != right.shape:
            return Diagnosis([checked.fault])
        found[name] = given.detach().to("cpu", torch.float64)
    if any(not tensor.isfinite().all() for tensor in found.values()):
        return Diagnosis([checked.fault], ["rows that nobody wrote are read, or something is divided by zero"])
    weight_norms = [float(g.norm()) for name, g in truth_gradients.items() if name != "input"]
    floor = NEARLY_ZERO * max(weight_norms, default=0.0)
    diagnosis = Diagnosis()
    wrong: list[str] = []
    for name, right in wanted.items():
        scale = float(right.norm())
        if name != "output":
            scale = max(scale, floor, truth.uncancelled.get(name, 0.0))
        error = float((found[name] - right).norm())
        if error > tolerance * scale:
            wrong.append(name)
            relative = (
                f"off by {error / scale:.2g} of its norm where {tolerance:.2g} is allowed" if scale else "not zero"
            )
            rows = _wrong_rows(found[name], right, tolerance, scale)
            place = _place(name, rows, found[name], right, routing, tolerance * scale)
            diagnosis.faults.append(f"{_title(name)} is {relative}: {place}")
    if not wrong:  # a fault of form, of which the check alone knows
        return Diagnosis([checked.fault])
    if "output" in wrong:
        diagnosis.causes += _output_causes(found["output"], truth, shared, routing, tolerance)
    else:
        if len(wrong) < len(wanted):
            diagnosis.faults.append(f"the output is right, and so is {_list(set(wanted) - set(wrong) - {'output'})}")
        diagnosis.causes += [_gradient_cause(name, found[name], wanted[name], tolerance, shared) for name in wrong]
    diagnosis.causes = [cause for cause in diagnosis.causes if cause]
    return diagnosis


def _title(name: str) -> str:
    return "the output" if name == "output" else f"the gradient of {name}"


def _list(names: set[str]) -> str:
    return "the gradient of " + ", ".join(sorted(names)) if names else "nothing else"


def _wrong_rows(found: Tensor, right: Tensor, tolerance: float, scale: float) -> Tensor:
    """Rows that differ by more than their share."""
    rows = len(right)
    difference_R = (found - right).reshape(rows, -1).norm(dim=1)
    allowed_R = tolerance * right.reshape(rows, -1).norm(dim=1).clamp_min(scale / max(1, rows) ** 0.5)
    wrong: Tensor = (difference_R > allowed_R).nonzero().flatten()
    return wrong if len(wrong) else difference_R.argmax().reshape(1)


def _place(name: str, rows: Tensor, found: Tensor, right: Tensor, routing: Routing | None, allowed: float) -> str:
    first, count = int(rows[0]), len(right)
    if name in ("output", "input"):
        text = f"{len(rows)} of {count} tokens, the first is token {first}"
        return text if routing is None else f"{text} ({_experts_of(first, routing)})"
    if right.dim() < 3 and not name.endswith(("_bias", "router_weight")):
        return f"{len(rows)} of {count} rows, the first is row {first}"
    text = f"{len(rows)} of {count} experts, the first is expert {first}"
    if right.dim() == 3:
        difference_R = (found[first] - right[first]).norm(dim=1)
        wrong = (difference_R > allowed / max(1, right[0].shape[0] * count) ** 0.5).nonzero().flatten()
        row = int(wrong[0]) if len(wrong) else int(difference_R.argmax())
        text += f", from its row {row} on ({len(wrong) or 1} of {len(difference_R)} rows)"
    return text


def _experts_of(token: int, routing: Routing) -> str:
    ids = routing.expert_ids[token].tolist()
    kept = routing.kept[token].tolist()
    used = [str(e) for e, k in zip(ids, kept, strict=True) if k]
    dropped = [str(e) for e, k in zip(ids, kept, strict=True) if not k]
    words = [f"expert{'s' * (len(used) > 1)} {' and '.join(used)}" if used else "no expert"]
    if dropped and len(dropped) <= 4:
        words.append(f"dropped by {' and '.join(dropped)}")
    return ", ".join(words)


def _output_causes(
    found_TD: Tensor, truth: StoredTruth, shared: Shared, routing: Routing | None, tolerance: float
) -> list[str]:
    if routing is None:
        return []
    scene = Scene(shared.workload.layer, shared.weights, shared.x.detach().double(), truth.output, routing)
    with torch.no_grad():
        if sentence := suspect(scene, found_TD, tolerance):
            return [sentence]
    rows = _wrong_rows(found_TD, truth.output, tolerance, float(truth.output.norm()))
    wrong_T = torch.zeros(len(truth.output), dtype=torch.bool).index_fill(0, rows, True)
    dropped_T = (~routing.kept).any(1)
    if dropped_T.any() and torch.equal(wrong_T, dropped_T):
        return ["only tokens with a dropped assignment are wrong: what is past the capacity must add nothing"]
    for expert in range(routing.num_experts):
        used_T = ((routing.expert_ids == expert) & routing.kept).any(1)
        if used_T.any() and not used_T.all() and torch.equal(wrong_T, used_T):
            which = " (the last)" if expert == routing.num_experts - 1 else ""
            return [f"only tokens of expert {expert}{which} are wrong"]
    if dropped_T.any() and wrong_T[int(dropped_T.nonzero()[0]) :].all() and not wrong_T[: int(rows[0])].any():
        return ["every token from the first dropped one on is wrong: dropping shifts the rows of those that follow"]
    return []


def _gradient_cause(name: str, found: Tensor, right: Tensor, tolerance: float, shared: Shared) -> str:
    if not found.any():
        why = "the routing weights are cut off" if name.startswith("router_") else "it is cut off from the graph"
        return f"the gradient of {name} never arrives: {why} (`detach`, `.data`, `no_grad`, or a copy of the tensor)"
    scale = float((found * right).sum() / right.square().sum())
    if float((found - scale * right).norm()) <= 2 * tolerance * float(right.norm()):
        return f"the gradient of {name} is {factor(scale)} times the right one"
    if right.dim() == 3 and shared.workload.layer.gated and name.startswith("gate_up"):
        halves = [(found[:, part] - right[:, part]).norm() > 4 * tolerance * right[:, part].norm()
                  for part in (slice(0, right.shape[1] // 2), slice(right.shape[1] // 2, None))]  # fmt: skip
        if bool(halves[0]) != bool(halves[1]):
            return f"only the {'gate' if halves[0] else 'up'} half of {name} has a wrong gradient"
    return ""
