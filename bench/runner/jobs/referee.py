"""Checks what two versions returned: each against the float64 truth, and one against the other.

The versions are foreign code in processes of their own; what they stored is read here, in another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from bench.cases import Workload
from bench.check import check_result
from bench.routing_check import routing_fault
from bench.runner.jobs.mapped import read_tensors
from bench.runner.jobs.shared import INPUTS, WEIGHT_PREFIX
from bench.runner.jobs.truth import read_truth
from bench.runner.protocol import Announce, Answer, RefereeJob, VersionResult


class Checked(BaseModel):
    """What is wrong with a result (empty where it is right), and how far it is from the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: str
    relative_error: float | None


class Findings(BaseModel):
    """Every result's check, and how far the second's output is from the first's; None where there is no second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checked: list[Checked]
    difference: float | None


def judge_results(job: RefereeJob, announce: Callable[[Announce], None]) -> Answer:
    """Check the results of one case, and write the :class:`Findings` to ``job.file``."""
    announce(Announce(what="check of both results"))
    # stored by foreign code: only tensors are read, nothing is run
    found = [torch.load(result.file, weights_only=True, map_location="cpu") for result in job.results]
    checked = [_checked(job, result, tensors) for result, tensors in zip(job.results, found, strict=True)]
    difference = None
    if len(found) == 2 and found[0]["output"].shape == found[1]["output"].shape:
        first, second = (tensors["output"].double() for tensors in found)
        norm = float(first.norm())
        difference = float((second - first).norm()) / norm if norm else float((second - first).norm())
    Path(job.file).write_text(Findings(checked=checked, difference=difference).model_dump_json())
    return Answer()


def _checked(job: RefereeJob, result: VersionResult, tensors: Mapping[str, torch.Tensor]) -> Checked:
    folder = Path(job.folder)
    inputs, truth = read_tensors(folder, INPUTS).tensors, read_truth(folder, result.semantics)
    if fault := _misrouted(job.workload, inputs, tensors):
        return Checked(fault=fault, relative_error=None)
    outcome = check_result(
        tensors["output"],
        {name: tensors.get(name) for name in truth.gradients},
        truth_output_nD=truth.output,
        truth_gradients=truth.gradients,
        tokens_n=truth.tokens,
        like_TD=inputs["tokens"],
        uncancelled=truth.uncancelled,
        # a version from before inexact layers stated one: nearer to the truth than zero is
        tolerance=None if result.exact else result.tolerance or 1.0,
    )
    return Checked(fault=outcome.fault, relative_error=outcome.relative_error)


def _misrouted(workload: Workload, inputs: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with a version's own routing, by value as in qualification; empty where it does not route."""
    if "routing.expert_ids" not in tensors:
        return ""
    ids_TK = tensors["routing.expert_ids"]
    if "expert_ids" in inputs:
        follows = torch.equal(ids_TK, inputs["expert_ids"])
        return "" if follows else "its routing does not follow the expert ids that it was given"
    weights = {name.removeprefix(WEIGHT_PREFIX): t for name, t in inputs.items() if name.startswith(WEIGHT_PREFIX)}
    return routing_fault(workload.layer, weights, inputs["tokens"], ids_TK, tensors["routing.kept"])
