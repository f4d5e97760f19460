"""The routers once more, in float64 and for given decisions: what every chosen expert counts, for the truth.

Shares nothing with :mod:`impls.routers` but what was drawn. What is decided (which experts, which of them are kept,
which come close in SparseMixer) is the float32 router's, because a rounding could turn it; what follows is exact.

Shapes: T tokens, n tokens asked for, D d_model, E experts, K choices of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from impls.draws import drawn
from impls.routers import router_logits
from impls.routers.sparsemixer import JITTER
from impls.spec import LayerSpec
from impls.weights import Weights


class Gates:
    """What every choice is multiplied with, and the gradients that reach the router and the tokens through it.

    Args:
        semantics: ``moe`` or a baseline's label.
        spec: the layer.
        weights: hold the router, in any number format; its values are taken as they are.
        x_TD: all tokens.
        x_nD: those asked for, float64, a leaf.
        chosen_n: which they are.
        ids_nK: the experts chosen; for a baseline all experts in turn.

    Attributes:
        values_nK: float64, differentiable where it comes from a router.
    """

    def __init__(
        self,
        semantics: str,
        spec: LayerSpec,
        weights: Weights,
        x_TD: Tensor,
        x_nD: Tensor,
        chosen_n: Tensor,
        ids_nK: Tensor,
    ) -> None:
        self._x_nD = x_nD
        self._leaves = {
            name: p.detach().double().requires_grad_()
            for name, p in weights.named_parameters()
            if name.startswith("router_")
        }
        with torch.enable_grad():
            clean_nE = functional.linear(x_nD, self._leaves["router_weight"], self._leaves.get("router_bias"))
            self._products = {"router_weight": clean_nE}
            logits_nE = decided_nE = clean_nE
            if semantics == "moe" and spec.router == "noisy_topk":
                raw_nE = functional.linear(x_nD, self._leaves["router_noise_weight"])
                self._products["router_noise_weight"] = raw_nE
                noise_TE = drawn("normal", spec.router_seed, (x_TD.shape[0], spec.num_experts), x_TD.device)
                logits_nE = clean_nE + noise_TE[chosen_n].double() * functional.softplus(raw_nE)
            elif semantics == "moe" and spec.router == "sparsemixer":
                with torch.no_grad():  # over all tokens, because a product of fewer could be rounded otherwise
                    decided_nE = router_logits(weights, x_TD)[chosen_n]
            self.values_nK = _values(semantics, spec, logits_nE, ids_nK, decided_nE)

    def gradients(self, grad_nK: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the tokens (n, D) and of every router parameter by name, zeros where nothing depends on it."""
        every = {"": self._x_nD} | self._leaves
        if not self.values_nK.requires_grad:
            found: tuple[Tensor | None, ...] = (None,) * len(every)
        else:
            found = torch.autograd.grad(
                self.values_nK, list(every.values()), grad_nK, retain_graph=True, allow_unused=True
            )
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(every.items(), found, strict=True)
        }
        return gradients.pop(""), gradients

    def uncancelled(self, scale_nK: Tensor) -> dict[str, float]:
        """Norms of the router's gradients, root mean square over random signs in every gate's gradient, by name.

        With independent random gate gradients of deviation s_k, a token's gradient by its logits,
        ``sum over k of s_k * d gate_k / d logits``, has an expected squared norm of
        ``sum over k of s_k^2 * |d gate_k / d logits|^2``. That holds for any router, and takes one backward a choice.
        A token's part of a weight's gradient is that times the token, of a bias's that itself.

        Args:
            scale_nK: s, 0 where a choice is not kept.
        """
        if not self.values_nK.requires_grad:
            return {}
        squares = {name: torch.zeros_like(scale_nK[:, 0]) for name in self._products}
        for choice in range(scale_nK.shape[1]):
            slopes = torch.autograd.grad(
                self.values_nK[:, choice].sum(), list(self._products.values()), retain_graph=True
            )
            for square_n, slope_nE in zip(squares.values(), slopes, strict=True):
                square_n += (slope_nE.norm(dim=1) * scale_nK[:, choice]).square()
        length_n = self._x_nD.detach().norm(dim=1)
        norms = {name: float((square_n.sqrt() * length_n).norm()) for name, square_n in squares.items()}
        if "router_bias" in self._leaves:
            norms["router_bias"] = float(squares["router_weight"].sqrt().norm())
        return norms


def _values(semantics: str, spec: LayerSpec, logits_nE: Tensor, ids_nK: Tensor, decided_nE: Tensor) -> Tensor:
    if semantics == "moe":
        return _router_values(spec, logits_nE, ids_nK, decided_nE) * spec.routed_scaling
    if semantics == "ensemble_weighted":
        return logits_nE.softmax(-1)
    assert semantics in ("dense", "dense_total", "ensemble"), semantics
    return _constant(ids_nK, 1 / spec.num_experts if semantics == "ensemble" else 1.0)


def _router_values(spec: LayerSpec, logits_nE: Tensor, ids_nK: Tensor, decided_nE: Tensor) -> Tensor:
    if spec.router == "sparsemixer":
        return _sparse_mixture(logits_nE, ids_nK, decided_nE)
    if spec.router == "hash":
        return _constant(ids_nK, 1 / spec.top_k)
    chosen_nK = logits_nE.gather(1, ids_nK)
    if spec.router == "topk_sigmoid" or (spec.router == "sigmoid_topk" and not spec.norm_topk_prob):
        return 1 / (1 + (-chosen_nK).exp())
    # exp(a_k) over its sum: over the chosen, or over all experts
    log_nK = functional.logsigmoid(chosen_nK) if spec.router == "sigmoid_topk" else chosen_nK
    over_all = spec.router in ("switch", "expert_choice") or (spec.router == "softmax_topk" and not spec.norm_topk_prob)
    return (log_nK - (logits_nE if over_all else log_nK).logsumexp(1, keepdim=True)).exp()


def _constant(ids_nK: Tensor, value: float) -> Tensor:
    return torch.full_like(ids_nK, value, dtype=torch.float64)


def _sparse_mixture(logits_nE: Tensor, ids_nK: Tensor, decided_nE: Tensor) -> Tensor:
    values = []
    for choice in range(ids_nK.shape[1]):
        id_n1 = ids_nK[:, choice : choice + 1]
        best_n1 = decided_nE.gather(1, id_n1)
        apart_nE = (best_n1 - decided_nE) / torch.maximum(decided_nE.abs(), best_n1) > 2 * JITTER
        gone_nE = apart_nE.scatter(1, ids_nK[:, :choice], True)
        left_nE = torch.where(gone_nE, -torch.inf, logits_nE)
        values.append((logits_nE.gather(1, id_n1) - left_nE.logsumexp(1, keepdim=True)).exp())
    return torch.cat(values, dim=1)
