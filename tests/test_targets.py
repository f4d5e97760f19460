"""The table of targets in docs/measuring.md is the index of the tests that hold them; here it is held to be true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/measuring.md"
TARGETS = (
    "false positives", "sweep of 60", "planted slowdown", "interval coverage", "absolute time", "asynchronous device",
    "allocator memory", "operating system's memory", "GPU energy", "CPU energy", "operations", "durability",
    "harness's own time",
)  # fmt: skip


def rows() -> dict[str, list[str]]:
    """Names of tests by what they hold, from the page's last table."""
    table = PAGE.read_text(encoding="utf-8").partition("## The targets")[2]
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): re.findall(r"`(test_\w+)`", cells[-1]) for cells in lines[1:]}


def defined() -> dict[str, list[ast.FunctionDef]]:
    """Every test function by name."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, []).append(node)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_its_row(target: str) -> None:
    assert [what for what in rows() if target in what], f"docs/measuring.md has no row for {target!r}"


def test_every_row_names_tests_that_exist_once_and_run_by_default() -> None:
    tests = defined()
    assert len(rows()) >= len(TARGETS)
    for what, names in rows().items():
        assert names, f"{what}: no test is named"
        for name in names:
            assert len(tests.get(name, [])) == 1, f"{what}: there are {len(tests.get(name, []))} tests called {name}"
            marks = " ".join(ast.unparse(mark) for mark in tests[name][0].decorator_list)
            assert not re.search(r"\b(live|gpu|skip|xfail)\b", marks), f"{name} does not run by default"
