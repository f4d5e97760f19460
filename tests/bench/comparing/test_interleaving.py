"""Two versions alive at once, end to end on tiny layers: structure and right numbers, no claims about speed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from comparing_maker import workload

import impls
from bench.cases import Case
from bench.cli import main
from bench.comparing import interleaved
from bench.comparing.replicates import Row, conclude
from bench.comparing.versions import Version, open_version
from bench.errors import RequestError
from bench.runner import scratch

LAYER = """
import os
import torch
from impls import MoELayer


class Mine(MoELayer):
    def compute(self, x_TD, routing):
        y_TD = torch.zeros_like(x_TD)
        for e in range(self.spec.num_experts):
            token, choice = ((routing.expert_ids == e) & routing.kept).nonzero(as_tuple=True)
            gate, up = (x_TD[token] @ self.weights.gate_up_proj[e].T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ self.weights.down_proj[e].T
            y_TD = y_TD.index_add(0, token, y * routing.weights[token, choice, None].to(y.dtype))
        return y_TD
"""


def tiny(tokens: str = "16,32", threads: int = 1, processes: int = 2) -> tuple[str, ...]:
    """Options of a comparison that takes seconds."""
    layer = ("--set", "layer.num_experts=4", "--set", "layer.top_k=2", "--set", "layer.capacity_factor=none")
    machine = ("--device", "cpu", "--threads", str(threads), "--tokens", tokens, "--budget", "10m")
    return "smoke", "--quiet", "--json", "--processes", str(processes), *machine, *layer


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(interleaved, "MAX_ROUNDS", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "a.py").write_text(LAYER)
    return tmp_path


def test_a_file_and_its_copy_are_both_right_and_get_no_verdict_from_two_pairs(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    assert main(["compare", "--interleave", "a.py", "b.py:Mine", *tiny(), "--fail-if", "latency > 0%"]) == 0
    printed = capsys.readouterr()
    objects = json.loads(printed.out)
    assert [found["num_tokens"] for found in objects] == [16, 32]
    for found in objects:
        assert (found["status_base"], found["status_new"], found["verdict"]) == ("ok", "ok", "inconclusive")
        assert found["num_processes_new"] == 2
        assert found["latency_s_base"] > 0
        assert found["accuracy_verdict"] == "same"
        assert "a verdict needs 6" in found["reason"]
    assert "equal to the bit in 2 of 2 cases" in printed.err
    assert "Control: BASE against a twin of itself" in printed.err
    assert list((in_a_folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("does", "code", "reason"),
    [
        ("return 2 * y_TD", 4, "was ok, is wrong_result: "),
        (
            "self.weights.down_proj.data[0, 0, 0] += 1",
            4,
            "was ok, is wrong_result: it changed weights.down_proj in pla",
        ),
        ("os._exit(7)", 3, "was ok, is crashed: "),
        ("raise KeyError(1)", 3, "was ok, is error: KeyError: 1 (b.py:"),
        ("__import__('time').sleep(60)", 3, "was ok, is timeout: no answer for 15 s to: result; [measure] timeout"),
    ],
)
def test_a_version_that_fails_costs_its_cases_with_the_reason(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str], does: str, code: int, reason: str
) -> None:
    end = f"if x_TD.shape[0] == 32:\n            {does}\n        return y_TD"
    (in_a_folder / "b.py").write_text(LAYER.replace("return y_TD", end))
    assert (
        main(
            [
                "compare",
                "--interleave",
                "a.py",
                "b.py",
                *tiny(),
                "--set",
                f"measure.timeout={'15s' if 'sleep' in does else '2m'}",
                "--fail-if",
                "latency > 5%",
            ]
        )
        == code
    )
    whole, broken = json.loads(capsys.readouterr().out)
    assert (whole["status_new"], broken["verdict"], broken["status_base"]) == ("ok", "broken", "ok")
    assert broken["ratio"] is None
    assert broken["reason"].startswith(reason)
    assert list((in_a_folder / "scratch").iterdir()) == []


def test_a_version_that_routes_otherwise_is_wrong_though_its_experts_are_right(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = """
    def route(self, x, given=None):
        return super().route(x, (super().route(x).expert_ids + 1) % 4 if given is None else given)
"""
    (in_a_folder / "b.py").write_text(LAYER + other)
    assert main(["compare", "--interleave", "a.py", "b.py", *tiny("16"), "--fail-if", "latency > 5%"]) == 4
    (found,) = json.loads(capsys.readouterr().out)
    assert "token 0 is routed to experts" in found["reason"]


def test_a_train_step_on_cold_weights_with_threads_and_given_experts_is_compared(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    axes = ("--direction", "train", "--dtype", "bf16", "--routing", "zipf:1.2", "--set", "workload.cache=cold")
    assert main(["compare", "--interleave", "a.py", "b.py", *tiny("32", threads=2), *axes]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["status_base"], found["status_new"], found["direction"]) == ("ok", "ok", "train")
    assert found["num_processes_new"] >= 1
    assert found["latency_s_new"] > 0


def test_a_folder_and_a_wheel_each_bring_their_own_layers(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Path(impls.__file__).parent
    shutil.copytree(package, in_a_folder / "checkout" / "impls", ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(in_a_folder / "new.whl", "w") as wheel:
        for file in package.rglob("*.py"):
            text, name = file.read_text(), str(Path("impls") / file.relative_to(package))
            if name == "impls/loop.py":
                text += "\nLoop.supports = classmethod(lambda *_: 'the wheel says no')\n"
            wheel.writestr(name, text)
    sweep = (*tiny("16"), "--impl", "loop,einsum")
    assert main(["compare", "--interleave", "checkout", "new.whl", *sweep, "--fail-if", "latency > 50%"]) == 3
    printed = capsys.readouterr()
    by_impl = {found["impl"]: found for found in json.loads(printed.out)}
    assert by_impl["loop"]["reason"] == "was ok, is unsupported: the wheel says no"
    assert by_impl["einsum"]["status_new"] == "ok"
    assert (by_impl["loop"]["base"], by_impl["loop"]["new"]) == ("checkout (folder)", "new.whl")
    assert "equal to the bit in 1 of 1 cases" in printed.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_nothing_is_left_behind_however_it_ends(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    long = tiny(processes=1000)  # it cannot be over before the signal, however late that is
    command = [sys.executable, "-P", "-m", "bench.cli", "compare", "--interleave", "a.py", "b.py", *long]
    place = in_a_folder / "scratch"
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(place), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        twin = "*/other-logs/2.log"  # both are being timed
        _until(lambda: process.poll() is not None or any(place.glob(twin)), 120)
        assert process.poll() is None, process.communicate()[1]
        started = _children_when(4, process.pid)  # a fork server, BASE, NEW and the twin
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, printed) == (code, b"")
    _until(lambda: not any(map(_is_alive, started)), 60)
    if number is signal.SIGKILL:  # what is left is the next one's to delete
        monkeypatch.setattr(scratch, "STALE_AFTER_S", 0.0)
        assert len(scratch.remove_stale(place)) == 1
    else:
        assert b"a comparison that is not whole gives no verdict" in told
    assert list(place.iterdir()) == []


def _until(happened: Callable[[], bool], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _children_when(number: int, pid: int) -> list[int]:
    """Its children, once there are so many: one may be about to start, and between two replicates there are fewer."""
    deadline_s = time.monotonic() + 60
    while len(found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) != number:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    return [int(child) for child in found]


def _is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("twin", "verdict"), [(0.0, "slower"), (0.05, "inconclusive")])
def test_a_control_that_fails_withholds_the_verdicts(twin: float, verdict: str) -> None:
    noise = [0.001 * number for number in (-2, 1, 2, -1, 0, 1, -1, 2, -2, 0, 1, -1)]
    row = Row(Case(impl="loop", workload=workload()), units=[0.1 + found for found in noise])
    row.medians = [[1e-3] * 12, [1.1e-3] * 12]
    control = [twin - found for found in noise]
    comparison = conclude([Version("a"), Version("b")], [row], control, [])
    (case,) = comparison.cases
    assert case.verdict == verdict
    assert case.reason == ("the control failed" if twin else "")
    assert case.more_processes is None
    assert ("The control failed" in comparison.caveats[0]) == bool(twin)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.py", "there is no file nothing.py"),
        ("nothing.whl", "there is no wheel nothing.whl"),
        ("no-such-ref", "is nothing that can be compared"),
        ("empty.py", "found none"),
        ("two.py", "say which, as in two.py:One"),
        ("broken.py", "is no Python file"),
        ("scratch", "holds no package `impls`"),
        ("--upload-pack=x", "is nothing that can be compared"),
    ],
)
def test_what_is_no_version_is_refused(in_a_folder: Path, name: str, message: str) -> None:
    (in_a_folder / "empty.py").write_text("class Other: pass")
    (in_a_folder / "two.py").write_text("class One:\n  def compute(self): 0\nclass Two:\n  def compute(self): 0")
    (in_a_folder / "broken.py").write_text("def")
    unpacked = in_a_folder / "unpacked"
    unpacked.mkdir()
    with pytest.raises(RequestError, match=message):
        open_version(name, unpacked)


def test_a_ref_of_any_repository_brings_its_own_files(in_a_folder: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *who, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    git("add", "a.py")
    git("commit", "-m", "first")
    (in_a_folder / "a.py").write_text("changed")
    unpacked = in_a_folder / "unpacked"
    unpacked.mkdir()
    version = open_version("trunk", unpacked)
    assert version.label.startswith("trunk (")
    assert version.path is None, "it holds no moebench of its own"
    assert version.implementation("a.py:Mine") == f"{unpacked}/a.py:Mine"
    assert (unpacked / "a.py").read_text() == LAYER
    assert version.implementation("loop") == "loop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--force",), "--force is for two runs"),
        (("--fail-if", "memory > 5%"), "cannot ask for memory"),
        (("--processes", "1"), "at least 2"),
        (("--impl", "loop"), "leave out --impl"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    assert main(["compare", "--interleave", "a.py", "b.py", "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_isolation_is_refused_where_versions_have_processes_of_their_own(
    in_a_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_a_folder / "b.py").write_text(LAYER)
    assert main(["compare", "--interleave", "a.py", "b.py", *tiny(), "--set", "measure.isolate=true"]) == 2
    assert "leave isolate out" in capsys.readouterr().err
