"""``moebench advise``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_maker import making

from bench import cli
from bench.errors import Exit
from bench.store import log


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def timed_run(true_s: dict[str, float], *, num_tokens: Sequence[int] = (64,)) -> None:
    """A run on disk in which these implementations have these latencies for so many tokens."""
    folder = log.create_run(Path("results"), making.info)
    runs = [making.run(making.workload(num_tokens=tokens), true_s, seed=tokens) for tokens in num_tokens]
    # one note of the beginning, one control, one note of the end
    records = [*runs[0][:-1], *(r for run in runs[1:] for r in run[1:-1] if r.kind != "control"), runs[0][-1]]
    for record in records:
        log.append(folder, record)


def test_advice_names_the_winner_its_certainty_and_what_others_cost(capsys: pytest.CaptureFixture[str]) -> None:
    timed_run({"loop": 2e-3, "grouped": 1e-3})
    assert cli.main(["advise", "--tokens", "64", "--memory-limit", "1GiB"]) == Exit.OK
    text = capsys.readouterr().out
    assert "use grouped, " in text
    assert "interval 1.9" in text or "interval 2.0" in text
    assert "choosing otherwise costs: loop 2.0" in text or "choosing otherwise costs: loop 1.9" in text
    assert "The control passed" in text
    assert cli.main(["advise", "--json"]) == Exit.OK
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["use"] == "grouped"
    loop = answer["measured"][0]["candidates"][1]
    assert (loop["impl"], loop["verdict"]) == ("loop", "slower")
    assert loop["ratio_low"] < 2 < loop["ratio_high"]


def test_limits_that_nothing_satisfies_are_exit_code_2_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    timed_run({"loop": 2e-3, "grouped": 1e-3})
    assert cli.main(["advise", "--memory-limit", "1KiB"]) == Exit.CANNOT
    assert "nothing is within the limits. Measured: grouped needs 256 KiB" in capsys.readouterr().out
    assert cli.main(["advise", "--tokens", "8"]) == Exit.CANNOT
    assert "lies outside of what this run measured (64)" in capsys.readouterr().err


def test_between_two_workloads_each_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    timed_run({"loop": 2e-3, "grouped": 1e-3}, num_tokens=(16, 256))
    assert cli.main(["advise", "--tokens", "64"]) == Exit.OK
    text = capsys.readouterr().out
    assert "tokens 64 was not measured. Its measured neighbours agree: use grouped." in text
    assert text.index("  tokens 16: use grouped") < text.index("  tokens 256: use grouped")
