"""Writes a report's folder: the page, every picture as PNG and SVG, and the data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.analysis.model import Analysis
from bench.errors import RequestError, ResultsError
from bench.report.page import draw, render
from bench.report.profiles.export import profile_table
from bench.report.profiles.section import ProfileSection
from bench.report.view import View, make_view, shareable, short_names
from bench.table import csv_text, write_csv


def write_report(analyses: Sequence[Analysis], out: Path) -> Path:
    """Writes ``index.html``, ``data.csv``, and a ``.png`` and ``.svg`` for each picture into ``out``.

    Where cases were profiled, ``profiles.csv`` has every number of it, and ``traces/`` copies of the traces.

    Several runs stand one after the other in the page and are never ranked against each other: they are samples of
    a machine at different times. The files of the second run begin with ``run2-``, and so on.

    Returns:
        The path of the page.

    Raises:
        RequestError: there is no run, or no case in any.
        ResultsError: the folder cannot be written.
    """
    shown = [analysis for analysis in analyses if not analysis.frame.empty]
    if not shown:
        raise RequestError("a report needs a run with at least one case, found none: measure first with 'moebench run'")
    views = [make_view(analysis) for analysis in shown]
    prefixes = ["" if i == 0 else f"run{i + 1}-" for i in range(len(views))]
    pictures = [draw(view, prefix) for view, prefix in zip(views, prefixes, strict=True)]
    page = render(views, pictures, prefixes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for picture in (picture for of_run in pictures for picture in of_run.every):
            (out / f"{picture.slug}.svg").write_text(picture.svg, encoding="utf-8")
            (out / f"{picture.slug}.png").write_bytes(picture.png)
        with (out / "data.csv").open("w", encoding="utf-8", newline="") as file:
            for number, analysis in enumerate(shown):
                write_csv(_data(analysis, with_run=len(shown) > 1), file, header=number == 0)
        _write_profiles([(view, found.profile) for view, found in zip(views, pictures, strict=True)], out)
        index = out / "index.html"
        index.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write the report to {out}: {error.strerror or error}") from error
    return index


def _write_profiles(found: Sequence[tuple[View, ProfileSection | None]], out: Path) -> None:
    """The numbers of all profiles, and the traces that the page links."""
    sections = [(view, section) for view, section in found if section is not None]
    if not sections:
        return
    tables = []
    for view, section in sections:
        table = profile_table(section.cases)
        if len(found) > 1:
            table.insert(0, "run_id", view.analysis.info.run_id)
        tables.append(table)
        for trace in section.files:
            (out / trace.name).parent.mkdir(exist_ok=True)
            shutil.copyfile(trace.source, out / trace.name)
    (out / "profiles.csv").write_text(csv_text(pd.concat(tables, ignore_index=True)), encoding="utf-8")


def _data(analysis: Analysis, *, with_run: bool) -> pd.DataFrame:
    """The rows of a run with the columns of ``moebench show --csv``; where there are several, ``run_id`` in front."""
    frame = analysis.frame.copy(deep=False)
    frame["impl"] = frame["impl"].map(short_names(frame["impl"].unique()))
    for name in ("reason", "gaps", "graph_break_reasons"):
        frame[name] = shareable(frame[name])
    if with_run:
        frame.insert(0, "run_id", analysis.info.run_id)
    return frame
