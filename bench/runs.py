"""Finding runs: what a user means by ``latest``, a run's id, a folder, or a file of pytest-benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import ResultsError
from bench.faults import nearest
from bench.store.log import find_runs

if TYPE_CHECKING:  # the analysis loads pandas, which listings do without
    from bench.analysis.model import Analysis

LATEST = "latest"


def analysis_of(run: str, results: Path) -> Analysis:
    """Everything that is known of a run, or of what ``pytest bench/suites --benchmark-json FILE`` wrote.

    Args:
        run: as for :func:`run_folder`, or the path of a JSON file.
        results: where runs are looked for.

    Raises:
        ResultsError: there is no such run, or it cannot be read.
    """
    from bench.analysis import analyse, load
    from bench.store.pytest_benchmark import read_pytest_benchmark

    place = run_folder(run, results)
    if place.is_file():
        return analyse(*read_pytest_benchmark(place))
    return load(place)


def run_folder(run: str, results: Path) -> Path:
    """The folder of a run, or the path that was given.

    Args:
        run: ``latest``, the id of a run under ``results``, or the path of its folder.
        results: where runs are looked for.

    Raises:
        ResultsError: where there is no such run; the folder's content is not looked at.
    """
    if run != LATEST and (Path(run).exists() or "/" in run):
        return Path(run)
    runs = [found for found in find_runs(results) if found.info is not None]
    if run == LATEST:
        if not runs:
            raise ResultsError(f"{results} holds no run that can be read; `moebench run smoke` makes one")
        return max(runs, key=lambda found: found.info.created_unix_s if found.info else 0.0).folder
    for found in runs:
        if found.folder.name == run:
            return found.folder
    names = [found.folder.name for found in runs]
    raise ResultsError(
        f"there is no run {run!r} under {results}{nearest(run, names)} (`moebench list runs` shows {len(names)})"
    )
