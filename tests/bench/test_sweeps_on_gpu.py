"""On CUDA: whole sweeps through the command line. `tox run -e gpu` calls these beside the other GPU-marked tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.analysis import load
from bench.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.mark.parametrize("preset", ["smoke", "quick"])
def test_a_preset_runs_on_the_gpu_and_gives_a_report(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(os.environ.get("MOEBENCH_RESULTS", tmp_path / "results"))
    code = main(["run", preset, "--device", "cuda", "--results", str(results), "--quiet"])
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    frame = load(folder).frame
    assert code == 0, frame.loc[frame["status"] != "ok", ["impl", "status", "reason"]].to_string()
    assert set(frame["device"]) == {"cuda"}
    assert frame.loc[frame["status"] == "ok", "latency_s"].gt(0).all()
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
