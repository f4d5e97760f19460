"""``--model`` and ``--hf-config`` in a sweep: what they replace, what stays, and the label that goes with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.config import load_sweep, parse_sweep
from bench.errors import ConfigError, RequestError
from bench.models import select, select_config, select_model
from bench.store.schema import RunInfo

SWEEP: dict[str, Any] = {
    "layer": {"d_model": 64, "d_ff": 64, "num_experts": [4, 8], "top_k": 1, "capacity_factor": ["none", 1.25]},
    "workload": {"impls": "loop", "num_tokens": [1, 8], "device": "cpu"},
}
CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 128, "moe_intermediate_size": 64, "num_experts": 16,
    "num_experts_per_tok": 4, "norm_topk_prob": True, "hidden_act": "silu",
}  # fmt: skip


def test_a_model_replaces_the_layer_and_leaves_the_capacity_and_the_workload() -> None:
    sweep = parse_sweep(SWEEP, source="mine", model=select_model("qwen3-30b-a3b", "1/4"))
    layers = [case.workload.layer for case in sweep.cases]
    assert {(s.d_model, s.d_ff, s.num_experts, s.top_k) for s in layers} == {(512, 192, 128, 8)}
    assert {s.capacity_factor for s in layers} == {None, 1.25}
    assert {case.workload.num_tokens for case in sweep.cases} == {1, 8}
    assert sweep.title == "mine, qwen3-30b-a3b at 1/4"


def test_an_axis_that_gives_way_is_said_and_set_brings_it_back() -> None:
    model = select_model("olmoe-1b-7b", "1/8")
    sweep = parse_sweep(SWEEP, source="mine", model=model)
    assert [text for text in sweep.left_out if "num_experts = 4, 8" in text and "olmoe-1b-7b at 1/8" in text]
    swept = parse_sweep(SWEEP, source="mine", model=model, overrides={"layer.num_experts": [8, 16]})
    assert {case.workload.layer.num_experts for case in swept.cases} == {8, 16}
    assert swept.title == "mine, olmoe-1b-7b at 1/8, with num_experts = 8, 16"
    assert not any("num_experts" in text for text in swept.left_out)


def test_a_capacity_is_not_a_change_of_the_model() -> None:
    sweep = parse_sweep(SWEEP, source="mine", model=select_model("dbrx"), overrides={"layer.capacity_factor": 2.0})
    assert sweep.title == "mine, dbrx"
    assert {case.workload.layer.capacity_factor for case in sweep.cases} == {2.0}


def test_the_record_alone_gives_the_same_sweep_again() -> None:
    sweep = parse_sweep(SWEEP, source="mine", model=select_model("deepseek-v3", "1/32"))
    again = parse_sweep(json.loads(json.dumps(sweep.given)), source="mine")
    assert again == sweep
    info = RunInfo(
        run_id="a", machine="b", created_unix_s=0, command=[], source="mine", config=again.given, seed=0,
        git_commit=None, environment={}, environment_hash="",
    )  # fmt: skip
    assert (info.label, info.title) == ("deepseek-v3 at 1/32", "mine, deepseek-v3 at 1/32")


def test_a_preset_keeps_its_own_layer_without_a_model() -> None:
    sweep = load_sweep("smoke")
    assert sweep.title == "smoke"
    assert "label" not in sweep.given


def test_a_configuration_file_or_its_folder_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | {"moe_strange": 3}))
    for path in (file, tmp_path):
        found = select_config(path, "1/2")
        assert found.label == "qwen3_moe of config.json at 1/2"
        assert (found.layer["d_model"], found.layer["d_ff"], found.layer["num_experts"]) == (64, 32, 16)
        assert found.notes == ("key moe_strange=3 is not understood and ignored",)
        assert parse_sweep(SWEEP, source="mine", model=found).notes == found.notes


def test_what_cannot_be_read_is_a_fault_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ConfigError, match=r"config\.json has 1 fault:\n  llama is a dense model"):
        select_config(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "dbrx", "hf_config": Path("x"), "scale": None}, "both name a layer"),
        ({"model": None, "hf_config": None, "scale": "1/2"}, "nothing to scale"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        select(**options)
    assert select(None, None, None) is None


def test_the_command_line_lists_and_uses_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["gpt-oss-20b"]["activation"] == "swiglu_clamped"
    assert listed["gshard-600b"]["unconfirmed"]
    assert main(["run", "tokens", "--model", "qwen3-30b-a3b", "--scale", "1/4", "--dry-run"]) == 0
    assert "tokens, qwen3-30b-a3b at 1/4" in capsys.readouterr().out
    assert main(["run", "tokens", "--model", "qwen3-30b-a3b", "--scale", "1/5", "--dry-run"]) == 2
    assert main(["run", "--resume", "latest", "--model", "dbrx"]) == 2
    capsys.readouterr()
