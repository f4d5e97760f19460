"""The page: one offline HTML file made of sentences, pictures and tables, everything from data escaped."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bench.plain_text import one_line, printable
from bench.report import words
from bench.report.compiled import compiled_table
from bench.report.conduct import make_conduct
from bench.report.figures.axes import axis_title
from bench.report.figures.canvas import Picture
from bench.report.figures.crossover import crossover_picture
from bench.report.figures.exponents import exponents_picture
from bench.report.figures.lines import LATENCY, MANY_ROWS, THROUGHPUT, axis_picture
from bench.report.figures.loads import loads, loads_picture
from bench.report.figures.memory import memory_parts_picture, memory_picture
from bench.report.figures.roof import roof_picture
from bench.report.figures.routing import routing_picture
from bench.report.figures.strips import ceiling_picture, energy_picture, ratio_picture
from bench.report.figures.tradeoff import TRADEOFFS, tradeoff_picture
from bench.report.picker import make_picker
from bench.report.profiles.section import ProfileSection, make_section
from bench.report.side import side_by_side
from bench.report.skew import skew_costs
from bench.report.slices import shown_axes
from bench.report.tables import exponent_rows, failures, heat_table, row_table
from bench.report.view import View, field_value, without_paths
from bench.store.pytest_benchmark import NO_VERDICTS, SOURCE
from bench.units import latency, percent, rate

MAX_PAGE_BYTES = 1_450_000
MAX_PICTURES_BYTES = 950_000
MAX_LOADS = 24
_CONTENTS = (
    ("verdicts", "Verdicts"),
    ("speed", "Speed"),
    ("memory-section", "Memory"),
    ("choose", "Within limits"),
    ("limits", "Hardware & energy"),
    ("profiles", "Why"),
    ("load", "Routing"),
    ("conduct", "Conduct"),
    ("gaps", "Failures"),
    ("repeat", "Repeat"),
)


@dataclass(frozen=True)
class AxisSection:
    """Pictures against one axis, or the reason why there are none."""

    id: str
    words: str
    reason: str
    pictures: list[Picture]


@dataclass
class Pictures:
    """All pictures of one run, by where they stand; `every` gives those that exist, most important first."""

    overview: Picture | None
    axes: list[AxisSection]
    crossover: Picture | None
    exponents: Picture | None
    memory: Picture | None
    memory_parts: Picture | None
    tradeoffs: list[Picture]
    roofline: Picture | None
    ceiling: Picture | None
    energy: Picture | None
    routing: Picture | None
    loads: Picture | None
    profile: ProfileSection | None
    every: list[Picture] = field(init=False)

    def __post_init__(self) -> None:
        latency = [p for axis in self.axes for p in axis.pictures[:1]]
        throughput = [p for axis in self.axes for p in axis.pictures[1:]]
        others = [self.overview, self.crossover, *latency, self.memory, *self.tradeoffs, self.roofline, self.exponents]
        others += self.profile.pictures if self.profile is not None else []
        others += [self.memory_parts, self.energy, self.ceiling, self.routing, self.loads]
        self.every = [picture for picture in (*others, *throughput) if picture is not None]


def draw(view: View, prefix: str) -> Pictures:
    """Draws every picture that has something to show."""
    axes = []
    for axis, reason in shown_axes(view.timed).items():
        # Where the tokens are fixed, throughput is latency turned over: large sweeps do without that picture.
        mirrored = axis != "num_tokens" and len(view.timed) > MANY_ROWS
        quantities = () if reason else (LATENCY,) if mirrored else (LATENCY, THROUGHPUT)
        found = [axis_picture(view, quantity, axis, prefix) for quantity in quantities]
        axes.append(AxisSection(axis, axis_title(axis), reason, [picture for picture in found if picture is not None]))
    return Pictures(
        overview=ratio_picture(view, prefix),
        axes=axes,
        crossover=crossover_picture(view, prefix),
        exponents=exponents_picture(view, prefix),
        memory=memory_picture(view, prefix),
        memory_parts=memory_parts_picture(view, prefix),
        tradeoffs=[p for costs in TRADEOFFS if (p := tradeoff_picture(view, *costs, prefix)) is not None],
        roofline=roof_picture(view, prefix),
        ceiling=ceiling_picture(view, prefix),
        energy=energy_picture(view, prefix),
        routing=routing_picture(view, prefix),
        loads=loads_picture(view, loads(view), prefix),
        profile=make_section(view, prefix),
    )


def render(views: Sequence[View], pictures: Sequence[Pictures], prefixes: Sequence[str]) -> str:
    """The page's text, below :data:`MAX_PAGE_BYTES`: where it would be larger, it carries fewer rows."""
    template, told = _template(), _told(views, pictures, prefixes)
    columns, rows = row_table(views)
    numeric = [i for i, column in enumerate(columns, start=1) if column.numeric]  # they stand together
    told |= {"columns": columns, "numeric_columns": (numeric[0], numeric[-1]) if numeric else (1, 0)}
    page = template.render(rows=rows, **told)
    while len(page.encode()) > MAX_PAGE_BYTES and rows:
        rows = rows[: len(rows) // 2]
        page = template.render(rows=rows, **told)
    return page


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("bench.report", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["seconds"] = latency
    environment.filters["safe_svg"] = Markup  # matplotlib escapes the text that it writes into an SVG
    return environment.get_template("index.html.j2")


def _told(views: Sequence[View], pictures: Sequence[Pictures], prefixes: Sequence[str]) -> dict[str, Any]:
    """Everything that the template says, but for the rows."""
    contents = [(prefixes[0] + id_, text) for id_, text in _CONTENTS if id_ != "profiles" or pictures[0].profile]
    contents += [(f"{prefix}verdicts", f"Run {i}") for i, prefix in enumerate(prefixes[1:], start=2)]
    return {
        "title": f"{words.headline(views[0])} · moebench",
        "css": Markup(_style_sheet()),  # noqa: S704 - our own file
        "js": Markup(_asset("report.js")),  # noqa: S704 - our own file
        "contents": [*contents, ("all-rows-section", "Every row")],
        "side": side_by_side(views),
        "runs": [_run(*of_run) for of_run in zip(views, pictures, prefixes, strict=True)],
        "inlined": _inlined(pictures),
        "max_sentences": words.MAX_SENTENCES,
        "num_rows": sum(len(view.frame) for view in views),
        "impls": list(dict.fromkeys(impl for view in views for impl in view.looks)),
        "statuses": sorted({str(status) for view in views for status in view.frame["status"].unique()}),
        "version": importlib.metadata.version("moebench"),
    }


def _run(view: View, pictures: Pictures, prefix: str) -> dict[str, Any]:
    """What the template says of one run."""
    analysis, info = view.analysis, view.analysis.info
    missing = words.gaps(view)
    elsewhere = {NO_VERDICTS, analysis.control.sentence, *(one_line(found.sentence) for found in analysis.findings)}
    return {
        "prefix": prefix,
        "info": info,
        "date": datetime.fromtimestamp(info.created_unix_s, UTC).strftime("%-d %B %Y"),
        "headline": words.headline(view),
        "lede": words.lede(view),
        "tiles": words.tiles(view),
        "sentences": words.sentences(view),
        "finished": analysis.finished,
        "control": analysis.control,
        "control_sentence": without_paths(analysis.control.sentence),
        "looks": view.looks,
        "heat": heat_table(view),
        "fixed": [(name.replace("_", " "), field_value(name, value)) for name, value in view.fixed.items()],
        "warnings": [without_paths(w) for w in analysis.warnings if w not in elsewhere],
        "exponent_rows": exponent_rows(view),
        "mirrored": len(view.timed) > MANY_ROWS,
        "num_exponents": len(analysis.exponents),
        "picker": make_picker(view),
        "no_verdicts": NO_VERDICTS if info.source == SOURCE else "",
        "ceilings": [
            (
                {"matmul": "matrix product", "memory": "main memory", "cache": "last-level cache"}.get(what, what)
                + f", {dtype}, {device}, {threads} thread{'s' * (threads != 1)}",
                f"{rate(found.value, 'FLOP/s' if what == 'matmul' else 'B/s')}",
            )
            for (what, device, dtype, threads), found in sorted(analysis.ceilings.items())
        ],
        "energy_reasons": sorted({reason for column, reason, _ in missing if column == "energy_j_per_token"}),
        "conduct": make_conduct(view),
        "failures": failures(view),
        "gaps": missing,
        "load_rows": loads(view)[:MAX_LOADS],
        "skew": skew_costs(view),
        "compiled": compiled_table(view),
        "command": _command(info.command),
        "in_samples": analysis.in_samples_fraction and percent(analysis.in_samples_fraction),
        "environment": [(one_line(name), without_paths(one_line(value))) for name, value in _flat(info.environment)],
        "config": without_paths(printable(json.dumps(info.config, indent=2, ensure_ascii=False))),
        **{
            name: getattr(pictures, name)
            for name in (
                "overview",
                "crossover",
                "axes",
                "exponents",
                "memory",
                "memory_parts",
                "tradeoffs",
                "roofline",
                "ceiling",
                "energy",
                "routing",
                "loads",
                "profile",
            )
        },
    }


def _command(command: Sequence[str]) -> str:
    """The command line as typed, with the program's name for its path."""
    if not command:
        return "moebench run"
    program = PurePath(command[0]).name
    program = "moebench" if program in {"__main__.py", "cli.py"} else program
    return shlex.join([program, *(without_paths(part) for part in command[1:])])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted names and texts, in order."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(str(part) for part in value)
    elif value not in (None, ""):
        yield name, str(value)


def _inlined(pictures: Sequence[Pictures]) -> set[str]:
    """Slugs of the pictures inside the page: the most important of every run first, as far as there is room."""
    room = MAX_PICTURES_BYTES
    result: set[str] = set()
    for of_run in pictures:
        for picture in of_run.every:
            size = len(picture.inline_svg.encode())
            if size <= room:
                room -= size
                result.add(picture.slug)
    return result


def _asset(name: str) -> str:
    return (files("bench.report") / "assets" / name).read_text(encoding="utf-8")


def _style_sheet() -> str:
    """The style sheet; dark holds where the system asks for it or the reader chose it."""
    dark = _asset("dark.css")
    return (
        f"{_asset('report.css')}{_asset('figures.css')}"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{\n{dark}}} }}\n"
        f":root[data-theme=dark] {{\n{dark}}}\n"
    )
