"""What answers a person at once must not load what only measuring or drawing needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "pandas", "scipy", "matplotlib"}


def loaded_after(statement: str, folder: Path) -> set[str]:
    program = f"{statement}\nimport sys, json\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"from bench.cli import main; assert main({arguments}) == 0"
            for arguments in (["--help"], ["run", "--help"], ["list", "impls"], ["list", "presets"], ["list", "runs"])
        ),
        "from bench.cli import main; assert main(['run', 'smoke', '--dry-run']) == 0",
        "import bench, bench.cli, bench.config, bench.cases, bench.store.log, bench.environment",
        "import impls, impls.spec, impls.registry",
    ],
)
def test_light_parts_load_nothing_heavy(statement: str, tmp_path: Path) -> None:
    assert loaded_after(statement, tmp_path) & HEAVY == set()


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    assert "pandas" in loaded_after("import pandas", tmp_path)
