"""A value with its interval: what every number of an analysis is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval, in the unit of the quantity it belongs to."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's length, relative to the value."""
        return (self.high - self.low) / 2 / self.value
