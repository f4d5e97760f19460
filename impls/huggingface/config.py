"""A Hugging Face configuration as the fields of a layer: what it says, what had to be assumed, what is not understood.

The configuration is plain JSON, as in a model's ``config.json``; transformers is not needed. Families differ in the
names of their keys and in what their code fixes silently (:mod:`impls.huggingface.families`). Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from impls.huggingface.families import FAMILIES, Family

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 4

NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts",
    "num_selected_experts",
)  # fmt: skip
D_MODEL = ("hidden_size", "d_model", "n_embd")
D_FF = ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "d_ff", "intermediate_size")
NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
D_FF_SHARED = (
    "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
)  # fmt: skip
ACTIVATION = ("hidden_act", "hidden_activation", "dense_act_fn", "ffn_act_fn", "activation_function")
SCALING = ("routed_scaling_factor", "route_scale", "router_scaling_factor", "moe_router_scaling_factor")
SCORING = ("scoring_func", "score_function", "moe_router_activation_func")
SCORES = {"softmax": "softmax_topk", "sigmoid": "sigmoid_topk"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
APPROXIMATE_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_tanh", "quick_gelu")

_ABOUT_EXPERTS = re.compile(r"expert|moe|rout|top_?k|gating|capacity|scor|swiglu|n_group|mlp_bias")
_WITHOUT_EFFECT = re.compile(
    # losses and noise of training, which layers have experts, numbers and kernels of an installation, other top-k's
    r"loss|aux|jitter|z_coef|output_router_logits|layer|sparse_step|mlp_only|num_sparse|first_k|freq"
    r"|dtype|ep_size|implementation|ignore_padding|index_|router_group|bias_update|^top_k$|^architectures$|^add_router"
)


class UnreadableConfig(ValueError):  # noqa: N818  reads as what it is in `except`
    """A configuration from which no layer with experts can be read; ``faults`` has every reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Found:
    """What a configuration says of its layers with experts.

    Attributes:
        model_type: the family's name for itself; ``unknown`` where it has none.
        layer: fields of :class:`impls.LayerSpec`.
        notes: what was assumed, ignored or not understood, one sentence each.
    """

    model_type: str
    layer: Mapping[str, Any]
    notes: tuple[str, ...]


def read_config(path: Path) -> dict[str, Any]:
    """The object in a ``config.json``, or in that of a model's folder.

    Raises:
        UnreadableConfig: there is no such file, it is too large, or it is no JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableConfig([f"cannot be read: {error.strerror or error}"]) from None
    if len(content) > MAX_BYTES:
        raise UnreadableConfig([f"is larger than {MAX_BYTES >> 20} MiB, which no configuration is"])
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableConfig([f"is not valid JSON: {error}"]) from None
    if not isinstance(config, dict):
        raise UnreadableConfig([f"should be a JSON object, found {type(config).__name__}"])
    return config


def layer_from_config(config: Mapping[str, Any]) -> Found:
    """The layer with experts that a configuration describes; the part about text, where there are several.

    Raises:
        UnreadableConfig: it is a dense model's, or lacks a size that a layer needs.
    """
    part = _with_experts(config)
    model_type = str((part if part is not None and "model_type" in part else config).get("model_type") or "unknown")
    if part is None:
        raise UnreadableConfig(
            [f"{model_type} is a dense model: none of {', '.join(NUM_EXPERTS)} is above 1, here or in a nested part"]
        )
    if config.get("model_type") == "dbrx":  # its experts' part lacks the width, or has a default that does not count
        part, model_type = {**part, "hidden_size": None, **config}, "dbrx"
    return _Reader(model_type, {**_defaults(model_type), **part}).read()


def _defaults(model_type: str) -> Mapping[str, Any]:
    family = FAMILIES.get(model_type)
    return family.defaults if family else {}


def _with_experts(config: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any] | None:
    """The configuration itself, or the first nested one, that counts experts."""
    if any(_is_count(value := config.get(key)) and value > 1 for key in NUM_EXPERTS):
        return config
    nested = [value for value in config.values() if isinstance(value, Mapping)] if depth < MAX_DEPTH else []
    return next((found for value in nested if (found := _with_experts(value, depth + 1)) is not None), None)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(slots=True)
class _Reader:
    """Reads one configuration and keeps account of the keys it used."""

    model_type: str
    config: Mapping[str, Any]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def read(self) -> Found:
        family = FAMILIES.get(self.model_type)
        keys = family.d_ff_keys if family else D_FF
        layer: dict[str, Any] = {
            "d_model": self.size("width of a token", D_MODEL),
            "d_ff": self.size("hidden width of an expert", keys),
            "num_experts": self.size("number of experts", NUM_EXPERTS),
            "top_k": self.size("number of experts a token", TOP_K),
        }
        layer |= self.router(family) | self.groups() | self.shared(family) | self.activation()
        if (scaling := self.number(SCALING)) is not None:
            layer["routed_scaling"] = scaling
        if self.take("router_bias") is True:
            layer["router_bias"] = True
        if family:
            layer |= family.fixed
        if layer.get("activation") == "swiglu_clamped":
            layer |= self.clamp()
        if (slots := self.take("expert_capacity")) is not None:
            self.notes.append(f"expert_capacity={slots} a sequence is not part of the layer: set layer.capacity_factor")
        self.account()
        if self.faults:
            raise UnreadableConfig(self.faults)
        return Found(self.model_type, layer, tuple(self.notes))

    def take(self, *keys: str) -> Any:
        """The value of the first key that has one; all keys count as understood."""
        self.used.update(keys)
        return next((value for key in keys if (value := self.config.get(key)) is not None), None)

    def size(self, what: str, keys: Sequence[str]) -> int:
        value = self.take(*keys)
        if isinstance(value, list) and value:
            if len({str(one) for one in value}) > 1:
                self.notes.append(f"the {what} differs between layers: the last one's, {value[-1]}, is taken")
            value = value[-1]
        if value is None:
            self.faults.append(f"the {what} is missing: looked for {', '.join(keys)}")
        elif not _is_count(value) or value < 1:
            self.faults.append(f"the {what} should be a whole number from 1 upwards, found {value!r}")
        else:
            return value
        return 1  # stands for a fault, which ends the reading

    def number(self, keys: Sequence[str]) -> float | None:
        value = self.take(*keys)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return None if value is None else float(value)
        self.faults.append(f"{keys[0]} should be a number, found {value!r}")
        return None

    def router(self, family: Family | None) -> dict[str, Any]:
        scoring, method = self.take(*SCORING), self.take("topk_method")
        norm = self.take("norm_topk_prob")
        if "moe_normalize_expert_weights" in self.config:
            norm = self.normalised_by(self.take("moe_normalize_expert_weights"))
        if family:
            if scoring is not None and SCORES.get(scoring) not in (None, family.router):
                self.notes.append(f"scoring_func={scoring} is ignored, as by transformers' {self.model_type}")
            if norm is None:
                norm = family.norm_default
            return {"router": family.router} | self.renormalised(family, bool(norm))
        router = SCORES.get(str(scoring).lower(), "softmax_topk")
        why = f"model_type {self.model_type} is unknown"
        if scoring is None:
            self.notes.append(f"router assumed {router} because {why} and {' and '.join(SCORING)} are absent")
        elif str(scoring).lower() not in SCORES:
            self.notes.append(f"scoring_func={scoring} is not understood: router assumed {router}")
        if norm is None:
            norm = True
            self.notes.append(f"norm_topk_prob assumed true because {why}")
        chosen = {"router": router, "norm_topk_prob": bool(norm)}
        return chosen | ({"selection_bias": True} if method == "noaux_tc" else {})

    @staticmethod
    def renormalised(family: Family, norm: bool) -> dict[str, Any]:
        """Whether weights are renormalised, for the routers that ask."""
        if family.router not in SCORES.values():
            return {}
        return {"norm_topk_prob": norm if family.norm_topk_prob is None else family.norm_topk_prob}

    def normalised_by(self, order: object) -> bool:
        if order not in (None, 1, 1.0):
            self.faults.append(f"moe_normalize_expert_weights={order!r} is not supported; 1 and null are")
        return order is not None

    def groups(self) -> dict[str, Any]:
        if self.config.get("topk_method") == "greedy":
            self.take("n_group", "topk_group")
            return {}
        groups, chosen = self.take("n_group"), self.take("topk_group")
        if groups in (None, 0, 1):
            return {}
        return {
            "num_expert_groups": self.size("number of groups", ("n_group",)),
            "top_k_groups": self.size("number of groups a token", ("topk_group",)) if chosen is not None else groups,
        }

    def shared(self, family: Family | None) -> dict[str, Any]:
        kind = family.shared if family else "counted"
        count, width = self.take(*NUM_SHARED), self.take(*D_FF_SHARED)
        if kind == "none" or (kind != "one" and not count and not width):
            return {}
        if kind == "counted" and count:
            found = {"num_shared_experts": self.size("number of shared experts", NUM_SHARED)}
            return found | ({"d_ff_shared": self.size("width of a shared expert", D_FF_SHARED)} if width else {})
        if family is None:
            self.notes.append(f"shared expert assumed without a gate because model_type {self.model_type} is unknown")
        if kind == "one":
            return {"num_shared_experts": 1}
        sized = {"num_shared_experts": 1, "d_ff_shared": self.size("width of the shared expert", D_FF_SHARED)}
        return sized | ({"shared_gate": True} if kind == "gated" else {})

    def activation(self) -> dict[str, Any]:
        name, gated = self.take(*ACTIVATION), self.take("is_gated_act")
        if isinstance(name, Mapping):
            name = name.get("name")
        if name is None:
            name = "relu" if self.model_type == "switch_transformers" else "silu"
            self.notes.append(f"activation assumed {name}: none of {', '.join(ACTIVATION)} is given")
        if name in APPROXIMATE_GELU:
            self.notes.append(f"activation {name} is computed as the exact gelu")
            name = "gelu"
        if name == "relu" or (self.model_type == "switch_transformers" and not gated):
            plain = name if name in ("relu", "gelu", "silu") else "relu"
            if self.model_type != "switch_transformers":
                self.notes.append("activation relu assumed without a gate")
            return {"activation": plain}
        if name not in GATED:
            self.faults.append(f"activation {name!r} is not supported; {', '.join(GATED)}, relu are")
        return {"activation": GATED.get(str(name), "swiglu")}

    def clamp(self) -> dict[str, Any]:
        alpha = self.number(("swiglu_alpha",))
        if alpha is not None and alpha != 1.702:
            self.faults.append(f"swiglu_alpha={alpha} is not supported; 1.702 is")
        return {"swiglu_limit": self.number(("swiglu_limit",))}

    def account(self) -> None:
        """Name every key about experts that was not used and is not known to be without effect on a layer."""
        for key, value in self.config.items():
            if key in self.used or not _ABOUT_EXPERTS.search(key) or _WITHOUT_EFFECT.search(key):
                continue
            if value not in (None, False, 0, "", [], {}):
                self.notes.append(f"key {key}={_short(value)} is not understood and ignored")


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
