"""On CUDA: the same results as on the CPU, and no waiting for the device where none is needed."""

from __future__ import annotations

import pytest
import torch
from layer_testing import BASELINES, EXACT, TOLERANCE, Step, assert_same, make_spec, make_tokens, train_step

from impls import build
from impls.registry import ENTRIES
from impls.truth import expertwise_truth
from impls.weights import make_weights

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("capacity_factor", [None, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [*EXACT, *BASELINES])
def test_matches_the_truth(name: str, dtype: torch.dtype, capacity_factor: float | None) -> None:
    spec = make_spec(capacity_factor=capacity_factor, num_shared_experts=1)
    weights = make_weights(spec, dtype=dtype, device="cuda")
    x_TD, grad_TD = make_tokens(33, 32, dtype=dtype).cuda(), make_tokens(33, 32, dtype=dtype, seed=1).cuda()
    layer = build(name, spec, weights=weights, direction="train")
    routing = layer.route(x_TD)
    truth = expertwise_truth(ENTRIES[name].semantics, spec, weights, x_TD, routing.expert_ids, grad_output_TD=grad_TD)
    assert_same(train_step(layer, x_TD, grad_TD, routing), Step(truth.output, truth.gradients), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["scatter_gather", "einsum", "grouped"])
def test_a_step_with_a_capacity_never_waits_for_the_device(name: str) -> None:
    layer = build(name, make_spec(capacity_factor=1.0), device="cuda", dtype=torch.bfloat16, direction="train")
    if layer.path == "per_expert":
        pytest.skip("torch's own grouped_mm waits for the device on this GPU")
    x_TD = make_tokens(33, 32, dtype=torch.bfloat16).cuda().requires_grad_()
    grad_TD = torch.ones_like(x_TD)
    layer(x_TD).backward(grad_TD)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x_TD).backward(grad_TD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x_TD.grad is not None
