from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.measure.energy.errors import MeterError
from bench.measure.energy.powercap import find_packages, measure_cpu

RANGE_UJ = 1_000_000
NOBODY = 65534


class Tree:
    """A powercap tree whose packages use constant power on a virtual clock, and the device of that clock."""

    def __init__(self, root: Path, watts: dict[str, float], *, start_uj: int = 0) -> None:
        self.root = root
        self.watts = watts
        self.start_uj = start_uj
        self.time_s = 0.0
        for zone in watts:
            (root / zone).mkdir(parents=True)
            (root / zone / "name").write_text(f"package-{zone[-1]}\n" if zone.count(":") == 1 else "core\n")
            (root / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self.idle(0)

    def idle(self, seconds: float) -> None:
        self.time_s += seconds
        for zone, power_w in self.watts.items():
            (self.root / zone / "energy_uj").write_text(
                f"{(self.start_uj + int(power_w * self.time_s * 1e6)) % RANGE_UJ}\n"
            )

    def now_s(self) -> float:
        return self.time_s

    def measure(self, window_s: float = 2.0, call_s: float = 0.01) -> Any:
        device: Any = self
        return measure_cpu(lambda: self.idle(call_s), device, window_s, self.root)


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"intel-rapl:0": 1.5, "intel-rapl:1": 0.5, "intel-rapl:0:0": 0.7})
    reading = tree.measure()
    assert reading.energy_j == pytest.approx(2.0 * reading.window_s, rel=1e-4)
    assert reading.energy_low_j < reading.energy_j < reading.energy_high_j
    assert reading.idle_power_w == pytest.approx(2.0, rel=1e-4)
    assert reading.calls == round(reading.window_s / 0.01)


def test_platform_zone_is_left_out(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"intel-rapl:0": 1.0, "intel-rapl:1": 5.0})
    (tmp_path / "intel-rapl:1" / "name").write_text("psys\n")
    assert [zone.path.name for zone in find_packages(tmp_path)] == ["intel-rapl:0"]
    assert tree.measure().energy_j == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("start_uj", [0, RANGE_UJ - 1, RANGE_UJ // 2])
def test_wrapped_counter_is_never_negative(tmp_path: Path, start_uj: int) -> None:
    reading = Tree(tmp_path, {"intel-rapl:0": 3.0}, start_uj=start_uj).measure()  # wraps every third of a second
    assert reading.energy_j == pytest.approx(3.0 * reading.window_s, rel=1e-4)


def test_missing_tree_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"^not_supported: "):
        find_packages(tmp_path / "absent")


def test_mode_000_is_no_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:  # one that another user may enter
        Path(folder).chmod(0o755)
        Tree(Path(folder), {"intel-rapl:0": 1.0})
        (Path(folder) / "intel-rapl:0" / "energy_uj").chmod(0)
        user = os.geteuid()
        if user == 0:  # root may read anything
            os.seteuid(NOBODY)
        try:
            with pytest.raises(MeterError, match=r"^no_permission: "):
                find_packages(Path(folder))
        finally:
            os.seteuid(user)


def test_refused_read_is_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tmp_path, {"intel-rapl:0": 1.0})
    read_text: Callable[..., str] = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterError, match=r"^no_permission: "):
        find_packages(tmp_path)


def test_counter_that_stands_still_is_below_resolution(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"^below_resolution: "):
        Tree(tmp_path, {"intel-rapl:0": 0.0}).measure()
