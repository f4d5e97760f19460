"""Runs probes of the conformance battery, one after the other; every outcome is written down as soon as it is known.

So a probe that ends the process costs itself only: the runner reads what is there and goes on behind it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.conformance.battery import Outcome, Probe
from bench.runner.jobs.failures import failed
from bench.runner.jobs.probing import run_probe
from bench.runner.protocol import Announce, Answer, ConformJob
from bench.runner.session import short_workload


def conform(job: ConformJob, announce: Callable[[Announce], None]) -> Answer:
    """Append one line to ``job.file`` for every probe; the outcomes are there, the answer is empty."""
    for number, probe in enumerate(job.probes):
        announce(Announce(case_id=str(number), what=probe.label))
        with tempfile.TemporaryDirectory(dir=Path(job.file).parent) as folder, Path(job.file).open("a") as file:
            file.write(_outcome(job.impl, probe, Path(folder)).model_dump_json() + "\n")
    return Answer()


def _outcome(impl: str, probe: Probe, folder: Path) -> Outcome:
    try:
        return run_probe(impl, probe, folder)
    except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this probe's outcome
        answer = failed(error)
        where = short_workload(probe.workload)
        if answer.status.value == "wrong_result":
            return Outcome(label=probe.label, status="wrong", where=where, faults=[answer.reason])
        return Outcome(label=probe.label, status="error", where=where, reason=answer.reason)
