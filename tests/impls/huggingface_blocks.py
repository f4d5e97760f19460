"""Tiny transformers blocks with random weights, one a family, for the tests that hold ours against theirs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@dataclass(frozen=True)
class Tiny:
    """How to make one family's block: its module, configuration class, block class, and sizes."""

    module: str
    config: str
    block: str
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def make(self, seed: int = 0) -> tuple[nn.Module, Any]:
        """The block in evaluation mode, with N(0, 1/sqrt(fan_in)) weights, and its configuration."""
        package = f"transformers.models.{self.module}"
        modeling = importlib.import_module(f"{package}.modeling_{self.module}")
        config_class = getattr(importlib.import_module(f"{package}.configuration_{self.module}"), self.config)
        config = config_class(**(SIZES | dict(self.sizes)))
        block = getattr(modeling, self.block)(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*block.parameters(), *block.buffers()):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 32**0.5)
        return block.eval(), config


_ROUTED = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
_DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "n_shared_experts": 2}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16}

BLOCKS = {
    "mixtral": Tiny("mixtral", "MixtralConfig", "MixtralSparseMoeBlock", _LOCAL),
    "qwen2_moe": Tiny(
        "qwen2_moe", "Qwen2MoeConfig", "Qwen2MoeSparseMoeBlock", _ROUTED | {"shared_expert_intermediate_size": 24}
    ),
    "qwen3_moe": Tiny("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", _ROUTED),
    "qwen3_moe, renormalised": Tiny(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", _ROUTED | {"norm_topk_prob": True}
    ),
    "qwen3_next": Tiny(
        "qwen3_next", "Qwen3NextConfig", "Qwen3NextSparseMoeBlock", _ROUTED | {"shared_expert_intermediate_size": 16}
    ),
    "olmoe": Tiny("olmoe", "OlmoeConfig", "OlmoeSparseMoeBlock", _LOCAL),
    "deepseek_v2": Tiny("deepseek_v2", "DeepseekV2Config", "DeepseekV2Moe", _DEEPSEEK),
    "deepseek_v2, groups": Tiny(
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2Moe",
        _DEEPSEEK
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
    ),
    "deepseek_v3": Tiny(
        "deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE", _DEEPSEEK | {"n_group": 4, "topk_group": 2}
    ),
    "deepseek_v3, one group": Tiny(
        "deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE", _DEEPSEEK | {"n_group": 1, "topk_group": 1}
    ),
    "glm4_moe": Tiny("glm4_moe", "Glm4MoeConfig", "Glm4MoeMoE", _DEEPSEEK | {"routed_scaling_factor": 2.5}),
    "gpt_oss": Tiny("gpt_oss", "GptOssConfig", "GptOssMLP", _LOCAL | {"swiglu_limit": 0.5, "intermediate_size": 32}),
    "llama4_text": Tiny("llama4", "Llama4TextConfig", "Llama4TextMoe", _LOCAL | {"num_experts_per_tok": 1}),
    "llama4_text, two experts": Tiny("llama4", "Llama4TextConfig", "Llama4TextMoe", _LOCAL),
    "granitemoe": Tiny("granitemoe", "GraniteMoeConfig", "GraniteMoeMoE", _LOCAL),
    "granitemoeshared": Tiny(
        "granitemoeshared", "GraniteMoeSharedConfig", "GraniteMoeSharedMoE", _LOCAL | {"shared_intermediate_size": 24}
    ),
    "phimoe": Tiny("phimoe", "PhimoeConfig", "PhimoeSparseMoeBlock", _LOCAL),
    "dbrx": Tiny(
        "dbrx",
        "DbrxConfig",
        "DbrxFFN",
        {
            "d_model": 32,
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 3},
        },
    ),
    "jamba": Tiny(
        "jamba",
        "JambaConfig",
        "JambaSparseMoeBlock",
        {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16},
    ),
    "switch_transformers": Tiny(
        "switch_transformers",
        "SwitchTransformersConfig",
        "SwitchTransformersSparseMLP",
        {"d_model": 32, "d_ff": 16, "num_experts": 8, "expert_capacity": 4096},
    ),
}
