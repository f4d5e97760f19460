"""How warm the machine says it is: the kernel's hardware monitors and thermal zones, and how often heat cost clock."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The limits at which a sensor's device slows down or stops, the one that comes first being the lowest.
ZONE_LIMITS = ("passive", "hot", "critical")
MONITOR_LIMITS = ("max", "crit")


@dataclass(frozen=True, slots=True)
class Sensor:
    """One temperature.

    Attributes:
        name: the kernel's name of the sensor.
        celsius: its temperature now.
        limit_c: the lowest temperature at which its device slows down or stops; None where none is told.
    """

    name: str
    celsius: float
    limit_c: float | None

    @property
    def margin_c(self) -> float:
        """Kelvin below the limit; infinite where no limit is told."""
        return math.inf if self.limit_c is None else self.limit_c - self.celsius


def find_sensors(sys: Path) -> list[Sensor]:
    """Every temperature under ``sys``; empty in most virtual machines."""
    return [*_zones(sys / "class/thermal"), *_monitors(sys / "class/hwmon")]


def throttle_count(cpu: Path) -> int | None:
    """Times that heat has lowered a core's clock since boot, over all cores; None where it is not counted."""
    counts = [_number(file) for file in cpu.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    told = [int(count) for count in counts if count is not None]
    return sum(told) if told else None


def _zones(root: Path) -> Iterator[Sensor]:
    for zone in sorted(root.glob("thermal_zone*")):
        temperature = _number(zone / "temp")
        if temperature is None:
            continue
        limits = [
            _number(file.with_name(file.name.replace("_type", "_temp")))
            for file in zone.glob("trip_point_*_type")
            if _text(file) in ZONE_LIMITS
        ]
        yield Sensor(_text(zone / "type") or zone.name, temperature / 1000, _lowest(limits))


def _monitors(root: Path) -> Iterator[Sensor]:
    for file in sorted(root.glob("hwmon*/temp*_input")):
        temperature = _number(file)
        if temperature is None:
            continue
        stem = re.sub("_input$", "", file.name)
        limits = [_number(file.with_name(f"{stem}_{limit}")) for limit in MONITOR_LIMITS]
        label = _text(file.with_name(f"{stem}_label")) or stem
        yield Sensor(
            f"{_text(file.with_name('name')) or file.parent.name} {label}", temperature / 1000, _lowest(limits)
        )


def _lowest(limits: list[float | None]) -> float | None:
    """The lowest limit in degrees; zero and below are what firmware says when it means none."""
    return min((limit / 1000 for limit in limits if limit is not None and limit > 0), default=None)


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # a sensor that sleeps cannot be read either
        return None
