"""What ``moebench compare`` does once its options are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.comparing.limits import exit_code, judge_limits, parse_limit
from bench.comparing.model import Comparison
from bench.errors import RequestError

DEFAULT_SWEEP = "quick"


def compare_command(
    base: str,
    new: str,
    source: str | None,
    overrides: Mapping[str, object],
    *,
    interleave: bool,
    processes: int | None,
    fail_if: Sequence[str],
    force: bool,
    results: Path,
    style: str,
    quiet: bool,
) -> int:
    """Compare two runs, or two versions; print it, and give the exit code."""
    limits = [parse_limit(text) for text in fail_if]
    if interleave:
        if force:
            raise RequestError("--force is for two runs: interleaved versions are measured here, on the same machine")
        if uncounted := sorted({limit.metric for limit in limits} & {"memory", "energy"}):
            raise RequestError(
                f"--interleave measures latency and accuracy, so --fail-if cannot ask for {' or '.join(uncounted)}: "
                "compare two runs for these"
            )
        from bench.comparing.interleaved import compare_versions
        from bench.console import make_progress

        progress = make_progress(quiet)
        try:
            comparison = compare_versions(
                base, new, source or DEFAULT_SWEEP, overrides, processes=processes, progress=progress, results=results
            )
        finally:
            progress.stop()
    else:
        unused = [source or "", *overrides, "--processes" if processes else ""]
        if any(unused):
            raise RequestError(
                f"two runs are compared as they were measured: {', '.join(filter(None, unused))} needs --interleave"
            )
        from bench.comparing.two_runs import compare_two_runs

        comparison = compare_two_runs(base, new, results=results, force=force)
    comparison = judge_limits(comparison, limits)
    _print(comparison, style)
    return exit_code(comparison)


def _print(comparison: Comparison, style: str) -> None:
    from bench.comparing.writing import as_markdown, as_objects, as_table, caveats, summary
    from bench.console import data, print_table, talk

    if style == "json":
        print(json.dumps(as_objects(comparison), indent=1, allow_nan=False))
    elif style == "markdown":
        print(as_markdown(comparison))
        return
    else:
        print_table(data(), as_table(comparison), title=summary(comparison))
    for sentence in caveats(comparison):
        talk().print(sentence, markup=False)
