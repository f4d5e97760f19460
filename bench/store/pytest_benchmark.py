"""Reads a JSON file of pytest-benchmark that the suites in ``bench/suites`` wrote, as the log of a run is read.

pytest-benchmark times one implementation after the other, all in one process. So each case becomes samples of its own
with the replicate 0: nothing was ever paired, one process stands behind every number, and no control was run. From
such records the analysis gives latencies and no verdict, and the run carries a warning that says so.

What the suites add to the file is described by the models below, so that writer and reader cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import ResultsError
from bench.store.log import MAX_WARNINGS, Run, first_fault
from bench.store.schema import (
    SCHEMA_VERSION,
    AnyRecord,
    Arm,
    CaseRecord,
    Disturbance,
    NoteRecord,
    RunInfo,
    SamplesRecord,
    Status,
)

KEY = "moebench"
"""Where :class:`SuiteInfo` stands in the file."""
SOURCE = "pytest-benchmark"
"""`RunInfo.source` of such a run, by which reports know it."""
MAX_FILE_BYTES = 256 * 1024 * 1024
NO_VERDICTS = (
    "pytest-benchmark timed the implementations one after the other in one process, so nothing here is a verdict: "
    "measured like that, identical code was called changed in up to 82 % of cases on a noisy two-core virtual "
    "machine (docs/measuring.md). `moebench run` times the same cases in interleaved rounds over several processes and "
    "can decide."
)


class LoopInfo(BaseModel):
    """What happened around pytest-benchmark's loop over one case.

    Attributes:
        wall_s: seconds of the whole loop, calibration and warm-up included.
        steady: whether its samples show no trend; None where they are too few to tell.
        disturbance: what else happened on the machine meanwhile.
    """

    wall_s: float = Field(ge=0, allow_inf_nan=False)
    steady: bool | None
    disturbance: Disturbance


class ExtraInfo(BaseModel):
    """``extra_info`` of one benchmark.

    Attributes:
        case_id: id of the case, the same as in a run of moebench.
        peak_memory_bytes: peak of allocated bytes above what existed before the call; null with its reason in
            ``record.qualified.gaps``.
        tokens_per_s: tokens of one call over the median; null where benchmarks were disabled.
        dropped_fraction: share of the assignments past their expert's capacity; null for layers that do not route.
        record: the full case and everything that was found before it was timed.
        loop: of the timing; null where benchmarks were disabled.
    """

    case_id: str
    peak_memory_bytes: int | None
    tokens_per_s: float | None
    dropped_fraction: float | None
    record: CaseRecord
    loop: LoopInfo | None


class SuiteInfo(BaseModel):
    """What the file says of the whole session.

    Attributes:
        schema_version: refused by readers when newer than their own.
        run: as ``run.json`` of a run.
        not_timed: cases that were skipped or failed.
    """

    schema_version: int = SCHEMA_VERSION
    run: RunInfo
    not_timed: list[CaseRecord]


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Stats(BaseModel):
    data: list[Seconds] | None = None
    iterations: int = Field(ge=1)


class _Benchmark(BaseModel):
    """The fields of pytest-benchmark's own that are read; ``stats.data`` are seconds of one call, one value a round."""

    model_config = ConfigDict(extra="ignore")

    extra_info: ExtraInfo
    stats: _Stats


def read_pytest_benchmark(path: Path) -> Run:
    """The file as a run: its information, records and warnings, ready for :func:`bench.analysis.loading.analyse`.

    Raises:
        ResultsError: the file cannot be read, is no file of pytest-benchmark, or holds nothing that the suites timed.
    """
    document = _read(path)
    suite = _suite(path, document)
    faults: list[str] = []
    timed = [record for entry in document["benchmarks"] for record in _records(path, entry, faults)]
    if not timed and not suite.not_timed:
        raise ResultsError("\n".join([f"{path} holds no case of bench/suites that can be shown", *faults]))
    if len(faults) > MAX_WARNINGS:
        faults[MAX_WARNINGS:] = [f"{path}: {len(faults) - MAX_WARNINGS} more benchmarks like these"]
    run = suite.run
    last_s = max(record.unix_time_s for record in [*timed, *suite.not_timed])

    def note(event: Any, unix_time_s: float, text: str = "") -> NoteRecord:
        return NoteRecord(environment_hash=run.environment_hash, unix_time_s=unix_time_s, event=event, text=text)

    records = [
        note("started", run.created_unix_s),
        note("warning", run.created_unix_s, NO_VERDICTS),
        *suite.not_timed,
        *timed,
        note("finished", last_s),
    ]
    return Run(run, records, faults)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ResultsError(
                f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: not read; measure fewer cases a file"
            )
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not valid JSON: {error}; was it edited or copied half?") from None
    found = type(document).__name__ if not isinstance(document, dict) else f"keys {', '.join(list(document)[:5])}"
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise ResultsError(f"{path} is not a file of pytest-benchmark: found {found}; --benchmark-json writes one")
    return document


def _suite(path: Path, document: dict[str, Any]) -> SuiteInfo:
    info = document.get(KEY)
    if not isinstance(info, dict):
        raise ResultsError(
            f"{path} holds {len(document['benchmarks'])} benchmarks and nothing of moebench: only what "
            "`pytest bench/suites --benchmark-json FILE` writes says which layers were timed"
        )
    version = info.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ResultsError(
            f"{path} has schema_version {version}, this moebench reads up to {SCHEMA_VERSION}: update moebench"
        )
    try:
        suite = SuiteInfo.model_validate(info)
    except ValidationError as error:
        raise ResultsError(f"{path}: what bench/suites wrote under {KEY!r} is damaged: {first_fault(error)}") from None
    if wrong := [record.case_id for record in suite.not_timed if record.status is Status.OK]:
        raise ResultsError(f"{path}: case {wrong[0]} is listed as not timed, yet its status is ok")
    return suite


def _records(path: Path, entry: Any, faults: list[str]) -> Iterator[AnyRecord]:
    """The case and its samples, or a fault that says why this benchmark is left out."""
    name = entry.get("fullname", "without a name") if isinstance(entry, dict) else "that is no object"
    extra = entry.get("extra_info") if isinstance(entry, dict) else None
    where = f"{path}: benchmark {name} is left out:"
    if not isinstance(extra, dict) or "record" not in extra:
        faults.append(f"{where} it is not of bench/suites")
        return
    try:
        benchmark = _Benchmark.model_validate(entry)
    except ValidationError as error:
        faults.append(f"{where} {first_fault(error)}")
        return
    info, stats = benchmark.extra_info, benchmark.stats
    if not stats.data or info.loop is None:
        faults.append(f"{where} it has no raw timings; write it with --benchmark-json, or add --benchmark-save-data")
    elif info.record.status is not Status.OK or info.case_id != info.record.case_id:
        faults.append(f"{where} it is timed as case {info.case_id}, yet its record says {info.record.status}")
    else:
        record = info.record
        arm = Arm(latency_s=stats.data, warmup_s=[], inner_calls=stats.iterations, steady=info.loop.steady)
        yield record
        yield SamplesRecord(
            environment_hash=record.environment_hash,
            unix_time_s=record.unix_time_s + info.loop.wall_s,
            workload_id=record.case.workload.id,
            replicate=0,
            arms={record.case_id: arm},
            order_seed=0,
            wall_s=info.loop.wall_s,
            disturbance=info.loop.disturbance,
        )
