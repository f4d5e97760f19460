"""Energy of a sustained loop over one call, from the meter that the device has, or the reason why there is none."""

from bench.measure.energy.meter import measure_energy

__all__ = ["measure_energy"]
