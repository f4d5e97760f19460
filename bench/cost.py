"""Analytic cost of one call: useful floating-point operations and unavoidable bytes, from the routing that happened.

Exact integers from the layer's description and the experts' loads alone. No implementation has a part in it, so none
can make its own work look useful (padding, capacity buffers, one-hot products) or hide it (operations that profilers
do not count).

**Operations** are those of matrix products, ``2 * M * K * N`` each: the router's ``T * D * E``, every kept assignment
through its expert's projections of ``D * F`` (two of them, three where gated), every token through the shared
experts. Elementwise work is left out (softmax, top-k, activations, biases, the weighted sum): it is a thousandth of
the products at usual sizes. A train step counts three times the forward's, because each product's backward is two
products of the same size, for the gradient of its input and of its weight. ``noisy_topk`` has two router products,
``hash`` none; the shared experts' gate is one product of width 1.

**Bytes** are those that must cross from memory once at least, whatever the implementation does: weights that are used
(experts without a kept token are not), tokens in, output out. A train step adds the output's gradient in, and the
gradients of the tokens and of all weights out, the latter whole, because ``.grad`` has the shape of its parameter.

T tokens, D d_model, F d_ff of one expert, E experts, K top-k, S shared experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import Workload
from impls.shapes import parameter_shapes
from impls.spec import LayerSpec

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs at least.

    Attributes:
        flops: useful floating-point operations.
        moved_bytes: bytes between memory and processor.
        analytic_peak_bytes: bytes that the call must allocate: the output, and in ``train`` the gradients too.
        weight_bytes: bytes of all canonical weights, used or not.
    """

    flops: int
    moved_bytes: int
    analytic_peak_bytes: int
    weight_bytes: int


def cost_of_call(workload: Workload, semantics: str, tokens_per_expert: Sequence[int] | None) -> Cost:
    """The cost of one call of ``workload``.

    Args:
        workload: the layer, tokens, dtype and direction.
        semantics: ``moe`` or a baseline's label.
        tokens_per_expert: assignments that each expert kept, length E; needed for ``moe``, ignored for baselines,
            which do not route.

    Raises:
        ValueError: ``semantics`` is unknown, or ``moe`` came without loads that fit the layer.
    """
    spec, train = workload.layer, workload.direction == "train"
    loads_E, has_router = _loads(spec, workload.num_tokens, semantics, tokens_per_expert)
    token_bytes = workload.num_tokens * spec.d_model * ELEMENT_BYTES[workload.dtype]
    router_bytes, expert_bytes, shared_bytes = _weight_bytes(spec, workload.dtype)
    weight_bytes = router_bytes + spec.num_experts * expert_bytes + shared_bytes
    router_read_bytes = router_bytes if has_router and spec.router_products else 0
    read_bytes = router_read_bytes + sum(load > 0 for load in loads_E) * expert_bytes + shared_bytes
    # A parameter that takes no part has no gradient, nor has a bias that only chooses.
    chosen_with_bytes = has_router * spec.selection_bias * spec.num_experts * ELEMENT_BYTES[workload.dtype]
    unchanged_bytes = router_bytes - router_read_bytes + chosen_with_bytes
    gradient_bytes = token_bytes + weight_bytes - unchanged_bytes
    return Cost(
        flops=(3 if train else 1) * _forward_flops(spec, workload.num_tokens, loads_E, has_router),
        moved_bytes=read_bytes + 2 * token_bytes + train * (token_bytes + gradient_bytes),
        analytic_peak_bytes=token_bytes + train * gradient_bytes,
        weight_bytes=weight_bytes,
    )


def _loads(
    spec: LayerSpec, num_tokens: int, semantics: str, tokens_per_expert: Sequence[int] | None
) -> tuple[list[int], bool]:
    """Tokens that go through each expert's projections, and whether a router decides about them."""
    E, K = spec.num_experts, spec.top_k
    if semantics == "moe":
        if tokens_per_expert is None or len(tokens_per_expert) != E:
            raise ValueError(f"the cost of moe needs the loads of {E} experts, found {tokens_per_expert}")
        return list(tokens_per_expert), True
    if semantics == "dense":  # one feed-forward of width K * F, made of the first K experts
        return [num_tokens] * K + [0] * (E - K), False
    if semantics in ("dense_total", "ensemble"):
        return [num_tokens] * E, False
    if semantics == "ensemble_weighted":
        return [num_tokens] * E, True
    raise ValueError(f"the cost of {semantics!r} is unknown")


def _forward_flops(spec: LayerSpec, num_tokens: int, loads_E: Sequence[int], has_router: bool) -> int:
    projections = 3 if spec.gated else 2
    router = has_router * num_tokens * spec.d_model * spec.num_experts * spec.router_products
    experts = sum(loads_E) * projections * spec.d_model * spec.d_ff
    shared = num_tokens * spec.d_model * (projections * spec.shared_d_ff + spec.shared_gate)
    return 2 * (router + experts + shared)


def _weight_bytes(spec: LayerSpec, dtype: str) -> tuple[int, int, int]:
    """Bytes of the router's weights, of one expert's, and of the shared experts'."""
    router = expert = shared = 0
    for name, shape in parameter_shapes(spec).items():
        num_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
        if name.startswith("router_"):
            router += num_bytes
        elif name.startswith("shared_"):
            shared += num_bytes
        else:
            expert += num_bytes // spec.num_experts
    return router, expert, shared
