"""The log of a run: a folder with ``run.json`` and ``measurements.jsonl``, which survives a kill at any moment.

A record is one line, written by one ``write`` to a file opened for appending and synced to disk before :func:`append`
returns: a record that was appended is not lost, and a line without its newline was never finished. Such a torn last
line is a warning to readers, and :func:`mend` takes it away before a run goes on.

Readers trust nothing: every line is validated, a bad one is reported with its number and the others are kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from bench.errors import ResultsError
from bench.store.schema import SCHEMA_VERSION, AnyRecord, RunInfo, record_adapter

RUN_FILE = "run.json"
LOG_FILE = "measurements.jsonl"
MAX_RUN_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_LOG_BYTES = 4 * 1024 * 1024 * 1024
MAX_WARNINGS = 20
MAX_DIGITS = 19
_LONG_NUMBER = re.compile(rb"(?<![0-9.])[0-9]{%d}" % MAX_DIGITS)


class Run(NamedTuple):
    """A run as it was read.

    Attributes:
        info: ``run.json``.
        records: every valid record, in the order of the log.
        warnings: what could not be read, in sentences for the user.
    """

    info: RunInfo
    records: list[AnyRecord]
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run's folder, as a list of runs shows it.

    Attributes:
        folder: where it is.
        info: ``run.json``, or None where it cannot be read.
        problem: why it cannot be read; empty where it can.
    """

    folder: Path
    info: RunInfo | None
    problem: str = ""


def create_run(results: Path, info: RunInfo) -> Path:
    """Make the folder ``results/<machine>/<run_id>`` with ``run.json`` and an empty log.

    ``run.json`` appears whole or not at all.

    Raises:
        ResultsError: where the folder cannot be written, or the run exists already.
    """
    folder = results / info.machine / info.run_id
    try:
        folder.mkdir(parents=True)
        (folder / LOG_FILE).touch(exist_ok=False)
        partial = folder / f"{RUN_FILE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(info.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / RUN_FILE)
        for directory in (folder, folder.parent):
            _sync_directory(directory)
    except FileExistsError:
        raise ResultsError(
            f"{folder}: cannot create the run's folder, a file or folder of that name is in the way; "
            "choose another folder with --results"
        ) from None
    except OSError as error:
        raise ResultsError(
            f"{folder}: cannot create the run's folder: {error.strerror}; choose another folder with --results"
        ) from error
    return folder


def append(folder: Path, record: BaseModel) -> None:
    """Write one record to the end of the log, and return once it is on the disk.

    Raises:
        ResultsError: where it cannot be written; what was written of it is taken away again, the rest is untouched.
    """
    path = folder / LOG_FILE
    line = record.model_dump_json().encode() + b"\n"
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_append(path, error.strerror) from error
    try:
        size_bytes = os.fstat(log).st_size
        written = os.write(log, line)
        if written < len(line):
            os.ftruncate(log, size_bytes)
            raise _cannot_append(path, f"only {written} of {len(line)} bytes fit, is the disk full?")
        os.fsync(log)
    except OSError as error:
        raise _cannot_append(path, error.strerror) from error
    finally:
        os.close(log)


def read_info(folder: Path) -> RunInfo:
    """The run's ``run.json``.

    Raises:
        ResultsError: where it is missing, unreadable, not a run's, or newer than this moebench.
    """
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > MAX_RUN_BYTES:
            raise ResultsError(f"{path} is larger than {MAX_RUN_BYTES >> 20} MiB: not a {RUN_FILE} of moebench")
        text = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(_why_no_run(folder)) from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not valid JSON: {error}; was it edited or copied half?") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ResultsError(
            f"{path} has schema_version {version}, this moebench reads up to {SCHEMA_VERSION}: update moebench"
        )
    try:
        return RunInfo.model_validate_json(text)
    except ValidationError as error:
        raise ResultsError(f"{path} is not a {RUN_FILE} of moebench: {first_fault(error)}") from None


def read_run(folder: Path) -> Run:
    """The run's information, all its valid records in order, and warnings about what is not valid.

    Raises:
        ResultsError: as :func:`read_info`, or where the log is missing or unreadable.
    """
    info = read_info(folder)
    path = folder / LOG_FILE
    records: list[AnyRecord] = []
    faults = _Faults()
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            raise ResultsError(f"{path} is larger than {MAX_LOG_BYTES >> 30} GiB: not read")
        for number, line in _lines(path):
            if len(line) > MAX_LINE_BYTES:
                faults.add(f"{path}: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; it is left out")
            elif not line.endswith(b"\n"):
                faults.add(f"{path}: the last line ({number}) was cut short while it was written; it is left out")
            else:
                try:
                    records.append(_record(line))
                except (ValueError, RecursionError) as error:
                    why = first_fault(error) if isinstance(error, ValidationError) else error
                    faults.add(f"{path}: line {number} is not a valid record and is left out: {why}")
    except FileNotFoundError:
        raise ResultsError(f"{folder}: {RUN_FILE} is there but {LOG_FILE} is missing; nothing can be read") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    if faults.num_more:
        faults.told.append(f"{path}: {faults.num_more} more lines like these")
    return Run(info, records, faults.told)


def mend(folder: Path) -> int:
    """Take a torn last line away, so that a run can go on; gives the number of bytes that it had.

    Raises:
        ResultsError: where the log cannot be read or written.
    """
    path = folder / LOG_FILE
    try:
        with path.open("r+b") as log:
            size_bytes = end = log.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                log.seek(start)
                newline = log.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size_bytes:
                log.truncate(end)
                os.fsync(log.fileno())
            return size_bytes - end
    except OSError as error:
        raise ResultsError(f"{path}: cannot be mended: {error.strerror}") from error


def find_runs(results: Path) -> list[FoundRun]:
    """Every run under ``results``, oldest first; those that cannot be read say why.

    ``results`` may hold machines' folders, or be one machine's folder itself. A folder that is not there holds none.

    Raises:
        ResultsError: where ``results`` is there and cannot be listed.
    """
    try:
        files = [path for depth in ("*", "*/*", "*/*/*") for path in results.glob(f"{depth}/{RUN_FILE}")]
        if results.exists() and not os.access(results, os.R_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise ResultsError(f"{results}: cannot be listed: {error.strerror}") from error
    runs = []
    for folder in sorted((path.parent for path in files), key=lambda folder: folder.name):
        try:
            runs.append(FoundRun(folder, read_info(folder)))
        except ResultsError as error:
            runs.append(FoundRun(folder, None, str(error)))
    return runs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; of a line beyond the limit, only its beginning."""
    with path.open("rb") as log:
        number = 0
        while line := log.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                rest = log.readline(MAX_LINE_BYTES + 1)
                if len(rest) <= MAX_LINE_BYTES or rest.endswith(b"\n"):
                    break


class _Faults:
    """The first faults of a file, and the number of the others: a file can hold more bad lines than memory does."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.num_more = 0

    def add(self, text: str) -> None:
        if len(self.told) < MAX_WARNINGS:
            self.told.append(text)
        else:
            self.num_more += 1


def _record(line: bytes) -> AnyRecord:
    """The record of a line.

    Raises:
        ValueError: it is none; a line that is not just as :func:`append` writes it is looked at more closely.
    """
    record = record_adapter.validate_json(line)
    if _LONG_NUMBER.search(line) or record.model_dump_json().encode() != line.rstrip(b"\n"):
        json.loads(line, object_pairs_hook=_unique, parse_int=_bounded)
    return record


def _bounded(digits: str) -> int:
    """A whole number of a JSON document, which others than Python can hold too."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of a JSON document, in which no key may stand twice: readers would differ on which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a document is, and what it is."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _cannot_append(path: Path, why: str | None) -> ResultsError:
    return ResultsError(f"{path}: cannot write: {why}; everything measured before is kept, --resume goes on from there")


def _why_no_run(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder; `moebench list runs` shows the runs"
    if not folder.is_dir():
        return f"{folder} is a file; expected the folder of a run, which holds {RUN_FILE}"
    if not any(folder.iterdir()):
        return f"{folder} is empty: no run was written there"
    return f"{folder} holds no {RUN_FILE}: not the folder of a run (`moebench list runs` shows the runs)"


def _sync_directory(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
