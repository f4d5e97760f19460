"""A report over more rows than anybody reads: bounded in time and memory, and in what a browser has to load."""

import csv
import subprocess
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
import os
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, sum(os.times()[:2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_large_report_is_made_in_bounded_memory_and_is_small(tmp_path: Path) -> None:
    # What it says itself: what the system says of a child that has ended counts the memory of its parent, too.
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=True)
    peak_bytes, cpu_s = map(float, done.stdout.split()[-2:])
    assert peak_bytes < MOST_BYTES
    assert cpu_s < MOST_CPU_S
    with (tmp_path / "data.csv").open(encoding="utf-8") as file:
        assert sum(1 for _ in csv.reader(file)) == NUM_ROWS + 1
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
