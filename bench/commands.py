"""What ``moebench run``, ``show`` and ``report`` do once their options are read."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import units
from bench.config import Sweep, load_sweep, parse_sweep
from bench.errors import Exit, RequestError
from bench.estimate import estimate
from bench.models import Selection
from bench.runs import analysis_of, run_folder
from bench.store.log import read_info
from bench.store.schema import Status

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_PRESET = "quick"
BUDGET = "measure.budget"


def run_command(
    source: str | None,
    overrides: Mapping[str, object],
    *,
    model: Selection | None = None,
    results: Path,
    resume: str | None,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Measure a sweep, or list it; gives the exit code."""
    from bench.console import make_progress, print_summary, talk

    folder = None if resume is None else run_folder(resume, results)
    if folder is None:
        sweep = load_sweep(source or DEFAULT_PRESET, overrides, model=model)
    else:
        sweep = _resumed(folder, source, overrides, model)
    for sentence in () if quiet else (*sweep.left_out, *sweep.notes):
        talk().print(sentence, markup=False)
    if dry_run:
        return _list_cases(sweep)

    from bench.runner.sweep import run_sweep

    progress = make_progress(quiet)
    try:
        outcome = run_sweep(
            sweep, results=results, command=["moebench", *sys.argv[1:]], progress=progress, resume=folder
        )
    finally:
        progress.stop()
    if not quiet:
        from bench.analysis import load

        print_summary(talk(), load(outcome.folder), outcome.folder)
    print(outcome.folder)
    return exit_code(outcome.statuses, outcome.num_not_run)


def exit_code(statuses: Counter[Status], num_not_run: int = 0) -> Exit:
    """The exit code of a run whose rows ended like this; wrong numbers weigh more than rows that failed or lack."""
    if statuses[Status.WRONG_RESULT]:
        return Exit.WRONG_NUMERICS
    if num_not_run or any(statuses[status] for status in statuses if status not in (Status.OK, Status.UNSUPPORTED)):
        return Exit.FAILED
    return Exit.OK


def show_command(run: str, *, results: Path, style: str) -> int:
    """Print a run's table on stdout, as ``csv``, ``json``, ``markdown``, or for people."""
    from bench.console import data, print_table, talk
    from bench.table import csv_text, markdown, short_table

    analysis = analysis_of(run, results)
    if style == "csv":
        print(csv_text(analysis.frame), end="")
    elif style == "json":
        print(json.dumps(rows(analysis.frame), indent=1))
    elif style == "markdown":
        print(markdown(short_table(analysis)))
    else:
        info = analysis.info
        print_table(data(), short_table(analysis), title=f"{info.run_id} on {info.machine}: {info.title}")
    for warning in analysis.warnings:
        talk().print(f"Warning: {warning}", markup=False)
    return Exit.OK


def rows(frame: pd.DataFrame) -> list[dict[str, object]]:
    """The frame as plain values, null where a cell is empty; numbers keep every digit."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def report_command(runs: Sequence[str], *, results: Path, out: Path | None) -> int:
    """Write a report and print the path of its page."""
    analyses = [analysis_of(run, results) for run in runs]

    from bench.report import write_report

    print(write_report(analyses, out or Path("reports") / analyses[0].info.run_id))
    return Exit.OK


def _resumed(folder: Path, source: str | None, overrides: Mapping[str, object], model: Selection | None) -> Sweep:
    """The sweep that a run was asked for, from its own record."""
    others = [name for name in overrides if name != BUDGET]
    if source is not None or others or model:
        what = ", ".join(filter(None, [source, *others, model.label if model else None]))
        raise RequestError(
            f"--resume goes on with what {folder.name} was asked for and takes only another --budget: leave out {what}"
        )
    info = read_info(folder)
    sweep = parse_sweep(info.config, source=info.source)
    if not overrides:
        return sweep
    # the configuration stays what the run was begun with: only how long it may take is another
    budget_s = parse_sweep(info.config, source=info.source, overrides=overrides).measure.budget_s
    return replace(sweep, measure=sweep.measure.model_copy(update={"budget_s": budget_s}))


def _list_cases(sweep: Sweep) -> int:
    """Print the cases as a table on stdout, and the estimated time on stderr."""
    from bench.console import data, print_table, talk
    from bench.table import sweep_table

    table = sweep_table(sweep.cases)
    print_table(data(), table, title=f"{sweep.title}: {_count(sweep.cases, 'case')}")
    estimated = estimate(sweep)
    workloads = {case.workload.id for case in sweep.cases}
    text = (
        f"{_count(sweep.cases, 'case')} of {_count(workloads, 'workload')} in {sweep.measure.processes} processes: "
        f"{units.duration(estimated.least_s)} to {units.duration(estimated.most_s)}"
    )
    if estimated.compile_s:
        text += f", of which compiling takes some {units.duration(estimated.compile_s)}"
    if estimated.after_s:
        text += f"; profiles and checks come after that, some {units.duration(estimated.after_s)}"
    if estimated.needed_s > estimated.most_s:
        text += (
            f"; that budget will probably be spent before every row is timed in all of them, which takes some "
            f"{units.duration(estimated.needed_s)}: raise --budget or shorten the lists"
        )
    talk().print(text, markup=False)
    return Exit.OK


def _count(things: Iterable[object], name: str) -> str:
    number = len(list(things))
    return f"{number} {name}{'s' * (number != 1)}"
