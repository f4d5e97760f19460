"""Walks through the tensors of each implementation of this project, in the order in which it makes and frees them.

A walk mirrors its implementation's ``compute`` (see :mod:`impls`) and what automatic differentiation does with it; it
is changed together with it, and a test holds the two together. Letters as in :mod:`bench.memory_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.cases import Workload
from bench.memory_model import FLOAT_BYTES, INDEX_BYTES, Ledger, MemoryModel, Sizes, run_backward, run_forward

Step = Callable[[Ledger, Sizes], None]
ACTIVATIONS = frozenset({"relu", "gelu", "silu", "swiglu", "geglu"})


class Walk(NamedTuple):
    """One implementation: its forward pass up to the routed output, and its backward pass from there."""

    forward: Step
    backward: Step


def memory_of_call(impl: str, workload: Workload, tokens_per_expert: Sequence[int] | None) -> MemoryModel | str:
    """The analytic memory of one call, or the reason why there is no model of it, as ``code: sentence``.

    Args:
        impl: a registered name.
        workload: the layer, tokens, dtype and direction.
        tokens_per_expert: assignments that each expert kept, length E; None for baselines, which do not route.
    """
    walk, spec = WALKS.get(impl), workload.layer
    if walk is None:
        return f"no_model: {impl} has no analytic model of its memory"
    if spec.activation not in ACTIVATIONS:
        return f"no_model: the activation {spec.activation} has no analytic model of its memory"
    if spec.shared_gate:
        return "no_model: a gate on the shared experts has no analytic model of its memory"
    if spec.scales_input or spec.router == "expert_choice":
        return f"no_model: the router {spec.router} hands rows to the experts in a way that has no analytic model"
    ledger, s = Ledger(), Sizes(workload, tokens_per_expert or [])
    walk.forward(ledger, s)
    if not s.train:  # what automatic differentiation does not keep goes when compute returns
        for part in ("routing", "dispatched", "activations", "workspace"):
            ledger.free(part, ledger.live(part))
    if spec.shared_d_ff:
        run_forward(ledger, s, workload.num_tokens, spec.shared_d_ff)
        ledger.take("output", s.tokens_bytes)  # the sum of both, which replaces them
        ledger.free("output", s.tokens_bytes)
        ledger.free("activations", s.tokens_bytes)
    if s.train:
        if spec.shared_d_ff:
            run_backward(ledger, s, workload.num_tokens, spec.shared_d_ff, gradient_bytes=0)
        walk.backward(ledger, s)
    return MemoryModel(ledger.peak_bytes, ledger.at_peak, s.tokens_bytes)


def _take_input_gradient(ledger: Ledger, s: Sizes) -> None:
    """The gradient of the tokens through the routed experts, to which that through the shared ones is added."""
    ledger.take("gradients", s.tokens_bytes)
    ledger.free("workspace", s.tokens_bytes if s.workload.layer.shared_d_ff else 0)


def _route(ledger: Ledger, s: Sizes) -> None:
    """Logits, ids, weights, kept, and the places in a queue where there is a capacity."""
    spec, T = s.workload.layer, s.workload.num_tokens
    copied = s.half * FLOAT_BYTES * spec.d_model * (T + spec.num_experts)
    ledger.take("routing", copied)
    ledger.take("routing", FLOAT_BYTES * T * spec.num_experts)
    if not s.train:
        ledger.free("routing", copied)
    slots = INDEX_BYTES * (spec.capacity_factor is not None)
    ledger.take("routing", s.num_assignments * (INDEX_BYTES + FLOAT_BYTES + 1 + slots))


def _route_backward(ledger: Ledger, s: Sizes) -> None:
    """Gradients of the router's weight, and of the tokens through it, which are added to those through the experts."""
    spec, T = s.workload.layer, s.workload.num_tokens
    ledger.take("workspace", FLOAT_BYTES * T * spec.num_experts)
    ledger.take("gradients", s.rows(spec.num_experts))
    ledger.take("workspace", FLOAT_BYTES * T * spec.d_model)
    if s.half:  # rounded
        ledger.take("workspace", s.tokens_bytes)
        ledger.free("workspace", s.tokens_bytes)
    ledger.free("workspace", FLOAT_BYTES * T * (spec.num_experts + spec.d_model))


def _sorted(ledger: Ledger, s: Sizes) -> None:
    """The order of the assignments, and the row of each."""
    ledger.take("routing", 2 * INDEX_BYTES * s.num_assignments)


def _combine_backward(ledger: Ledger, s: Sizes, num_rows: int) -> None:
    """Gradients of rows and weights; the former, one row longer, stays as workspace, and the rows themselves go."""
    spread = s.rows(s.num_assignments)
    ledger.take("workspace", spread)  # the output's gradient times each weight
    ledger.take("workspace", s.rows(num_rows + 1))
    ledger.take("workspace", spread)  # the rows by token
    ledger.free("workspace", 2 * spread)
    ledger.free("activations", s.rows(num_rows))


def _grouped_forward(ledger: Ledger, s: Sizes) -> None:
    spec, N = s.workload.layer, s.num_assignments
    projected = (1 + spec.gated) * N * spec.d_ff * s.element_bytes
    _route(ledger, s)
    _sorted(ledger, s)
    ledger.take("routing", INDEX_BYTES * N)  # the expert of every row
    ledger.take("dispatched", s.rows(N))
    run_forward(ledger, s, N, spec.d_ff, named=True)
    ledger.take("output", s.tokens_bytes)
    if s.train and spec.activation == "relu":
        ledger.free("activations", projected)


def _grouped_backward(ledger: Ledger, s: Sizes) -> None:
    spec, N = s.workload.layer, s.num_assignments
    _combine_backward(ledger, s, N)
    run_backward(
        ledger, s, N, spec.d_ff, experts=spec.num_experts, gradient_bytes=s.rows(N + 1), input_part="dispatched"
    )
    _take_input_gradient(ledger, s)
    ledger.free("workspace", s.rows(N))
    _route_backward(ledger, s)


def _loop_forward(ledger: Ledger, s: Sizes) -> None:
    R = sum(s.loads)
    _route(ledger, s)
    _sorted(ledger, s)
    ledger.take("dispatched", s.rows(R))
    for load in s.loads:
        run_forward(ledger, s, load, s.workload.layer.d_ff)
    ledger.take("activations", s.rows(R))  # side by side
    ledger.take("output", s.tokens_bytes)
    ledger.free("activations", s.rows(R))


def _loop_backward(ledger: Ledger, s: Sizes) -> None:
    spec, R = s.workload.layer, sum(s.loads)
    _combine_backward(ledger, s, R)
    loads = [load for load in reversed(s.loads) if load]
    for i, load in enumerate(loads, 1):
        # the last expert's step frees what all of them have views of
        shared_bytes = s.rows(R + 1) if i == len(loads) else 0
        run_backward(ledger, s, load, spec.d_ff, weights="workspace", gradient_bytes=shared_bytes)
    ledger.free("dispatched", s.rows(R))
    ledger.take("workspace", s.rows(R))  # the experts' gradients of their rows, side by side
    ledger.free("workspace", s.rows(R))
    _stack_gradients(ledger, s, len(loads))
    _take_input_gradient(ledger, s)
    ledger.free("workspace", s.rows(R))
    _route_backward(ledger, s)


def _stack_gradients(ledger: Ledger, s: Sizes, num_found: int) -> None:
    """Gradients that were found expert by expert, copied into one tensor."""
    spec = s.workload.layer
    for one in (s.down_bytes(spec.d_ff), s.in_bytes(spec.d_ff)):
        ledger.take("gradients", one * spec.num_experts)
        ledger.free("workspace", one * num_found)


def _scatter_gather_forward(ledger: Ledger, s: Sizes) -> None:
    spec = s.workload.layer
    num_rows = spec.num_experts * s.capacity
    _route(ledger, s)
    ledger.take("routing", 2 * INDEX_BYTES * s.num_assignments)  # places and rows
    ledger.take("dispatched", _spread_bytes(s))
    ledger.take("dispatched", s.rows(num_rows + 1))  # zeros
    ledger.take("dispatched", s.rows(num_rows + 1))  # with the tokens in their places
    ledger.free("dispatched", s.rows(num_rows + 1))
    run_forward(ledger, s, num_rows, spec.d_ff)
    ledger.take("output", s.tokens_bytes)


def _spread_bytes(s: Sizes) -> int:
    """Each token once for each of its choices; for a single choice that is a view of the tokens."""
    return s.rows(s.num_assignments) if s.workload.layer.top_k > 1 else 0


def _scatter_gather_backward(ledger: Ledger, s: Sizes) -> None:
    spec, spread = s.workload.layer, s.rows(s.num_assignments)
    num_rows = spec.num_experts * s.capacity
    _combine_backward(ledger, s, num_rows)
    run_backward(
        ledger,
        s,
        num_rows,
        spec.d_ff,
        experts=spec.num_experts,
        copied=True,
        gradient_bytes=s.rows(num_rows + 1),
        input_part="dispatched",
    )
    ledger.free("dispatched", s.rows(1))
    ledger.take("workspace", s.rows(num_rows + 1))  # one row longer again
    ledger.free("workspace", s.rows(num_rows))
    ledger.take("workspace", spread)
    ledger.free("workspace", s.rows(num_rows + 1))
    ledger.free("dispatched", _spread_bytes(s))
    _take_input_gradient(ledger, s)
    ledger.free("workspace", spread)
    _route_backward(ledger, s)


def _one_hot(s: Sizes, element_bytes: int) -> int:
    return s.workload.num_tokens * s.workload.layer.num_experts * s.capacity * element_bytes


def _einsum_forward(ledger: Ledger, s: Sizes) -> None:
    spec = s.workload.layer
    num_rows = spec.num_experts * s.capacity
    dispatch, combine = _one_hot(s, s.element_bytes), _one_hot(s, FLOAT_BYTES)
    _route(ledger, s)
    ledger.take("routing", 2 * INDEX_BYTES * s.num_assignments)  # slots and places
    for scattered in (dispatch, combine):
        ledger.take("dispatched", scattered)  # zeros
        ledger.take("dispatched", scattered)
        ledger.free("dispatched", scattered)
    if s.half:
        ledger.take("dispatched", dispatch)
        ledger.free("dispatched", combine)
    ledger.take("dispatched", s.rows(num_rows))
    run_forward(ledger, s, num_rows, spec.d_ff)
    # einsum copies both operands into the order of a matrix product, where there is more than one expert
    copied = spec.num_experts > 1
    ledger.take("workspace", copied * dispatch)
    ledger.take("workspace", copied * s.rows(num_rows))
    ledger.take("output", s.tokens_bytes)
    ledger.free("workspace", copied * (dispatch + s.rows(num_rows)))  # in training it is the originals that go


def _einsum_backward(ledger: Ledger, s: Sizes) -> None:
    spec = s.workload.layer
    num_rows = spec.num_experts * s.capacity
    dispatch, combine = _one_hot(s, s.element_bytes), _one_hot(s, FLOAT_BYTES)
    ledger.take("workspace", s.rows(num_rows))
    ledger.take("workspace", dispatch)
    ledger.free("activations", s.rows(num_rows))
    ledger.free("dispatched", dispatch)
    run_backward(ledger, s, num_rows, spec.d_ff, experts=spec.num_experts, copied=True, input_part="dispatched")
    _take_input_gradient(ledger, s)
    ledger.free("workspace", s.rows(num_rows))
    ledger.free("dispatched", dispatch)
    ledger.take("workspace", combine)  # the combine tensor's gradient in order, and in the router's float32
    ledger.free("workspace", combine + dispatch)
    _route_backward(ledger, s)


def _dense(num_taken: Callable[[Sizes], int]) -> Walk:
    def packed_bytes(s: Sizes, width: int) -> int:
        """Bytes of the down projection as it is packed in a training step; one expert's is a view."""
        return s.down_bytes(width) if num_taken(s) > 1 else 0

    def forward(ledger: Ledger, s: Sizes) -> None:
        spec, T, width = s.workload.layer, s.workload.num_tokens, num_taken(s) * s.workload.layer.d_ff
        if s.train:
            ledger.take("workspace", packed_bytes(s, width))
        run_forward(ledger, s, T, width, named=True)
        ledger.free("activations", s.tokens_bytes)
        ledger.take("output", s.tokens_bytes)
        if s.train and spec.activation == "relu":
            ledger.free("activations", T * width * s.element_bytes)

    def backward(ledger: Ledger, s: Sizes) -> None:
        spec, width = s.workload.layer, num_taken(s) * s.workload.layer.d_ff
        hidden = s.workload.num_tokens * width * s.element_bytes
        relu = spec.activation == "relu"
        down, into = s.down_bytes(width), s.in_bytes(width)
        ledger.take("workspace", down)
        ledger.take("workspace", hidden)
        ledger.free("workspace", packed_bytes(s, width))
        if not relu:
            ledger.free("activations", hidden)
        ledger.take("gradients", spec.num_experts * s.down_bytes(spec.d_ff))  # zeros where no expert was taken
        ledger.free("workspace", down)
        for _ in range(spec.gated):
            ledger.take("workspace", 2 * hidden)
            ledger.free("workspace", hidden)
            ledger.free("activations", hidden)
        ledger.take("workspace", hidden)
        ledger.free("workspace", hidden)
        ledger.free("activations", hidden if relu else (1 + spec.gated) * hidden)
        for _ in range(spec.gated):
            ledger.take("workspace", 2 * hidden)
            ledger.free("workspace", 2 * hidden)
        ledger.take("workspace", into)
        _take_input_gradient(ledger, s)
        ledger.free("workspace", (1 + spec.gated) * hidden)
        ledger.take("gradients", spec.num_experts * s.in_bytes(spec.d_ff))
        ledger.free("workspace", into)

    return Walk(forward, backward)


def _ensemble(*, weighted: bool = True, masked: bool = False) -> Walk:
    """Member by member on every token: with a share for each token, which the routing masks where there is one."""

    def forward(ledger: Ledger, s: Sizes) -> None:
        spec, T = s.workload.layer, s.workload.num_tokens
        summed = FLOAT_BYTES * T * spec.d_model  # members are summed in float32
        ledger.take("output", summed)
        if s.train and s.half and not masked:
            ledger.take("activations", summed)  # the tokens' twin that takes their gradient
        if masked:
            _route(ledger, s)
        if weighted:  # shares, and what they are made of
            ledger.take("routing", 2 * FLOAT_BYTES * T * spec.num_experts)
        for member in range(spec.num_experts):
            run_forward(ledger, s, T, spec.d_ff)
            if member and not (s.train and weighted):
                ledger.free("activations", s.tokens_bytes)  # the member before this one
            ledger.take("workspace", summed)  # times its share
            ledger.take("output", summed)
            ledger.free("workspace", summed)
            ledger.free("output", summed)
        if s.half:
            ledger.take("output", s.tokens_bytes)
            ledger.free("output", summed)
        if s.train and not weighted:
            ledger.free("activations", s.tokens_bytes)

    def backward(ledger: Ledger, s: Sizes) -> None:
        spec, T = s.workload.layer, s.workload.num_tokens
        summed = FLOAT_BYTES * T * spec.d_model
        if s.half:
            ledger.take("workspace", summed)  # the output's gradient in float32
        for member in range(spec.num_experts):
            if weighted:
                ledger.take("workspace", summed)  # what each token's share gets, before it is summed over D
            ledger.take("workspace", summed)
            ledger.free("workspace", weighted * summed)
            if weighted:
                ledger.free("activations", s.tokens_bytes)
            if s.half:
                ledger.take("workspace", s.tokens_bytes)
                ledger.free("workspace", summed)
            run_backward(ledger, s, T, spec.d_ff, weights="workspace")
            if s.half:
                ledger.take("workspace", summed)
                ledger.free("workspace", s.tokens_bytes)
            if member or (spec.shared_d_ff and not s.half):  # summed in place
                ledger.free("workspace", summed)
        if s.half:
            _take_input_gradient(ledger, s)
            ledger.free("workspace", summed)
        else:  # the sum itself
            ledger.free("workspace", summed)
            ledger.take("gradients", summed)
        if weighted:
            _route_backward(ledger, s)
        _stack_gradients(ledger, s, spec.num_experts)

    return Walk(forward, backward)


WALKS = {
    "loop": Walk(_loop_forward, _loop_backward),
    "scatter_gather": Walk(_scatter_gather_forward, _scatter_gather_backward),
    "einsum": Walk(_einsum_forward, _einsum_backward),
    "grouped": Walk(_grouped_forward, _grouped_backward),
    "dense": _dense(lambda s: s.workload.layer.top_k),
    "dense_total": _dense(lambda s: s.workload.layer.num_experts),
    "ensemble": _ensemble(weighted=False),
    "ensemble_weighted": _ensemble(),
    "dense_masked": _ensemble(masked=True),
}
