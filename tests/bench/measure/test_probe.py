from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.measure.probe import probe

NAMES = {
    "timer",
    "allocator memory",
    "system memory",
    "steal time",
    "CPU pressure",
    "CPU energy",
    "GPU",
    "GPU energy counter",
    "GPU power",
    "GPU clocks",
}
CODES = {"library_absent", "no_permission", "not_supported", "mig", "virtualised", "below_resolution", "device_lost"}


def test_every_capability_is_there_with_a_reason_where_it_is_not_ok() -> None:
    found = probe()
    assert {capability.name for capability in found} == NAMES
    for capability in found:
        assert capability.detail
        assert capability.ok == (not capability.code)
        assert capability.ok or capability.code in CODES


def test_systems_that_tell_nothing(tmp_path: Path) -> None:
    found = {capability.name: capability for capability in probe(tmp_path, tmp_path)}
    for name in ("system memory", "steal time", "CPU pressure", "CPU energy"):
        assert not found[name].ok
        assert found[name].code == "not_supported"


def test_packages_are_counted(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "max_energy_range_uj": "100", "energy_uj": "5"}.items():
        (zone / name).write_text(text)
    found = {capability.name: capability for capability in probe(powercap_root=tmp_path)}
    assert found["CPU energy"].ok
    assert "1 package " in found["CPU energy"].detail


def test_probing_imports_no_torch() -> None:
    program = "import sys; from bench.measure.probe import probe; probe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False, timeout=60).returncode == 0
