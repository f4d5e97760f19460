"""A disk that is full, a folder that cannot be written: a clear message, and everything so far is kept."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_sweep import make_sweep
from forked_servers import fork_servers

from bench.errors import ResultsError
from bench.runner.progress import Silent
from bench.runner.sweep import RunOutcome, run_sweep
from bench.store.log import find_runs, read_run
from bench.store.schema import NoteRecord, Status

SWEEP = make_sweep(["ok", "loop"], 8, processes=2)


@pytest.fixture(autouse=True)
def _quick_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fork_servers(monkeypatch, tmp_path)
    monkeypatch.delenv("FAKE_JOBS_TRACE")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB; where nobody may mount one, the test skips."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mounted(place, "-t", "tmpfs", "-o", "size=32k", "tmpfs"):
        pytest.skip("mounting a small file system needs privileges")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def mounted(place: Path, *options: str) -> bool:
    try:
        return subprocess.run(["mount", *options, str(place)], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def run(results: Path, resume: Path | None = None) -> RunOutcome:
    return run_sweep(SWEEP, results=results, command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs")


def check_kept(results: Path) -> Path:
    """The run's folder: whole lines only, and some of them."""
    (found,) = find_runs(results)
    kept = read_run(found.folder)
    assert len(kept.records) > 5
    assert not kept.warnings
    return found.folder


def check_goes_on(folder: Path) -> None:
    before = read_run(folder).records
    outcome = run(folder.parents[1], folder)
    after = read_run(folder).records
    assert after[: len(before)] == before
    assert outcome.statuses == {Status.OK: 16}
    assert [record.event for record in after if isinstance(record, NoteRecord)] == ["started", "resumed", "finished"]


def test_a_disk_that_fills_up_in_the_middle_of_a_run_keeps_what_was_measured(small_disk: Path) -> None:
    with pytest.raises(ResultsError, match=r"cannot write: (No space left|only \d+ of).*kept, --resume goes on"):
        run(small_disk)
    folder = check_kept(small_disk)
    assert mounted(small_disk, "-o", "remount,size=4m")
    check_goes_on(folder)


def test_a_limit_on_files_in_the_middle_of_a_run_keeps_what_was_measured(tmp_path: Path) -> None:
    """The same for those who may not mount: a file that cannot grow any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResultsError, match=r"cannot write: (File too large|only \d+ of).*kept, --resume goes on"):
            run(tmp_path / "results")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_goes_on(check_kept(tmp_path / "results"))


def test_a_disk_that_is_full_from_the_beginning_leaves_nothing_that_looks_like_a_run(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 28 * 1024)
    with pytest.raises(ResultsError, match=r"No space left.*choose another folder with --results"):
        run(small_disk / "results")
    assert not find_runs(small_disk / "results")


def read_only(place: Path) -> None:
    """Let nobody write below ``place``: root is not held by permissions, only by the mount."""
    if os.geteuid() == 0:
        assert mounted(place, "-o", "remount,ro")
    else:
        for folder in (*place.rglob("*"), place):
            folder.chmod(0o500 if folder.is_dir() else 0o400)


def test_a_folder_that_is_read_only_says_so_before_anything_is_measured(small_disk: Path) -> None:
    read_only(small_disk)
    with pytest.raises(
        ResultsError, match=r"cannot write: (Read-only|Permission).*choose another folder with --results"
    ):
        run(small_disk / "results")


def test_a_run_in_a_folder_that_became_read_only_is_read_and_not_resumed(small_disk: Path) -> None:
    with pytest.raises(ResultsError):
        run(small_disk)
    folder = check_kept(small_disk)
    read_only(small_disk)
    with pytest.raises(ResultsError, match=r"(Read-only file system|Permission denied)"):
        run(small_disk, folder)
    check_kept(small_disk)
