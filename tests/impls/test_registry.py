"""Names of implementations: the table, files, entry points, and what is said where a name leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import impls
from impls import MoELayer, registry
from impls.loop import Loop
from impls.registry import ENTRIES, GROUP, InvalidImplementation, UnknownImplementation, names, resolve

OWN = """
from impls import MoELayer
from impls.loop import Loop

class Mine(Loop):
    pass

class Unfinished(MoELayer):
    pass

number = 3
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_agrees_with_the_classes(name: str) -> None:
    found = resolve(name)
    assert issubclass(found, MoELayer)
    assert found.semantics == ENTRIES[name].semantics
    assert found.semantics in ("moe", name)
    assert found.routes == (found.semantics == "moe")
    assert found.exact


def test_names_are_those_of_the_table_then_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, EntryPoint("theirs", "impls.loop:Loop", GROUP))
    assert names() == [*ENTRIES, "theirs"]
    assert resolve("theirs") is Loop


@pytest.mark.parametrize(
    "points",
    [
        [EntryPoint("loop", "impls.loop:Loop", GROUP)],
        [EntryPoint("loop", "a:A", GROUP), EntryPoint("loop", "b:B", GROUP)],
    ],
)
def test_two_things_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch, points: list[EntryPoint]) -> None:
    pretend_installed(monkeypatch, *points)
    with pytest.raises(UnknownImplementation, match=r"'loop' is ambiguous: impls.loop:Loop \(moebench\), "):
        resolve("loop")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"no implementation is named 'gruoped'; did you mean 'grouped'\?"):
        resolve("gruoped")
    with pytest.raises(UnknownImplementation, match="there are loop, scatter_gather, "):
        resolve("xyz")


def test_a_class_of_a_file_is_loaded_once(own_file: Path) -> None:
    found = resolve(f"{own_file}:Mine")
    assert issubclass(found, Loop)
    assert resolve(f"{own_file}:Mine") is found


def test_a_file_that_does_not_lead_to_a_class(own_file: Path) -> None:
    with pytest.raises(UnknownImplementation, match="has no class 'Their'; it has Mine, Unfinished"):
        resolve(f"{own_file}:Their")
    with pytest.raises(UnknownImplementation, match=r"names no class; give path/to/file\.py:ClassName"):
        resolve(str(own_file))
    with pytest.raises(UnknownImplementation, match="there is no file"):
        resolve(f"{own_file.parent}/absent.py:Mine")


def test_a_class_that_is_no_implementation(own_file: Path) -> None:
    with pytest.raises(InvalidImplementation, match=r"must be a subclass of impls.MoELayer, found 3"):
        resolve(f"{own_file}:number")
    with pytest.raises(InvalidImplementation, match="Unfinished does not set compute"):
        resolve(f"{own_file}:Unfinished")


def test_a_file_that_fails_to_import_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('no such kernel')")
    for _ in range(2):  # the failed module does not stay
        with pytest.raises(InvalidImplementation, match=r"cannot be imported: RuntimeError: no such kernel"):
            resolve(f"{path}:Mine")


def test_an_entry_point_without_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, EntryPoint("theirs", "impls.loop:Pool", GROUP))
    with pytest.raises(InvalidImplementation, match=r"impls\.loop:Pool does not exist"):
        resolve("theirs")


def test_only_intended_names_are_public() -> None:
    intended = [
        "Availability",
        "LayerSpec",
        "MoELayer",
        "Routing",
        "Unsupported",
        "available",
        "build",
        "from_huggingface",
    ]
    assert sorted(impls.__all__) == dir(impls) == intended
    assert all(getattr(impls, name).__module__.startswith("impls.") for name in intended)
    with pytest.raises(AttributeError, match="module 'impls' has no attribute 'Layer'"):
        impls.Layer  # noqa: B018  the access is the test


def test_names_and_specifications_need_no_torch() -> None:
    program = (
        "import sys, impls, impls.spec, impls.shapes, impls.registry\n"
        "from impls import LayerSpec\n"
        "impls.registry.names()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
