"""Canonical weights: one layout that every implementation shares, so that a comparison holds them equal.

Shapes are those of :func:`impls.shapes.parameter_shapes`, the stacked layout of Hugging Face transformers v5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from impls.shapes import parameter_shapes
from impls.spec import LayerSpec

__all__ = ["Weights", "make_weights", "parameter_shapes"]

OPTIONAL = (
    "router_bias",
    "router_noise_weight",
    "router_selection_bias",
    "gate_up_proj",
    "gate_up_bias",
    "up_proj",
    "up_bias",
    "down_bias",
    "shared_gate_up_proj",
    "shared_up_proj",
    "shared_down_proj",
    "shared_gate_weight",
)


class Weights(nn.Module):
    """The parameters of one layer under their canonical names; those that the layer lacks are None.

    A selection bias is a parameter too, though nothing is differentiable in it: its gradient stays None.

    Args:
        spec: the layer.
        tensors: one tensor a parameter, kept without a copy; a tensor that is a parameter already stays the same one.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or of another shape than the specification's.
    """

    router_weight: nn.Parameter
    router_bias: nn.Parameter | None
    router_noise_weight: nn.Parameter | None
    router_selection_bias: nn.Parameter | None
    gate_up_proj: nn.Parameter | None
    gate_up_bias: nn.Parameter | None
    up_proj: nn.Parameter | None
    up_bias: nn.Parameter | None
    down_proj: nn.Parameter
    down_bias: nn.Parameter | None
    shared_gate_up_proj: nn.Parameter | None
    shared_up_proj: nn.Parameter | None
    shared_down_proj: nn.Parameter | None
    shared_gate_weight: nn.Parameter | None

    def __init__(self, spec: LayerSpec, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        check_shapes(spec, tensors)
        for name in parameter_shapes(spec):
            tensor = tensors[name]
            self.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
        for name in OPTIONAL:
            if name not in tensors:
                self.register_parameter(name, None)

    @property
    def in_proj(self) -> nn.Parameter:
        """The experts' input projection: (E, 2F, D) where the activation is gated, else (E, F, D)."""
        proj = self.up_proj if self.gate_up_proj is None else self.gate_up_proj
        assert proj is not None
        return proj

    @property
    def in_bias(self) -> nn.Parameter | None:
        """Bias of the experts' input projection: (E, 2F) or (E, F), or None."""
        return self.up_bias if self.gate_up_bias is None else self.gate_up_bias

    @property
    def shared_in_proj(self) -> nn.Parameter | None:
        """The shared experts' input projection: (2S, D) or (S, D), or None."""
        return self.shared_up_proj if self.shared_gate_up_proj is None else self.shared_gate_up_proj

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the parameters."""
        return self.router_weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.router_weight.device

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


def check_shapes(spec: LayerSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming every fault, unless ``tensors`` are exactly the parameters of ``spec``."""
    expected = parameter_shapes(spec)
    faults = [f"{name} is missing, expected {shape}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(f"{name} is not a parameter of this layer")
        elif tuple(tensor.shape) != expected[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
    if faults:
        raise ValueError("weights do not fit the specification: " + "; ".join(faults))


def make_weights(
    spec: LayerSpec,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Weights:
    """Random weights, N(0, 1/sqrt(fan_in)), the same for a seed on every device and, up to rounding, in every dtype.

    They are drawn on the CPU in float32 and cast one expert at a time, so that no more than one expert is ever held in
    float32. A bias is drawn with the fan-in of its projection.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(spec)
    tensors = {}
    for name, shape in shapes.items():
        projection = "router_weight" if name.startswith("router_") else name.replace("_bias", "_proj")
        deviation = 1 / math.sqrt(shapes[projection][-1])
        tensor = torch.empty(shape, dtype=dtype)
        for part in tensor.unbind(0) if len(shape) == 3 else (tensor,):
            part.copy_(torch.randn(part.shape, generator=generator) * deviation)
        tensors[name] = tensor.to(device)
    return Weights(spec, tensors)
