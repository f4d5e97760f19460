"""What the tests of the layers share: small layers, tokens, training steps, and how far two steps are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from impls import LayerSpec, MoELayer, Routing
from impls.reference import reference
from impls.weights import Weights

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
NEARLY_ZERO = 1e-2  # of the largest weight gradient
EXACT = ["loop", "scatter_gather", "einsum", "grouped", "batched", "loop_indexed", "dense_masked"]
BASELINES = ["dense", "dense_total", "ensemble", "ensemble_weighted"]


@dataclass(frozen=True)
class Step:
    """Output and gradients of one forward and backward."""

    output: Tensor
    gradients: dict[str, Tensor]


def make_spec(**changes: object) -> LayerSpec:
    fields: dict[str, object] = {"d_model": 32, "d_ff": 16, "num_experts": 8, "top_k": 2}
    return LayerSpec(**(fields | changes))  # type: ignore[arg-type]  # the keys are LayerSpec's


def make_tokens(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train_step(layer: MoELayer, x: Tensor, grad_output: Tensor, routing: Routing | None = None) -> Step:
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    output = layer(x, routing=routing)
    output.backward(grad_output)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in layer.weights.named_parameters()
    }
    assert x.grad is not None
    return Step(output.detach(), gradients | {"input": x.grad})


def reference_step(
    semantics: str, spec: LayerSpec, weights: Weights, x_TD: Tensor, ids_TK: Tensor, grad_TD: Tensor
) -> Step:
    leaves = {name: p.detach().double().requires_grad_() for name, p in weights.named_parameters()}
    x = x_TD.detach().double().requires_grad_()
    output = reference(semantics, spec, leaves, x, ids_TK)
    torch.autograd.backward(output, grad_TD.double())
    every = leaves | {"input": x}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in every.items()}
    return Step(output.detach(), gradients)


def relative_error(found: Tensor, truth: Tensor, at_least: float = 0.0) -> float:
    difference = float((found.double() - truth.double()).norm())
    scale = max(float(truth.double().norm()), at_least)
    return difference / scale if scale else difference


def errors_of(found: Step, truth: Step) -> dict[str, float]:
    largest = max(float(g.norm()) for name, g in truth.gradients.items() if name != "input")
    errors = {"output": relative_error(found.output, truth.output)}
    for name, gradient in truth.gradients.items():
        assert found.gradients[name].shape == gradient.shape, name
        errors[name] = relative_error(found.gradients[name], gradient, NEARLY_ZERO * largest)
    return errors


def assert_same(found: Step, truth: Step, tolerance: float) -> None:
    assert found.output.shape == truth.output.shape
    assert {name: error for name, error in errors_of(found, truth).items() if not error <= tolerance} == {}
