from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Play = Callable[..., list[dict[str, Any]]]
CONSTANT, SQUARE, RAMP = 0, 1, 2


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Plays scenarios in a new process, on the fake library built with the given flags (None: no library)."""
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        pytest.skip("needs a C compiler")
    built: dict[str, Path] = {}

    def build(flags: tuple[str, ...]) -> Path:
        key = " ".join(flags)
        if key not in built:
            built[key] = tmp_path_factory.mktemp("nvml")
            output = built[key] / "libnvidia-ml.so.1"
            source = str(HERE / "fake_nvml.c")
            subprocess.run([gcc, "-O2", "-shared", "-fPIC", *flags, "-o", str(output), source, "-lm"], check=True)
        return built[key]

    def run(*scenarios: dict[str, Any], flags: tuple[str, ...] | None = ()) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("empty") if flags is None else build(flags)
        done = subprocess.run(
            [sys.executable, str(HERE / "nvml_scenarios.py")],
            env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
            input=json.dumps(scenarios),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return run


def relative_error(answer: dict[str, Any]) -> float:
    assert answer["reading"]["energy_j"] is not None, answer["reading"]["reason"]
    return float(abs(answer["reading"]["energy_j"] / answer["true_j"] - 1))


def contains_truth(answer: dict[str, Any]) -> bool:
    reading = answer["reading"]
    return bool(reading["energy_low_j"] <= answer["true_j"] <= reading["energy_high_j"])


SHAPES: list[dict[str, float]] = [
    {"shape": CONSTANT, "low_w": 250},
    {"shape": SQUARE, "period_s": 0.7},
    {"shape": SQUARE, "period_s": 0.013},
    {"shape": RAMP, "low_w": 80, "high_w": 120, "period_s": 1},
]


def test_counter_is_within_half_a_percent_over_windows_of_a_second(play: Play) -> None:
    answers = play(*({"knobs": knobs, "window_s": window_s} for knobs in SHAPES for window_s in (1.0, 3.0)))
    for answer in answers:
        assert answer["reading"]["meter"] == "nvml energy counter"
        assert relative_error(answer) <= 0.005
        assert contains_truth(answer)
        assert answer["reading"]["window_s"] >= 1.0


def random_scenario(draw: random.Random) -> dict[str, Any]:
    """Any shape, period and phase, any length of call, a window of one to three seconds."""
    low_w = draw.uniform(20, 300)
    period_s = 10 ** draw.uniform(-3, 1)
    knobs = {
        "shape": draw.choice([CONSTANT, SQUARE, RAMP]),
        "low_w": low_w,
        "high_w": low_w + draw.uniform(0, 400),
        "period_s": period_s,
        "phase_s": draw.random() * period_s,
        "now_s": draw.uniform(0, 0.1),
    }
    return {"knobs": knobs, "call_s": 10 ** draw.uniform(-5, -1), "window_s": draw.uniform(1, 3)}


def test_counter_holds_over_random_shapes_phases_and_calls(play: Play) -> None:
    draw = random.Random(1)
    answers = play(*(random_scenario(draw) for _ in range(200)))
    assert max(map(relative_error, answers)) <= 0.005
    assert sum(map(contains_truth, answers)) >= 0.95 * len(answers)


def test_calls_are_counted_by_the_fraction(play: Play) -> None:
    for call_s, answer in zip(
        (2e-5, 0.003, 0.03, 0.4), play(*({"call_s": c} for c in (2e-5, 0.003, 0.03, 0.4))), strict=True
    ):
        reading = answer["reading"]
        assert reading["calls"] * call_s == pytest.approx(reading["window_s"], rel=0.005)


def test_truth_lies_inside_the_interval_of_a_part_time_sensor(play: Play) -> None:
    draw = random.Random(0)
    scenarios = []
    for _ in range(100):
        period_s = 10 ** draw.uniform(-3, 0.5)
        knobs = {"part_time": 1, "shape": SQUARE, "period_s": period_s, "phase_s": draw.random() * period_s}
        # a wave faster than the sensor's window is the call's own; slower ones are not
        scenarios.append({"knobs": knobs, "window_s": 3.0, "call_s": period_s if period_s < 0.2 else 0.005})
    answers = play(*scenarios)
    assert {answer["reading"]["meter"] for answer in answers} == {"nvml energy counter, sampled 25 % of the time"}
    assert sum(map(contains_truth, answers)) >= 95


def test_interval_of_a_part_time_sensor_is_useful_for_short_calls(play: Play) -> None:
    knobs = {"part_time": 1, "shape": CONSTANT, "low_w": 250}
    (answer,) = play({"knobs": knobs, "call_s": 0.0005, "window_s": 2.0})
    reading = answer["reading"]
    assert contains_truth(answer)
    assert (reading["energy_high_j"] - reading["energy_low_j"]) / reading["energy_j"] < 0.02


def test_idle_power_is_that_around_the_window(play: Play) -> None:
    (answer,) = play({"knobs": {"low_w": 55}})
    assert answer["reading"]["idle_power_w"] == pytest.approx(55, rel=0.005)


def test_without_a_counter_power_is_integrated(play: Play) -> None:
    shapes: list[dict[str, float]] = [
        {"shape": CONSTANT, "low_w": 250},
        {"shape": RAMP, "low_w": 80, "high_w": 120, "period_s": 1},
    ]
    shapes += [{"shape": SQUARE, "period_s": 0.013}, {"shape": SQUARE, "period_s": 0.7}]
    answers = play(*({"knobs": knobs | {"energy_error": 3}, "window_s": 5.0} for knobs in shapes))
    for answer in answers:
        assert answer["reading"]["meter"] == "nvml power"
        assert contains_truth(answer)
    assert relative_error(answers[0]) <= 0.005


def test_a_field_that_failed_is_not_read(play: Play) -> None:
    knobs = {"low_w": 250, "energy_error": 3, "instant_error": 3}
    averaged, usage = play({"knobs": knobs}, {"knobs": knobs | {"average_error": 3}})
    assert relative_error(averaged) <= 0.005
    assert relative_error(usage) <= 0.005


def test_older_drivers_lack_functions(play: Play) -> None:
    (no_fields,) = play({"knobs": {"low_w": 250}}, flags=("-DNO_FIELDS",))
    assert no_fields["reading"]["meter"] == "nvml energy counter"
    assert relative_error(no_fields) <= 0.005
    (neither,) = play({"knobs": {"low_w": 250}}, flags=("-DNO_FIELDS", "-DNO_ENERGY"))
    assert neither["reading"]["meter"] == "nvml power"
    assert relative_error(neither) <= 0.005


ALL_ERRORS = ("energy_error", "instant_error", "average_error", "usage_error")
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"knobs": {"init_error": 4}}, "no_permission"),
    ({"knobs": {"init_error": 9}}, "library_absent"),
    ({"knobs": {"mig": 1}}, "mig"),
    ({"uuid": "MIG-0000"}, "mig"),
    ({"knobs": {"slice": 1}}, "mig"),  # torch tells a slice's number without saying that it is one
    ({"knobs": {"virtualization": 2}}, "virtualised"),
    ({"uuid": "GPU-other"}, "not_supported"),
    ({"knobs": dict.fromkeys(ALL_ERRORS, 3)}, "not_supported"),
    ({"knobs": dict.fromkeys(ALL_ERRORS, 4)}, "no_permission"),
    ({"knobs": {"lost_at_s": 2.0}}, "device_lost"),
    ({"knobs": {"reset_at_s": 2.0}}, "device_lost"),
]


def test_refusals_have_reason_codes(play: Play) -> None:
    answers = play(*(scenario for scenario, _ in REFUSALS))
    for (_, code), answer in zip(REFUSALS, answers, strict=True):
        assert answer["reading"]["energy_j"] is None
        assert answer["reading"]["reason"].startswith(f"{code}: ")


def test_the_drivers_memory_is_that_of_our_process_or_has_a_reason(play: Play) -> None:
    ask = {"process": 4242, "used_bytes": 3 * 2**30}
    ours, hidden, elsewhere, denied, broken = play(
        {**ask, "knobs": {"pid": 4242}},
        {**ask, "knobs": {"pid": 4242, "hides_memory": 1}},
        {**ask, "knobs": {"pid": 17}},  # the driver's numbers are not the container's
        {**ask, "knobs": {"processes_error": 4}},
        {**ask, "knobs": {"processes_error": 3}},
    )
    assert ours == {"bytes": 3 * 2**30}
    assert (hidden["code"], hidden["detail"]) == (
        "not_supported",
        "the driver does not tell the memory of single processes",
    )
    assert "lists 2 processes, and not 4242" in elsewhere["detail"]
    assert (denied["code"], broken["code"]) == ("no_permission", "not_supported")
    (older,) = play({**ask, "knobs": {"pid": 4242}}, flags=("-DNO_PROCESSES",))
    assert older["code"] == "not_supported"


def test_a_counter_that_never_ticks_is_given_up_for_the_power_sensor(play: Play) -> None:
    answer, nothing = play(
        {"knobs": {"stuck": 1, "low_w": 250}},
        {"knobs": {"stuck": 1, "instant_error": 3, "average_error": 3, "usage_error": 3}},
    )
    assert answer["reading"]["meter"] == "nvml power"
    assert relative_error(answer) <= 0.005
    assert nothing["reading"]["energy_j"] is None


def test_no_library(play: Play) -> None:
    if any(Path(folder, "libnvidia-ml.so.1").exists() for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64")):
        pytest.skip("this machine has the real library")
    (answer,) = play({}, flags=None)
    assert answer["reading"]["reason"].startswith("library_absent: ")
    assert answer["state"] == {}


def test_state_has_clocks_temperature_and_throttle_time(play: Play) -> None:
    (answer,) = play({})
    state = answer["state"]
    assert state["sm_clock_hz"] == 1.4e9
    assert state["temperature_c"] == 40
    assert state["power_throttle_total_s"] > 0
    assert "thermal_throttle_total_s" not in state


def test_probe_tells_what_each_card_can_do(play: Play) -> None:
    healthy, partitioned, denied = play(
        {"probe": True}, {"probe": True, "knobs": {"mig": 1}}, {"probe": True, "knobs": {"energy_error": 4}}
    )

    def codes(answer: dict[str, Any]) -> dict[str, str]:
        return {c["name"]: c["code"] for c in answer["probe"] if c["name"].startswith("GPU")}

    assert codes(healthy) == {"GPU": "", "GPU energy counter": "", "GPU power": "", "GPU clocks": ""}
    assert codes(partitioned) == {"GPU": "", "GPU energy counter": "mig", "GPU power": "mig", "GPU clocks": "mig"}
    assert codes(denied) == {"GPU": "", "GPU energy counter": "no_permission", "GPU power": "", "GPU clocks": ""}
