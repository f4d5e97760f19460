"""Compiling as an axis of a sweep: ids, labels, documents, and the time that it is given."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from bench.cases import VARIANTS, Case, Compile, Workload, stable_id, uncompiled
from bench.config import Sweep, load_sweep, parse_sweep
from bench.errors import ConfigError
from bench.estimate import compile_s, estimate
from bench.runner.schedule import COMPILE_PATIENCE_S
from impls.spec import LayerSpec

WORKLOAD = Workload(layer=LayerSpec(d_model=8, d_ff=8, num_experts=4, top_k=2), num_tokens=3)


def sweep(document: dict[str, Any] | None = None, **workload: Any) -> Sweep:
    plain = {
        "layer": {"d_model": 8, "d_ff": 8, "num_experts": [2, 4], "top_k": 1},
        "workload": {"impls": ["loop", "dense"], "num_tokens": 4, "device": "cpu", "threads": 1, **workload},
    }
    return parse_sweep(plain | (document or {}), source="test")


def labels(found: Sweep) -> list[str]:
    return [case.label for case in found.cases]


def test_every_mode_has_a_word_and_patience() -> None:
    assert set(get_args(Compile)) == set(VARIANTS) == set(COMPILE_PATIENCE_S)
    assert len(set(VARIANTS.values())) == len(VARIANTS)


def test_a_case_that_is_not_compiled_keeps_the_id_of_the_first_records() -> None:
    case = Case(impl="loop", workload=WORKLOAD)
    assert case.id == stable_id({"impl": "loop", "workload": WORKLOAD.lasting()})
    assert Case.model_validate({"impl": "loop", "workload": WORKLOAD.model_dump()}) == case
    assert len({Case(impl="loop", workload=WORKLOAD, compile=mode).id for mode in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("impl", ["loop", "any/folder/layer.py:Mine", "odd [x]"])
def test_a_label_leads_back_to_its_implementation(impl: str, mode: Compile) -> None:
    case = Case(impl=impl, workload=WORKLOAD, compile=mode)
    assert uncompiled(case.label) == impl
    assert (case.label == impl) == (mode == "none")


def test_compiled_and_plain_stand_side_by_side_in_one_workload() -> None:
    found = sweep(compile=["none", "default"])
    assert labels(found) == 2 * ["loop", "loop [compile]", "dense", "dense [compile]"]
    assert [case.workload.id for case in found.cases[:4]] == 4 * [found.cases[0].workload.id]
    assert labels(sweep()) == 2 * ["loop", "dense"]


def test_a_mode_can_be_excluded_for_some() -> None:
    found = sweep({"exclude": [{"impls": ["dense"], "compile": ["default", "max-autotune"]}]}, compile=[*VARIANTS])
    assert labels(found) == 2 * ["loop", "loop [compile]", "loop [max-autotune]", "dense"]


def test_an_unknown_mode_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"compile.*none, default, max-autotune"):
        sweep(compile="fast")


def test_the_estimate_allows_for_compiling_and_says_how_long_it_takes() -> None:
    plain, compiled = estimate(sweep()), estimate(sweep(compile=["none", "default"]))
    tuned = estimate(sweep(compile=["none", "max-autotune"]))
    assert plain.compile_s == 0
    assert compiled.needed_s - plain.needed_s > compiled.compile_s > 0
    assert tuned.compile_s > compiled.compile_s


CHECKED_S = {
    ("grouped", "default"): 13.7,
    ("grouped", "max-autotune"): 13.8,
    ("loop", "default"): 33.4,
    ("einsum", "default"): 22.4,
    ("batched", "default"): 11.0,
    ("dense_masked", "default"): 17.6,
}
"""Seconds of a compiled case's check: 16 experts, forward, bfloat16, one thread of a two-core EPYC virtual machine."""


@pytest.mark.parametrize(("impl", "mode"), CHECKED_S)
def test_compiling_is_estimated_within_a_factor_of_two_of_what_was_measured(impl: str, mode: Compile) -> None:
    assert 0.5 < compile_s(Case(impl=impl, workload=WORKLOAD, compile=mode)) / CHECKED_S[impl, mode] < 2


def test_the_preset_compares_each_layer_with_its_compiled_self() -> None:
    found = load_sweep("compile", {"workload.device": "cpu"})
    assert {case.compile for case in found.cases} == {"none", "default"}
    assert len({case.workload.id for case in found.cases}) == 1
    assert found.cases[0].workload.dtype == "bfloat16"
