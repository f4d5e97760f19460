import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.errors import ResultsError
from bench.store import log
from bench.store.schema import Arm, NoteRecord, RunInfo


def info(**changes: Any) -> RunInfo:
    fields: dict[str, Any] = {
        "run_id": "20261122-160455-quick-ab12",
        "machine": "some-cpu",
        "created_unix_s": 1.0,
        "command": ["moebench", "run"],
        "source": "quick",
        "config": {"layer": {"d_model": 8}},
        "seed": 0,
        "git_commit": None,
        "environment": {},
        "environment_hash": "e",
    }
    return RunInfo(**fields | changes)


def note(number: int) -> NoteRecord:
    return NoteRecord(environment_hash="e", unix_time_s=number, event="warning", text=f"número {number}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = log.create_run(tmp_path, info())
    for number in range(3):
        log.append(folder, note(number))
    return folder


def test_what_was_appended_is_read_back_in_order(folder: Path) -> None:
    assert log.read_run(folder) == (info(), [note(0), note(1), note(2)], [])


def test_a_log_cut_at_any_byte_reads_back_a_prefix_and_can_go_on(folder: Path) -> None:
    path = folder / log.LOG_FILE
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        num_whole = whole[:size].count(b"\n")
        torn = size > 0 and not whole[:size].endswith(b"\n")
        read = log.read_run(folder)
        assert read.records == [note(number) for number in range(num_whole)]
        assert len(read.warnings) == torn
        assert (log.mend(folder) > 0) == torn
        log.append(folder, note(9))
        assert log.read_run(folder) == (info(), [*(note(number) for number in range(num_whole)), note(9)], [])


def test_what_cannot_have_been_measured_is_not_read() -> None:
    good = {"latency_s": [1e-3], "warmup_s": []}
    Arm.model_validate(good)
    for wrong in ({"latency_s": [0.0]}, {"latency_s": [-1e-3]}, {"inner_calls": 0}):
        with pytest.raises(ValidationError):
            Arm.model_validate(good | wrong)


@pytest.mark.parametrize("name", ["../../elsewhere", "/abs", "a/b", "..", "", "a\nb", ".hidden"])
def test_a_run_cannot_name_a_folder_that_is_not_its_own(name: str) -> None:
    for field in ("run_id", "machine"):
        with pytest.raises(ValidationError):
            info(**{field: name})
    with pytest.raises(ValidationError):
        info(created_unix_s=float("nan"))


def test_a_torn_line_longer_than_a_block_is_mended(folder: Path) -> None:
    with (folder / log.LOG_FILE).open("ab") as file:
        file.write(b"x" * 200_000)
    assert log.mend(folder) == 200_000
    assert len(log.read_run(folder).records) == 3


@settings(max_examples=100, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=200).filter(lambda data: data.strip()))
def test_garbage_in_the_middle_costs_its_own_lines_only(
    garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = log.create_run(tmp_path_factory.mktemp("results"), info())
    log.append(folder, note(0))
    with (folder / log.LOG_FILE).open("ab") as file:
        file.write(garbage + b"\n")
    log.append(folder, note(1))
    read = log.read_run(folder)
    assert read.records == [note(0), note(1)]
    assert read.warnings
    assert "line 2" in read.warnings[0]


def test_many_bad_lines_are_not_listed_one_by_one(folder: Path) -> None:
    with (folder / log.LOG_FILE).open("ab") as file:
        file.write(b"bad\n" * 1000)
    warnings = log.read_run(folder).warnings
    assert len(warnings) == log.MAX_WARNINGS + 1
    assert "980 more" in warnings[-1]


def test_a_line_beyond_the_limit_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_LINE_BYTES", 1000)
    with (folder / log.LOG_FILE).open("ab") as file:
        file.write(b"y" * 3500 + b"\n")
    log.append(folder, note(3))
    read = log.read_run(folder)
    assert read.records[-1] == note(3)
    assert ["line 4 is longer" in warning for warning in read.warnings] == [True]


def test_a_newer_schema_is_refused_by_name(folder: Path) -> None:
    path = folder / log.RUN_FILE
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"schema_version": 99, "new_field": 1}))
    with pytest.raises(ResultsError, match=r"schema_version 99.*update moebench"):
        log.read_run(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "not a run.json of moebench"),
        (b"{}", "not a run.json of moebench: run_id"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_run_file_says_what_is_wrong(folder: Path, content: bytes, words: str) -> None:
    (folder / log.RUN_FILE).write_bytes(content)
    with pytest.raises(ResultsError, match=words):
        log.read_run(folder)


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    path = folder / log.RUN_FILE
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 0, "seed": 1'))
    with pytest.raises(ResultsError, match="the key 'seed' is there twice"):
        log.read_run(folder)


def test_a_log_of_a_version_1_run_is_read_whole() -> None:
    run = log.read_run(Path(__file__).parents[2] / "data" / "run-version-1")
    assert run.info.schema_version == 1
    assert run.warnings == []
    kinds = [record.kind for record in run.records]
    lines = (Path(__file__).parents[2] / "data" / "run-version-1" / log.LOG_FILE).read_bytes().count(b"\n")
    assert len(kinds) == lines
    assert set(kinds) == {"case", "samples", "control", "ceiling", "energy", "note"}


def test_millions_of_bad_lines_cost_no_memory(folder: Path) -> None:
    with (folder / log.LOG_FILE).open("ab") as file:
        file.write(b"\n" * 100_000)
    tracemalloc.start()
    warnings = log.read_run(folder).warnings
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(warnings) == log.MAX_WARNINGS + 1
    assert peak_bytes < 1_000_000


def test_folders_that_are_no_runs_say_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    (folder / log.LOG_FILE).unlink()
    for path, words in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "other", "not the folder of a run"),
        (folder, "measurements.jsonl is missing"),
    ):
        with pytest.raises(ResultsError, match=words):
            log.read_run(path)
    with pytest.raises(ResultsError):
        log.read_run(tmp_path / "file")


def test_a_run_is_not_written_over_another(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="in the way"):
        log.create_run(tmp_path, info())
    assert len(log.read_run(folder).records) == 3


def test_a_full_disk_keeps_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(ResultsError, match=r"is the disk full\?.*kept"):
        log.append(folder, note(3))
    monkeypatch.undo()
    assert log.read_run(folder) == (info(), [note(0), note(1), note(2)], [])


def test_a_full_device_is_a_results_error(folder: Path) -> None:
    (folder / log.LOG_FILE).unlink()
    (folder / log.LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(ResultsError, match="No space left"):
        log.append(folder, note(3))


def test_runs_are_found_oldest_first_with_those_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    later = log.create_run(tmp_path, info(run_id="20261123-000000-quick-cd34"))
    (later / log.RUN_FILE).write_text("torn")
    found = log.find_runs(tmp_path)
    assert [run.folder for run in found] == [folder, later]
    assert [run.info for run in found] == [info(), None]
    assert "not valid JSON" in found[1].problem
    assert log.find_runs(tmp_path / "some-cpu") == found
    assert log.find_runs(tmp_path / "absent") == []
