"""What a container may still take: read off made-up control groups of both versions."""

from pathlib import Path

import psutil
import pytest

from bench.control_groups import available_bytes, levels

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    much = psutil.virtual_memory()._replace(available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: much)


def available(folder: Path, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return available_bytes(folder / "proc", folder / "sys")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64 * GIB),
        ({"box/memory.max": "max", "box/memory.current": "5"}, 64 * GIB),
        ({"box/memory.max": f"{8 * GIB}", "box/memory.current": f"{3 * GIB}"}, 5 * GIB),
        ({"memory.max": f"{8 * GIB}", "memory.current": f"{3 * GIB}", "box/memory.max": "max"}, 5 * GIB),
        ({"box/memory.max": f"{80 * GIB}", "box/memory.current": "0"}, 64 * GIB),
        ({"box/memory.max": "10", "box/memory.current": "30"}, 0),
        (
            {
                "box/memory.max": f"{8 * GIB}",
                "box/memory.current": f"{7 * GIB}",
                "box/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 3",
            },
            3 * GIB,
        ),
    ],
    ids=["no files", "no limit", "own", "above", "more than there is", "exceeded", "copies of files"],
)
def test_the_second_version(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    given = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert available(tmp_path, {"proc/self/cgroup": "0::/box"} | given) == expected


def test_the_first_version(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n1:cpu:/other\n0::/",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{4 * GIB}",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}",
    }
    assert available(tmp_path, files) == 3 * GIB


def test_a_system_without_control_groups_has_the_machines_memory(tmp_path: Path) -> None:
    assert available(tmp_path, {}) == 64 * GIB


def test_levels_go_up_to_the_mount() -> None:
    root = Path("/groups")
    assert list(levels(root, "0::/a/b", "memory")) == [root / "a/b", root / "a", root]
    assert list(levels(root, "3:cpu,cpuacct:/a", "cpu")) == [root / "cpu,cpuacct/a", root / "cpu,cpuacct"]
    assert not list(levels(root, "3:cpu,cpuacct:/a", "memory"))
