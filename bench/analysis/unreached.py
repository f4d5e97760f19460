"""The cases of a run that were never begun: their rows say so, and how to get them."""

from __future__ import annotations

from collections.abc import Container

from bench.config import parse_sweep
from bench.errors import RequestError
from bench.store.schema import CaseRecord, RunInfo, Status
from impls.registry import ENTRIES


def not_run(info: RunInfo, known: Container[str], at_unix_s: float) -> list[CaseRecord]:
    """One record for every case of the run's configuration that is not ``known``; none of them is in the log.

    Empty where the configuration gives no cases here: it names a device or a file that this machine does not have.

    Args:
        info: of the run.
        known: ids of the cases that have a record.
        at_unix_s: when the run ended.
    """
    try:
        cases = parse_sweep(info.config, source=info.source).cases
    except RequestError:
        return []
    return [
        CaseRecord(
            environment_hash=info.environment_hash,
            unix_time_s=at_unix_s,
            case=case,
            case_id=case.id,
            status=Status.NOT_RUN,
            reason=f"the run ended before its turn; moebench run --resume {info.run_id} goes on with it",
            semantics=ENTRIES[case.impl].semantics if case.impl in ENTRIES else "moe",
        )
        for case in cases
        if case.id not in known
    ]
