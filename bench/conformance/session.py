"""Runs the battery in worker processes: what a crash, a hang or a lack of memory costs is one probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.conformance.battery import Outcome, Probe
from bench.runner.protocol import ConformJob
from bench.runner.scratch import Scratch
from bench.runner.servers import ForkServer
from bench.runner.session import short_workload
from bench.store.schema import Status

SILENCE_S = 30.0
"""A probe takes milliseconds; one that says nothing for so long hangs."""
MAX_DEATHS = 4
"""Every death costs a new process, which imports the implementation again; after so many the rest is not asked for."""

_ENDS = {Status.TIMEOUT: "timeout", Status.ERROR: "error"}


def run_battery(
    impl: str,
    probes: Sequence[Probe],
    server: ForkServer,
    *,
    silence_s: float = SILENCE_S,
    note: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """How every probe ended, in their order.

    Args:
        impl: the implementation.
        probes: what to check.
        server: forks the workers.
        silence_s: a probe that takes longer has hung.
        note: told every probe that ended the process.
    """
    outcomes: list[Outcome] = []
    deaths = 0
    with Scratch() as scratch:
        file = scratch.other("check") / "outcomes.jsonl"
        file.touch()
        while len(outcomes) < len(probes):
            todo = list(probes[len(outcomes) :])
            if deaths == MAX_DEATHS:
                reason = f"not asked: {MAX_DEATHS} probes before it ended their process"
                return outcomes + [_unknown(probe, "error", reason) for probe in todo]
            answer = server.execute(ConformJob(impl=impl, probes=todo, file=str(file)), silence_s)
            known = [Outcome.model_validate_json(line) for line in file.read_text().splitlines()]
            if len(known) == len(outcomes) + len(todo):
                return known
            outcomes = known
            deaths += 1
            died = _unknown(probes[len(outcomes)], _ENDS.get(answer.status, "crashed"), answer.reason)
            note(died)
            outcomes.append(died)
            file.write_text("".join(outcome.model_dump_json() + "\n" for outcome in outcomes))
    return outcomes


def _unknown(probe: Probe, status: str, reason: str) -> Outcome:
    where = short_workload(probe.workload)
    return Outcome.model_validate({"label": probe.label, "status": status, "where": where, "reason": reason})
