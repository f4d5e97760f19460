"""What the code of a model family fixes without saying so in its configuration, by ``model_type``.

Read in Hugging Face transformers 5.23. A family that is absent here is read by its keys alone, and what had to be
assumed is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family's layer.

    Attributes:
        router: name of the router in :data:`impls.spec.ROUTERS`.
        norm_topk_prob: whether the chosen weights are renormalised; None where the configuration says
            (``norm_topk_prob``), and with routers that do not ask.
        norm_default: what it is where the configuration is silent.
        d_ff_keys: where the hidden width of an expert is, first found first.
        shared: how shared experts are given: ``none``; ``counted``, ``n_shared_experts`` of the routed experts' width;
            ``gated``, one of ``shared_expert_intermediate_size`` behind a sigmoid; ``sized``, one of
            ``shared_intermediate_size``; ``one``, one of the routed experts' width.
        fixed: further fields of the layer that the family's code fixes.
        defaults: values of keys that the family's configurations may leave out.
    """

    router: str = "softmax_topk"
    norm_topk_prob: bool | None = None
    norm_default: bool = False
    d_ff_keys: tuple[str, ...] = ("moe_intermediate_size",)
    shared: str = "none"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = ("intermediate_size",)
_AUXILIARY_FREE = Family(router="sigmoid_topk", norm_default=True, shared="counted", fixed={"selection_bias": True})
_GRANITE = Family(router="topk_softmax", d_ff_keys=_PLAIN, shared="sized")

FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(norm_topk_prob=True, d_ff_keys=_PLAIN),
    "qwen2_moe": Family(shared="gated"),
    "qwen3_moe": Family(),
    "qwen3_next": Family(norm_default=True, shared="gated"),
    "olmoe": Family(d_ff_keys=_PLAIN),
    # its router never renormalises, whatever the key says
    "deepseek_v2": Family(norm_topk_prob=False, shared="counted"),
    "deepseek_v3": _AUXILIARY_FREE,
    "kimi_k2": _AUXILIARY_FREE,
    "glm4_moe": _AUXILIARY_FREE,
    "gpt_oss": Family(
        router="topk_softmax",
        d_ff_keys=_PLAIN,
        fixed={"activation": "swiglu_clamped", "router_bias": True, "expert_bias": True},
        defaults={"swiglu_limit": 7.0, "swiglu_alpha": 1.702},
    ),
    "llama4_text": Family(router="topk_sigmoid", d_ff_keys=_PLAIN, shared="one"),
    "granitemoe": Family(router="topk_softmax", d_ff_keys=_PLAIN),
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "phimoe": Family(router="sparsemixer", d_ff_keys=_PLAIN),
    "dbrx": Family(d_ff_keys=("ffn_hidden_size",)),
    "jamba": Family(norm_topk_prob=False, d_ff_keys=_PLAIN),
    "switch_transformers": Family(
        router="switch", d_ff_keys=("d_ff",), defaults={"num_experts_per_tok": 1}
    ),
}  # fmt: skip
