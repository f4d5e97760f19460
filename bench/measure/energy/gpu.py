"""Energy of a GPU under a sustained loop, from the driver's energy counter, else from its power sensor.

**Counter.** It moves in ticks, commonly 100 ms apart. The loop runs until it has settled, waits for a tick, then runs
for the window and on through the next tick: between two ticks the counter's difference is exact, and only *when* they
happened is uncertain, by the distance of two polls. Calls are counted by the fraction between the same two moments.

**Power sensor.** Watts are integrated over the driver's own timestamps, by trapezia.

**Interval.** Resolution of the counter and the time of its ticks. Where the sensor looks only a quarter of the time
(A100, H100) two more terms: the scatter of the ticks (twice the standard error of their mean), and what it may have
missed systematically. For a loop of calls of d seconds seen through a window of w = 25 ms that is at most
``d / 4w`` of the span between idle power and the power limit (a square wave of even parts, one part of which is cut);
calls as long as the window may hide three quarters of the span. The calibration of the sensor itself is not in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.measure.device import Call, Device
from bench.measure.energy.errors import MeterError
from bench.measure.energy.loop import POLL_S, Loop
from bench.measure.energy.nvml import FieldValue, NvmlGpu, find_gpu, session
from bench.store.schema import EnergyReading

SETTLE_S = 0.5
AVERAGING_S = 1.5  # power may be the average of the last second
IDLE_S = 0.5
GIVE_UP_S = 3.0
SENSOR_UPDATE_S = 0.1
SENSOR_WINDOW_S = 0.025
COUNTER_STEP_J = 0.001


@dataclass(frozen=True, slots=True)
class Window:
    """Energy between two moments on the device's clock.

    Attributes:
        start_s, end_s: the moments.
        energy_j: what was used between them.
        blur_j: half-width from the meter's resolution in energy and time.
        powers_w: what single ticks or readings say.
    """

    start_s: float
    end_s: float
    energy_j: float
    blur_j: float
    powers_w: Sequence[float]

    @property
    def length_s(self) -> float:
        """Seconds between the moments."""
        return self.end_s - self.start_s

    @property
    def power_w(self) -> float:
        """Mean power."""
        return self.energy_j / self.length_s


def measure_gpu(call: Call, device: Device, window_s: float) -> EnergyReading:
    """Energy of ``call`` repeated for ``window_s`` seconds and on to the meter's next tick.

    Raises:
        MeterError: no meter, or one that does not move.
    """
    with session():
        gpu = find_gpu(str(device.identity()["uuid"]))
        try:
            read_j = gpu.energy_counter()
            return _measure(
                gpu, device, call, "nvml energy counter", lambda step, s: count(read_j, device, step, s), window_s
            )
        except MeterError as error:
            if error.code not in ("not_supported", "below_resolution"):
                raise
        read_w = gpu.power_sensor()
        return _measure(gpu, device, call, "nvml power", lambda step, s: integrate(read_w, device, step, s), window_s)


def _measure(
    gpu: NvmlGpu,
    device: Device,
    call: Call,
    meter: str,
    observe: Callable[[Call, float], Window],
    window_s: float,
) -> EnergyReading:
    def rest() -> None:
        device.idle(POLL_S)

    device.synchronize()
    before_w = observe(rest, IDLE_S).power_w
    loop = Loop(call, device)
    try:
        window = observe(loop.step, window_s)
    finally:
        loop.finish()
    idle_w = (before_w + observe(rest, IDLE_S).power_w) / 2
    half_j = window.blur_j
    if gpu.part_time:
        half_j += unseen_w(window, loop.call_s, idle_w, gpu.power_limit_w()) * window.length_s
    return EnergyReading(
        energy_j=window.energy_j,
        energy_low_j=max(0.0, window.energy_j - half_j),
        energy_high_j=window.energy_j + half_j,
        calls=loop.calls_at(window.end_s) - loop.calls_at(window.start_s),
        window_s=window.length_s,
        idle_power_w=idle_w,
        meter=f"{meter}, sampled 25 % of the time" if gpu.part_time else meter,
    )


def unseen_w(window: Window, call_s: float, idle_w: float, limit_w: float | None) -> float:
    """By how many watts a sensor that looks a quarter of the time may be off (see the module's text)."""
    scatter_w = 2 * statistics.stdev(window.powers_w) / math.sqrt(len(window.powers_w))
    highest_w = max(window.powers_w)
    span_w = max(highest_w, 2 * window.power_w if limit_w is None else limit_w) - idle_w
    share = call_s / (4 * SENSOR_WINDOW_S) if call_s < SENSOR_WINDOW_S else 1 - SENSOR_WINDOW_S / SENSOR_UPDATE_S
    return scatter_w + share * max(0.0, span_w)


def count(read_j: Callable[[], float], device: Device, step: Call, window_s: float) -> Window:
    """Energy between two ticks of a counter, at least ``window_s`` apart, while ``step()`` is repeated.

    Raises:
        MeterError: ``below_resolution`` where the counter does not tick, ``device_lost`` where it runs backwards.
    """
    begun_s = last_s = device.now_s()
    last_j = read_j()
    ticks: list[tuple[float, float, float]] = []  # (middle of the two polls around it, half their distance, joules)
    while True:
        step()
        now_j = read_j()
        now_s = device.now_s()
        if now_j < last_j:
            raise MeterError(
                "device_lost", f"the energy counter fell from {last_j:.3f} J to {now_j:.3f} J: driver reset"
            )
        if now_j > last_j and now_s - begun_s >= SETTLE_S:
            ticks.append(((last_s + now_s) / 2, (now_s - last_s) / 2, now_j))
            if len(ticks) > 2 and ticks[-1][0] - ticks[0][0] >= window_s:
                break
        since_s = now_s - (ticks[-1][0] if ticks else begun_s + SETTLE_S)
        if since_s > GIVE_UP_S:
            raise MeterError("below_resolution", f"the energy counter did not move within {GIVE_UP_S:g} s")
        last_s, last_j = now_s, now_j
    (start_s, start_blur_s, start_j), (end_s, end_blur_s, end_j) = ticks[0], ticks[-1]
    energy_j = end_j - start_j
    # Single ticks are compared at their mean distance: their own times carry the jitter of polling.
    tick_s = (end_s - start_s) / (len(ticks) - 1)
    return Window(
        start_s=start_s,
        end_s=end_s,
        energy_j=energy_j,
        blur_j=COUNTER_STEP_J + energy_j * (start_blur_s + end_blur_s) / (end_s - start_s),
        powers_w=[(after[2] - before[2]) / tick_s for before, after in pairwise(ticks)],
    )


def integrate(read_w: Callable[[], FieldValue], device: Device, step: Call, window_s: float) -> Window:
    """Energy from power readings over at least ``window_s`` seconds, while ``step()`` is repeated.

    Raises:
        MeterError: ``below_resolution`` where the driver's timestamps stand still.
    """
    begun_s = device.now_s()
    while device.now_s() - begun_s < AVERAGING_S:
        step()
    times_s: list[float] = []  # on the driver's clock
    powers_w: list[float] = []
    start_s = end_s = asked_s = device.now_s()
    while end_s - start_s < window_s or len(times_s) < 2:
        watts, timestamp_s = read_w()
        now_s = device.now_s()
        timestamp_s = timestamp_s or now_s
        if not times_s or timestamp_s > times_s[-1]:
            times_s.append(timestamp_s)
            powers_w.append(watts)
            start_s, end_s = (now_s if len(times_s) == 1 else start_s), now_s
        if now_s - asked_s > window_s + GIVE_UP_S:
            raise MeterError("below_resolution", f"{len(times_s)} power readings in {now_s - asked_s:.3g} s")
        step()
    readings = zip(times_s, powers_w, strict=True)
    energy_j = sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(readings))
    # A reading is as old as the sensor's last update, at either end; and a wave that the readings undersample shows
    # as scatter, of which there is one independent value an update.
    num_updates = max(2, min(len(powers_w), round((end_s - start_s) / SENSOR_UPDATE_S)))
    scatter_w = statistics.stdev(powers_w)
    return Window(
        start_s=start_s,
        end_s=end_s,
        energy_j=energy_j,
        blur_j=(max(powers_w) - min(powers_w)) * SENSOR_UPDATE_S
        + 2 * scatter_w / math.sqrt(num_updates) * (end_s - start_s)
        + COUNTER_STEP_J * (end_s - start_s),
        powers_w=powers_w,
    )
