"""Checks what two versions returned: each against the float64 truth, and one against the other.

Run in a process of its own, ``python -P -m bench.comparing.referee``, because the harness itself loads no torch: the
request is JSON on standard input, the answer JSON on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from bench.check import check_result
from bench.runner.jobs.mapped import read_tensors
from bench.runner.jobs.shared import INPUTS
from bench.runner.jobs.truth import read_truth


class Result(BaseModel):
    """Where one version stored its result, and what it says of its own exactness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    semantics: str
    exact: bool
    tolerance: float | None = None


class Request(BaseModel):
    """What to check.

    Attributes:
        folder: the workload's files, with the truth.
        results: one or two of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    results: list[Result]


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


def judge_results(request: Request) -> Findings:
    """Check the results of one case."""
    folder = Path(request.folder)
    tokens_TD = read_tensors(folder, INPUTS).tensors["tokens"]
    # stored by foreign code: only tensors are read, nothing is run
    found: list[dict[str, Any]] = [
        torch.load(result.file, weights_only=True, map_location="cpu") for result in request.results
    ]
    checked = []
    for result, tensors in zip(request.results, found, strict=True):
        truth = read_truth(folder, result.semantics)
        outcome = check_result(
            tensors["output"],
            {name: tensors.get(name) for name in truth.gradients},
            truth_output_nD=truth.output,
            truth_gradients=truth.gradients,
            tokens_n=truth.tokens,
            like_TD=tokens_TD,
            uncancelled=truth.uncancelled,
            # a version from before inexact layers stated one: nearer to the truth than zero is
            tolerance=None if result.exact else result.tolerance or 1.0,
        )
        checked.append(Checked(fault=outcome.fault, relative_error=outcome.relative_error))
    difference = None
    if len(found) == 2 and found[0]["output"].shape == found[1]["output"].shape:
        first, second = (tensors["output"].double() for tensors in found)
        norm = float(first.norm())
        difference = float((second - first).norm()) / norm if norm else float((second - first).norm())
    return Findings(checked=checked, difference=difference)


if __name__ == "__main__":
    print(judge_results(Request.model_validate(json.load(sys.stdin))).model_dump_json())
