"""What a run does before it touches a GPU: nothing that starts CUDA, and a word where others use the card."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import make_sweep

from bench.config import Sweep
from bench.runner import server, sweep
from bench.runner.progress import Silent
from bench.store.log import read_run
from bench.store.schema import CaseRecord, NoteRecord

CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@pytest.mark.parametrize("given", [None, "0"])
def test_a_fork_server_lets_torch_look_for_gpus_without_starting_cuda(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECK, given or "")  # so that it is put back
    if given is None:
        monkeypatch.delenv(CHECK)
    seen: list[str | None] = []

    def load(*_: object) -> None:
        seen.append(os.environ.get(CHECK))  # when torch and the layers are imported

    class Served:
        """A server without a child."""

        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> None:
            pass

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(server, "load_for_ever", load)
    monkeypatch.setattr(server, "Server", Served)
    monkeypatch.setattr(sys, "argv", ["server", "--lifeline", str(theirs.detach())])
    with ours:
        assert server.main() == 0
    assert seen == [given or "1"]


def on(device: str) -> Sweep:
    made = make_sweep(["ok"], 1, processes=2)
    cases = [
        case.model_copy(update={"workload": case.workload.model_copy(update={"device": device})}) for case in made.cases
    ]
    return replace(made, cases=cases)


@pytest.mark.parametrize(("device", "warned"), [("cuda", True), ("cpu", False)])
def test_a_card_that_others_use_is_told_before_anything_is_measured(
    device: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sweep, "in_use", lambda: ["A card (GPU 0) is in use"])
    outcome = sweep.run_sweep(
        on(device), results=tmp_path / "results", command=["fake"], progress=Silent(), jobs="fake_jobs"
    )
    records = read_run(outcome.folder).records
    notes = [i for i, record in enumerate(records) if isinstance(record, NoteRecord) and "is in use" in record.text]
    first_case = next(i for i, record in enumerate(records) if isinstance(record, CaseRecord))
    assert [i < first_case for i in notes] == ([True] if warned else [])
