"""A report over more rows than anybody reads: bounded in time and memory, and in what a browser has to load."""

import csv
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NUM_ROWS = 20_000
MOST_BYTES = 640 * 2**20
MOST_CPU_S = 60.0
"""Several times what it takes: this finds what grows with a square, on a machine that others use too."""
PROGRAM = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from analysis_maker import make_analysis
from bench.report import write_report
tokens = tuple(16 * (i + 1) for i in range({NUM_ROWS} // 800))
sizes = {{"experts": (8, 16, 32, 64, 128), "top_ks": (1, 2, 4, 8), "capacities": ("none", 1.0, 1.25, 1.5, 2.0)}}
write_report([make_analysis(tokens=tokens, **sizes)], Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_large_report_is_made_in_bounded_memory_and_is_small(tmp_path: Path) -> None:
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", PROGRAM, str(tmp_path)], os.environ)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    assert usage.ru_maxrss * 1024 < MOST_BYTES
    assert usage.ru_utime + usage.ru_stime < MOST_CPU_S
    with (tmp_path / "data.csv").open(encoding="utf-8") as file:
        assert sum(1 for _ in csv.reader(file)) == NUM_ROWS + 1
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
