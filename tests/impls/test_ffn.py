"""The experts' feed-forward in batches: expert by expert the same, and gradients that nobody has to copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impls.ffn import feed_forward, feed_forward_batched
from impls.spec import LayerSpec

E, C, D, F = 3, 5, 8, 6


def spec_and_tensors(activation: str, *, bias: bool) -> tuple[LayerSpec, list[Tensor]]:
    """The layer's specification; tokens (E, C, D), both projections, and their biases where it has any."""
    spec = LayerSpec(d_model=D, d_ff=F, num_experts=E, top_k=1, activation=activation, expert_bias=bias)
    rows = 2 * F if spec.gated else F
    shapes = [(E, C, D), (E, rows, D), (E, D, F)] + ([(E, rows), (E, D)] if bias else [])
    generator = torch.Generator().manual_seed(1)
    return spec, [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def batched(spec: LayerSpec, tensors: list[Tensor]) -> Tensor:
    x_ECD, in_EID, down_EDF, *biases = tensors
    in_bias, down_bias = biases or (None, None)
    return feed_forward_batched(spec, x_ECD, in_EID, down_EDF, in_bias, down_bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_outputs_and_gradients_are_those_of_every_expert_alone(activation: str, bias: bool) -> None:
    spec, tensors = spec_and_tensors(activation, bias=bias)
    for tensor in tensors:
        tensor.requires_grad_()
    together = batched(spec, tensors)
    alone = torch.stack([feed_forward(spec, *(tensor[e] for tensor in tensors)) for e in range(E)])
    torch.testing.assert_close(together, alone)
    upstream = torch.randn_like(together)
    found, expected = (torch.autograd.grad(y, tensors, upstream) for y in (together, alone))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_gradients_lie_as_the_weights(bias: bool, transposed: bool) -> None:
    """Else autograd copies them, which took longer than the products that made them."""
    spec, tensors = spec_and_tensors("swiglu", bias=bias)
    if transposed:
        tensors[1:3] = [tensor.mT.contiguous().mT for tensor in tensors[1:3]]
    weights = [tensor.requires_grad_() for tensor in tensors[1:]]
    for gradient, weight in zip(torch.autograd.grad(batched(spec, tensors).sum(), weights), weights, strict=True):
        assert gradient.stride() == weight.stride()


@pytest.mark.parametrize("needed", range(5))
def test_one_gradient_alone_is_the_same(needed: int) -> None:
    spec, tensors = spec_and_tensors("swiglu", bias=True)
    every = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(batched(spec, every).square().sum(), every)[needed]
    tensors[needed].requires_grad_()
    torch.autograd.backward(batched(spec, tensors).square().sum())
    torch.testing.assert_close(tensors[needed].grad, expected)
    assert all(tensor.grad is None for i, tensor in enumerate(tensors) if i != needed)


def test_gradients_of_gradients_are_right() -> None:
    spec, tensors = spec_and_tensors("swiglu", bias=True)
    assert torch.autograd.gradgradcheck(
        lambda *given: batched(spec, list(given)), [t.requires_grad_() for t in tensors]
    )


def test_a_step_under_autocast_gives_gradients_in_the_weights_format() -> None:
    spec, tensors = spec_and_tensors("swiglu", bias=True)
    leaves = [tensor.float().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        output = batched(spec, leaves)
    found = torch.autograd.grad(output.float().square().sum(), leaves)
    expected = torch.autograd.grad(batched(spec, leaves).square().sum(), leaves)
    assert output.dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm()
