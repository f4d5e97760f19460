"""Finding runs: which folder a user means by ``latest``, a run's id, or a path."""

from __future__ import annotations

from pathlib import Path

from bench.errors import ResultsError
from bench.faults import nearest
from bench.store.log import find_runs

LATEST = "latest"


def run_folder(run: str, results: Path) -> Path:
    """The folder of a run.

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
