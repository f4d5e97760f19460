"""The float64 truth for runs: output and exact gradients, expert by expert.

Equal to :mod:`impls.reference` (the tests hold it to 1e-12), fast enough for real sizes. Only one expert and a block of
its tokens are held in float64 at a time, beside inputs, output, gates and gradients.

Every semantics is one rule: what each choice of an expert counts (:mod:`impls.gates`), and which choices are used. The
experts' gradients follow expert by expert, and give the gates' gradients; the router's follow from those in one step.

Shapes: T tokens, n tokens asked for, D d_model, E experts, K top-k, R rows, B those of one
block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from impls.ffn import feed_forward
from impls.gates import Gates
from impls.queues import queue_places
from impls.spec import LayerSpec
from impls.weights import Weights

BLOCK_TOKENS = 1024


@dataclass(frozen=True, eq=False, slots=True)
class Truth:
    """What a layer should have given.

    Attributes:
        output: (n, D) float64.
        gradients: float64 gradient of every weight by its canonical name, zeros where the output does not depend on
            it, and of the tokens as ``input`` (T, D); empty where no output gradient was given.
        tokens: (n,) which tokens.
        uncancelled: norms of the gradients of the router and of the shared experts' gate before cancellation, by name:
            what they would be, root mean square, if the D products in every gate's gradient ``<dL/dy, expert's
            output>`` had random signs (where a gate scales the input, ``<dL/d input, token>``). An expert's output is
            rounded, so this, not their own norm, is what a right gradient's error is in proportion to. Without those
            that have no gradient.
    """

    output: Tensor
    gradients: dict[str, Tensor]
    tokens: Tensor
    uncancelled: dict[str, float]


def expertwise_truth(
    semantics: str,
    spec: LayerSpec,
    weights: Weights,
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    *,
    kept_TK: Tensor | None = None,
    grad_output_TD: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Truth:
    """Output, and gradients of ``(output * grad_output).sum()``, for given expert ids.

    Args:
        semantics: ``moe``, ``dense``, ``dense_total``, ``ensemble`` or ``ensemble_weighted``.
        spec: the layer.
        weights: its weights, in any number format; their values are taken as they are.
        x_TD: all tokens.
        expert_ids_TK: where they go, (T, E) under expert choice. Only ``moe`` looks at it.
        kept_TK: which of these are kept. By default GShard's order decides, which needs nothing but ids; where the
            layer keeps by value, it must be given.
        grad_output_TD: gradient of the output, for training.
        tokens: compute only these tokens, all by default. Capacity still counts every token. Gradients are then those
            of a loss that looks at these tokens alone: an implementation matches if its output gradient is zero
            elsewhere.

    Raises:
        ValueError: what is kept depends on weights (:attr:`impls.LayerSpec.keeps_by_value`), and was not given.
    """
    chosen_n = torch.arange(x_TD.shape[0], device=x_TD.device) if tokens is None else tokens.to(x_TD.device)
    x_nD = x_TD.detach()[chosen_n].double().requires_grad_()
    ids_nK, kept_nK = _decided(semantics, spec, expert_ids_TK, kept_TK, chosen_n)
    gates = Gates(semantics, spec, weights, x_TD, x_nD, chosen_n, ids_nK)
    grad_nD = None if grad_output_TD is None else grad_output_TD[chosen_n].double()
    sums = _Sums(spec, weights, x_nD.detach(), grad_nD, ids_nK, scales_input=semantics == "moe" and spec.scales_input)
    for e in range(spec.num_experts):
        sums.add_expert(e, gates.values_nK.detach(), (ids_nK == e) & kept_nK)
    if spec.num_shared_experts:
        sums.add_shared()
    if grad_nD is None:
        return Truth(sums.output_nD, {}, chosen_n, {})

    grad_x_nD, of_router = gates.gradients(sums.grad_gates_nK)
    gradients = sums.gradients | of_router
    gradients["input"] = torch.zeros(x_TD.shape, dtype=torch.float64, device=x_TD.device).index_copy(
        0, chosen_n, sums.grad_x_nD + grad_x_nD
    )
    uncancelled = gates.uncancelled(sums.uncancelled_gates_nK) | sums.uncancelled
    return Truth(sums.output_nD, gradients, chosen_n, uncancelled)


def _decided(
    semantics: str, spec: LayerSpec, ids_TK: Tensor, kept_TK: Tensor | None, chosen_n: Tensor
) -> tuple[Tensor, Tensor]:
    """The experts of the chosen tokens, and which of them are used; a baseline's are all experts in turn."""
    if semantics == "moe":
        return ids_TK[chosen_n], _kept(spec, ids_TK, kept_TK)[chosen_n]
    every_nE = torch.arange(spec.num_experts, device=chosen_n.device).repeat(chosen_n.numel(), 1)
    return every_nE, every_nE < (spec.top_k if semantics == "dense" else spec.num_experts)


def _kept(spec: LayerSpec, ids_TK: Tensor, kept_TK: Tensor | None) -> Tensor:
    if kept_TK is not None:
        return kept_TK.to(ids_TK.device)
    if spec.keeps_by_value:
        raise ValueError("what this layer keeps depends on its routing weights, so it must be given: pass kept_TK")
    capacity = spec.capacity(ids_TK.shape[0])
    if capacity is None:
        return torch.ones_like(ids_TK, dtype=torch.bool)
    return queue_places(ids_TK, spec.num_experts) < capacity


class _Sums:
    """Output and gradients while experts are added to them one by one."""

    def __init__(
        self,
        spec: LayerSpec,
        weights: Weights,
        x_nD: Tensor,
        grad_nD: Tensor | None,
        ids_nK: Tensor,
        *,
        scales_input: bool,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.x_nD = x_nD
        self.grad_nD = grad_nD
        self.scales_input = scales_input
        self.output_nD = torch.zeros_like(x_nD)
        self.grad_x_nD = torch.zeros_like(x_nD)
        self.grad_gates_nK = x_nD.new_zeros(ids_nK.shape)
        self.uncancelled_gates_nK = torch.zeros_like(self.grad_gates_nK)
        self.uncancelled: dict[str, float] = {}
        experts = {n: p for n, p in weights.named_parameters() if not n.startswith("router_")}
        self.gradients = {} if grad_nD is None else {n: x_nD.new_zeros(p.shape) for n, p in experts.items()}

    def add_expert(self, e: int, gates_nK: Tensor, used_nK: Tensor) -> None:
        """Add expert e for the choices that use it."""
        name = "gate_up" if self.spec.gated else "up"
        parts = [f"{name}_proj", "down_proj"] + ([f"{name}_bias", "down_bias"] if self.spec.expert_bias else [])
        into = [self.gradients[part][e] for part in parts if self.gradients]
        rows_R, choices_R = used_nK.nonzero(as_tuple=True)
        tensors = [getattr(self.weights, part)[e] for part in parts]
        grad_R, norm_R = self._add(tensors, into, rows_R, gates_nK[rows_R, choices_R], self.scales_input)
        self.grad_gates_nK[rows_R, choices_R] = grad_R
        self.uncancelled_gates_nK[rows_R, choices_R] = norm_R

    def add_shared(self) -> None:
        """Add the shared experts for every token, and their gate."""
        parts = ["shared_gate_up_proj" if self.spec.gated else "shared_up_proj", "shared_down_proj"]
        into = [self.gradients[part] for part in parts if self.gradients]
        gate_weight, gates_n = self.weights.shared_gate_weight, self.x_nD.new_ones(self.x_nD.shape[0])
        if gate_weight is not None:
            gates_n = 1 / (1 + (-self.x_nD @ gate_weight.detach()[0].double()).exp())
        rows_n = torch.arange(gates_n.numel(), device=gates_n.device)
        tensors = [getattr(self.weights, part) for part in parts]
        grad_n, norm_n = self._add(tensors, into, rows_n, gates_n, scales_input=False)
        if gate_weight is None or self.grad_nD is None:
            return
        slope_n = gates_n * (1 - gates_n)
        self.grad_x_nD += (grad_n * slope_n).unsqueeze(1) * gate_weight.detach().double()
        self.gradients["shared_gate_weight"] += (grad_n * slope_n) @ self.x_nD
        self.uncancelled["shared_gate_weight"] = float((norm_n * slope_n * self.x_nD.norm(dim=1)).norm())

    def _add(
        self, tensors: list[Tensor], gradients: list[Tensor], rows_R: Tensor, gates_R: Tensor, scales_input: bool
    ) -> tuple[Tensor, Tensor]:
        """Add one feed-forward on the tokens ``rows_R``, and its weights' gradients to ``gradients``.

        Returns:
            The gates' gradients (R,), and their norms before the D products of each cancel; zeros without an output
            gradient.
        """
        leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
        grad_R, norm_R = torch.zeros_like(gates_R), torch.zeros_like(gates_R)
        for first in range(0, rows_R.numel(), BLOCK_TOKENS):
            block = slice(first, first + BLOCK_TOKENS)
            rows_B, gate_B1 = rows_R[block], gates_R[block].unsqueeze(1)
            inner_B1, outer_B1 = (
                (gate_B1, torch.ones_like(gate_B1)) if scales_input else (torch.ones_like(gate_B1), gate_B1)
            )
            token_BD = self.x_nD[rows_B]
            x_BD = (inner_B1 * token_BD).requires_grad_()
            with torch.set_grad_enabled(self.grad_nD is not None):
                y_BD = feed_forward(self.spec, x_BD, *leaves)
            self.output_nD.index_add_(0, rows_B, outer_B1 * y_BD.detach())
            if self.grad_nD is None:
                continue
            grad_BD = self.grad_nD[rows_B]
            found = torch.autograd.grad(y_BD, [x_BD, *leaves], outer_B1 * grad_BD)
            self.grad_x_nD.index_add_(0, rows_B, inner_B1 * found[0])
            for total, part in zip(gradients, found[1:], strict=True):
                total += part
            products_BD = found[0] * token_BD if scales_input else grad_BD * y_BD.detach()
            grad_R[block], norm_R[block] = products_BD.sum(1), products_BD.norm(dim=1)
        return grad_R, norm_R
