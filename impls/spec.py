"""What one Mixture-of-Experts layer is: its sizes, router, capacity and activation.

A :class:`LayerSpec` says everything that fixes the layer's *function* given its weights, and nothing about how it is
computed. It is frozen, hashable and imports no torch, so that configuration and cases can be handled without it.

Symbols used throughout: T tokens, D d_model, F d_ff of one expert, E experts, K top-k, C capacity of one expert.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "geglu", "swiglu_clamped")
GATED_ACTIVATIONS = frozenset({"swiglu", "geglu", "swiglu_clamped"})
ROUTERS = (
    "softmax_topk", "topk_softmax", "sigmoid_topk", "topk_sigmoid", "sparsemixer", "noisy_topk", "switch", "gshard",
    "expert_choice", "hash",
)  # fmt: skip
SELECTING_ROUTERS = frozenset({"softmax_topk", "sigmoid_topk"})
"""Routers that know expert groups and a selection bias."""
FIXED_TOP_K = {"switch": 1, "gshard": 2}
CAPACITY_POLICIES = ("gshard", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One Mixture-of-Experts layer, independent of any implementation.

    Attributes:
        d_model: width D of a token.
        d_ff: hidden width F of one expert.
        num_experts: number of routed experts, E.
        top_k: experts that every token is sent to, K; above E it is `impossible`.
        capacity_factor: an expert accepts at most ``ceil(capacity_factor * T * K / E)`` assignments, in GShard's
            order (all first choices in token order, then all second choices, ...); None is dropless.
        activation: one of :data:`ACTIVATIONS`; the gated ones hold two input projections.
        router: one of :data:`ROUTERS`; :mod:`impls.routers` says what each computes.
        norm_topk_prob: whether the K chosen probabilities are scaled to sum to one; only ``softmax_topk`` and
            ``sigmoid_topk`` ask, every other router's weights are what its source says.
        num_shared_experts: experts that see every token, computed as one feed-forward.
        router_bias: whether the router's logits have a bias.
        expert_bias: whether the experts' projections have biases.
        d_ff_shared: hidden width of one shared expert; None is that of a routed one, F.
        shared_gate: whether every token weighs the shared experts' output with a sigmoid of its own.
        selection_bias: whether a bias is added to the scores where experts are chosen, and only there
            (auxiliary-loss-free balancing).
        num_expert_groups: groups of neighbouring experts; above 1 a token chooses groups first.
        top_k_groups: groups that a token may choose its experts from.
        routed_scaling: factor on every routing weight, after renormalisation.
        router_seed: draws what a router draws (noise, random choices, hashes): the same call gives the same routing.
        capacity_policy: who is dropped where an expert is full: ``gshard`` keeps the earliest, ``score`` the largest
            weights.
        capacity_multiple: the capacity is rounded up to a multiple of this.
        swiglu_limit: where ``swiglu_clamped`` clamps.

    Raises:
        ValueError: naming every field that is out of range, what was found and what is allowed.
    """

    d_model: int
    d_ff: int
    num_experts: int
    top_k: int
    capacity_factor: float | None = None
    activation: str = "swiglu"
    router: str = "softmax_topk"
    norm_topk_prob: bool = True
    num_shared_experts: int = 0
    router_bias: bool = False
    expert_bias: bool = False
    d_ff_shared: int | None = None
    shared_gate: bool = False
    selection_bias: bool = False
    num_expert_groups: int = 1
    top_k_groups: int = 1
    routed_scaling: float = 1.0
    router_seed: int = 0
    capacity_policy: str = "gshard"
    capacity_multiple: int = 1
    swiglu_limit: float = 7.0

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {least}, found {value}"
            for name, least in (
                ("d_model", 1),
                ("d_ff", 1),
                ("num_experts", 1),
                ("top_k", 1),
                ("num_shared_experts", 0),
                ("d_ff_shared", 1),
                ("num_expert_groups", 1),
                ("top_k_groups", 1),
                ("router_seed", 0),
                ("capacity_multiple", 1),
            )
            if (value := getattr(self, name)) is not None and value < least
        ]
        if self.capacity_factor is not None and not (math.isfinite(self.capacity_factor) and self.capacity_factor > 0):
            faults.append(f"capacity_factor must be a positive number or None (dropless), found {self.capacity_factor}")
        if self.activation not in ACTIVATIONS:
            faults.append(f"activation must be one of {', '.join(ACTIVATIONS)}, found {self.activation!r}")
        if self.router not in ROUTERS:
            faults.append(f"router must be one of {', '.join(ROUTERS)}, found {self.router!r}")
        if self.capacity_policy not in CAPACITY_POLICIES:
            faults.append(
                f"capacity_policy must be one of {', '.join(CAPACITY_POLICIES)}, found {self.capacity_policy!r}"
            )
        faults += [
            f"{name} must be a positive number, found {value}"
            for name in ("routed_scaling", "swiglu_limit")
            if not (math.isfinite(value := getattr(self, name)) and value > 0)
        ]
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def impossible(self) -> str | None:
        """Why no implementation can run this combination of otherwise valid sizes, or None.

        A sweep over experts and top-k meets such combinations as a matter of course: they are rows with this reason,
        not errors.
        """
        if self.top_k > self.num_experts:
            return f"top_k ({self.top_k}) is above num_experts ({self.num_experts})"
        if self.top_k != (fixed := FIXED_TOP_K.get(self.router, self.top_k)):
            return f"router {self.router} sends a token to exactly {fixed} experts, found top_k {self.top_k}"
        if self.shared_gate and not self.num_shared_experts:
            return "shared_gate weighs shared experts, and num_shared_experts is 0"
        if self.router == "expert_choice" and self.capacity_policy != "gshard":
            return f"capacity_policy {self.capacity_policy} does not apply: under expert_choice nothing is dropped"
        return self._impossible_selection()

    def _impossible_selection(self) -> str | None:
        groups, allowed = self.num_expert_groups, self.top_k_groups
        if self.router not in SELECTING_ROUTERS and (groups > 1 or self.selection_bias):
            what = "expert groups" if groups > 1 else "selection bias"
            return f"router {self.router} has no {what}; {' and '.join(sorted(SELECTING_ROUTERS))} have"
        if self.num_experts % groups:
            return f"num_experts ({self.num_experts}) is no multiple of num_expert_groups ({groups})"
        if allowed > groups:
            return f"top_k_groups ({allowed}) is above num_expert_groups ({groups})"
        if self.top_k > (within := allowed * self.num_experts // groups):
            return f"top_k ({self.top_k}) is above the {within} experts of the {allowed} groups that a token may choose"
        return None

    @property
    def unforceable(self) -> str | None:
        """Why expert ids cannot be forced on this layer's router, or None where they can."""
        if self.router == "expert_choice":
            return "router expert_choice cannot follow forced ids: its experts choose the tokens, any number for each"
        return None

    @property
    def keeps_by_value(self) -> bool:
        """Whether which assignments are kept depends on routing weights, and not on expert ids alone."""
        by_score = self.capacity_policy == "score" and self.capacity_factor is not None
        return by_score or self.router in ("gshard", "expert_choice")

    @property
    def scales_input(self) -> bool:
        """Whether a routing weight multiplies what goes into an expert, and not what comes out of it."""
        return self.router == "topk_sigmoid"

    @property
    def router_products(self) -> int:
        """Matrix products of T * D * E that the router computes."""
        return {"hash": 0, "noisy_topk": 2}.get(self.router, 1)

    @property
    def gated(self) -> bool:
        """Whether an expert multiplies an activated gate with an up projection."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def shared_d_ff(self) -> int:
        """Hidden width of the shared experts taken together; 0 where there are none."""
        return self.num_shared_experts * (self.d_ff if self.d_ff_shared is None else self.d_ff_shared)

    def capacity(self, num_tokens: int) -> int | None:
        """Slots of one expert for ``num_tokens`` tokens, or None where nothing is dropped.

        ``max(1, ceil(capacity_factor * T * K / E))``, rounded up to a multiple of ``capacity_multiple``, in exact
        arithmetic on the factor's decimal notation, so that 1.1 means eleven tenths. Source: Lepikhin et al., GShard,
        2020. Under ``expert_choice`` it is how many tokens every expert takes: the factor is 1 where it is None, and
        no expert can take more than T (Zhou et al., Mixture-of-Experts with Expert Choice Routing, 2022, section 3.2).
        """
        choosing = self.router == "expert_choice"
        if self.capacity_factor is None and not choosing:
            return None
        factor = 1 if self.capacity_factor is None else self.capacity_factor
        slots = max(1, math.ceil(Fraction(str(factor)) * num_tokens * self.top_k / self.num_experts))
        rounded = -(-slots // self.capacity_multiple) * self.capacity_multiple
        return min(rounded, max(1, num_tokens)) if choosing else rounded

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)
