"""Small layers, and steps of them, as the profiling job makes them."""

from collections.abc import Callable

import torch

from bench.measure.opening import open_device
from bench.profiling.step import Step
from impls import LayerSpec, build

SPEC = LayerSpec(d_model=32, d_ff=48, num_experts=4, top_k=2)
NUM_TOKENS = 40


def make_step(forward: Callable[[torch.Tensor], torch.Tensor], leaves: list[torch.Tensor], *, train: bool) -> Step:
    """A step of any function of (T, D) tokens."""
    generator = torch.Generator().manual_seed(0)
    x_TD, gradient_TD = (torch.randn(NUM_TOKENS, SPEC.d_model, generator=generator) for _ in range(2))
    x_TD.requires_grad_(train)

    def run() -> torch.Tensor:
        with torch.inference_mode(not train):
            return forward(x_TD)

    def backward(output: torch.Tensor) -> None:
        torch.autograd.backward(output, gradient_TD)

    def drop() -> None:
        for leaf in (x_TD, *leaves):
            leaf.grad = None

    return Step(run, backward if train else None, drop, open_device("cpu", 1))


def layer_step(name: str, *, train: bool, spec: LayerSpec = SPEC) -> Step:
    """A step of an implementation."""
    layer = build(name, spec, dtype=torch.float32, direction="train" if train else "forward", seed=0)
    return make_step(layer, list(layer.parameters()), train=train)
