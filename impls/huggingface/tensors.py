"""The parameters of a transformers block with experts, found by name and brought into our layout.

Stacked projections are taken as they are; a transposed one is a view. Where the layout differs in more than strides
(gate and up apart or interleaved, one module an expert), the weights are copied once.

E experts, D d_model, F d_ff, S the shared experts' width together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ROUTERS = ("gate", "router")
ROUTER_WEIGHTS = ("weight", "layer.weight", "classifier.weight", "wg.weight")
SELECTION_BIASES = ("e_score_correction_bias", "moe_statics.e_score_correction_bias", "expert_bias")
SHARED = ("shared_experts", "shared_expert", "shared_mlp")
SPLIT_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), (None, "wi", "wo"), (None, "fc1", "fc2"))
"""Names of the gate's, the up and the down projection of one feed-forward; without a gate where the first is None."""


class UnknownBlock(ValueError):  # noqa: N818  reads as what it is in `except`
    """A block whose parameters are not where those of a block with experts are known to be."""


def find_tensors(block: nn.Module, *, transposed: bool, interleaved: bool) -> dict[str, Tensor]:
    """Our name -> tensor for everything that the block has.

    Args:
        block: a module with a router and experts below it.
        transposed: whether stacked projections are (E, in, out), where the block does not say so itself.
        interleaved: whether the rows of gate and up alternate, where the block does not say so itself.

    Raises:
        UnknownBlock: naming what was looked for and what there is.
    """
    experts = _child(block, ("experts",), "experts")
    transposed = bool(getattr(experts, "is_transposed", transposed))
    interleaved = not getattr(experts, "is_concatenated", not interleaved)
    return _router(block) | _experts(experts, transposed=transposed, interleaved=interleaved) | _shared(block)


def _router(block: nn.Module) -> dict[str, Tensor]:
    router = _child(block, ROUTERS, "a router")
    name, weight = _parameter(router, ROUTER_WEIGHTS)
    if weight is None:
        raise UnknownBlock(_missing("the router's weight", ROUTER_WEIGHTS, router))
    found = {"router_weight": weight}
    _, bias = _parameter(router, (name.removesuffix("weight") + "bias",))
    if bias is not None:
        found["router_bias"] = bias
    for owner in (router, block):
        _, bias = _parameter(owner, SELECTION_BIASES)
        if bias is not None:
            found["router_selection_bias"] = bias.reshape(-1)
            break
    return found


def _experts(experts: nn.Module, *, transposed: bool, interleaved: bool) -> dict[str, Tensor]:
    _, stacked = _parameter(experts, ("gate_up_proj", "up_proj"))
    if stacked is not None:
        return _stacked(experts, transposed=transposed, interleaved=interleaved)
    if {"w1", "v1", "w2"} <= {name for name, _ in getattr(experts, "mlp", nn.Module()).named_parameters()}:
        return _flat(experts)
    each = [child for child in experts.children() if any(True for _ in child.parameters())]
    found = [_split(expert) for expert in each]
    if not found or any(one is None for one in found):
        names = ", ".join(filter(None, dict.fromkeys(name for group in SPLIT_NAMES for name in group)))
        raise UnknownBlock(_missing("the experts' projections", ("gate_up_proj", "up_proj", names), experts))
    return {name: torch.stack([one[name] for one in found if one]) for name in found[0] or {}}


def _stacked(experts: nn.Module, *, transposed: bool, interleaved: bool) -> dict[str, Tensor]:
    """Three-dimensional parameters, as transformers 5 keeps them."""
    found = {}
    for ours in ("gate_up", "up", "down"):
        _, weight = _parameter(experts, (f"{ours}_proj",))
        _, bias = _parameter(experts, (f"{ours}_proj_bias", f"{ours}_bias"))
        if weight is not None:
            found[f"{ours}_proj"] = weight.transpose(1, 2) if transposed else weight
        if bias is not None:
            found[f"{ours}_bias"] = bias
    if "down_proj" not in found:
        raise UnknownBlock(_missing("the experts' down projection", ("down_proj",), experts))
    if interleaved:
        for name in {"gate_up_proj", "gate_up_bias"} & found.keys():
            found[name] = torch.cat([found[name][:, ::2], found[name][:, 1::2]], dim=1)
    return found


def _flat(experts: nn.Module) -> dict[str, Tensor]:
    """DBRX: every projection of all experts is one matrix (E * F, D)."""
    gate, up, down = (getattr(experts.mlp, name) for name in ("w1", "v1", "w2"))
    shape = (int(experts.num_experts), -1, gate.shape[-1])  # type: ignore[arg-type]  # DBRX's own attribute
    return {
        "gate_up_proj": torch.cat([gate.view(shape), up.view(shape)], dim=1),
        "down_proj": down.view(shape).transpose(1, 2),
    }


def _split(feed_forward: nn.Module) -> dict[str, Tensor] | None:
    """One feed-forward made of linear modules, or None where it is not."""
    for gate_name, up_name, down_name in SPLIT_NAMES:
        modules = [getattr(feed_forward, name, None) for name in filter(None, (gate_name, up_name, down_name))]
        if all(isinstance(module, nn.Linear) for module in modules):
            *into, down = (module for module in modules if isinstance(module, nn.Linear))
            if any(module.bias is not None for module in (*into, down)):
                return None
            name = "gate_up_proj" if gate_name else "up_proj"
            return {name: torch.cat([module.weight for module in into]), "down_proj": down.weight}
    return None


def _shared(block: nn.Module) -> dict[str, Tensor]:
    shared = next((child for name in SHARED if (child := getattr(block, name, None)) is not None), None)
    if shared is None:
        return {}
    found = _split(shared)
    if found is None:
        names = tuple(name for group in SPLIT_NAMES for name in group if name)
        raise UnknownBlock(_missing("the shared experts' projections without biases", names, shared))
    tensors = {f"shared_{name}": tensor for name, tensor in found.items()}
    _, gate = _parameter(block, ("shared_expert_gate.weight",))
    return tensors if gate is None else tensors | {"shared_gate_weight": gate}


def _child(block: nn.Module, names: Iterable[str], what: str) -> nn.Module:
    for name in names:
        if isinstance(child := getattr(block, name, None), nn.Module):
            return child
    raise UnknownBlock(_missing(what, names, block))


def _parameter(module: nn.Module, names: Iterable[str]) -> tuple[str, Tensor | None]:
    """The first of ``names`` that is a parameter or a buffer of the module, and its tensor."""
    have: Mapping[str, Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
    return next(((name, have[name]) for name in names if name in have), ("", None))


def _missing(what: str, names: Iterable[str], module: nn.Module) -> str:
    parts = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    return (
        f"{type(module).__name__} has not {what}: looked for {', '.join(names)}; it has "
        f"{', '.join(parts) or 'no parts'}"
    )
