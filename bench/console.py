"""What a person at a terminal sees: progress, tables, the summary of a run.

Talk goes to stderr, so that stdout stays data. Nothing is drawn but inside a call, never by a thread of its own: the
runner calls between measurements, so that drawing cannot disturb one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable

from bench import units
from bench.plain_text import one_line, printable
from bench.runner.progress import Progress, Silent
from bench.store.schema import Status
from bench.table import Table, workload_names

if TYPE_CHECKING:  # the analysis loads pandas, which progress and listings do without
    from bench.analysis.model import Analysis

PLAIN_LINE_EVERY_S = 10.0
PLAIN_WIDTH = 200


def make_progress(quiet: bool) -> Progress:
    """A live bar on a terminal, plain lines elsewhere, nothing where quiet is asked for."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


def talk() -> Console:
    """Where to say things to the user: stderr."""
    return _console(stderr=True)


def data() -> Console:
    """Where tables for people go: stdout."""
    return _console(stderr=False)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # a file or a pipe has no width: a table must not be cut to a terminal that is not there
    return Careful(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


class Careful(Console):
    """A console that passes on no control characters: what is printed may come from anybody's results."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as ever."""
        super().print(*(printable(thing) if isinstance(thing, str) else thing for thing in objects), **options)


class Bar:
    """One live line: phase, bar, time left, what comes next."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:8}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]:>12}", markup=False),
            TextColumn("{task.fields[current]}", markup=False),
        )
        self._bar = RichProgress(*columns, console=talk(), auto_refresh=False, transient=True)
        self._task = self._bar.add_task("start", total=1.0, left="", current="")
        self._bar.start()

    def update(self, *, phase: str, current: str, done_s: float, left_s: float) -> None:
        """Draw the line anew."""
        total_s = max(done_s + left_s, 1e-9)
        left = f"{units.duration(left_s)} left"
        self._bar.update(
            self._task,
            description=phase,
            completed=done_s,
            total=total_s,
            left=left,
            current=one_line(current),
            refresh=True,
        )

    def note(self, text: str) -> None:
        """Print the text above the line."""
        self._bar.console.print(escape(text))

    def stop(self) -> None:
        """Take the line away."""
        self._bar.stop()


class Lines:
    """Plain lines for logs: one at every new phase, and one every ten seconds."""

    def __init__(self) -> None:
        self._phase = ""
        self._said_s = -PLAIN_LINE_EVERY_S

    def update(self, *, phase: str, current: str, done_s: float, left_s: float) -> None:
        """Print a line where it is time for one."""
        now_s = time.monotonic()
        if phase == self._phase and now_s - self._said_s < PLAIN_LINE_EVERY_S:
            return
        self._phase, self._said_s = phase, now_s
        self.note(f"[{units.duration(done_s)}] {phase}: {current}, about {units.duration(left_s)} left")

    def note(self, text: str) -> None:
        """Print the text."""
        print(printable(text), file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Nothing was drawn that would have to go."""


def print_table(console: Console, table: Table, *, title: str) -> None:
    """A table as wide as it needs to be; text from data is never read as markup."""
    # not the grid's own title, which breaks at the grid's width
    if title:
        console.print(escape(title), style="table.title")
    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(table.headings):
        is_number = heading in NUMBERS
        grid.add_column(
            heading, justify="right" if is_number else "left", no_wrap=is_number or index == 0, overflow="fold"
        )
    for row in table.rows:
        grid.add_row(*(escape(one_line(cell)) for cell in row))
    console.print(grid)
    if table.held_equal:
        console.print(escape(f"Held equal: {table.held_equal}"), style="dim")
    if table.note:
        console.print(escape(table.note), style="dim")


NUMBERS = frozenset(
    {
        "latency", "± %", "throughput", "peak memory", "time / best", "experts", "top_k", "tokens", "time", "share",
        "no operator", "device time", "launches", "FLOPs", "moved", "calls", "rate", "bandwidth",
    }
)  # fmt: skip


def print_summary(console: Console, analysis: Analysis, folder: Path) -> None:
    """The run in sentences: who wins where, whether the self-test held, what failed, and what to do next."""
    names = workload_names(analysis.frame)
    winners = {winner.workload_id: winner for winner in analysis.winners}
    for workload_id, name in names.items():  # in the order of the sweep
        winner = winners[workload_id]
        console.print(escape(f"{name}: {winner.sentence}" if name else winner.sentence))
    console.print(escape(analysis.control.sentence))
    for warning in analysis.warnings:
        if warning != analysis.control.sentence:
            console.print(escape(f"Warning: {warning}"), style="yellow")
    for sentence in failures(analysis):
        console.print(escape(sentence), style="red")
    console.print(f"Next: moebench report {escape(str(folder))}")


def failures(analysis: Analysis) -> Sequence[str]:
    """One sentence for every way in which rows ended other than ok, with who ended so."""
    failed = analysis.frame[analysis.frame["status"] != Status.OK.value]
    groups: dict[tuple[str, str], Counter[str]] = {}
    for status, impl, reason in zip(failed["status"], failed["impl"], failed["reason"], strict=True):
        groups.setdefault((status, reason), Counter())[impl] += 1
    return [
        f"{impls.total()} row{'s' * (impls.total() != 1)} {status} ({', '.join(sorted(impls))}): {reason}"
        for (status, reason), impls in groups.items()
    ]
