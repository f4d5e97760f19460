"""``moebench doctor``: what this machine can measure, what would disturb it, and how small a difference it can show."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench import environment, units
from bench.console import make_progress
from bench.errors import Exit, RequestError
from bench.gpus import why_no_cuda
from bench.measure.probe import Capability, probe
from bench.surroundings import Finding, look_around

if TYPE_CHECKING:  # the statistics load scipy, which is not needed without the self-test
    from bench.analysis.interval import Estimate
    from bench.analysis.model import Control
    from bench.selftest import Outlook, SelfTest


def doctor_command(*, self_test: bool, budget: str, device: str, as_json: bool) -> int:
    """Print what was found; disturbances are advice, only a failed self-test is a failure.

    Raises:
        RequestError: the budget is no duration or too short, or there is no such device.
    """
    budget_s, chosen = _seconds(budget), _device(device)
    machine, capabilities, findings = environment.machine_key(), probe(), look_around()
    if not as_json:
        print(f"{machine}\n")
        print("What can be measured here:")
        print("\n".join(map(_capability_line, capabilities)))
        print("\nWhat would disturb it:")
        print("\n".join(map(_finding_line, findings)), flush=True)
    found = _self_test(chosen, budget_s) if self_test else None
    if as_json:
        document = {
            "machine": machine,
            "capabilities": [asdict(capability) for capability in capabilities],
            "disturbances": [asdict(finding) for finding in findings],
            "self_test": None if found is None else asdict(found) | {"failure": found.failure},
        }
        print(json.dumps(document, indent=1))
    elif found is not None:
        print("\n".join(["", *describe(found)]))
    return Exit.OK if found is None or not found.failure else Exit.FAILED


def describe(found: SelfTest) -> list[str]:
    """The self-test in lines."""
    where = f"{found.device}, {found.threads} thread{'s' * (found.threads != 1)}"
    duration = units.duration(found.wall_s)
    lines = [f"What it can show ({found.num_processes} fresh processes in {duration}, {where}):"]
    if found.steal_share:
        lines.append(f"  the hypervisor gave {units.percent(found.steal_share)} of this time to others")
    lines += [f"  failed   {found.failure}"] if found.failure else _passed(found.control)
    if found.outlook:
        lines.append(
            "  smallest slowdown that is found nine times in ten, for one comparison of code as steady as this:"
        )
        lines += [f"    {_outlook_line(outlook)}" for outlook in found.outlook]
    return lines


def _passed(control: Control) -> list[str]:
    assert control.twin is not None
    assert control.slowed is not None
    assert control.planted_slowdown is not None
    assert control.noise_floor is not None
    return [
        f"  passed   identical code: {_change(control.twin)}: no difference is claimed",
        f"  passed   planted slowdown of {units.percent(control.planted_slowdown)}: {_change(control.slowed)}: found",
        f"  noise floor: ±{units.percent(control.noise_floor)}",
    ]


def _change(ratio: Estimate) -> str:
    low, high = (units.signed_percent(end - 1) for end in (ratio.low, ratio.high))
    return f"measured {units.signed_percent(ratio.value - 1)} (95 % interval {low} to {high})"


def _outlook_line(outlook: Outlook) -> str:
    head = f"{units.duration(outlook.budget_s):>7}, {outlook.num_processes:4} processes: "
    if outlook.effect is None or outlook.effect_low is None or outlook.effect_high is None:
        return f"{head}too few for a verdict"
    low, high = units.percent(outlook.effect_low), units.percent(outlook.effect_high)
    return f"{head}{units.percent(outlook.effect)} (between {low} and {high}, as far as the spread is known)"


def _self_test(device: str, budget_s: float) -> SelfTest:
    from bench.selftest import run_self_test

    progress = make_progress(quiet=False)
    try:
        found = run_self_test(device, environment.usable_cores(), budget_s=budget_s, progress=progress)
    finally:
        progress.stop()
    _warn(found.warnings)
    return found


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)


def _seconds(budget: str) -> float:
    try:
        return units.parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"--budget {budget}: {error}") from None


def _device(device: str) -> str:
    reason = None if device == "cpu" else why_no_cuda()
    if device == "cuda" and reason:
        raise RequestError(f"--device cuda: {reason}; 'cpu' and 'auto' work here")
    return "cpu" if device == "cpu" or reason else "cuda"


def _capability_line(capability: Capability) -> str:
    if capability.ok:
        return f"  yes      {capability.name}: {capability.detail}"
    return f"  no       {capability.name}: {capability.code}: {capability.detail}"


def _finding_line(finding: Finding) -> str:
    mark = {True: "disturbs", False: "fine", None: "unknown"}[finding.disturbs]
    step = f". {finding.next_step}" if finding.next_step else ""
    return f"  {mark:8} {finding.name}: {finding.evidence}{step}"
