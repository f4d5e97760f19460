from __future__ import annotations

import dataclasses
import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from analysis_maker import Report

from bench.analysis.frame import COLUMNS
from bench.analysis.model import Analysis
from bench.errors import RequestError, ResultsError
from bench.report import write_report
from bench.report.page import MAX_PAGE_BYTES
from bench.store.pytest_benchmark import NO_VERDICTS, SOURCE

Factory = Callable[..., Analysis]


class Page(HTMLParser):
    """What a reader's browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.num_rows = 0
        self.scripts = 0
        self.images: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._in_rows = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [value for name, value in attrs if name in {"href", "src"} and value]
        self._in_rows |= tag == "table" and values.get("id") == "rows"
        self.num_rows += self._in_rows and tag == "tr"
        self.scripts += tag == "script"
        if tag in {"h1", "h2", "h3"}:
            self.headings.append(tag)
        assert not any(name.startswith("on") for name in values), "no inline handlers"

    def handle_endtag(self, tag: str) -> None:
        self._in_rows &= tag != "table"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


OUTSIDE = ("https://ui.perfetto.dev", "https://docs.pytorch.org/memory_viz")
"""Links that a reader may follow; the page itself loads nothing."""


@pytest.fixture(scope="module")
def written(whole_report: Report) -> Path:
    return whole_report.page.parent


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return (written / "index.html").read_text(encoding="utf-8")


def test_page_loads_nothing_and_every_link_leads_somewhere(written: Path, text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids
        elif reference not in OUTSIDE:
            assert (written / reference).is_file(), reference
    for address in ("http://", "@import", "url(//"):
        assert address not in text
    assert text.count("https://") == sum(map(text.count, OUTSIDE)) == len(OUTSIDE)
    assert page.scripts == 1


def test_page_is_small_has_one_h1_and_a_row_for_each_case(written: Path, text: str) -> None:
    page = Page(text)
    rows = pd.read_csv(written / "data.csv")
    assert len(text.encode()) < MAX_PAGE_BYTES < 1_500_000
    assert page.headings.count("h1") == 1
    assert page.num_rows == len(rows) + 1


def test_data_has_the_columns_of_show(written: Path) -> None:
    rows = pd.read_csv(written / "data.csv", keep_default_na=False)
    assert tuple(rows.columns) == COLUMNS
    assert "none" in set(rows["capacity_factor"])


def test_every_picture_has_both_formats_and_works_in_the_dark(written: Path) -> None:
    stems = {path.stem for path in written.glob("*.svg")}
    assert stems == {path.stem for path in written.glob("*.png")}
    assert {"overview", "latency-num-experts", "throughput-top-k", "memory", "tradeoff", "routing"} <= stems
    for path in written.glob("*.svg"):
        drawn = path.read_text(encoding="utf-8")
        assert ET.fromstring(drawn).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in drawn
        assert "<dc:date>" not in drawn


def test_every_figure_says_how_to_read_it_and_what_to_do(text: str) -> None:
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) == len(re.findall(r"<figure ", text)) > 12
    for caption in captions:
        assert re.fullmatch(
            r"<strong>How to read this.</strong> \S.{40,} <strong>What to do about it.</strong> \S.{40,} <a .*", caption
        )


def test_page_says_what_failed_what_was_not_measured_and_how_to_repeat(text: str) -> None:
    words = " ".join(Page(text).words)
    assert "needs the fullest expert's buffer" in words
    assert "No energy was measured: not_supported: no powercap tree" in words
    assert "moebench run quick" in words
    assert "0123456789abcdef" in words
    assert "2.1 % of the time was stolen" in words
    assert "Identical code differed" in words


def test_no_folder_of_the_user_is_shared(written: Path, text: str) -> None:
    assert "somebody" not in text
    assert "somebody" not in (written / "data.csv").read_text(encoding="utf-8")


def test_same_data_gives_the_same_bytes(analysis_factory: Factory, tmp_path: Path) -> None:
    small: dict[str, Any] = {"experts": (8, 32), "top_ks": (2,), "capacities": ("none",)}
    first, second = (write_report([analysis_factory(**small)], tmp_path / name).parent for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_hostile_names_and_reasons_are_text(analysis_factory: Factory, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>{{ 7 * 7 }}$x_1$"
    path = "/home/somebody/secret/mine.py:Mine"
    analysis = analysis_factory(
        experts=(8, 128),
        top_ks=(8,),
        capacities=("none", 1.0),
        names={"grouped": hostile, "loop": path},
        reason='"><img src=x onerror=alert(2)> in /home/somebody/secret/thing.py',
        sentence=f"{hostile} beats {path}.",
    )
    text = write_report([analysis], tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts == 1
    assert "<img" not in text
    assert "somebody" not in text
    assert "{{ 7 * 7 }}" in "".join(page.words)
    assert "mine.py:Mine" in "".join(page.words)


@pytest.mark.usefixtures("undrawn")
def test_axis_with_one_value_has_a_line_instead_of_a_picture(analysis_factory: Factory, tmp_path: Path) -> None:
    text = write_report([analysis_factory(top_ks=(2,), capacities=("none",))], tmp_path).read_text(encoding="utf-8")
    assert "No picture: it has one value among the timed cases." in text
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.usefixtures("undrawn")
def test_run_in_which_nothing_was_timed_still_has_a_page(analysis_factory: Factory, tmp_path: Path) -> None:
    full = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    measured = [name for name in full.frame.columns if name.endswith(("_s", "_bytes", "_fraction", "imbalance"))]
    frame = full.frame.assign(status="unsupported", reason="no", **dict.fromkeys(measured, float("nan")))
    empty = dataclasses.replace(full, frame=frame, comparisons=(), winners=(), finished=False)
    text = write_report([empty], tmp_path).read_text(encoding="utf-8")
    assert "Nothing was timed in this run." in text
    assert "This run did not finish" in text


@pytest.mark.usefixtures("undrawn")
def test_failed_control_withholds_the_headline(analysis_factory: Factory, tmp_path: Path) -> None:
    full = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    control = dataclasses.replace(full.control, passed=False, sentence="The control failed: twins differed by 9 %.")
    page = Page(write_report([dataclasses.replace(full, control=control)], tmp_path).read_text(encoding="utf-8"))
    assert "No verdict" in "".join(page.words)
    assert "The control failed: twins differed by 9 %." in "".join(page.words)


def test_two_runs_stand_apart_in_one_page(analysis_factory: Factory, tmp_path: Path) -> None:
    small: dict[str, Any] = {"experts": (8,), "top_ks": (2,), "capacities": ("none",)}
    runs = [analysis_factory(**small), analysis_factory(**small, energy=True, run_id="second")]
    page = Page(write_report(runs, tmp_path).read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert page.headings.count("h1") == 1
    assert (tmp_path / "run2-energy.svg").exists()
    assert set(pd.read_csv(tmp_path / "data.csv")["run_id"]) == {run.info.run_id for run in runs}


@pytest.mark.usefixtures("undrawn")
def test_no_case_and_no_place_are_the_users_errors(analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least one case"):
        write_report([], tmp_path)
    (tmp_path / "file").write_text("")
    small = dataclasses.replace(analysis, frame=analysis.frame.head(8))
    with pytest.raises(ResultsError, match="cannot write the report"):
        write_report([small], tmp_path / "file" / "folder")


@pytest.mark.usefixtures("undrawn")
def test_two_runs_stand_side_by_side_without_verdicts(analysis_factory: Factory, tmp_path: Path) -> None:
    small: dict[str, Any] = {"experts": (8, 32), "top_ks": (2,), "capacities": ("none",)}
    runs = [analysis_factory(**small), analysis_factory(**small, run_id="second")]
    words = "".join(Page(write_report(runs, tmp_path).read_text(encoding="utf-8")).words)
    assert "No verdict is given across runs or machines." in words
    assert "side by side" not in "".join(Page(write_report(runs[:1], tmp_path).read_text(encoding="utf-8")).words)


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_pytest_benchmark_says_why_it_has_no_verdicts(analysis_factory: Factory, tmp_path: Path) -> None:
    full = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    no_control = dataclasses.replace(full.control, passed=False, twin=None, sentence="No control was run.")
    info = full.info.model_copy(update={"source": SOURCE})
    analysis = dataclasses.replace(full, info=info, control=no_control, warnings=(NO_VERDICTS,))
    words = "".join(Page(write_report([full, analysis], tmp_path).read_text(encoding="utf-8")).words)
    assert words.count(NO_VERDICTS) == 1
    assert "Latencies without verdicts" in words


def test_sliders_are_labelled_and_work_from_numbers_in_the_page(text: str) -> None:
    found = re.search(r"data-cases='([^']*)'", text)
    assert found is not None
    cases = json.loads(html.unescape(found[1]))
    assert cases["columns"] == ["experts", "top-k", "capacity"]
    impl, settings, latency_s, low_s, high_s, peak_bytes, rate = cases["rows"][0]
    assert impl in cases["impls"]
    assert len(settings) == 3
    assert low_s < latency_s < high_s
    assert rate == pytest.approx(512 / latency_s, rel=1e-3)
    assert peak_bytes > 0
    for limit in ("limit-latency", "limit-memory"):
        assert f'<label for="{limit}">' in text
        assert f'<output for="{limit}"' in text
        assert f'<input type="range" id="{limit}"' in text
    assert "<noscript>" in text
