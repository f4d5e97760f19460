from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import config
from bench.config import LAYER_AXES, WORKLOAD_AXES, Sweep, load_sweep, parse_sweep, presets
from bench.document import Measure
from bench.environment import usable_cores
from bench.errors import ConfigError, RequestError
from bench.overrides import parse_value
from impls import registry
from impls.registry import ENTRIES, names
from impls.spec import LayerSpec

LAYER = {"d_model": 8, "d_ff": 16, "num_experts": 4, "top_k": 2}
WORKLOAD = {"impls": "loop", "num_tokens": 3, "device": "cpu", "threads": 1}


def sweep(*, overrides: dict[str, object] | None = None, **tables: Any) -> Sweep:
    document = {"schema": 1, "layer": LAYER, "workload": WORKLOAD, **tables}
    return parse_sweep(document, source="test.toml", overrides=overrides)


def faults(document: dict[str, Any], overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(document, source="test.toml", overrides=overrides)
    return caught.value.faults


def test_axes_are_the_fields_of_layers_and_workloads() -> None:
    assert set(LAYER_AXES) == {field.name for field in dataclasses.fields(LayerSpec)}
    case = sweep().cases[0]
    assert {"layer", "seed", *WORKLOAD_AXES} == set(type(case.workload).model_fields)


@given(
    num_experts=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    num_tokens=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    capacity=st.lists(st.sampled_from(["none", 0.5, 1, 1.0, 2]), min_size=1, max_size=4),
    impls=st.lists(st.sampled_from(sorted(ENTRIES)), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=40)
def test_a_sweep_is_the_product_of_its_axes_without_duplicates(
    num_experts: list[int], num_tokens: list[int], capacity: list[object], impls: list[str]
) -> None:
    axes = {"layer.num_experts": num_experts, "layer.capacity_factor": capacity}
    found = sweep(overrides={**axes, "workload.num_tokens": num_tokens, "workload.impls": impls})
    expected = math.prod(len(set(axis)) for axis in (num_experts, num_tokens, capacity, impls))
    assert len(found.cases) == len({case.id for case in found.cases}) == expected
    assert sweep(overrides={**axes, "workload.num_tokens": num_tokens, "workload.impls": impls}) == found


def test_cases_come_workload_by_workload() -> None:
    found = sweep(overrides={"layer.num_experts": [4, 8], "workload.impls": ["loop", "dense", "einsum"]})
    workloads = [case.workload.id for case in found.cases]
    assert workloads == [id_ for id_ in dict.fromkeys(workloads) for _ in range(3)]
    assert [case.impl for case in found.cases] == ["loop", "dense", "einsum"] * 2


def test_what_was_given_gives_the_same_sweep_again() -> None:
    first = load_sweep("smoke", {"workload.threads": [1, 2], "workload.device": ["auto", "cpu"]})
    assert parse_sweep(first.given, source="smoke") == first
    assert first.given["workload"]["device"] != "auto"


def test_all_stands_for_every_name_that_can_run_here_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = {"hf_eager": "transformers is not installed", "st_moe": "st-moe-pytorch is not installed"}
    monkeypatch.setattr(registry, "missing", absent.get)
    found = sweep(overrides={"workload.impls": "all"})
    kept = [name for name in names() if name not in (*absent, "expert_choice")]
    assert [case.impl for case in found.cases] == kept == found.given["workload"]["impls"]
    assert found.left_out == (
        "'all' leaves out expert_choice: it executes router 'expert_choice' only",
        "'all' leaves out hf_eager: transformers is not installed",
        "'all' leaves out st_moe: st-moe-pytorch is not installed",
    )


def test_what_is_named_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "missing", lambda name: f"no {name}")
    found = sweep(overrides={"workload.impls": ["loop", "hf_eager", "expert_choice"]})
    assert [case.impl for case in found.cases] == ["loop", "hf_eager", "expert_choice"]
    assert found.left_out == ()


def test_a_package_without_an_adapter_says_why() -> None:
    with pytest.raises(ConfigError, match="there is no adapter for it: has no release on the package index"):
        sweep(overrides={"workload.impls": "tutel"})


def test_short_forms_and_auto_are_written_out() -> None:
    (case,) = sweep(overrides={"workload.dtype": "bf16"}).cases
    assert (case.workload.dtype, case.workload.cache) == ("bfloat16", "warm")


def test_exclusions_take_away_where_every_key_matches() -> None:
    axes: dict[str, object] = {"layer.num_experts": [4, 8], "workload.impls": ["loop", "einsum"]}
    found = sweep(overrides=axes, exclude=[{"num_experts": [8, 16], "impls": "einsum"}])
    assert [(case.workload.layer.num_experts, case.impl) for case in found.cases] == [
        (4, "loop"), (4, "einsum"), (8, "loop"),
    ]  # fmt: skip


def test_an_exclusion_of_everything_is_refused() -> None:
    with pytest.raises(RequestError, match="takes every case away"):
        sweep(exclude=[{"num_experts": 4}])


def test_top_k_above_num_experts_stays_where_some_combination_runs() -> None:
    found = sweep(overrides={"layer.top_k": [2, 5]})
    assert [case.workload.layer.impossible is None for case in found.cases] == [True, False]
    with pytest.raises(RequestError, match=r"top_k \(5\) is above num_experts \(4\)"):
        sweep(overrides={"layer.top_k": 5})


def test_every_fault_is_reported_at_once_with_place_found_and_allowed() -> None:
    found = faults(
        {
            "schema": 2,
            "layr": {},
            "layer": {**LAYER, "d_model": -1, "d_ff": 1.5, "num_exprts": 3, "top_k": [1, "2"], "activation": "swigul"},
            "workload": {**WORKLOAD, "impls": "lop", "dtype": "bf61", "direction": "fwd", "threads": []},
            "measure": {"budget": "3 parsecs", "processes": 1, "budget_s": 4},
            "exclude": [{"topk": 1}, {"top_k": 0}],
        },
        {"foo": 1, "layr.top_k": 1},
    )
    text = "\n".join(found)
    assert len(found) == 18
    for part in (
        "schema: found 2",
        "layr: no such table",
        "[layer] d_model: found -1, should be greater than or equal to 1",
        "[layer] d_ff: found 1.5, should be a whole number",
        "did you mean 'num_experts'?",
        "[layer] top_k: found '2', should be a whole number",
        "did you mean 'swiglu'?",
        "did you mean 'loop'?",
        "did you mean 'bf16'?",
        "did you mean 'forward'?",
        "[workload] threads: found [], should have at least one value",
        "[measure] budget: found '3 parsecs'",
        "[measure] processes: found 1",
        "did you mean 'budget'?",
        "[[exclude]] 1, topk: no such key",
        "[[exclude]] 2, top_k: found 0",
        "--set foo: should be one of layer.KEY",
        "--set layr.top_k: should be one of layer.KEY, workload.KEY, measure.KEY; did you mean 'layer'?",
    ):
        assert part in text, part


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, "nil", True])
def test_a_capacity_factor_is_none_or_above_zero(factor: object) -> None:
    (fault,) = faults({"layer": {**LAYER, "capacity_factor": factor}, "workload": WORKLOAD})
    assert fault.startswith("[layer] capacity_factor: found")
    assert "'none' (nothing is dropped) or a number above 0" in fault


@pytest.mark.parametrize("routing", ["zipf:-1", "zipf:nan", "zipf:x", "zipf", "hot:1.1", "hot:", "trace:", "skewed"])
def test_routings_outside_their_range_are_faults(routing: str) -> None:
    (fault,) = faults({"layer": LAYER, "workload": {**WORKLOAD, "routing": routing}})
    assert fault.startswith(f"[workload] routing: found {routing!r}")


def test_a_trace_must_be_a_table_of_whole_numbers(tmp_path: Path) -> None:
    good, bad, text = tmp_path / "good.npy", tmp_path / "bad.npy", tmp_path / "text.npy"
    np.save(good, np.zeros((5, 2), dtype=np.int64))
    np.save(bad, np.zeros(5))
    text.write_text("no array")
    assert sweep(overrides={"workload.routing": f"trace:{good}"}).cases[0].workload.routing == f"trace:{good}"
    for file, reason in ((bad, "whole-number array"), (text, "not a NumPy"), (tmp_path / "none.npy", "no file")):
        (fault,) = faults({"layer": LAYER, "workload": {**WORKLOAD, "routing": f"trace:{file}"}})
        assert reason in fault


def test_a_trace_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", np.zeros((5, 2), dtype=np.int64))
    (case,) = sweep(overrides={"workload.routing": "trace:ids.npy"}).cases
    assert case.workload.routing == f"trace:{tmp_path / 'ids.npy'}"


def test_all_threads_are_those_of_this_machine() -> None:
    found = sweep(overrides={"workload.threads": [1, "all"]})
    assert {case.workload.threads for case in found.cases} == {1, usable_cores()}
    assert "all" not in np.ravel(found.given["workload"]["threads"])


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_whole(name: str) -> None:
    found = load_sweep(name, {"workload.device": "cpu"})
    assert all(case.workload.layer.impossible is None for case in found.cases)
    impls: dict[str, set[str]] = {}
    for case in found.cases:
        impls.setdefault(case.workload.id, set()).add(case.impl)
    assert all(len(compared) >= 2 for compared in impls.values()), "a workload with nothing to compare"


def test_a_file_of_somebodys_own_is_kept_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("class Mine: ...\n")
    assert sweep(overrides={"workload.impls": "mine.py:Mine"}).cases[0].impl == "mine.py:Mine"
    (fault,) = faults({"layer": LAYER, "workload": {**WORKLOAD, "impls": "yours.py:Mine"}})
    assert "there is no file yours.py" in fault


def test_tables_of_the_wrong_kind_are_faults() -> None:
    assert faults({"layer": 3, "workload": WORKLOAD, "exclude": 4}) == [
        "layer: found 3, should be a table",
        "exclude: found 4, should be a list of tables",
    ]
    assert faults({}) == ["layer: is missing", "workload: is missing"]


def test_broken_toml_says_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[layer]\nd_model = = 3\n")
    with pytest.raises(ConfigError, match="line 2, column 11"):
        load_sweep(file)


def test_a_missing_file_names_the_presets_and_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"presets are .*quick.*; did you mean 'smoke'\?"):
        load_sweep("smok")


def test_a_folder_or_a_binary_file_is_not_a_sweep(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for source in (tmp_path, binary):
        with pytest.raises(RequestError, match="cannot read"):
            load_sweep(source)


def test_cuda_without_cuda_is_refused_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "why_no_cuda", lambda: "there is no GPU")
    assert sweep(overrides={"workload.device": "auto"}).cases[0].workload.device == "cpu"
    with pytest.raises(RequestError, match="cuda was asked for, but there is no GPU"):
        sweep(overrides={"workload.device": "cuda"})


def test_auto_takes_cuda_where_there_is_one_and_measures_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "why_no_cuda", lambda: None)
    (case,) = sweep(overrides={"workload.device": "auto"}).cases
    assert (case.workload.device, case.workload.cache) == ("cuda", "cold")


def test_a_product_beyond_reason_is_refused() -> None:
    with pytest.raises(RequestError, match="multiply to 20000 cases"):
        sweep(overrides={"workload.num_tokens": list(range(20_000))})


def test_measure_reads_durations() -> None:
    measured = sweep(measure={"budget": "1h 30m", "timeout": 20.5}).measure
    assert measured == Measure(budget_s=5400.0, timeout_s=20.5)


def test_smoke_measures_every_implementation_of_ours_that_any_router_can_use() -> None:
    ours = {name for name, entry in ENTRIES.items() if not entry.package and not entry.router}
    assert {case.impl for case in load_sweep("smoke").cases} == ours


@pytest.mark.parametrize("name", ["quick", "smoke"])
def test_first_presets_vary_experts_top_k_and_capacity(name: str) -> None:
    found = load_sweep(name)
    layers = [case.workload.layer for case in found.cases]
    for axis in ("num_experts", "top_k", "capacity_factor"):
        assert len({getattr(layer, axis) for layer in layers}) > 1
    assert all(layer.impossible is None for layer in layers)
    assert presets()[name].question.endswith(("?", "."))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d_ff = 1" + "0" * 5000, "not valid TOML"),
        ("d_ff = " + "[" * 5000 + "]" * 5000, "not valid TOML"),
        ("d_ff = 1" + "0" * 400, "d_ff"),
        ("[measure]\nplanted_slowdown = 0.0004", "planted_slowdown"),
    ],
)
def test_documents_beyond_every_measure_are_faults(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(f"[layer]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        load_sweep(path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot read"):
        load_sweep("nul\0byte")


def test_a_list_may_be_given_as_toml_writes_it_and_one_value_sets_one_key() -> None:
    assert parse_value("[8, 64]") == [8, 64]
    assert parse_value("8\nseed = 3") == "8\nseed = 3"


def test_checks_of_limits_without_profiles_are_refused() -> None:
    with pytest.raises(RequestError, match=r"set measure.profile=true"):
        load_sweep("smoke", {"workload.device": "cpu", "measure.check_limits": True})
