"""The Python interface: what the command line does, for notebooks and scripts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import load_sweep, parse_sweep
from bench.models import select
from bench.runner.progress import Progress, Silent
from bench.runs import LATEST, analysis_of

if TYPE_CHECKING:
    import pandas as pd


def run(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    *,
    model: str | None = None,
    hf_config: str | Path | None = None,
    scale: str | None = None,
    results: str | Path = "results",
    progress: Progress | None = None,
) -> Path:
    """Measure a sweep and give the run's folder.

    Args:
        source: a preset's name, a TOML file, or a document as the TOML would give it.
        overrides: ``{"layer.num_experts": [8, 64]}``: the values to use instead of the source's.
        model: a real model's layer in place of the source's, by its name in :func:`bench.models.models`.
        hf_config: the same from a Hugging Face ``config.json``, or the folder of a model.
        scale: with either, a fraction such as ``1/4`` that divides its widths.
        results: folder in which runs are kept.
        progress: who is told how far it is; nobody by default.

    Raises:
        MoebenchError: what was asked cannot be honoured; see :mod:`bench.errors`.
    """
    from bench.runner.sweep import run_sweep

    layer = select(model, None if hf_config is None else Path(hf_config), scale)
    if isinstance(source, Mapping):
        sweep = parse_sweep(source, source="a document", overrides=overrides, model=layer)
    else:
        sweep = load_sweep(source, overrides, model=layer)
    return run_sweep(sweep, results=Path(results), command=list(sys.argv), progress=progress or Silent()).folder


def load(run: str | Path = LATEST, *, results: str | Path = "results") -> pd.DataFrame:
    """The tidy table of a run: one row a case, columns as ``moebench show --csv``.

    Args:
        run: its folder, its id under ``results``, ``latest``, or a JSON file that ``pytest bench/suites`` wrote.
        results: folder in which runs are kept.

    Raises:
        ResultsError: there is no such run, or it cannot be read.
    """
    return analysis_of(str(run), Path(results)).frame


def write_report(*runs: str | Path, out: str | Path, results: str | Path = "results") -> Path:
    """Write the report of one or more runs into the folder ``out`` and give the path of its page.

    Raises:
        ResultsError: there is no such run, or it cannot be read.
    """
    from bench.report import write_report as write

    return write([analysis_of(str(run), Path(results)) for run in runs or (LATEST,)], Path(out))


def compare(
    base: str | Path, new: str | Path, *, results: str | Path = "results", force: bool = False
) -> list[dict[str, Any]]:
    """Compare two runs: one object a case, as ``moebench compare --json`` prints.

    Args:
        base: a run's folder, its id under ``results``, or ``latest``; a stored baseline is a folder.
        new: what to compare with it.
        results: folder in which runs are kept, and earlier runs are looked for.
        force: compare runs that are not comparable; every object then names the differences under ``forced``.

    Raises:
        ResultsError: there is no such run, or it cannot be read.
        RequestError: the runs are not comparable; every difference is named.
    """
    from bench.comparing.two_runs import compare_two_runs
    from bench.comparing.writing import as_objects

    return as_objects(compare_two_runs(str(base), str(new), results=Path(results), force=force))
