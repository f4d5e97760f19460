"""Makes figures and turns them into SVG and PNG whose bytes depend on the data alone.

The SVG keeps text as text and colours as the inks of :mod:`bench.report.style`; a style sheet exchanges the inks in
dark mode, inside the page and in the file on its own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from bench.report.style import INK, MUTED, house_style, log_ticks, plain

WIDTH_IN = 10.0
_HEADER_IN = 0.62
_TITLE_LETTERS = 130
_SVG_SAYS, _PNG_SAYS = {"Date": None, "Creator": None}, {"Software": None}  # nothing that changes from day to day


@dataclass(frozen=True)
class Picture:
    """One finished picture.

    Attributes:
        slug: name of its files, and its place in the page.
        title: what it shows.
        caption: a plain sentence on how to read it.
        advice: what to do about it, in one or two plain sentences.
        svg: the file's text; works on its own, in light and dark.
        png: the same at twice the size, on white.
    """

    slug: str
    title: str
    caption: str
    advice: str
    svg: str
    png: bytes

    @property
    def inline_svg(self) -> str:
        """The ``<svg>`` element for a page that has ``assets/figures.css``; its ids begin with the slug."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r"<style>.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', body))
        body = re.sub(r' id="([^"]*)"', lambda m: f' id="{self.slug}-{m[1]}"' if m[1] in used else "", body)
        body = re.sub(r"<g>\s*</g>|stroke-linecap: butt; ?|<!--.*?-->", "", body)
        body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{self.slug}-", body)
        body = re.sub(r' xmlns:xlink="[^"]*"| xmlns="[^"]*"| version="[^"]*"', "", body).replace("xlink:href", "href")
        return body.replace("<svg", '<svg role="img" aria-labelledby="' + self.slug + '-caption"', 1)


@cache
def _inks() -> str:
    """The rules that exchange the inks where the reader prefers dark.

    Markers are copies (``<use>``), and rules match inside a copy only without an ancestor; what a copy does inherit
    is a custom property. So the rules always hold, and dark mode sets the properties.
    """
    assets = files("bench.report") / "assets"
    rules, dark = ((assets / name).read_text(encoding="utf-8") for name in ("figures.css", "dark.css"))
    return f"<style>{rules}@media (prefers-color-scheme: dark) {{ svg {{\n{dark}}} }}</style>"


def grid(
    num_panels: int, num_columns: int, panel_height_in: float, *, share_x: bool = True, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples with shared axes, room for a title above, panels in reading order."""
    num_columns = min(num_columns, num_panels)
    num_rows = -(-num_panels // num_columns)
    height = num_rows * panel_height_in + _HEADER_IN
    with house_style():
        figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(num_rows, num_columns, sharex=share_x, sharey=share_y, squeeze=False).ravel()
        for spare in axes[num_panels:]:
            spare.remove()
        for i in range(max(0, num_panels - num_columns), num_panels):
            axes[i].xaxis.set_tick_params(labelbottom=True)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0.0, 0.0, 1.0, 1 - _HEADER_IN / height), w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
    return figure, list(axes[:num_panels])


def headline(figure: Figure, title: str, slice_words: str) -> None:
    """Writes the title, and beneath it, smaller, the slice of the sweep that is shown."""
    height = figure.get_figheight()
    figure.text(0.006, 1 - 0.06 / height, title, size=12, weight="bold", color=INK, va="top", parse_math=False)
    figure.text(0.006, 1 - 0.33 / height, slice_words, size=8.5, color=MUTED, va="top", parse_math=False)


def fitted(words: str, num_columns: int) -> str:
    """A panel's title in lines that fit its width, broken between two of its parts."""
    lines = [""]
    for part in words.split(" · "):
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        lines = (
            [*lines[:-1], joined] if len(joined) <= _TITLE_LETTERS // num_columns or not lines[-1] else [*lines, part]
        )
    return "\n".join(lines)


def log_axis(axes: Axes, which: str, values: Sequence[float], pad: float = 1.0) -> None:
    """Makes one axis (``x`` or ``y``) logarithmic with 1-2-5 ticks in plain numbers that enclose the values."""
    ticks = log_ticks(min(values) / pad, max(values) * pad)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(ticks[0], ticks[-1])
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def enclosing(values: ArrayLike, bounds: ArrayLike) -> list[float]:
    """Extent of an axis: all values, and their intervals as far as three times beyond the outermost value.

    One disturbed process can stretch an interval over decades; it then leaves the panel, and the rest stays legible.
    """
    known = np.asarray(values, dtype=float)
    reached = np.asarray(bounds, dtype=float)
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    return [max(low / 3, min(low, float(np.nanmin(reached)))), min(high * 3, max(high, float(np.nanmax(reached))))]


def place(figure: Figure) -> None:
    """Gives every panel its final place, without drawing."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def finish(figure: Figure, slug: str, title: str, caption: str, advice: str) -> Picture:
    """Draws the figure into its two formats; the same data gives the same bytes."""
    svg, png = io.StringIO(), io.BytesIO()
    with house_style(slug):
        place(figure)
        figure.set_layout_engine("none")  # one layout for both formats
        # each canvas draws once; `savefig` would draw everything twice for either format
        FigureCanvasSVG(figure).print_svg(svg, metadata=_SVG_SAYS)  # type: ignore[no-untyped-call] # the stubs lack it
        figure.set_dpi(200)
        figure.set_facecolor("white")
        FigureCanvasAgg(figure).print_png(png, metadata=_PNG_SAYS)  # type: ignore[no-untyped-call] # the stubs lack it
    text = svg.getvalue().replace("<defs>", f"{_inks()}\n<defs>", 1)
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", re.sub(r"\s*\n\s*", "\n", text))
    return Picture(slug, title, caption, advice, text, png.getvalue())
