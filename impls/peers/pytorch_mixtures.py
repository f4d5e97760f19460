"""`pytorch_mixtures.TopkMoE`: a list of experts, `torch.where` for the tokens of each, on our weights and routing."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from impls.layer import MoELayer
from impls.packages import PYTORCH_MIXTURES
from impls.peers.experts import make_experts, put_weights
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.weights import Weights


class PytorchMixtures(MoELayer):
    """Their `apply_routing_on_experts`; a dropped assignment is the id past the last expert, which no expert has."""

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        self.path = f"{PYTORCH_MIXTURES.name} {PYTORCH_MIXTURES.version()}"
        # In a tuple: it holds no parameters of its own, but is not ours to move or save.
        self._theirs = (_layer(spec),)

    @classmethod
    def missing(cls) -> str | None:
        """The package."""
        return PYTORCH_MIXTURES.missing()

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Call what follows their router."""
        (theirs,) = self._theirs
        put_weights(theirs.experts, self.weights)
        ids_TK = routing.expert_ids.masked_fill(~routing.kept, self.spec.num_experts)
        y_TD: Tensor = theirs.apply_routing_on_experts(x_TD, routing.weights, ids_TK)
        return y_TD


def _layer(spec: LayerSpec) -> Any:
    module = importlib.import_module("pytorch_mixtures")
    config = module.MoEConfig(
        hidden_dim=spec.d_model,
        intermediate_dim=2 * spec.d_ff,
        num_experts=spec.num_experts,
        expert_fn="swiglu",
        expert_act="silu",
        router_fn="topk",
        capacity_factor=None,
        topk=spec.top_k,
        dtype=torch.float32,
    )
    with torch.device("meta"):  # their experts are exchanged for ours
        layer = module.TopkMoE(config)
    layer.experts = make_experts(spec)
    del layer.weight  # their router, which is not asked
    return layer
