"""What ``moebench profile`` does: a run with profiles, and what they say as tables."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from pathlib import Path

from bench import units
from bench.analysis.model import Analysis
from bench.commands import exit_code
from bench.config import load_sweep
from bench.errors import Exit
from bench.limit_table import limit_table
from bench.models import Selection
from bench.runner.profiling import TRACES
from bench.store.profiles import OperatorTime, Profile, StageTime
from bench.table import Table, workload_names


def profile_command(
    source: str,
    overrides: Mapping[str, object],
    *,
    model: Selection | None,
    results: Path,
    num_operators: int,
    quiet: bool,
) -> int:
    """Run ``source`` with profiles and print them; gives the exit code."""
    from bench.analysis import load
    from bench.console import data, failures, make_progress, print_table, talk
    from bench.runner.sweep import run_sweep

    sweep = load_sweep(source, overrides, model=model)
    for sentence in () if quiet else (*sweep.left_out, *sweep.notes):
        talk().print(sentence, markup=False)
    progress = make_progress(quiet)
    try:
        outcome = run_sweep(sweep, results=results, command=["moebench", *sys.argv[1:]], progress=progress)
    finally:
        progress.stop()
    analysis = load(outcome.folder)
    for case_id, title in _titles(analysis, analysis.profiles):
        profile = analysis.profiles[case_id]
        print_table(data(), stage_table(profile), title=title)
        if num_operators:
            data().print()
            print_table(data(), operator_table(profile, num_operators), title="")
        data().print(memory_words(profile), markup=False, highlight=False)
        for name in ("device_s", "stages", "work", "pages"):
            if name in profile.gaps:
                data().print(f"{name}: {profile.gaps[name]}", markup=False, highlight=False)
        if case_id in analysis.limits:
            data().print(analysis.limits[case_id].sentence, markup=False, highlight=False)
        elif (reason := analysis.not_limited.get(case_id)) and reason not in profile.gaps.values():
            data().print(f"What limits it cannot be said: {reason}.", markup=False, highlight=False)
        for kind, name in profile.traces.items():
            data().print(f"{kind}: {outcome.folder / TRACES / name}", markup=False, highlight=False)
        data().print()
    if checked := _titles(analysis, analysis.limit_checks):
        print_table(data(), limit_table(analysis.limit_checks, checked), title="what limits each, checked by levers")
    missing = [
        f"no profile of {title}: {analysis.not_profiled[i]}" for i, title in _titles(analysis, analysis.not_profiled)
    ]
    missing += [
        f"no check of {title}: {analysis.not_checked[i]}" for i, title in _titles(analysis, analysis.not_checked)
    ]
    if not analysis.profiles and not missing:
        missing = ["nothing was profiled: no case of this sweep was found right and timed"]
    for sentence in (*failures(analysis), *missing):
        talk().print(sentence, markup=False, style="red")
    print(outcome.folder)
    return exit_code(outcome.statuses, outcome.num_not_run) or (Exit.FAILED if missing else Exit.OK)


def _titles(analysis: Analysis, wanted: Container[str]) -> list[tuple[str, str]]:
    """Ids and names of the wanted cases, in the order of the table."""
    names = workload_names(analysis.frame)
    rows = analysis.frame[["case_id", "workload_id", "impl"]].itertuples(index=False)
    return [
        (str(case_id), " · ".join(filter(None, [str(impl), names[str(workload_id)]])))
        for case_id, workload_id, impl in rows
        if case_id in wanted
    ]


def stage_table(profile: Profile) -> Table:
    """One row a stage, in the order of a call: they add up to the whole."""
    rows = [_stage_row(stage, profile) for stage in profile.stages]
    note = (
        f"mean of {profile.calls} calls of {units.latency(profile.whole_s)} under the profiler; without it "
        f"{units.latency(profile.plain_s)} ({profile.whole_s / profile.plain_s - 1:+.0%})"
    )
    if profile.on_device:
        busy_s = sum(stage.device_s or 0.0 for stage in profile.stages)
        note += f"; the device works {busy_s / profile.whole_s:.0%} of that time"
    times = ["time", "share", "no operator", *(["device time"] if profile.on_device else [])]
    return Table("", ["stage", "phase", *times, "launches", "FLOPs", "moved"], rows, note)


def _stage_row(stage: StageTime, profile: Profile) -> list[str]:
    return [
        stage.stage,
        stage.phase,
        units.latency(stage.host_s),
        f"{stage.host_s / profile.whole_s:.1%}",
        units.latency(stage.idle_s),
        *([] if stage.device_s is None else [units.latency(stage.device_s)]),
        str(stage.launches),
        units.three_digits(stage.flops) if stage.flops else "",
        units.bytes_(stage.moved_bytes) if stage.moved_bytes else "",
    ]


def operator_table(profile: Profile, count: int) -> Table:
    """The ``count`` longest operators, and what the rest take together.

    ``in cache`` is a product's time when it is repeated with what it multiplies in the cache.
    """
    shown = profile.operators[:count]
    rows = [_operator_row(operator, profile) for operator in shown]
    rest = profile.operators[count:]
    seconds = sum(row.seconds for row in rest)
    note = f"{len(rest)} more rows take {units.latency(seconds)}" if rest else ""
    headings = ["operator", "shapes", "stage", "phase", "calls", "time", "in cache", "share", "rate", "bandwidth"]
    return Table("", headings, rows, note)


def _operator_row(operator: OperatorTime, profile: Profile) -> list[str]:
    seconds = operator.seconds
    known = bool(seconds)
    return [
        operator.name,
        operator.shapes,
        operator.stage,
        operator.phase,
        str(operator.calls),
        units.latency(seconds),
        units.latency(operator.near_s) if operator.near_s else "",
        f"{seconds / profile.whole_s:.1%}",
        units.rate(operator.flops / seconds, "FLOP/s") if known and operator.flops else "",
        f"{units.bytes_(operator.moved_bytes / seconds)}/s" if known and operator.moved_bytes else "",
    ]


def memory_words(profile: Profile) -> str:
    """The peak in words: how much, what made it, what it consists of."""
    timeline = profile.timeline
    if timeline is None:
        return f"memory: {profile.gaps.get('timeline', 'not known')}"
    at_peak = {name: values[timeline.peak_index] for name, values in timeline.bytes_alive.items() if values}
    parts = sorted(at_peak.items(), key=lambda part: -part[1])
    words = ", ".join(f"{units.bytes_(num_bytes)} {name}" for name, num_bytes in parts if num_bytes)
    return f"memory peak: {units.bytes_(timeline.peak_bytes)} at {timeline.peak_made_by}: {words}"
