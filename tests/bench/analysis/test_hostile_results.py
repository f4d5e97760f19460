"""Results that somebody sent: whatever stands in them, it is shown as text, and nothing obeys it."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from run_maker import making

from bench import cli
from bench.analysis import load
from bench.console import Careful, print_summary, print_table
from bench.errors import Exit
from bench.plain_text import HARMFUL, cell, one_line, printable
from bench.store.log import LOG_FILE, append, create_run, read_run
from bench.store.qualified import RoutingFacts
from bench.store.schema import AnyRecord, NoteRecord, RunInfo, Status
from bench.table import csv_text, short_table

VISIBLE = "[bold red]x[/] <script>alert(1)</script> {{ 7 * 7 }} $\\frac{1}{0}$ | a\\b"
COMMANDS = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202egnp.\u2066 \u2028next\x00\x7f"
FORMULAS = ("=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)")
WORKLOAD = making.workload(routing="trace:/home/somebody/secret/ids.npy")


class Page(HTMLParser):
    """The tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        self.tags.append(tag)


def harmful(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in HARMFUL and c != "\n"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose every text is hostile, as far as the schema lets anything be written."""
    words = VISIBLE + COMMANDS
    info = RunInfo.model_validate(
        making.info.model_dump()
        | {
            "source": words,
            "command": ["/home/somebody/bin/moebench", words],
            "config": {"label": words, "notes": [words], "measure": {"budget": words}},
            "environment": {words: words, "cpu": {"model": words}},
        }
    )
    noted = RoutingFacts(tokens_per_expert=[32] * 8, dropped_fraction=0.0, load_imbalance=1.0, note=words)
    qualified = making.qualified(routing=noted, path=words, gaps={"reserved_peak_bytes": words})
    impls = [f"/home/somebody/secret/{VISIBLE}.py:Mine", "=1+1", "loop"]
    records: list[AnyRecord] = [
        making.note("started", 0.0),
        *(making.case(impl, WORKLOAD, qualified=qualified) for impl in impls),
        *making.timed(WORKLOAD, dict.fromkeys(impls, 1e-3)),
        NoteRecord(environment_hash=words, unix_time_s=3.0, event="warning", text=words),
    ]
    for number, reason in enumerate((words, *FORMULAS)):
        failed = making.workload(num_tokens=number + 1)
        records.append(making.case("loop", failed, status=Status.CRASHED).model_copy(update={"reason": reason}))
    folder = create_run(tmp_path / "results", info)
    for record in records:
        append(folder, record)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "RUN"),
        ("show", "RUN", "--csv"),
        ("show", "RUN", "--json"),
        ("show", "RUN", "--markdown"),
        ("list", "runs", "--results", "RESULTS"),
        ("list", "runs", "--results", "RESULTS", "--json"),
        ("compare", "RUN", "RUN"),
        ("compare", "RUN", "RUN", "--json"),
        ("compare", "RUN", "RUN", "--markdown"),
        ("advise", "RUN"),
    ],
)
def test_no_command_prints_what_a_terminal_obeys(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    places = {"RUN": str(run), "RESULTS": str(run.parents[1])}
    code = cli.main([places.get(word, word) for word in arguments])
    out, err = capsys.readouterr()
    assert code in (Exit.OK, Exit.CANNOT), err
    assert not harmful(out + err)
    assert "[bold red]" in out + err, "markup is shown, not obeyed"
    if "list" not in arguments:
        assert "/home/somebody" not in (out + err).replace("/home/somebody/secret/[bold red]", "")


def test_the_summary_of_a_run_obeys_nothing(run: Path) -> None:
    stream = io.StringIO()
    print_summary(Careful(file=stream, width=200, force_terminal=True, color_system=None), load(run), run)
    assert not harmful(stream.getvalue())
    assert "[bold red]x[/]" in stream.getvalue()


def test_a_report_is_text_and_names_nobody(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report")]) == Exit.OK
    capsys.readouterr()
    for path in (tmp_path / "report").rglob("*"):
        if path.suffix in (".html", ".svg", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert not harmful(text), path
            assert "somebody" not in text, path
            assert path.suffix == ".csv" or "<script>alert" not in text, path
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert Page(page).tags.count("script") == 1
    assert "{{ 7 * 7 }}" in page
    assert "\\frac{1}{0}" in page
    table = list(csv.DictReader((tmp_path / "report" / "data.csv").open(encoding="utf-8")))
    assert {row["routing"] for row in table} == {"trace:ids.npy", "router"}
    assert not [value for row in table for value in row.values() if re.match(r"[=@]|[+-](?![\d.]+(e|$))", value)]


def test_numbers_in_a_spreadsheet_stay_numbers(run: Path) -> None:
    frame = load(run).frame
    frame.loc[frame.index[0], "energy_above_idle_j_per_token"] = -0.5
    rows = list(csv.DictReader(io.StringIO(csv_text(frame))))
    assert rows[0]["energy_above_idle_j_per_token"] == "-0.5"
    assert {row["reason"] for row in rows} >= {f"'{formula}" for formula in FORMULAS}
    assert "'=1+1" in {row["impl"] for row in rows}


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\u202eb", "", "a\x00"])
def test_a_name_that_cannot_be_shown_is_a_damaged_line(run: Path, name: str) -> None:
    line = json.loads((run / LOG_FILE).read_bytes().splitlines()[1])
    line["case"]["impl"] = name
    before = read_run(run)
    with (run / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    after = read_run(run)
    assert after.records == before.records
    assert "should be a name without" in after.warnings[-1]
    assert not harmful(after.warnings[-1])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=())))
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    line = one_line(text)
    assert not harmful(line)
    assert "\n" not in line
    assert one_line(line) == line
    assert not harmful(printable(text))
    assert not cell(text).startswith(("=", "+", "-", "@"))
    line.encode()
    stream = io.StringIO()
    table = short_table(load_one())
    rows = [[text] * len(table.headings) for _ in table.rows]
    print_table(Careful(file=stream, width=100), type(table)(text, table.headings, rows), title=text)
    assert not harmful(stream.getvalue())


def load_one() -> Any:
    from bench.analysis import analyse

    return analyse(making.info, [making.case("loop", making.workload())])


def test_rich_alone_would_pass_on_escape_sequences() -> None:
    """Why there is a console of our own."""
    stream = io.StringIO()
    Console(file=stream, width=100).print("\x1b[2J", markup=False)
    assert harmful(stream.getvalue())


EXTREMES: list[Any] = [0, -1, 1e308, -1e308, 5e-324, 2**62, 10**400, "", "x", [], {}, None, True, [[[[]]]], [1e308] * 3]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_values_that_nobody_measured_stop_no_reader(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One value of a log is replaced: its line is left out, or it is shown; nothing breaks."""
    workload = making.workload()
    records: list[AnyRecord] = [*making.run(workload, {"loop": 1e-3, "grouped": 2e-3}), making.ceiling("memory", [1e9])]
    folder = create_run(tmp_path_factory.mktemp("results"), making.info)
    for record in records:
        append(folder, record)
    lines = (folder / LOG_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    number = data.draw(st.integers(0, len(lines) - 1))
    document = json.loads(lines[number])
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(EXTREMES))
    lines[number] = json.dumps(document)
    (folder / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    with np.errstate(all="ignore"):
        analysis = load(folder)
        print_table(Careful(file=io.StringIO(), width=100), short_table(analysis), title="")
        print_summary(Careful(file=io.StringIO(), width=100), analysis, folder)


def test_a_key_that_stands_twice_is_a_damaged_line(run: Path) -> None:
    lines = (run / LOG_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    num_before = len(read_run(run).records)
    lines[1] = lines[1].replace('"status":"ok"', '"status":"crashed","status":"ok"')
    (run / LOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_run(run)
    assert len(read.records) == num_before - 1
    assert "line 2 is not a valid record and is left out: the key 'status' is there twice" in read.warnings[0]


@pytest.mark.parametrize("value", ["9" * 400, "-" + "9" * 30, "9" * 20, "[" * 5000, '{"a":' * 5000, "1e999"])
def test_depths_and_numbers_without_end_are_damaged_lines(run: Path, value: str) -> None:
    before = read_run(run)
    lines = (run / LOG_FILE).read_text(encoding="utf-8").split("\n")[:-1]
    with (run / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(lines[1].replace('"flops":2000000', f'"flops":{value}') + "\n")
        file.write(lines[0].replace('"wall_s":0.0', f'"wall_s":{value}') + "\n")
    after = read_run(run)
    assert after.records == before.records
    assert len(after.warnings) == len(before.warnings) + 2
