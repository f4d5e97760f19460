"""Energy of one call: chooses the device's meter, and turns its refusal into a reason."""

from __future__ import annotations

from bench.measure.device import Call, Device
from bench.measure.energy.errors import MeterError
from bench.store.schema import EnergyReading


def measure_energy(call: Call, device: Device, window_s: float) -> EnergyReading:
    """Repeat ``call`` for ``window_s`` seconds or a little longer, and read the device's energy meter around it.

    Never raises for want of a meter: the reading then has a ``reason``, as ``code: sentence``.
    """
    try:
        if device.torch_device.type == "cuda":
            from bench.measure.energy.gpu import measure_gpu

            return measure_gpu(call, device, window_s)
        from bench.measure.energy.powercap import measure_cpu

        return measure_cpu(call, device, window_s)
    except MeterError as error:
        return EnergyReading(reason=str(error))
