"""The self-test of a run: would it have seen a difference, and does it see none where there is none?

Identical twins must not differ. A plain 5 % test would fail one sound run in twenty by construction, so the twins fail
the run only where their 99.9 % interval excludes 1 *and* the estimate lies outside the equivalence band of ±1 %: on
the recorded noise that happens to about 1 run of 6 processes in 7,000, and to fewer of 12. A planted slowdown must be
found: its 95 % interval lies above 1. Missing it is no false alarm, the run could not have found a real one either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.analysis.comparisons import BAND
from bench.analysis.interval import Estimate
from bench.analysis.model import Control
from bench.analysis.statistics import Floats, Spread, paired_units
from bench.store.schema import ControlRecord
from bench.units import percent, signed_percent

LEVEL = 0.95
TWIN_LEVEL = 0.999


def judge(records: Sequence[ControlRecord]) -> Control:
    """Judge the control of a run; one that was not run, or in one process only, has not passed."""
    units = paired_units(records)
    if ("base", "twin") not in units or ("base", "slowed") not in units:
        return Control(False, None, None, None, None, "No control was run, so no verdict is given.")
    # Pairs are in alphabetical order, log(base / other); slowdowns read better the other way round.
    twin_units, slowed_units = -units["base", "twin"], -units["base", "slowed"]
    planted = float(np.median([record.planted_slowdown for record in records]))
    if twin_units.size < 2:
        return Control(False, None, None, planted, None, "The control ran in one process only: no verdict is given.")
    twin, slowed = estimate(twin_units), estimate(slowed_units)
    faults = []
    twin_change, slowed_change = signed_percent(twin.value - 1), signed_percent(slowed.value - 1)
    if twins_differ(twin_units):
        faults.append(
            f"identical code differed by {twin_change} (95 % interval {interval(twin)}), so something else"
            " than the code decides here; close other programs and run again"
        )
    if slowed.low <= 1:
        faults.append(
            f"a planted slowdown of {percent(planted)} was not found (measured {slowed_change}, 95 % interval"
            f" {interval(slowed)}); measure in more processes or on a quieter machine"
        )
    noise_floor = (twin.high - twin.low) / 2
    if faults:
        sentence = f"The control failed, so no verdict is given: {'; and '.join(faults)}."
    else:
        sentence = (
            f"The control passed: identical code differed by {twin_change} (95 % interval {interval(twin)}),"
            f" and a planted slowdown of {percent(planted)} was measured as {slowed_change} ({interval(slowed)})."
            f" Differences below about {percent(noise_floor)} cannot be seen in this run."
        )
    return Control(not faults, twin, slowed, planted, noise_floor, sentence)


def twins_differ(units: Floats) -> bool:
    """Whether log-ratios of identical code, one a process, say that something else than the code decides."""
    spread = Spread.of([units])
    mean = abs(float(spread.mean[0]))
    return mean > BAND and mean > float(spread.half_width(TWIN_LEVEL)[0])


def estimate(units: Floats) -> Estimate:
    """The ratio with its 95 % interval."""
    spread = Spread.of([units])
    mean, half_width = float(spread.mean[0]), float(spread.half_width(LEVEL)[0])
    return Estimate(math.exp(mean), math.exp(mean - half_width), math.exp(mean + half_width))


def interval(ratio: Estimate) -> str:
    """The interval of a ratio as percentages, for a sentence."""
    return f"{signed_percent(ratio.low - 1)} to {signed_percent(ratio.high - 1)}"
