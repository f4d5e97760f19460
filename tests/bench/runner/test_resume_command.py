"""Going on with a run from the command line, in the time that the user gives it now."""

from functools import partial
from pathlib import Path

import pytest
from forked_servers import fork_servers

from bench import cli
from bench.errors import Exit
from bench.runner import sweep as runner
from bench.store.log import read_run
from bench.store.schema import NoteRecord, SamplesRecord

SMALL = ("--impl", "loop,grouped", "--set", "layer.capacity_factor=none", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_servers(monkeypatch, tmp_path)
    monkeypatch.setattr(runner, "run_sweep", partial(runner.run_sweep, jobs="fake_jobs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cut_run(capsys: pytest.CaptureFixture[str]) -> Path:
    """A run whose budget is less than a server is thought to need for its start: nothing is timed."""
    assert cli.main(["run", "smoke", *SMALL, "--budget", "1s", "--quiet"]) == Exit.FAILED
    return Path(capsys.readouterr().out.strip())


def events(folder: Path) -> list[str]:
    return [record.event for record in read_run(folder).records if isinstance(record, NoteRecord)]


def test_a_spent_run_goes_on_with_another_budget(cut_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_run(cut_run)
    assert events(cut_run) == ["started", "budget_spent"]
    assert cli.main(["run", "--resume", cut_run.name, "--budget", "5m"]) == Exit.OK
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(cut_run)
    after = read_run(cut_run)
    assert after.info == before.info, "what was asked for at first stays on record"
    assert after.records[: len(before.records)] == before.records
    assert events(cut_run) == ["started", "budget_spent", "resumed", "finished"]
    assert {record.replicate for record in after.records if isinstance(record, SamplesRecord)} >= set(range(6))


def test_without_another_budget_it_has_its_own_again(cut_run: Path) -> None:
    assert cli.main(["run", "--resume", "latest", "--quiet"]) == Exit.FAILED
    assert events(cut_run) == ["started", "budget_spent", "resumed", "budget_spent"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "soon"), "should be a duration"),
        (("--budget", "5m", "--tokens", "8"), "takes only another --budget: leave out workload.num_tokens"),
        (("smoke", "--budget", "5m"), "leave out smoke"),
    ],
)
def test_nothing_else_can_be_changed(
    cut_run: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    before = (cut_run / "measurements.jsonl").read_bytes()
    assert cli.main(["run", "--resume", str(cut_run), *options]) == Exit.CANNOT
    assert words in capsys.readouterr().err
    assert (cut_run / "measurements.jsonl").read_bytes() == before
