"""The check on real layers: rounding never makes one wrong, however few the tokens, and three percent do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.check import Checked, check_result
from impls import LayerSpec, build
from impls.routing import route
from impls.truth import Truth, expertwise_truth
from impls.weights import Weights, make_weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTH = 16


def problem(num_tokens: int, dtype: torch.dtype, seed: int, **fields: object) -> tuple[Weights, Tensor, Tensor, Truth]:
    spec = LayerSpec(**{"d_model": WIDTH, "d_ff": 32, "num_experts": 4, "top_k": 2} | fields)  # type: ignore[arg-type]  # the keys are LayerSpec's
    weights = make_weights(spec, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x_TD, grad_TD = (torch.randn(num_tokens, WIDTH, generator=generator).to(dtype) for _ in range(2))
    layer = build("loop", spec, weights=weights, direction="train")
    layer(x_TD.requires_grad_()).backward(grad_TD)
    ids_TK = route(spec, weights, x_TD).expert_ids
    truth = expertwise_truth("moe", spec, weights, x_TD, ids_TK, grad_output_TD=grad_TD)
    with torch.inference_mode():
        output_TD = layer(x_TD)
    return weights, x_TD, output_TD, truth


def check(weights: Weights, x_TD: Tensor, output_TD: Tensor, truth: Truth, times: dict[str, float]) -> Checked:
    found = {name: p.grad for name, p in weights.named_parameters()} | {"input": x_TD.grad}
    return check_result(
        output_TD,
        {name: None if grad is None else grad * times.get(name, 1.0) for name, grad in found.items()},
        truth_output_nD=truth.output,
        truth_gradients=truth.gradients,
        tokens_n=truth.tokens,
        like_TD=x_TD,
        uncancelled=truth.uncancelled,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_rounding_is_never_wrong(num_tokens: int, dtype: torch.dtype) -> None:
    """Seeds 0 to 39 hold router gradients that cancel until their rounding is 4 % of what is left."""
    faults = [check(*problem(num_tokens, dtype, seed), {}).fault for seed in range(40)]
    assert faults == [""] * 40


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("wrong", ["router_weight", "router_bias", "gate_up_proj", "down_proj", "input"])
def test_three_percent_of_one_gradient_is_wrong(wrong: str, norm_topk_prob: bool, dtype: torch.dtype) -> None:
    found = problem(64, dtype, 0, num_experts=8, router_bias=True, norm_topk_prob=norm_topk_prob)
    assert check(*found, {}).fault == ""
    assert f"gradient of {wrong} is off" in check(*found, {wrong: 1.03}).fault
