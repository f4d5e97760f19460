from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.analysis.interval import Estimate
from bench.analysis.model import Analysis, Exponent
from bench.report.figures.canvas import enclosing, grid
from bench.report.figures.crossover import crossover_picture, map_axes
from bench.report.figures.exponents import exponents_picture
from bench.report.figures.lines import LATENCY, axis_picture
from bench.report.figures.roof import roof_picture
from bench.report.side import side_by_side
from bench.report.slices import evenly, shown_axes, slices
from bench.report.style import LOOKS, log_ticks, looks_for, plain, spread
from bench.report.tables import exponent_rows, heat_table, row_table
from bench.report.view import describe, make_view, short_names, without_paths
from bench.report.words import headline, wins
from impls.registry import ENTRIES
from impls.spec import LayerSpec

positive = st.floats(1e-9, 1e12)


@given(positive, st.floats(1.0, 1e6))
@settings(deadline=None)
def test_log_ticks_enclose_the_data_and_are_one_two_five(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks[0] <= low
    assert ticks[-1] >= low * factor
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(f"{tick:e}"[0] in "1235" for tick in ticks)


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.5))
@settings(deadline=None)
def test_spread_labels_keep_order_distance_and_bounds(positions: list[float], gap: float) -> None:
    placed = spread(positions, gap, 0.0, 1.0)
    fitting = min(gap, 1 / max(1, len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    assert all(placed[b] - placed[a] >= fitting - 1e-9 for a, b in itertools.pairwise(order))


def test_a_missing_width_of_the_shared_experts_is_said_in_words() -> None:
    assert describe({"num_tokens": 8, "d_ff_shared": float("nan")}) == "8 tokens · d ff shared as d_ff"
    assert describe({"d_ff_shared": 64.0}) == "d ff shared 64"


def test_spread_leaves_labels_that_do_not_touch() -> None:
    assert spread([0.9, 0.1], 0.2, 0.0, 1.0) == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(("value", "text"), [(0.002, "0.002"), (0.5, "0.5"), (5.0, "5"), (20000.0, "20,000")])
def test_ticks_are_plain_numbers(value: float, text: str) -> None:
    assert plain(value) == text


def test_looks_are_one_a_name_and_do_not_depend_on_who_else_is_there() -> None:
    assert set(LOOKS) == set(ENTRIES)
    assert len({(look.colour, look.marker, look.baseline) for look in LOOKS.values()}) == len(LOOKS)
    assert looks_for({"loop": "moe"})["loop"] == looks_for({"grouped": "moe", "loop": "moe"})["loop"]
    mixed = looks_for({"dense": "dense", "mine.py:A": "moe", "mine.py:B": "moe", "loop": "moe"})
    assert list(mixed) == ["loop", "mine.py:A", "mine.py:B", "dense"]
    assert mixed["mine.py:A"] != mixed["mine.py:B"]
    foreign = looks_for({f"mine.py:{i}": "moe" for i in range(9)})
    assert len({(look.colour, look.marker) for look in foreign.values()}) == 9
    assert not {look.marker for look in foreign.values()} & {look.marker for look in LOOKS.values()}


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("cannot open /home/me/data/file.npy: denied", "cannot open file.npy: denied"),
        ("--results=/home/me/results", "--results=results"),
        ("in '/home/me/x/layer.py', line 3", "in 'layer.py', line 3"),
        ("~/mine/file.py and C:\\Users\\me\\file.py", "file.py and file.py"),
        ("half/width 3.1 tokens/s, and/or 1/2", "half/width 3.1 tokens/s, and/or 1/2"),
    ],
)
def test_absolute_paths_are_cut_and_nothing_else(text: str, shared: str) -> None:
    assert without_paths(text) == shared


def test_short_names_are_never_two_alike() -> None:
    names = short_names(["a/layer.py:M", "b/layer.py:M", "loop"])
    assert names == {"a/layer.py:M": "layer.py:M", "b/layer.py:M": "layer.py:M #2", "loop": "loop"}


def test_slices_differ_in_the_axis_and_the_implementation_only(analysis: Analysis) -> None:
    view = make_view(analysis)
    found, total = slices(view.timed, "num_experts")
    assert len(found) == total == 9
    assert len(slices(view.timed, "num_experts", limit=4)[0]) == 4
    for piece in found:
        assert piece.rows[["top_k", "capacity_factor"]].drop_duplicates().shape[0] == 1
        assert set(piece.rows["num_experts"]) == {8, 32, 128}
    assert shown_axes(view.timed) == {"num_experts": "", "top_k": "", "capacity_factor": ""}


def test_evenly_keeps_both_ends() -> None:
    assert evenly(list(range(100)), 3) == [0, 50, 99]
    assert evenly([1, 2], 3) == [1, 2]


def test_dropless_sorts_after_every_capacity(analysis: Analysis) -> None:
    view = make_view(analysis)
    assert set(view.frame["capacity_factor"]) == {1.0, 1.25, math.inf}
    assert set(analysis.frame["capacity_factor"]) == {"none", 1.0, 1.25}


def test_ratio_turns_round_with_its_interval(analysis: Analysis) -> None:
    view = make_view(analysis)
    pair = analysis.comparisons[0]
    there, back = (view.ratio(pair.workload_id, *names) for names in ((pair.impl, pair.base), (pair.base, pair.impl)))
    assert there is not None
    assert back is not None
    assert back.value == pytest.approx(1 / there.value)
    assert back.low < back.value < back.high


def test_headline_counts_the_winners(analysis: Analysis) -> None:
    view = make_view(analysis)
    won = wins(view)
    best = next(iter(won))
    assert won[best] == max(won.values())
    assert f"{best} is the fastest layer on {won[best]} of {len(analysis.winners)} workloads." == headline(view)


def test_heat_table_marks_one_winner_and_never_a_baseline(analysis: Analysis) -> None:
    view = make_view(analysis)
    table = heat_table(view)
    assert len(table.rows) == len(view.workloads) == 27
    for _, cells in table.rows:
        kinds = dict(zip(table.columns, (cell.kind for cell in cells), strict=True))
        assert sum(kind == "won" for kind in kinds.values()) <= 1
        assert not any(view.looks[name].baseline for name, kind in kinds.items() if kind in {"won", "open"})
        assert all(cell.interval for cell in cells if cell.kind in {"behind", "base"})


def test_rows_past_the_limit_are_the_untimed_ones(analysis: Analysis) -> None:
    view = make_view(analysis)
    timed = len(view.timed)
    columns, rows = row_table([view], limit=timed)
    status = [column.name for column in columns].index("status")
    assert len(rows) == timed < len(view.frame)
    assert {row[status].text for row in rows} == {"ok"}


def test_columns_with_nothing_to_say_are_left_out(analysis: Analysis) -> None:
    names = {column.name for column in row_table([make_view(analysis)])[0]}
    assert not {"energy_j_per_token", "power_w", "dtype", "num_tokens"} & names
    assert {"num_experts", "latency_s", "reason"} <= names


def test_panels_share_their_axes() -> None:
    _, panels = grid(5, 3, 2.0)
    assert len(panels) == 5
    panels[0].set_xlim(3, 4)
    panels[0].set_ylim(5, 6)
    assert panels[4].get_xlim() == (3, 4)
    assert panels[4].get_ylim() == (5, 6)


def test_every_field_of_a_layer_is_part_of_the_workload(analysis: Analysis) -> None:
    view = make_view(analysis)
    fields = LayerSpec(d_model=1, d_ff=1, num_experts=1, top_k=1).to_dict()
    assert set(fields) <= set(view.fixed) | set(view.varying)
    assert isinstance(view.frame, pd.DataFrame)


def test_skew_stands_at_the_imbalance_that_was_measured(analysis_factory: Callable[..., Analysis]) -> None:
    one = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    routings = (("balanced", 1.0), ("zipf:1.2", 5.5), ("hot:0.5", 4.0))
    parts = []
    for name, imbalance in routings:
        part = one.frame.assign(routing=name, workload_id=name, case_id=name + one.frame["case_id"])
        part.loc[part["load_imbalance"].notna(), "load_imbalance"] = imbalance
        parts.append(part)
    skewed = dataclasses.replace(one, frame=pd.concat(parts, ignore_index=True), comparisons=(), winners=())
    view = make_view(skewed)
    assert shown_axes(view.timed)["routing"] == ""
    picture = axis_picture(view, LATENCY, "routing")
    assert picture is not None
    places = [picture.svg.index(f">{name}<") for name, _ in routings]
    assert places[0] < places[2] < places[1]


@pytest.mark.parametrize("axis", ["dtype", "cache"])
def test_settings_in_words_have_a_picture(analysis_factory: Callable[..., Analysis], axis: str) -> None:
    one = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    other = one.frame.assign(**{axis: "other"}, workload_id="w", case_id="w" + one.frame["case_id"])
    both = dataclasses.replace(one, frame=pd.concat([one.frame, other], ignore_index=True), comparisons=(), winners=())
    assert axis_picture(make_view(both), LATENCY, axis) is not None


def test_one_wild_interval_does_not_stretch_an_axis() -> None:
    assert enclosing([1.0, 2.0], [0.9, 500.0]) == [0.9, 6.0]
    assert enclosing([1.0, 2.0], [1.0, 2.1]) == [1.0, 2.1]


def test_crossover_map_needs_two_axes_and_roofs_need_ceilings(analysis_factory: Callable[..., Analysis]) -> None:
    plane = make_view(analysis_factory(top_ks=(2,), capacities=("none",), tokens=(64, 512)))
    assert map_axes(plane) == ("num_tokens", "num_experts")
    drawn = crossover_picture(plane)
    assert drawn is not None
    assert "no single winner" in drawn.svg
    assert crossover_picture(make_view(analysis_factory(top_ks=(2,), capacities=("none",)))) is None
    moved = dataclasses.replace(plane.analysis, frame=plane.analysis.frame.assign(flops=1e9, moved_bytes=1e8))
    roof = roof_picture(make_view(moved))
    assert roof is not None
    assert "main memory" in roof.svg
    assert roof_picture(make_view(dataclasses.replace(moved, ceilings={}))) is None


def test_a_data_sheet_is_drawn_and_named_and_changes_no_share(analysis_factory: Callable[..., Analysis]) -> None:
    found = analysis_factory()
    frame = found.frame.assign(device="cuda", dtype="bfloat16", flops=1e9, moved_bytes=2e7)
    fields: dict[str, Any] = {
        "frame": frame,
        "ceilings": {
            ("matmul", "cuda", "bfloat16", 2): Estimate(7e14, 6.9e14, 7.1e14),
            ("memory", "cuda", "bfloat16", 2): Estimate(3e12, 2.9e12, 3.1e12),
        },
    }
    pictures = {}
    for name in ("NVIDIA H100 80GB HBM3", "A card that nobody knows"):
        info = found.info.model_copy(update={"environment": {"gpus": [{"name": name}]}})
        pictures[name] = roof_picture(make_view(dataclasses.replace(found, info=info, **fields)))
    known, unknown = pictures.values()
    assert known is not None
    assert unknown is not None
    assert "H100 SXM data sheet, bfloat16: 990 TFLOP/s, 3.35 TB/s" in known.svg
    assert "data sheet's, which no card sustains" in known.caption
    assert "data sheet" not in unknown.svg + unknown.caption


def test_exponents_stand_beside_their_theory(analysis: Analysis) -> None:
    fitted = Estimate(1.4, 1.3, 1.5)
    exponent = Exponent(
        "latency", "num_tokens", "einsum", {"capacity_factor": "none"}, (1, 9), 3, fitted, fitted, 12, 2.0, "quadratic"
    )
    view = make_view(dataclasses.replace(analysis, exponents=[exponent]))
    row = [cell.text for cell in exponent_rows(view)[0]]
    assert row == ["latency in tokens", "einsum", "dropless", "1.40", "1.40", "2", "quadratic"]
    assert exponents_picture(view) is not None
    assert exponents_picture(make_view(analysis)) is None


def test_side_by_side_lists_common_cases_only(analysis_factory: Callable[..., Analysis]) -> None:
    small = make_view(analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",)))
    large = make_view(analysis_factory(experts=(8, 32), top_ks=(2,), capacities=("none",), run_id="second"))
    assert side_by_side([small]) is None
    both = side_by_side([small, large])
    assert both is not None
    assert len(both.rows) == len(small.timed)
    assert all(cell.interval for _, _, cells in both.rows for cell in cells)
