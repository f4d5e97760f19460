"""A layer and its compiled self in tables, verdicts and the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from run_maker import making

from bench.analysis.loading import analyse
from bench.analysis.model import Analysis, Verdict
from bench.report import write_report
from bench.report.compiled import compiled_table
from bench.report.style import TIMES, looks_for
from bench.report.view import make_view
from bench.store.qualified import Compiled, NewInput
from bench.store.schema import AnyRecord

W = making.workload()
COMPILED = Compiled(
    mode="default",
    compile_s=10.0,
    num_graphs=5,
    num_graph_breaks=4,
    break_reasons=["loop.py:29 `bounds = begins.tolist()`: Data dependent operator", "<b>&: 2"],
    new_inputs=[NewInput(num_tokens=n, num_graphs=g, first_call_s=1.0) for n, g in ((128, 1), (96, 5), (64, 2))],
)


def analysis(compiled: Compiled = COMPILED) -> Analysis:
    records: list[AnyRecord] = [
        making.case("loop", W),
        making.case("loop [compile]", W, qualified=making.qualified(compiled=compiled)),
        *making.timed(W, {"loop": 2e-3, "loop [compile]": 1e-3}),
        *making.control(),
    ]
    return analyse(making.info, records)


def test_a_layer_meets_its_compiled_self_in_one_workload() -> None:
    found = analysis()
    (comparison,) = found.comparisons
    assert {comparison.impl, comparison.base} == {"loop", "loop [compile]"}
    (winner,) = found.winners
    assert winner.impl == "loop [compile]"
    assert comparison.verdict is Verdict.SLOWER
    rows = found.frame.set_index("impl")
    assert rows["compile"].to_dict() == {"loop": "none", "loop [compile]": "default"}
    row = rows.loc["loop [compile]"]
    assert (row["compile_s"], row["graph_breaks"], row["recompiles"], row["recompiles_same_shape"]) == (10, 4, 7, 1)
    assert row["graph_break_reasons"].startswith("loop.py:29")
    assert rows.loc["loop", ["compile_s", "graph_breaks", "recompiles"]].isna().all()


def test_what_meets_no_other_tokens_says_why() -> None:
    row = analysis(COMPILED.model_copy(update={"new_inputs": []})).frame.set_index("impl").loc["loop [compile]"]
    assert pd.isna(row["recompiles"])
    assert "recompiles: there are no tokens" in row["gaps"]


def test_the_table_of_compiled_variants_says_what_compiling_bought_and_cost() -> None:
    table = compiled_table(make_view(analysis()))
    assert table is not None
    (row,) = table.rows
    cells = dict(zip(table.columns, (cell.text for cell in row), strict=True))
    assert cells["implementation"] == "loop [compile]"
    assert float(cells["time over uncompiled"].rstrip(TIMES)) == pytest.approx(0.5, rel=0.05)
    assert cells["verdict"] == "faster"
    assert cells["graph breaks"] == "4"
    calls = int(cells["pays after"].removesuffix(" calls").replace(",", ""))
    assert calls == pytest.approx(10_000, rel=0.7)  # 10 s at a millisecond a call; drift is common, so medians differ
    assert table.reasons == [("loop [compile]", COMPILED.break_reasons)]


def test_there_is_no_table_where_nothing_was_compiled() -> None:
    found = analysis()
    plain = found.frame[found.frame["compile"] == "none"]
    assert compiled_table(make_view(dataclasses.replace(found, frame=plain, comparisons=[]))) is None


def test_the_report_shows_the_variants_and_escapes_their_reasons(tmp_path: Path) -> None:
    page = write_report([analysis()], tmp_path).read_text()
    assert "Compiled variants" in page
    assert "bounds = begins.tolist()" in page
    assert "&lt;b&gt;&amp;: 2" in page
    assert "<b>&: 2" not in page


def test_a_compiled_layer_has_the_colour_of_its_own_and_other_marks() -> None:
    looks = looks_for({"dense": "dense", "loop [compile]": "moe", "loop": "moe", "loop [max-autotune]": "moe"})
    assert list(looks) == ["loop", "loop [compile]", "loop [max-autotune]", "dense"]
    variants = [looks[name] for name in list(looks)[:3]]
    assert len({look.colour for look in variants}) == 1
    assert len({look.marker for look in variants}) == len({look.dash for look in variants}) == 3
