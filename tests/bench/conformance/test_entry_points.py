"""Layers of another installed package: it is built as pip leaves one behind, and commands see it by its name alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = '''\
import torch
from impls import MoELayer
from impls.loop import Loop


class Theirs(Loop):
    """Somebody else's layer."""


class Off(Loop):
    def compute(self, x_TD, routing):
        return super().compute(x_TD, routing) * 1.03
'''
ENTRY_POINTS = """\
[moebench.impls]
theirs = their_package.layers:Theirs
off = their_package.layers:Off
unbuilt = their_package.compiled:Fast
"""
METADATA = "Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one installed package: its modules, and the dist-info that names its entry points."""
    site = tmp_path_factory.mktemp("site")
    package, info = site / "their_package", site / "their_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "layers.py").write_text(LAYERS)
    (package / "compiled.py").write_text("import a_module_that_nobody_has\n")
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "INSTALLER").write_text("pip\n")
    return site


def moebench(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "import sys, bench.cli; sys.exit(bench.cli.main())", *arguments]
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def test_it_is_listed_beside_ours(site: Path, tmp_path: Path) -> None:
    found = moebench(site, tmp_path, "list", "impls", "--json")
    assert found.returncode == 0, found.stderr
    by_name = {row["name"]: row for row in json.loads(found.stdout)}
    assert by_name.keys() >= {"loop", "theirs", "off", "unbuilt"}


def test_it_is_checked_by_its_name(site: Path, tmp_path: Path) -> None:
    options = ("--dtype", "fp32", "--json")
    found = moebench(site, tmp_path, "check", "theirs", "off", *options)
    assert found.returncode == 4, found.stderr
    right, wrong = json.loads(found.stdout)
    assert (right["impl"], right["exit_code"], right["counts"].get("wrong")) == ("theirs", 0, None)
    assert (wrong["impl"], wrong["exit_code"]) == ("off", 4)
    assert "the whole output is 1.03 times the right one" in wrong["probes"][0]["causes"]


def test_what_its_package_lacks_is_said_before_anything_runs(site: Path, tmp_path: Path) -> None:
    found = moebench(site, tmp_path, "check", "unbuilt")
    assert (found.returncode, found.stdout) == (2, "")
    assert "unbuilt needs a package that cannot be imported: No module named 'a_module_that_nobody_has'" in found.stderr


def test_it_runs_beside_ours(site: Path, tmp_path: Path) -> None:
    one_workload = ("--set", "layer.num_experts=4", "--set", "layer.top_k=2", "--set", "layer.capacity_factor=none")
    found = moebench(site, tmp_path, "run", "smoke", "--impl", "loop,theirs,off", "--budget", "20s", *one_workload)
    assert found.returncode == 4, found.stderr
    table = moebench(site, tmp_path, "show", found.stdout.strip().splitlines()[-1], "--json")
    rows = {row["impl"]: row for row in json.loads(table.stdout)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "loop": "ok",
        "theirs": "ok",
        "off": "wrong_result",
    }
    assert rows["theirs"]["latency_s"] > 0
    assert rows["off"]["latency_s"] is None
