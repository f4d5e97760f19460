"""The battery: small workloads, and ways to call a layer on them, that wrong layers were wrong for.

A :class:`Probe` is one of them. They are tiny, so that all of them together take seconds, and uneven: no size is a
power of two, unless that is what the probe is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bench.cases import Workload
from bench.store.qualified import Finding
from impls.spec import ROUTERS, LayerSpec

Manner = Literal[
    "once", "again", "other_sizes", "three_dimensional", "strided", "outside_inference_mode", "accumulated",
    "frozen_weights", "constant_input", "updated_weights", "behaviour",
]  # fmt: skip
"""How a layer is called:

======================  =============================================================================================
once                    one call
again                   a call on the tokens in reverse first: what it keeps of that must not matter
other_sizes             a call with half of the tokens first: what it keeps of that must not matter
three_dimensional       tokens as (batch, sequence, D)
strided                 tokens and output gradient that lie in columns
outside_inference_mode  evaluation with autograd recording
accumulated             two backwards without dropping gradients: they must add up
frozen_weights          only the tokens ask for a gradient
constant_input          only the weights ask for one
updated_weights         a call with other weights first, then these in the same tensors, as after an optimiser's step
behaviour               not judged: how it behaves, for lint
======================  =============================================================================================
"""
DEFAULT_LAYER: dict[str, Any] = {"d_model": 24, "d_ff": 40, "num_experts": 6, "top_k": 2}
DEFAULT_TOKENS = 35  # 5 x 7: odd, and still a batch of sequences
LINT_LAYER: dict[str, Any] = {"d_model": 64, "d_ff": 96, "num_experts": 16, "top_k": 2}
LINT_TOKENS = 256


class Probe(BaseModel):
    """One thing to check.

    Attributes:
        about: what it looks at, in words.
        workload: on what.
        manner: how the layer is called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    workload: Workload
    manner: Manner = "once"

    @property
    def label(self) -> str:
        """The probe in one line."""
        return f"{self.about} ({self.workload.direction}, {self.workload.dtype})"


class Outcome(BaseModel):
    """How a probe ended.

    Attributes:
        label: of the probe.
        status: ``right``, ``wrong``, ``unsupported``, ``crashed``, ``error`` or ``timeout``.
        faults: what is wrong and where, a sentence each.
        causes: what the pattern points to, a sentence each; often empty.
        reason: why it is neither right nor wrong.
        relative_error: the worst; None where it is no number.
        findings: of lint, for the probe of behaviour.
        where: the workload in a line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    status: Literal["right", "wrong", "unsupported", "crashed", "error", "timeout"]
    where: str
    faults: list[str] = []
    causes: list[str] = []
    reason: str = ""
    relative_error: float | None = None
    findings: list[Finding] = []


def battery(
    layer: Mapping[str, Any] | None = None,
    *,
    tokens: Sequence[int] = (DEFAULT_TOKENS,),
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
    device: str = "cpu",
    seed: int = 0,
) -> list[Probe]:
    """All probes.

    Args:
        layer: fields of the layer that replace the battery's own; what a probe is about is its own all the same.
        tokens: tokens of a call; the battery runs once for each.
        dtypes: number formats. Everything runs in the first of them, the most telling parts in the others too.
        device: where.
        seed: draws weights, tokens and routing.
    """
    found: list[Probe] = []
    base = DEFAULT_LAYER | dict(layer or {})

    def add(about: str, changes: Mapping[str, Any], num_tokens: int, dtype: str, **more: Any) -> None:
        manner = more.pop("manner", "once")
        directions = more.pop("directions", ("forward", "train"))
        spec = LayerSpec(**base | dict(changes))
        for direction in directions:
            workload = Workload.model_validate(
                {"layer": spec, "num_tokens": num_tokens, "dtype": dtype, "device": device, "direction": direction}
                | {"seed": seed}
                | more
            )
            probe = Probe(about=about, workload=workload, manner=manner)
            if spec.impossible is None and probe not in found:
                found.append(probe)

    for num_tokens in tokens:
        for about, changes, more in _layers(base):
            add(about, changes, more.pop("num_tokens", num_tokens), dtypes[0], **more)
        for manner, about, directions in _MANNERS:
            add(about, {"capacity_factor": 1.0}, num_tokens, dtypes[0], manner=manner, directions=directions)
        for dtype in dtypes[1:]:
            add("dropless", {}, num_tokens, dtype)
            add("tight capacity", {"capacity_factor": 0.75}, num_tokens, dtype)
    add("how it behaves", LINT_LAYER, LINT_TOKENS, dtypes[0], manner="behaviour", directions=("train",))
    return found


_MANNERS: tuple[tuple[Manner, str, tuple[str, ...]], ...] = (
    ("again", "a second call", ("forward", "train")),
    ("other_sizes", "after a call with fewer tokens", ("forward", "train")),
    ("three_dimensional", "tokens as (batch, sequence, D)", ("forward", "train")),
    ("strided", "tokens that lie in columns", ("forward", "train")),
    ("outside_inference_mode", "evaluation outside of inference mode", ("forward",)),
    ("accumulated", "two backwards whose gradients add up", ("train",)),
    ("frozen_weights", "weights that need no gradient", ("train",)),
    ("constant_input", "tokens that need no gradient", ("train",)),
    ("updated_weights", "weights changed in place since the last call", ("train",)),
)


def _layers(base: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What is probed by another layer, number of tokens or routing: words, fields of the layer, of the workload."""
    one = {"top_k": 1}
    yield "dropless", {}, {}
    yield "one choice a token", one, {}
    yield "one choice a token, not renormalised", one | {"norm_topk_prob": False}, {}
    yield "top-k weights that are not renormalised", {"norm_topk_prob": False}, {}
    yield "every expert chosen", {"top_k": base["num_experts"], "norm_topk_prob": False}, {}
    yield "one expert", {"num_experts": 1, "top_k": 1, "norm_topk_prob": False}, {}
    yield "capacity 1", {"capacity_factor": 1.0}, {}
    yield "tight capacity", {"capacity_factor": 0.5}, {}
    yield "tight capacity, not renormalised", {"capacity_factor": 0.5, "norm_topk_prob": False}, {}
    yield "tight capacity, one choice a token", {"capacity_factor": 0.5} | one, {}
    yield "capacity by score", {"capacity_factor": 0.75, "capacity_policy": "score"}, {}
    yield "capacity in multiples of 4", {"capacity_factor": 0.75, "capacity_multiple": 4}, {}
    yield "one expert gets everything, the others nothing", one, {"routing": "hot:1"}
    yield "one expert gets everything, of which most is dropped", {"capacity_factor": 1.0} | one, {"routing": "hot:1"}
    yield "a skewed load", {}, {"routing": "zipf:1.5"}
    yield "a skewed load and tight capacity", {"capacity_factor": 0.75}, {"routing": "zipf:1.5"}
    yield "a balanced load", {}, {"routing": "balanced"}
    yield "more experts than tokens", {"num_experts": 13, "capacity_factor": None}, {"num_tokens": 3}
    yield "no tokens", {"capacity_factor": 1.0}, {"num_tokens": 0}
    yield "one token", {}, {"num_tokens": 1}
    yield "one token and a capacity", {"capacity_factor": 1.0}, {"num_tokens": 1}
    yield "odd sizes", {"d_model": 13, "d_ff": 7, "num_experts": 5}, {}
    yield "shared experts", {"num_shared_experts": 2}, {}
    yield "gated shared experts", {"num_shared_experts": 1, "shared_gate": True, "d_ff_shared": 16}, {}
    yield "experts with biases", {"expert_bias": True, "capacity_factor": 0.75}, {}
    yield "a router with a bias", {"router_bias": True}, {}
    yield "routing weights scaled", {"routed_scaling": 2.5}, {}
    for activation in ("relu", "gelu", "silu", "geglu", "swiglu_clamped"):
        yield f"activation {activation}", {"activation": activation}, {}
    for router in ROUTERS:
        fixed = {"switch": {"top_k": 1}, "gshard": {"top_k": 2}}.get(router, {})
        yield f"router {router}", {"router": router} | fixed, {}
    groups = {"router": "sigmoid_topk", "num_expert_groups": 3, "top_k_groups": 2, "selection_bias": True}
    yield "expert groups and a selection bias", groups | {"num_experts": 6, "top_k": 2}, {}


def layer_fields() -> tuple[str, ...]:
    """The names that ``--set layer.NAME=VALUE`` knows."""
    return tuple(field.name for field in fields(LayerSpec))
