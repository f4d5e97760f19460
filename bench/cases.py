"""Cases: one implementation at one workload, with ids that stay the same between runs and machines.

A :class:`Workload` is everything that all implementations share when they are compared: the layer, the tokens, the
number format, the device. A :class:`Case` adds the implementation, compiled or not. Both are frozen and know their id,
a hash of their fields, so a record can be matched to its case without trusting order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.plain_text import Line, Name
from impls.spec import LayerSpec

DType = Literal["float32", "bfloat16", "float16"]
Direction = Literal["forward", "train"]
Cache = Literal["warm", "cold"]
Compile = Literal["none", "default", "max-autotune"]

VARIANTS: dict[Compile, str] = {"none": "", "default": " [compile]", "max-autotune": " [max-autotune]"}
"""What a compiled case adds to its implementation's name."""


_FIRST_FIELDS = {
    "d_model", "d_ff", "num_experts", "top_k", "capacity_factor", "activation", "router", "norm_topk_prob",
    "num_shared_experts", "router_bias", "expert_bias",
}  # fmt: skip
_NEVER = object()
LATER_FIELDS = {f.name: f.default for f in dataclasses.fields(LayerSpec) if f.name not in _FIRST_FIELDS}
"""Fields of a layer that the first records did not have, with the values at which they change nothing."""


def stable_id(fields: Any) -> str:
    """Twelve hexadecimal digits that depend on nothing but the JSON value of ``fields``."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Workload(BaseModel):
    """What every implementation under comparison is given.

    Attributes:
        layer: the layer's specification.
        num_tokens: tokens T in one call.
        dtype: number format of weights and tokens.
        device: ``cpu`` or ``cuda``, never ``auto``.
        direction: ``forward`` (inference mode) or ``train`` (forward and backward, no optimiser).
        routing: ``router`` (the layer's own choice), ``balanced``, ``zipf:S``, ``hot:P`` or ``trace:FILE``.
        threads: intra-operator threads on the CPU.
        cache: ``warm`` repeats on the same weights, ``cold`` makes sure that they are not in a cache.
        seed: draws weights, tokens and routing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: LayerSpec
    num_tokens: int = Field(ge=0)
    dtype: DType = "float32"
    device: Line = "cpu"
    direction: Direction = "forward"
    routing: Line = "router"
    threads: int = Field(default=1, ge=1)
    cache: Cache = "warm"
    seed: int = 0

    def lasting(self) -> dict[str, Any]:
        """The fields as plain values, without those that moebench gained since its first records and that do not apply.

        So a workload keeps its id when a later release can say more of a layer.
        """
        fields = self.model_dump(mode="json")
        layer = fields["layer"]
        fields["layer"] = {name: value for name, value in layer.items() if LATER_FIELDS.get(name, _NEVER) != value}
        return fields

    @cached_property
    def id(self) -> str:
        """Stable id of the workload."""
        return stable_id(self.lasting())


class Case(BaseModel):
    """One implementation at one workload.

    Attributes:
        impl: a registered name, or ``path/to/file.py:ClassName`` for somebody's own.
        workload: what it is given.
        compile: the mode of ``torch.compile``, or ``none``. It belongs to the case, so that a layer and its compiled
            self are compared on one workload, in the same rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    impl: Name
    workload: Workload
    compile: Compile = "none"

    @property
    def label(self) -> str:
        """What it is called where cases of one workload are compared: ``grouped``, or ``grouped [compile]``."""
        return self.impl + VARIANTS[self.compile]

    @cached_property
    def id(self) -> str:
        """Stable id of the case."""
        fields = {"impl": self.impl, "workload": self.workload.lasting()}
        return stable_id(fields if self.compile == "none" else fields | {"compile": self.compile})


def uncompiled(label: str) -> str:
    """The implementation of a :attr:`Case.label`."""
    for variant in VARIANTS.values():
        if variant and label.endswith(variant):
            return label.removesuffix(variant)
    return label
