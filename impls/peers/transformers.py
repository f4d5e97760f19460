"""Hugging Face transformers' experts: a real experts module of theirs, holding our weights, called with our routing.

transformers dispatches an experts module's `forward` by the model's configuration (its *experts interface*): to the
model's own loop (``eager``) or to one of the functions in ``transformers.integrations.moe``. Each class here sets that
one word. The modules are Mixtral's where the activation is gated, else Nemotron-H's: both have our layout, so their
parameters *are* ours, without a copy.

A dropped assignment is what transformers calls a sentinel under expert parallelism: the id past the last expert, with
weight zero. Its functions handle these when told to.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from impls.layer import Direction, MoELayer, Unsupported
from impls.packages import TRANSFORMERS
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.weights import Weights

HIDDEN_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "relu": "relu", "gelu": "gelu", "silu": "silu"}
"""Our activations under the names that transformers gives to the function in them."""


class TransformersExperts(MoELayer):
    """One of transformers' ways to compute the experts; a subclass names it."""

    implementation: ClassVar[str]

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        self.path = f"transformers {TRANSFORMERS.version()}"
        experts: Any = _experts_module(spec, self.implementation)
        for name in ("gate_up_proj" if spec.gated else "up_proj", "down_proj"):
            setattr(experts, name, getattr(weights, name))
        experts._is_expert_parallel = _drops(spec)  # noqa: SLF001  theirs; the module has no public name for it
        # In a tuple, so that the parameters are not registered a second time.
        self._experts = (experts,)

    @classmethod
    def missing(cls) -> str | None:
        """transformers, or a recent one."""
        return TRANSFORMERS.missing()

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """No biases: the experts of theirs that have some use another layout; and activations that they name."""
        del device, dtype, direction
        if spec.expert_bias:
            return "transformers' experts with biases (GPT-OSS) hold their weights in another layout"
        if spec.activation not in HIDDEN_ACTIVATIONS:
            return f"no experts module of transformers has our layout and the activation {spec.activation}"
        return None

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Call their experts module."""
        (experts,) = self._experts
        ids_TK, weights_TK = routing.expert_ids, routing.weights
        if _drops(self.spec):
            ids_TK = ids_TK.masked_fill(~routing.kept, self.spec.num_experts)
            weights_TK = weights_TK.masked_fill(~routing.kept, 0)
        y_TD: Tensor = experts(x_TD, ids_TK, weights_TK)
        return y_TD


class Eager(TransformersExperts):
    """The loop of the model's own file, on `w[e]`."""

    implementation = "eager"

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Nemotron-H's loop takes the sentinel for an expert."""
        if not spec.gated and _drops(spec):
            return "transformers' loop for experts without a gate (Nemotron-H) cannot drop assignments"
        return super().supports(spec, device, dtype, direction)

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Call their experts module.

        Raises:
            Unsupported: in training, where there is no token: their loop's output then depends on nothing.
        """
        if x_TD.requires_grad and x_TD.shape[0] == 0:
            raise Unsupported("transformers' loop has no gradient where there are no tokens")
        return super().compute(x_TD, routing)


class BatchedMM(TransformersExperts):
    """Weights gathered for every assignment, and `bmm`."""

    implementation = "batched_mm"

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """No training in half precision, as with our `batched`: the error grows with the tokens of an expert."""
        if direction == "train" and dtype != torch.float32:
            return (
                f"transformers' batched_mm gathers weights, whose gradient is rounded to {dtype} after every token: "
                "it misses the tolerance"
            )
        return super().supports(spec, device, dtype, direction)


class GroupedMM(TransformersExperts):
    """Sorted assignments and torch's `grouped_mm`."""

    implementation = "grouped_mm"


def _drops(spec: LayerSpec) -> bool:
    return spec.capacity_factor is not None or spec.keeps_by_value


def _experts_module(spec: LayerSpec, implementation: str) -> nn.Module:
    """An experts module of theirs without storage for its parameters."""
    family, class_name = ("mixtral", "MixtralExperts") if spec.gated else ("nemotron_h", "NemotronHExperts")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = SimpleNamespace(
        hidden_size=spec.d_model,
        intermediate_size=spec.d_ff,
        moe_intermediate_size=spec.d_ff,
        moe_latent_size=None,
        num_local_experts=spec.num_experts,
        n_routed_experts=spec.num_experts,
        hidden_act=HIDDEN_ACTIVATIONS[spec.activation],
        mlp_hidden_act=HIDDEN_ACTIVATIONS[spec.activation],
        _experts_implementation=implementation,
    )
    with torch.device("meta"):
        experts: nn.Module = getattr(module, class_name)(config)
    return experts
