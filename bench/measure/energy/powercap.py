"""Energy of the CPU from Linux's powercap tree (Intel and AMD RAPL): whole packages, their counters' wrap included.

The counters move about every millisecond, so a window of seconds needs no alignment: it begins and ends with a call.
Packages are summed; their sub-zones (core, uncore, dram) are parts of them or beside them and are not added. ``psys``
covers a package too and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.measure.device import Call, Device
from bench.measure.energy.errors import MeterError
from bench.store.schema import EnergyReading

POWERCAP_ROOT = Path("/sys/class/powercap")
UPDATE_S = 0.001
IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Zone:
    """One package's counter.

    Attributes:
        path: its folder.
        range_uj: the counter starts again at zero after this value.
    """

    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """The counter, in microjoules."""
        return int(_read(self.path / "energy_uj"))


def find_packages(root: Path = POWERCAP_ROOT) -> list[Zone]:
    """Counters of all CPU packages.

    Raises:
        MeterError: there are none, or they may not be read.
    """
    zones = []
    for path in sorted(root.glob("*:*")):
        if path.name.count(":") == 1 and _read(path / "name").startswith("package"):
            zone = Zone(path, int(_read(path / "max_energy_range_uj")))
            zone.read_uj()
            zones.append(zone)
    if not zones:
        raise MeterError("not_supported", f"{root} has no CPU package; most virtual machines have none")
    return zones


def measure_cpu(call: Call, device: Device, window_s: float, root: Path = POWERCAP_ROOT) -> EnergyReading:
    """Energy of whole calls over ``window_s`` seconds or a little longer.

    Raises:
        MeterError: no counter, no permission, or counters that stood still.
    """
    zones = find_packages(root)
    idle_power_w = _idle_power_w(zones, device)
    call()
    counter = _Counter(zones)
    start_s = device.now_s()
    num_calls = 0
    while (elapsed_s := device.now_s() - start_s) < window_s:
        call()
        num_calls += 1
        counter.update()
    energy_j = counter.total_j
    if energy_j <= 0:
        raise MeterError("below_resolution", f"the counters under {root} did not move within {elapsed_s:.3g} s")
    blur_j = 2 * UPDATE_S * energy_j / elapsed_s
    return EnergyReading(
        energy_j=energy_j,
        energy_low_j=max(0.0, energy_j - blur_j),
        energy_high_j=energy_j + blur_j,
        calls=num_calls,
        window_s=elapsed_s,
        idle_power_w=idle_power_w,
        meter="powercap",
    )


class _Counter:
    """Joules since it was made, summed over packages; needs an update within each wrap, which takes minutes."""

    def __init__(self, zones: list[Zone]) -> None:
        self._zones = zones
        self._last_uj = [zone.read_uj() for zone in zones]
        self._total_uj = 0

    def update(self) -> None:
        for i, zone in enumerate(self._zones):
            now_uj = zone.read_uj()
            grown_uj = now_uj - self._last_uj[i]
            self._total_uj += grown_uj if grown_uj >= 0 else grown_uj + zone.range_uj
            self._last_uj[i] = now_uj

    @property
    def total_j(self) -> float:
        return self._total_uj * 1e-6


def _idle_power_w(zones: list[Zone], device: Device) -> float:
    counter = _Counter(zones)
    start_s = device.now_s()
    device.idle(IDLE_S)
    counter.update()
    return counter.total_j / (device.now_s() - start_s)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise MeterError("no_permission", f"{path} may not be read; it is readable by root only by default") from error
    except OSError as error:
        raise MeterError("not_supported", f"{path}: {error.strerror}") from error
