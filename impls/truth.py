"""The float64 truth for runs: output and exact gradients, expert by expert.

Equal to :mod:`impls.reference` (the tests hold it to 1e-12), fast enough for real sizes. Only one expert and a block of
its tokens are held in float64 at a time, beside inputs, output, gates and gradients.

Every semantics is one rule: a table of gates (T, E), zero where a token does not use an expert. The experts' gradients
follow expert by expert, and give the gradient of the table; the router's gradient follows from that in one step.

Shapes: T tokens, n tokens asked for, D d_model, E experts, K top-k, B tokens of one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from impls.ffn import feed_forward
from impls.routing import queue_places
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
        uncancelled: norms of the router's gradients before cancellation, by name: what they would be, root mean
            square, if the D products in every gate's gradient ``<dL/dy, expert's output>`` had random signs. An
            expert's output is rounded, so this, not their own norm, is what a right gradient's error is in proportion
            to. Empty where the router has no gradient.
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
    grad_output_TD: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Truth:
    """Output, and gradients of ``(output * grad_output).sum()``, for given expert ids.

    Args:
        semantics: ``moe``, ``dense``, ``dense_total``, ``ensemble`` or ``ensemble_weighted``.
        spec: the layer.
        weights: its weights, in any number format; their values are taken as they are.
        x_TD: all tokens.
        expert_ids_TK: where they go; capacity is applied here. Only ``moe`` looks at it.
        grad_output_TD: gradient of the output, for training.
        tokens: compute only these tokens, all by default. Capacity still counts every token. Gradients are then those
            of a loss that looks at these tokens alone: an implementation matches if its output gradient is zero
            elsewhere.
    """
    chosen_n = torch.arange(x_TD.shape[0], device=x_TD.device) if tokens is None else tokens.to(x_TD.device)
    x_nD = x_TD.detach()[chosen_n].double().requires_grad_()
    router = [
        p.detach().double().requires_grad_() for p in (weights.router_weight, weights.router_bias) if p is not None
    ]
    kept_TK = _kept(spec, expert_ids_TK)
    with torch.enable_grad():
        gates_nE = _gates(semantics, spec, router, x_nD, expert_ids_TK[chosen_n], kept_TK[chosen_n])
    used_nE = _used(semantics, spec, expert_ids_TK[chosen_n], kept_TK[chosen_n])

    grad_nD = None if grad_output_TD is None else grad_output_TD[chosen_n].double()
    sums = _Sums(spec, weights, x_nD.detach(), grad_nD)
    for e in range(spec.num_experts):
        sums.add_expert(e, used_nE[:, e].nonzero().squeeze(1), gates_nE.detach()[:, e])
    if spec.num_shared_experts:
        sums.add_shared()
    if grad_nD is None:
        return Truth(sums.output_nD, {}, chosen_n, {})

    gradients = sums.gradients
    grad_x_nD = sums.grad_x_nD
    uncancelled: dict[str, float] = {}
    names = ["router_weight", "router_bias"][: len(router)]
    gradients.update({name: torch.zeros_like(p) for name, p in zip(names, router, strict=True)})
    if gates_nE.requires_grad:
        from_gates = torch.autograd.grad(gates_nE, [x_nD, *router], sums.grad_gates_nE)
        grad_x_nD = grad_x_nD + from_gates[0]
        gradients.update(zip(names, from_gates[1:], strict=True))
        logit_scale_n = _logit_scale(semantics, spec, router, x_nD, expert_ids_TK[chosen_n], gates_nE, sums)
        factors = {"router_weight": x_nD.detach().norm(dim=1), "router_bias": torch.ones_like(logit_scale_n)}
        uncancelled = {name: float((factors[name] * logit_scale_n).norm()) for name in names}
    gradients["input"] = torch.zeros(x_TD.shape, dtype=torch.float64, device=x_TD.device).index_copy(
        0, chosen_n, grad_x_nD
    )
    return Truth(sums.output_nD, gradients, chosen_n, uncancelled)


def _kept(spec: LayerSpec, ids_TK: Tensor) -> Tensor:
    capacity = spec.capacity(ids_TK.shape[0])
    if capacity is None:
        return torch.ones_like(ids_TK, dtype=torch.bool)
    return queue_places(ids_TK, spec.num_experts) < capacity


def _gates(
    semantics: str, spec: LayerSpec, router: list[Tensor], x_nD: Tensor, ids_nK: Tensor, kept_nK: Tensor
) -> Tensor:
    """What every expert's output is multiplied with, (n, E); differentiable where it comes from the router."""
    if semantics == "dense":
        return (torch.arange(spec.num_experts, device=x_nD.device) < spec.top_k).double().expand(x_nD.shape[0], -1)
    if semantics in ("dense_total", "ensemble"):
        share = 1.0 if semantics == "dense_total" else 1 / spec.num_experts
        return x_nD.new_full((x_nD.shape[0], spec.num_experts), share)
    logits_nE = torch.nn.functional.linear(x_nD, *router)
    if semantics == "ensemble_weighted":
        return logits_nE.softmax(-1)
    assert semantics == "moe", semantics
    if spec.norm_topk_prob:
        gates_nK = logits_nE.gather(1, ids_nK).softmax(-1)
    else:
        gates_nK = logits_nE.softmax(-1).gather(1, ids_nK)
    return torch.zeros_like(logits_nE).scatter_add(1, ids_nK, gates_nK * kept_nK)


def _logit_scale(
    semantics: str, spec: LayerSpec, router: list[Tensor], x_nD: Tensor, ids_nK: Tensor, gates_nE: Tensor, sums: _Sums
) -> Tensor:
    """Norm (n,) of each token's logit gradients, root mean square over random signs in every gate's gradient.

    A gate is ``g_j = p_j`` where kept, else 0, of a softmax p, so its derivative by logit i is
    ``g_j (delta_ij - p_i)``. With independent random gate gradients of deviation s_j, the expected square of the norm
    is the sum over j of ``g_j^2 s_j^2 (1 - 2 p_j + sum_i p_i^2)``.
    """
    with torch.no_grad():
        logits_nE = torch.nn.functional.linear(x_nD, *router)
        if semantics == "moe" and spec.norm_topk_prob:
            logits_nE = torch.full_like(logits_nE, -torch.inf).scatter(1, ids_nK, logits_nE.gather(1, ids_nK))
        p_nE = logits_nE.softmax(-1)
        through_softmax_nE = 1 - 2 * p_nE + p_nE.square().sum(1, keepdim=True)
        return (gates_nE * sums.uncancelled_gates_nE).square().mul(through_softmax_nE).sum(1).clamp_min(0).sqrt()


def _used(semantics: str, spec: LayerSpec, ids_nK: Tensor, kept_nK: Tensor) -> Tensor:
    """Which token uses which expert, (n, E) bool."""
    used_nE = torch.zeros(ids_nK.shape[0], spec.num_experts, dtype=torch.int32, device=ids_nK.device)
    if semantics == "moe":
        return used_nE.scatter_add(1, ids_nK, kept_nK.int()) > 0
    used_nE[:, : spec.top_k if semantics == "dense" else None] = 1
    return used_nE > 0


class _Sums:
    """Output and gradients while experts are added to them one by one."""

    def __init__(self, spec: LayerSpec, weights: Weights, x_nD: Tensor, grad_nD: Tensor | None) -> None:
        self.spec = spec
        self.weights = weights
        self.x_nD = x_nD
        self.grad_nD = grad_nD
        self.output_nD = torch.zeros_like(x_nD)
        self.grad_x_nD = torch.zeros_like(x_nD)
        self.grad_gates_nE = x_nD.new_zeros(x_nD.shape[0], spec.num_experts)
        self.uncancelled_gates_nE = torch.zeros_like(self.grad_gates_nE)
        experts = {n: p for n, p in weights.named_parameters() if not n.startswith("router_")}
        self.gradients = {} if grad_nD is None else {n: x_nD.new_zeros(p.shape) for n, p in experts.items()}

    def add_expert(self, e: int, rows_n: Tensor, gates_n: Tensor) -> None:
        name = "gate_up" if self.spec.gated else "up"
        parts = [f"{name}_proj", "down_proj"] + ([f"{name}_bias", "down_bias"] if self.spec.expert_bias else [])
        into = {part: self.gradients[part][e] for part in parts if self.gradients}
        self._add({part: getattr(self.weights, part)[e] for part in parts}, into, rows_n, gates_n, e)

    def add_shared(self) -> None:
        name = "shared_gate_up_proj" if self.spec.gated else "shared_up_proj"
        parts = [name, "shared_down_proj"]
        rows_n = torch.arange(self.x_nD.shape[0], device=self.x_nD.device)
        into = {part: self.gradients[part] for part in parts if self.gradients}
        ones_n = self.x_nD.new_ones(rows_n.numel())
        self._add({part: getattr(self.weights, part) for part in parts}, into, rows_n, ones_n, None)

    def _add(
        self, parts: dict[str, Tensor], gradients: dict[str, Tensor], rows_n: Tensor, gates_n: Tensor, e: int | None
    ) -> None:
        """Add one feed-forward on the tokens ``rows_n``, and write its weights' gradients into ``gradients``."""
        leaves = [part.detach().double().requires_grad_() for part in parts.values()]
        for block_B in torch.split(rows_n, BLOCK_TOKENS):
            x_BD = self.x_nD[block_B].requires_grad_()
            gate_B1 = gates_n[block_B].unsqueeze(1)
            with torch.set_grad_enabled(self.grad_nD is not None):
                y_BD = feed_forward(self.spec, x_BD, *leaves)
            self.output_nD[block_B] += gate_B1 * y_BD.detach()
            if self.grad_nD is None:
                continue
            grad_BD = self.grad_nD[block_B]
            found = torch.autograd.grad(y_BD, [x_BD, *leaves], gate_B1 * grad_BD)
            self.grad_x_nD[block_B] += found[0]
            for total, part in zip(gradients.values(), found[1:], strict=True):
                total += part
            if e is not None:
                products_BD = grad_BD * y_BD.detach()
                self.grad_gates_nE[block_B, e] = products_BD.sum(1)
                self.uncancelled_gates_nE[block_B, e] = products_BD.norm(dim=1)
