"""Measures what the hardware can do at best, for the workloads of a run, in one of its processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from bench.cases import Workload
from bench.runner.protocol import CeilingJob
from bench.runner.servers import ForkServer
from bench.runner.session import Session
from bench.store.schema import CeilingRecord, Status

Ceiling = tuple[str, str, str, int]
"""What is measured, on which device, in which number format, with how many threads."""


def ceilings_of(workloads: Iterable[Workload]) -> set[Ceiling]:
    """The ceilings that these workloads are held against; bandwidths do not depend on the number format."""
    wanted: set[Ceiling] = set()
    for place in workloads:
        wanted.add(("matmul", place.device, place.dtype, place.threads))
        wanted |= {(what, place.device, "float32", place.threads) for what in ("memory", "cache")}
    return wanted


def measure_ceilings(
    session: Session,
    server: ForkServer,
    replicate: int,
    wanted: Collection[Ceiling],
    share_s: float,
    left_s: Callable[[], float],
) -> None:
    """Measure and record the wanted ceilings that this replicate has not recorded yet.

    Args:
        session: of the run.
        server: where they are measured.
        replicate: its number.
        wanted: which ones.
        share_s: time for each.
        left_s: seconds until the end of the phase, for whoever looks on.
    """
    known = {(r.what, r.device, r.dtype, r.threads, r.replicate) for r in session.of_kind(CeilingRecord)}
    for what, device, dtype, threads in sorted(wanted):
        if (what, device, dtype, threads, replicate) in known:
            continue
        session.update("ceilings", f"{what} {dtype}", left_s())
        fields = {"what": what, "device": device, "dtype": dtype, "threads": threads}
        job = CeilingJob.model_validate(fields | {"time_budget_s": share_s})
        answer = server.execute(job, session.sweep.measure.timeout_s)
        if answer.status is Status.OK:
            session.record(
                CeilingRecord,
                replicate=replicate,
                per_s=answer.per_s,
                working_set_bytes=answer.working_set_bytes,
                **fields,
            )
        else:
            session.note("warning", f"the {what} ceiling of {device} was not measured: {answer.reason}")
