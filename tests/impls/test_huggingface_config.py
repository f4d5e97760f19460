"""Configurations as layers: every family by its keys, assumptions by name, nonsense refused; no transformers needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from impls import LayerSpec
from impls.huggingface.config import MAX_BYTES, UnreadableConfig, layer_from_config, read_config

BASE = {"hidden_size": 64, "hidden_act": "silu", "num_hidden_layers": 2, "vocab_size": 100}
PLAIN = BASE | {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 48}
ROUTED = BASE | {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "n_shared_experts": 2}
QWEN = BASE | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 99}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
LLAMA = {"model_type": "llama4_text"}
DBRX = {"ffn_hidden_size": 9, "moe_num_experts": 4, "moe_top_k": 2}

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (PLAIN | {"model_type": "mixtral"}, {"d_ff": 48, "num_experts": 8, "top_k": 2, "norm_topk_prob": True}),
    (
        QWEN | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 40},
        {"d_ff": 16, "num_shared_experts": 1, "d_ff_shared": 40, "shared_gate": True, "norm_topk_prob": False},
    ),
    (QWEN | {"model_type": "qwen3_moe", "norm_topk_prob": True}, {"d_ff": 16, "norm_topk_prob": True}),
    (
        ROUTED | GROUPS | {"model_type": "deepseek_v3", "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        {
            "router": "sigmoid_topk", "selection_bias": True, "num_expert_groups": 4, "top_k_groups": 2,
            "routed_scaling": 2.5, "num_shared_experts": 2,
        },
    ),
    (
        ROUTED | GROUPS | {"model_type": "deepseek_v2", "topk_method": "greedy"},
        {"router": "softmax_topk", "num_expert_groups": 1, "norm_topk_prob": False, "num_shared_experts": 2},
    ),
    (
        PLAIN | {"model_type": "gpt_oss", "swiglu_limit": 5.0},
        {"router": "topk_softmax", "activation": "swiglu_clamped", "swiglu_limit": 5.0, "expert_bias": True},
    ),
    (
        {"model_type": "llama4", "vision_config": {"hidden_size": 7}, "text_config": PLAIN | LLAMA},
        {"router": "topk_sigmoid", "num_shared_experts": 1, "d_model": 64},
    ),
    (
        {"model_type": "dbrx", "d_model": 32, "ffn_config": DBRX},
        {"d_model": 32, "d_ff": 9, "num_experts": 4, "top_k": 2},
    ),
    (
        {"model_type": "switch_transformers", "d_model": 32, "d_ff": 16, "num_experts": 8, "dense_act_fn": "relu"},
        {"router": "switch", "activation": "relu", "top_k": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CASES, ids=lambda value: value.get("model_type"))
def test_a_familys_keys_make_its_layer(config: dict[str, Any], expected: dict[str, Any]) -> None:
    found = layer_from_config(config)
    spec = LayerSpec(**found.layer)
    assert spec.impossible is None
    assert {name: getattr(spec, name) for name in expected} == expected
    assert not [note for note in found.notes if "assumed" in note and "activation" not in note]


def notes_of(**keys: object) -> str:
    return " | ".join(layer_from_config(QWEN | keys).notes)


def test_an_unknown_family_says_what_was_assumed() -> None:
    notes = notes_of(model_type="brand_new")
    assert "router assumed softmax_topk because model_type brand_new is unknown" in notes
    assert "norm_topk_prob assumed true" in notes


def test_an_unknown_family_is_believed_where_it_says_so_itself() -> None:
    found = layer_from_config(
        QWEN | {"model_type": "new", "scoring_func": "sigmoid", "norm_topk_prob": False, "topk_method": "noaux_tc"}
    )
    assert not found.notes
    spec = LayerSpec(**found.layer)
    assert (spec.router, spec.norm_topk_prob, spec.selection_bias) == ("sigmoid_topk", False, True)


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({"moe_magic": 4}, "key moe_magic=4 is not understood and ignored"),
        ({"scoring_func": "sqrtsoftplus", "model_type": "new"}, "scoring_func=sqrtsoftplus is not understood"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh is computed as the exact gelu"),
        ({"num_experts_per_tok": [2, 2, 4]}, "differs between layers: the last one's, 4, is taken"),
        ({"expert_capacity": 64}, "set layer.capacity_factor"),
    ],
)
def test_what_is_not_understood_is_named(keys: dict[str, Any], note: str) -> None:
    assert note in notes_of(**({"model_type": "qwen3_moe"} | keys))


def test_keys_without_effect_on_a_layer_are_passed_over() -> None:
    quiet = {"router_aux_loss_coef": 0.1, "decoder_sparse_step": 1, "output_router_logits": True, "moe_layer_freq": 1}
    assert notes_of(model_type="qwen3_moe", **quiet) == ""


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"model_type": "llama", "hidden_size": 8}, "llama is a dense model"),
        (BASE | {"model_type": "jamba", "num_experts": 1}, "jamba is a dense model"),
        ({}, "unknown is a dense model"),
        (BASE | {"num_experts": 8}, "the number of experts a token is missing: looked for num_experts_per_tok"),
        (QWEN | {"hidden_size": "wide"}, "should be a whole number from 1 upwards, found 'wide'"),
        (QWEN | {"hidden_size": True}, "found True"),
        (QWEN | {"hidden_act": "tanh"}, "activation 'tanh' is not supported"),
        (QWEN | {"routed_scaling_factor": "big"}, "routed_scaling_factor should be a number"),
        (PLAIN | {"model_type": "gpt_oss", "swiglu_alpha": 2.0}, "swiglu_alpha=2.0 is not supported"),
    ],
)
def test_what_is_no_layer_with_experts_is_refused_by_name(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(UnreadableConfig) as caught:
        layer_from_config(config)
    assert fault in str(caught.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(UnreadableConfig) as caught:
        layer_from_config({"num_experts": 8})
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "should be a JSON object, found list"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b" " * (MAX_BYTES + 1), "is larger than 8 MiB"),
    ],
    ids=["torn", "list", "nested", "binary", "large"],
)
def test_a_file_that_is_no_configuration_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UnreadableConfig, match=fault):
        read_config(file)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableConfig, match="cannot be read: No such file"):
        read_config(tmp_path / "absent.json")


def test_transformers_own_configurations_are_read(tmp_path: Path) -> None:
    reason = "transformers is not installed (dependency group `peers`)"
    mapping = pytest.importorskip("transformers", reason=reason).CONFIG_MAPPING
    expected = {
        "mixtral": (4096, 14336, 8, 2), "qwen2_moe": (2048, 1408, 60, 4), "qwen3_moe": (2048, 768, 128, 8),
        "qwen3_next": (2048, 512, 512, 10), "olmoe": (2048, 2048, 64, 8), "deepseek_v3": (7168, 2048, 256, 8),
        "glm4_moe": (4096, 1408, 128, 8), "gpt_oss": (2880, 2880, 128, 4), "llama4": (5120, 8192, 16, 1),
        "granitemoe": (4096, 11008, 8, 2), "phimoe": (4096, 6400, 16, 2), "dbrx": (2048, 3584, 4, 1),
        "jamba": (4096, 14336, 16, 2), "switch_transformers": (768, 2048, 8, 1),
    }  # fmt: skip
    for model_type, sizes in expected.items():
        file = tmp_path / f"{model_type}.json"
        file.write_text(json.dumps(mapping[model_type]().to_dict(), default=str))
        found = layer_from_config(read_config(file))
        assert tuple(found.layer[key] for key in ("d_model", "d_ff", "num_experts", "top_k")) == sizes, model_type
        assert not [note for note in found.notes if "expert_capacity" not in note], model_type
