"""How the cost of each implementation must grow in the end, from its operations: one small table, with the reason.

These are exponents of the highest power, so they are what a fitted slope tends to as the axis grows. Short of that the
fixed cost of a call, the weights that must be read anyway, and products too small to fill the machine all make the
slope smaller. Where two terms compete over any range that is ever measured, nothing is claimed.

T tokens, D d_model, F d_ff of one expert, E experts, K top-k, C slots of one expert; assignments N = T * K. With a
capacity factor c all slots together are E * C = c * T * K. Dropless buffers are sized to the fullest expert, whose load
is a matter of luck, so nothing is claimed for them where E or K moves.
"""

from __future__ import annotations

from typing import NamedTuple


class Theory(NamedTuple):
    """What is claimed, and why."""

    exponent: float
    why: str


_PADDED = ("scatter_gather", "einsum")
_SORTED = ("grouped", "loop")
_ONE_BY_ONE = (
    "batched", "loop_indexed", "expert_choice", "hf_eager", "hf_batched_mm", "hf_grouped_mm", "pytorch_mixtures",
)  # fmt: skip
_ONE_HOT = ("einsum", "mixture_of_experts", "st_moe")
_SINGLE = ("dense", "dense_total")
_MEMBERS = ("ensemble", "ensemble_weighted", "dense_masked")

_ASSIGNMENTS = "every token costs the same experts' products: T\N{MIDDLE DOT}K\N{MIDDLE DOT}D\N{MIDDLE DOT}F"
_DISPATCH = (
    "dispatch and combine multiply every token with every slot, T\N{MIDDLE DOT}(E\N{MIDDLE DOT}C)\N{MIDDLE DOT}D, and"
    " E\N{MIDDLE DOT}C grows with T: quadratic"
)
_SLOTS = "slots are c\N{MIDDLE DOT}T\N{MIDDLE DOT}K however many experts share them"

_LATENCY: dict[str, dict[str, Theory]] = {
    "num_tokens": {
        **dict.fromkeys((*_SORTED, *_ONE_BY_ONE, "scatter_gather"), Theory(1, _ASSIGNMENTS)),
        **dict.fromkeys(_ONE_HOT, Theory(2, _DISPATCH)),
        **dict.fromkeys(_SINGLE, Theory(1, "a feed-forward's products are linear in T")),
        **dict.fromkeys(_MEMBERS, Theory(1, "every member sees every token once")),
    },
    "num_experts": {
        "dense": Theory(0, "its width is K\N{MIDDLE DOT}F, whatever E is"),
        "dense_total": Theory(1, "its width is E\N{MIDDLE DOT}F"),
        **dict.fromkeys(_MEMBERS, Theory(1, "every member runs")),
    },
    "top_k": {
        **dict.fromkeys(_SORTED, Theory(1, "assignments are T\N{MIDDLE DOT}K")),
        "dense": Theory(1, "its width is K\N{MIDDLE DOT}F"),
        "dense_total": Theory(0, "its width is E\N{MIDDLE DOT}F, whatever K is"),
        **dict.fromkeys(_MEMBERS, Theory(0, "every member runs, whatever K is")),
    },
    "d_ff": dict.fromkeys(
        (*_SORTED, "scatter_gather", *_SINGLE, *_MEMBERS), Theory(1, "the experts' products are linear in F")
    ),
}
_LATENCY_WITH_CAPACITY: dict[str, dict[str, Theory]] = {
    "num_experts": dict.fromkeys(_PADDED, Theory(0, _SLOTS)),
    "top_k": dict.fromkeys(_PADDED, Theory(1, "slots are c\N{MIDDLE DOT}T\N{MIDDLE DOT}K")),
    "capacity_factor": dict.fromkeys(_PADDED, Theory(1, "slots are c\N{MIDDLE DOT}T\N{MIDDLE DOT}K, used or not")),
}
_MEMORY: dict[str, dict[str, Theory]] = {
    "num_tokens": {
        **dict.fromkeys(
            (*_SORTED, "scatter_gather", *_SINGLE, *_MEMBERS), Theory(1, "what is held beside weights is linear in T")
        ),
        "einsum": Theory(2, "dispatch and combine hold T\N{MIDDLE DOT}(E\N{MIDDLE DOT}C) numbers each: quadratic"),
    },
}


def theory(quantity: str, axis: str, impl: str, *, dropless: bool) -> Theory | None:
    """What the slope of ``quantity`` (``latency`` or ``memory``) along ``axis`` tends to, where anything is claimed."""
    tables = [_MEMORY] if quantity == "memory" else [_LATENCY] if dropless else [_LATENCY, _LATENCY_WITH_CAPACITY]
    return next((found for table in tables if (found := table.get(axis, {}).get(impl))), None)
