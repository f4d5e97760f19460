"""The check of a router's choice, by value: right for every router, and it sees a wrong one."""

from __future__ import annotations

import pytest
import torch

from bench.routing_check import routing_fault
from impls import LayerSpec
from impls.routing import route
from impls.spec import FIXED_TOP_K, ROUTERS
from impls.weights import make_weights


def layer(router: str) -> LayerSpec:
    grouped = {"selection_bias": True, "num_expert_groups": 4, "top_k_groups": 2} if router == "sigmoid_topk" else {}
    return LayerSpec(d_model=32, d_ff=16, num_experts=8, top_k=FIXED_TOP_K.get(router, 2), router=router, **grouped)  # type: ignore[arg-type]  # the keys are LayerSpec's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [0, 33])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_right_choice_has_no_fault_and_a_wrong_one_has(router: str, num_tokens: int, dtype: torch.dtype) -> None:
    spec = layer(router)
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD = torch.randn(num_tokens, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    parameters = {name: p.detach() for name, p in weights.named_parameters()}
    with torch.no_grad():
        routing = route(spec, weights, x_TD)
    assert routing_fault(spec, parameters, x_TD, routing.expert_ids, routing.kept) == ""
    if not num_tokens:
        return
    wrong_TK = routing.expert_ids.clone()
    wrong_TK[3] = (wrong_TK[3] + 1) % 8
    assert routing_fault(spec, parameters, x_TD, wrong_TK, routing.kept) != ""


@pytest.mark.parametrize("router", ["expert_choice", "gshard"])
def test_what_is_kept_is_checked_where_it_is_the_routers_choice(router: str) -> None:
    spec = layer(router)
    weights = make_weights(spec, seed=3)
    x_TD = torch.randn(33, 32, generator=torch.Generator().manual_seed(0))
    parameters = {name: p.detach() for name, p in weights.named_parameters()}
    with torch.no_grad():
        routing = route(spec, weights, x_TD)
    other_TK = routing.kept.roll(1, 0)
    assert not torch.equal(other_TK, routing.kept)
    assert routing_fault(spec, parameters, x_TD, routing.expert_ids, other_TK) != ""
