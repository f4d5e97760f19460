from __future__ import annotations

import sys
import threading

import pytest

from bench.console import Bar, Lines, make_progress
from bench.runner.progress import Silent


def test_progress_is_silent_lines_or_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(quiet=True), Silent)
    assert isinstance(make_progress(quiet=False), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = make_progress(quiet=False)
    bar.stop()
    assert isinstance(bar, Bar)


def test_a_bar_has_no_thread_that_could_draw_during_a_sample(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    bar = Bar()
    bar.update(phase="time", current="[red]loop", done_s=1.0, left_s=2.0)
    assert threading.active_count() == before
    bar.note("[bold]failed")
    bar.stop()
    assert "[bold]failed" in capsys.readouterr().err


def test_lines_come_with_a_new_phase_and_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("bench.console.time.monotonic", lambda: now_s)
    lines = Lines()
    for phase, elapsed_s in (("qualify", 0.0), ("qualify", 1.0), ("time", 2.0), ("time", 3.0), ("time", 13.0)):
        now_s = 100.0 + elapsed_s
        lines.update(phase=phase, current="loop", done_s=elapsed_s, left_s=60.0)
    assert capsys.readouterr().err.splitlines() == [
        "[0s] qualify: loop, about 1m 00s left",
        "[2s] time: loop, about 1m 00s left",
        "[13s] time: loop, about 1m 00s left",
    ]
