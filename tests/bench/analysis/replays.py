"""What different habits make of the recorded noise, as numbers, a Markdown table and pictures.

Nothing but the moment differs in the record (``tests/data/noise``), so every difference that is claimed is a false one.
The tests hold these numbers to docs/measuring.md; the pictures there are drawn anew by ::

    python tests/bench/analysis/replays.py docs/images
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.statistics import ERROR_RATE, smallest_effect, t_factor

Floats = NDArray[np.float64]
NOISE = Path(__file__).parents[2] / "data/noise"
TRIALS = 2000
PROCESSES = 12


@dataclass(frozen=True)
class Habit:
    """How often a habit calls identical code different at a nominal 5 %, and how wide its interval is (log-ratio)."""

    name: str
    false_positives: float
    half_width: float


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (NOISE / name).read_text().splitlines()]


def log_calls(name: str) -> tuple[Floats, Floats]:
    """Logarithms of all calls of both arms, (processes, calls)."""
    rows = read(name)
    return np.log([row["first_ns"] for row in rows]), np.log([row["second_ns"] for row in rows])


def drift() -> Floats:
    """Median seconds of a call in 640 processes that were started one after the other."""
    lines = (NOISE / "processes.jsonl").read_text().splitlines()
    return np.array([np.median(json.loads(line)) for line in lines]) * 1e-9


def threshold_sentence() -> str:
    """How often two processes, some moments apart, differ by more than a fixed 5 %, as a sentence."""
    means = np.array([np.mean(json.loads(line)) for line in (NOISE / "processes.jsonl").read_text().splitlines()])
    next_one, later = (float((np.abs(means[lag:] / means[:-lag] - 1) > 0.05).mean()) for lag in (1, 5))
    return (
        f"in {100 * next_one:.0f} % of cases for one process and the next, "
        f"and in {100 * later:.0f} % for the fifth after it"
    )


def habits() -> list[Habit]:
    """Every habit on the same record, the worst first."""
    sequential, interleaved = log_calls("sequential.jsonl"), log_calls("pairs.jsonl")
    chosen = np.random.default_rng(0).random((TRIALS, 64)).argsort(axis=1)[:, :PROCESSES]
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (TRIALS, PROCESSES))
    medians_seq = (np.median(sequential[0], axis=1) - np.median(sequential[1], axis=1))[chosen]
    medians_int = np.median(interleaved[0] - interleaved[1], axis=1)[chosen]
    windows = np.arange(640 - 2 * PROCESSES)[:, None] + np.arange(2 * PROCESSES)
    processes = np.log(drift())[windows]
    found = [
        _welch("12 processes, A's calls then B's in each, t over calls", *(arm[chosen] for arm in sequential)),
        _welch("two runs of 12 processes, one after the other, Welch's t", processes[:, :12], processes[:, 12:]),
        _welch("1 process, A's calls then B's, t over calls", *sequential),
        _paired("12 processes, A's calls then B's in each, t over processes", medians_seq * signs),
        _paired("12 pairs of processes, A and B in turn, t over pairs", processes[:, ::2] - processes[:, 1::2]),
        _paired("**12 processes, A and B in turn in each, t over processes**", medians_int * signs),
    ]
    return sorted(found, key=lambda habit: -habit.false_positives)


def _welch(name: str, first: Floats, second: Floats) -> Habit:
    """All calls of each trial (its remaining axes) as if they were independent."""
    a, b = (arm.reshape(len(arm), -1) for arm in (first, second))
    result = stats.ttest_ind(a, b, axis=1, equal_var=False)
    interval = result.confidence_interval(1 - ERROR_RATE)
    return Habit(name, float((result.pvalue < ERROR_RATE).mean()), float(np.median(interval.high - interval.low) / 2))


def _paired(name: str, units: Floats) -> Habit:
    width = t_factor(np.array([float(units.shape[1])]), 1 - ERROR_RATE) * units.std(axis=1, ddof=1)
    return Habit(name, float((np.abs(units.mean(axis=1)) > width).mean()), float(np.median(width)))


def found_share(slowdown: float, num_processes: int, trials: int = TRIALS) -> float:
    """How often a planted slowdown is found, arms swapped at random."""
    first, second = log_calls("pairs.jsonl")
    recorded = np.median(first - second, axis=1)
    rng = np.random.default_rng(num_processes)
    chosen = rng.random((trials, recorded.size)).argsort(axis=1)[:, :num_processes]
    units = recorded[chosen] * rng.choice([-1.0, 1.0], chosen.shape) + np.log1p(slowdown)
    width = t_factor(np.array([float(num_processes)]), 1 - ERROR_RATE) * units.std(axis=1, ddof=1)
    return float((units.mean(axis=1) > width).mean())


def recorded_deviation() -> float:
    """Standard deviation of a process's log-ratio of identical code."""
    first, second = log_calls("pairs.jsonl")
    return float(np.median(first - second, axis=1).std(ddof=1))


def habits_table() -> str:
    """The habits as Markdown."""
    rows = [
        f"| {habit.name} | {100 * habit.false_positives:.1f} % | ±{100 * np.expm1(habit.half_width):.1f} % |"
        for habit in habits()
    ]
    return "\n".join(["| habit | identical code called different | its 95 % interval |", "|---|---|---|", *rows])


def power_table() -> str:
    """How often planted slowdowns are found, and the smallest that is found nine times in ten, as Markdown."""
    lines = ["| processes | 1 % found | 2 % found | smallest found nine times in ten |", "|---|---|---|---|"]
    for count in (6, 12, 20, 36):
        shares = " | ".join(f"{100 * found_share(slowdown, count):.1f} %" for slowdown in (0.01, 0.02))
        effect = 100 * np.expm1(smallest_effect(recorded_deviation(), count, chance=0.9))
        lines.append(f"| {count} | {shares} | {effect:.2f} % |")
    return "\n".join(lines)


def draw(folder: Path) -> None:
    """Write the pictures of docs/measuring.md."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plain: dict[str, Any] = {"dpi": 160, "bbox_inches": "tight", "metadata": {"Software": None}}

    seconds = drift()
    figure, axes = plt.subplots(figsize=(7, 2.6))
    axes.plot(seconds * 1e6, ".", markersize=3, color="#0072B2")
    axes.set(xlabel="process, in the order of their start (171 s in all)", ylabel="µs a call", ylim=(0, None))
    axes.set_title("Identical code, 640 processes one after the other: the machine drifts", loc="left", fontsize=10)
    figure.savefig(folder / "noise-drift.png", **plain)

    found = habits()[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
    names = [habit.name.replace("*", "") for habit in found]
    colours = ["#009E73" if habit.name.startswith("**") else "#999999" for habit in found]
    for axes, values in (
        (left, [100 * habit.false_positives for habit in found]),
        (right, [100 * np.expm1(habit.half_width) for habit in found]),
    ):
        bars = axes.barh(names, values, color=colours)
        for label in axes.bar_label(bars, fmt="%.1f", padding=3):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axes.margins(x=0.15)
    left.axvline(100 * ERROR_RATE, color="black", linewidth=0.8, linestyle="--")
    left.set_xlabel("identical code called different, %\n(less is better; dashed: the nominal 5 %)")
    right.set_xlabel("half-width of the 95 % interval, %\n(less is better, where the left side is honest)")
    figure.savefig(folder / "noise-habits.png", **plain)

    figure, axes = plt.subplots(figsize=(6, 3.2))
    slowdowns = np.linspace(0, 0.03, 16)
    for count, colour in ((6, "#D55E00"), (12, "#0072B2"), (20, "#009E73"), (36, "#CC79A7")):
        shares = [100 * found_share(slowdown, count) for slowdown in slowdowns]
        axes.plot(100 * slowdowns, shares, "o-", markersize=3, color=colour, label=f"{count} processes")
    axes.axhline(90, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="planted slowdown, %", ylabel="found, % of 2,000 trials (more is better)", ylim=(0, 102))
    axes.legend(frameon=False, loc="lower right")
    axes.set_title("How small a slowdown is found, on the recorded noise", loc="left", fontsize=10)
    figure.savefig(folder / "noise-power.png", **plain)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
    print(habits_table(), power_table(), sep="\n\n")
