"""Routing recorded from transformers models: the ids are the model's own, and a run replays them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.cli import main
from bench.config import load_sweep
from bench.errors import RequestError
from bench.inputs import forced_ids
from bench.trace import record

REASON = "transformers is not installed (dependency group `peers`)"
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "vocab_size": 50, "intermediate_size": 24, "num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 8}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "layer_types": ["full_attention"] * 2}),
}


def saved_model(family: str, folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason=REASON)
    config_class, sizes = MODELS[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(SMALL | sizes))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class Router(nn.Module):
    """Scores in a tensor of its own, as DBRX's; the block takes the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]  # nn.Module returns Any


class Block(nn.Module):
    """A router beside experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.top_k = Router(), nn.ModuleList([nn.Linear(4, 4)]), 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.router(x)
        return x


def test_ids_come_from_scores_where_a_router_returns_nothing_else() -> None:
    model = nn.Sequential(Block(), nn.Linear(4, 4), Block())
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with record(model, layers=[2]) as recording:
        model(x)
        model(x[:1])
    model(x)  # outside of the block nothing is recorded any more
    (layer,) = recording.layers
    assert (layer.name, layer.index, layer.num_experts) == ("2", 2, 3)
    block: Any = model[2]
    hidden = model[1](x).flatten(0, 1)
    truth = block.router.layer(hidden).topk(2).indices.numpy()
    assert np.array_equal(layer.expert_ids, np.concatenate([truth, truth[:5]]))


def test_models_without_experts_and_absent_layers_are_refused() -> None:
    with pytest.raises(RequestError, match="Linear has no block with experts"), record(nn.Linear(2, 2)):
        pass
    with pytest.raises(RequestError, match="no layer 7 with experts; there are 0"), record(nn.Sequential(Block()), [7]):
        pass


@pytest.mark.parametrize("family", MODELS)
def test_a_saved_model_is_traced_and_its_trace_replayed(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_model(family, tmp_path / "model")
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(40) % 50)
    out = tmp_path / "traces"
    assert main(["trace", str(folder), "--ids", str(ids), "--out", str(out)]) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in files] == ["layer-00.npy", "layer-01.npy"]
    traced = np.load(files[1])
    assert (traced.shape, traced.dtype) == ((40, 2), np.int16)
    assert (traced[:, 0] != traced[:, 1]).all()
    facts = json.loads((out / "trace.json").read_text())
    assert (facts["model_type"], facts["tokens"]) == (family, 40)
    assert facts["files"]["layer-01.npy"]["num_experts"] == 4

    model = pytest.importorskip("transformers").AutoModel.from_pretrained(folder)
    with record(model) as recording, torch.inference_mode():
        model(input_ids=torch.arange(40)[None] % 50)
    assert np.array_equal(recording.layers[1].expert_ids, traced)

    overrides = {"workload.num_tokens": 40, "workload.routing": f"trace:{files[1]}", "workload.impls": "loop"}
    from bench.models import select_config

    sweep = load_sweep("smoke", overrides, model=select_config(folder))
    replayed = forced_ids(sweep.cases[0].workload)
    assert replayed is not None
    assert np.array_equal(replayed.expert_ids.numpy(), traced)
    assert not replayed.note


def test_tokens_are_asked_for_in_one_way_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved_model("mixtral", tmp_path / "model")
    out = ["--out", str(tmp_path / "traces")]
    outside = tmp_path / "outside.npy"
    np.save(outside, np.array([3, 50]))
    text = tmp_path / "text.txt"
    text.write_text("some words")
    for options, message in (
        ([], "give the tokens in one way"),
        (["--random", "8", "--ids", str(outside)], "give the tokens in one way"),
        (["--ids", str(outside)], "from 0 to 49"),
        (["--ids", str(text)], "cannot be read as a NumPy"),
        (["--text", str(text)], "--ids FILE.npy takes token ids instead"),
        (["--text", str(tmp_path / "absent")], "cannot be read: No such file"),
        (["--random", "8", "--layer", "5"], "no layer 5 with experts; there are 0, 1"),
    ):
        assert main(["trace", str(folder), *out, *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["trace", str(folder), *out, "--random", "8", "--layer", "1"]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["layer-01.npy"]
    shutil.rmtree(folder)
    assert main(["trace", str(folder), *out, "--random", "8"]) == 2
    assert "no model" in capsys.readouterr().err


def test_absent_transformers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["trace", "any", "--random", "8", "--out", str(tmp_path)]) == 2
    assert "pip install 'transformers>=5.23'" in capsys.readouterr().err
