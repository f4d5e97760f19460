from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import units


@given(st.integers(0, 10**6))
def test_durations_read_back_to_the_second_or_minute(seconds: int) -> None:
    assert units.parse_duration(units.duration(seconds)) == pytest.approx(seconds, abs=30 if seconds >= 3600 else 0)


@given(st.floats(1e-9, 1e4))
def test_latencies_keep_three_digits(seconds: float) -> None:
    number, unit = units.latency(seconds).split()
    scale = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert float(number) * scale == pytest.approx(seconds, rel=5.01e-3)
    assert 1 <= float(number) < 1000 or unit == "s"


@pytest.mark.parametrize(("text", "num_bytes"), [("2GiB", 2**31), ("1.5 kB", 1500), ("512MiB", 2**29), ("7B", 7)])
def test_sizes_are_read_with_their_unit(text: str, num_bytes: int) -> None:
    assert units.parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["2", "GiB", "-1GiB", "2 gigs", "0B", "1e3B", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be a size with its unit"):
        units.parse_bytes(text)


@given(st.integers(1, 2**49))
def test_sizes_keep_three_digits(num_bytes: int) -> None:
    number, unit = units.bytes_(num_bytes).split()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert float(number) * scale == pytest.approx(num_bytes, rel=5.01e-3)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("3m", 180), ("1.5h", 5400), ("1h 30m", 5400), ("2m05s", 125), ("250ms", 0.25)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "3", "3 parsecs", "-3m", "m", "3m later", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.latency(0.00123), "1.23 ms"),
        (units.latency(0.9996), "1.00 s"),
        (units.latency(0), "0 ns"),
        (units.bytes_(4.1 * 2**20), "4.10 MiB"),
        (units.rate(12_345, "tokens/s"), "12.3 k tokens/s"),
        (units.rate(12, "tokens/s"), "12.0 tokens/s"),
        (units.rate(1.2e12, "FLOP/s"), "1.20 TFLOP/s"),
        (units.percent(0.125), "12.5 %"),
        (units.percent(1e308), "inf %"),
        (units.three_digits(math.nan), "nan"),
        (units.three_digits(1.7976e308), str(int(1.7976e308))),
        (units.three_digits(-0.001234), "-0.00123"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert text == expected
