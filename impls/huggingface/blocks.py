"""A transformers block with experts as a layer of ours: the same function, the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from impls.ffn import activate
from impls.huggingface.config import layer_from_config
from impls.huggingface.families import FAMILIES
from impls.huggingface.tensors import UnknownBlock, find_tensors
from impls.spec import LayerSpec
from impls.weights import Weights

TRANSPOSED = frozenset({"llama4_text", "gpt_oss"})
"""Families whose stacked projections are (E, in, out)."""
INTERLEAVED = frozenset({"gpt_oss"})
PROBES = 32
TOLERANCE = 1e-4
"""How far an unknown family's block may be from our layer, in float32: far above rounding, far below another router."""


def from_huggingface(block: nn.Module, config: Any) -> tuple[LayerSpec, Weights]:
    """The specification and weights with which our layers return this block's output.

    Weights are the block's own parameters, or views of them, wherever its layout allows; where it does not, says
    :mod:`impls.huggingface.tensors`. The experts' sizes are the parameters'; the router is what the family's code does.
    Noise, dropout and capacity are not part of it. A block of a family that is not in the table
    (:data:`impls.huggingface.families.FAMILIES`) is called on random tokens and taken only where our layer agrees.

    Args:
        block: the module that routes and holds the experts, such as ``model.model.layers[1].mlp``.
        config: the model's configuration: an object with ``to_dict()``, or a mapping.

    Raises:
        UnreadableConfig: the configuration describes no layer with experts.
        UnknownBlock: the block's parameters are not where they are known to be, or it computes something else; the
            message has what was looked for and found.
    """
    found = layer_from_config(config if isinstance(config, Mapping) else config.to_dict())
    kind = found.model_type
    tensors = find_tensors(block, transposed=kind in TRANSPOSED, interleaved=kind in INTERLEAVED)
    spec = LayerSpec(**dict(found.layer) | _read_from(tensors, LayerSpec(**found.layer)))
    _check_activation(block, spec)
    try:
        weights = Weights(spec, {name: _leaf(tensor) for name, tensor in tensors.items()})
    except ValueError as error:
        raise UnknownBlock(f"{type(block).__name__} does not fit its configuration ({kind}): {error}") from None
    if kind not in FAMILIES:
        _check_output(block, spec, weights, "; ".join(found.notes))
    return spec, weights


def _read_from(tensors: Mapping[str, Tensor], configured: LayerSpec) -> dict[str, Any]:
    """The fields of the layer that its parameters say more surely than a configuration."""
    num_experts, d_model, d_ff = tensors["down_proj"].shape
    fields: dict[str, Any] = {
        "d_model": d_model,
        "d_ff": d_ff,
        "num_experts": num_experts,
        "router_bias": "router_bias" in tensors,
        "expert_bias": "down_bias" in tensors,
        "selection_bias": "router_selection_bias" in tensors,
        "shared_gate": "shared_gate_weight" in tensors,
    }
    if "shared_down_proj" not in tensors:
        # Granite adds its shared experts outside of the block
        return fields | {"num_shared_experts": 0, "d_ff_shared": None}
    width = tensors["shared_down_proj"].shape[1]
    if width == configured.shared_d_ff:
        return fields
    return fields | {"num_shared_experts": 1, "d_ff_shared": width}


def _leaf(tensor: Tensor) -> Tensor:
    """A parameter stays the same one; a view or a copy is cut from its graph."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach()


def _check_activation(block: nn.Module, spec: LayerSpec) -> None:
    """Refuse experts that name their activation as a module (``act_fn``) and compute another one than ours."""
    function = getattr(block.experts, "act_fn", None)
    if not isinstance(function, nn.Module) or spec.activation == "swiglu_clamped":
        return
    probe = torch.linspace(-4, 4, 65)
    hidden = torch.cat([probe, torch.ones_like(probe)]) if spec.gated else probe
    with torch.no_grad():
        if not torch.allclose(function(probe), activate(spec, hidden), atol=1e-6):
            raise UnknownBlock(
                f"{type(block.experts).__name__} activates with {type(function).__name__}, which is not "
                f"{spec.activation} to rounding"
            )


def _check_output(block: nn.Module, spec: LayerSpec, weights: Weights, notes: str) -> None:
    """Call an unknown family's block on random tokens and refuse it unless our layer returns the same."""
    from impls.factory import build

    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(1, PROBES, spec.d_model, generator=generator).to(weights.device, weights.dtype)
    was_training = block.training
    try:
        with torch.no_grad():
            theirs = block.eval()(x_TD.clone())
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
            ours = build("loop", spec, weights=weights)(x_TD)
    finally:
        block.train(was_training)
    error = float((theirs.reshape(ours.shape).double() - ours.double()).norm() / theirs.double().norm())
    if not error <= max(TOLERANCE, 4 * torch.finfo(weights.dtype).eps):
        raise UnknownBlock(
            f"{type(block).__name__} computes something else than the layer read from it: relative error {error:.1e} "
            f"on {PROBES} random tokens ({notes or 'nothing was assumed'}); the layer was {spec}"
        )
