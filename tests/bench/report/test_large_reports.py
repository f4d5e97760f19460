"""A report over more rows than anybody reads: what it shows and draws is bounded, and a row costs little memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from analysis_maker import make_analysis
from matplotlib.backends.backend_svg import FigureCanvasSVG

from bench.analysis.model import Analysis
from bench.report import write_report
from bench.report.figures.lines import MANY_ROWS, MAX_VALUES
from bench.report.page import MAX_PAGE_BYTES
from bench.report.tables import MAX_ROWS

MOST_ARTISTS = 3000
MOST_BYTES_A_ROW = 2048
"""So 100,000 rows add less than 200 MiB to what was there before."""


class Written:
    """A large report, and how many artists each of its pictures had whenever it was drawn as SVG."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_artists: list[int] = []


@pytest.fixture(scope="module")
def large() -> Analysis:
    found = make_analysis(experts=(8, 32), top_ks=(1, 2), capacities=("none", 1.25), tokens=range(16, 1616, 16))
    assert len(found.frame) > MANY_ROWS
    return found


@pytest.fixture(scope="module")
def written(large: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Written:
    result = Written(tmp_path_factory.mktemp("large"))

    class Counting(FigureCanvasSVG):
        def print_svg(self, *arguments: Any, **named: Any) -> None:
            result.num_artists.append(len(self.figure.findobj()))
            super().print_svg(*arguments, **named)  # type: ignore[no-untyped-call] # the stubs lack it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.figures.canvas.FigureCanvasSVG", Counting)
        write_report([large], result.folder)
    return result


def test_the_page_has_some_rows_and_links_the_rest(written: Written, large: Analysis) -> None:
    text = (written.folder / "index.html").read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_PAGE_BYTES
    assert text[text.index('<table id="rows"') :].count("<tr>") <= MAX_ROWS + 1
    assert f"of {len(large.frame):,} rows" in text
    assert '<a href="data.csv" download>' in text
    assert len(pd.read_csv(written.folder / "data.csv")) == len(large.frame)


def test_pictures_stand_for_the_rows_and_say_so(written: Written) -> None:
    pictures = list(written.folder.glob("*.svg"))
    assert len(written.num_artists) == len(pictures)  # each is drawn once
    assert max(written.num_artists) < MOST_ARTISTS
    text = (written.folder / "index.html").read_text(encoding="utf-8")
    assert f"{MAX_VALUES} of 100 values are drawn." in text
    assert (written.folder / "throughput-num-tokens.svg").exists()
    assert not (written.folder / "throughput-num-experts.svg").exists()
    assert "throughput is drawn against tokens only" in text


@pytest.mark.usefixtures("undrawn")
def test_a_row_costs_little_memory(large: Analysis, tmp_path: Path) -> None:
    half = dataclasses.replace(large, frame=large.frame.iloc[: len(large.frame) // 2])
    assert len(half.frame) > MAX_ROWS  # both pages are full
    write_report([half], tmp_path)  # what is loaded once is not counted
    growth_bytes = _peak_bytes(large, tmp_path) - _peak_bytes(half, tmp_path)
    assert growth_bytes < MOST_BYTES_A_ROW * (len(large.frame) - len(half.frame))


def _peak_bytes(analysis: Analysis, folder: Path) -> int:
    tracemalloc.start()
    try:
        write_report([analysis], folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
