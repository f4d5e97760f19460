"""Fixtures of the runner's tests: fork servers whose jobs are those of ``fake_jobs`` (no torch, so they start fast)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_servers import Orphans

from bench.runner.interrupt import Interrupt
from bench.runner.servers import ForkServer

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _fake_jobs_can_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("FAKE_JOBS_TRACE", str(tmp_path / "trace"))


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    with Orphans() as orphans:
        yield orphans


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    with Interrupt() as interrupt:
        yield interrupt


@pytest.fixture
def server(interrupt: Interrupt) -> Iterator[ForkServer]:
    with ForkServer(interrupt, jobs="fake_jobs") as server:
        yield server
