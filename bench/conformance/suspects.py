"""Known mistakes, tried out: each suspect is what a layer with that mistake would give; the one that fits is named.

Shapes: T tokens, D d_model, E experts, K choices of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from impls.ffn import feed_forward
from impls.routing import Routing
from impls.spec import LayerSpec
from impls.weights import Weights


@dataclass(frozen=True, slots=True)
class Scene:
    """A right result and what it was made of, in float64.

    Attributes:
        spec: the layer.
        weights: its weights.
        x_TD: tokens.
        truth_TD: the right output.
        routing: the right routing.
    """

    spec: LayerSpec
    weights: Weights
    x_TD: Tensor  # noqa: N815 - shape suffixes, as everywhere
    truth_TD: Tensor  # noqa: N815 - the same
    routing: Routing

    def shares(self) -> Tensor:
        """What every assignment's output is multiplied with; zero where it is dropped."""
        return self.routing.weights.double() * self.routing.kept


def suspect(scene: Scene, found_TD: Tensor, tolerance: float) -> str:
    """The mistake that gives ``found_TD``, in a sentence; empty where none of the known ones does."""
    norm = float(scene.truth_TD.norm())
    if scene.spec.scales_input or norm == 0:
        return ""
    for sentence, candidate_TD in _candidates(scene):
        differs = float((candidate_TD - scene.truth_TD).norm()) > 4 * tolerance * norm
        if differs and float((found_TD - candidate_TD).norm()) <= 2 * tolerance * norm:
            return sentence
    scale = float((found_TD * scene.truth_TD).sum()) / norm**2
    if scale and float((found_TD - scale * scene.truth_TD).norm()) <= 2 * tolerance * abs(scale) * norm:
        return f"the whole output is {factor(scale)} times the right one"
    return ""


def factor(scale: float) -> str:
    """A factor in few digits, but never as if it were one."""
    short = f"{scale:.4g}"
    return f"{scale:.6g}" if short == "1" else short


def _candidates(scene: Scene) -> Iterator[tuple[str, Tensor]]:
    """Wrong outputs with the mistakes that make them, the likeliest first."""
    spec, routing, truth_TD = scene.spec, scene.routing, scene.truth_TD
    shares_TK, kept_TK, ids_TK = scene.shares(), routing.kept, routing.expert_ids
    raw_TK = routing.weights.double()
    y_TED = _experts(scene, spec)
    shared_TD = truth_TD - _combine(shares_TK, ids_TK, y_TED)

    def gated(shares: Tensor, ids: Tensor = ids_TK, y: Tensor = y_TED) -> Tensor:
        return _combine(shares, ids, y) + shared_TD

    total_T1 = raw_TK.sum(1, keepdim=True)
    left_T1 = shares_TK.sum(1, keepdim=True)
    yield "zero", torch.zeros_like(truth_TD)
    if not kept_TK.all():
        yield "assignments past the capacity are computed all the same: `routing.kept` is not looked at", gated(raw_TK)
        renormalised = torch.where(left_T1 > 0, shares_TK * total_T1 / left_T1.clamp_min(1e-300), 0)
        yield "the weights that are left after dropping are renormalised, and must not be", gated(renormalised)
        first_TK = _kept_in_token_order(ids_TK, routing.capacity or 1)
        yield "it drops in another order: all first choices go before all second ones", gated(raw_TK * first_TK)
        dropped_T1 = (~kept_TK).any(1, keepdim=True)
        yield "tokens with a dropped assignment are passed on as they are", truth_TD + scene.x_TD * dropped_T1
        yield (
            "tokens that are dropped altogether are passed on as they are",
            (truth_TD + scene.x_TD * (~kept_TK).all(1, keepdim=True)),
        )
    yield "the routing weights are not applied", gated(kept_TK.double())
    yield "the routing weights are applied twice", gated(shares_TK.square())
    yield (
        "the routing weights are renormalised, and the layer says not to (norm_topk_prob)",
        gated(shares_TK / total_T1.clamp_min(1e-300)),
    )
    column_K = torch.arange(ids_TK.shape[1])
    if len(column_K) > 1:
        yield "only a token's first choice counts", gated(shares_TK * (column_K == 0))
        last_expert_TK = ids_TK == ids_TK.masked_fill(~kept_TK, -1).max(1, keepdim=True).values
        overwritten = (
            "a token's outputs overwrite each other and must be added: `y[ids] = ` or `y[ids] += ` with an id twice"
        )
        yield overwritten, gated(shares_TK * last_expert_TK)
        yield overwritten, gated(shares_TK * (column_K == len(column_K) - 1))
        yield "the routing weights are those of a token's other choices, in reverse", gated(raw_TK.flip(1) * kept_TK)
    for expert in reversed(range(spec.num_experts)):
        which = "the last expert" if expert == spec.num_experts - 1 else f"expert {expert}"
        yield f"{which} is left out", gated(shares_TK * (ids_TK != expert))
    yield "every token goes to the expert after its own", gated(shares_TK, (ids_TK + 1) % spec.num_experts)
    if spec.num_shared_experts:
        yield "the shared experts are left out or weighed wrongly", truth_TD - shared_TD
        yield "the shared experts are added twice", truth_TD + shared_TD
    yield from _wrong_experts(scene, gated)


def _wrong_experts(scene: Scene, gated: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Mistakes inside of an expert; ``gated`` weighs and adds what experts give, under shares and ids."""
    spec, shares_TK, ids_TK = scene.spec, scene.shares(), scene.routing.expert_ids
    if spec.gated:
        rows_I = torch.arange(2 * spec.d_ff)
        swapped = _experts(scene, spec, rows_I.roll(spec.d_ff))
        yield "gate and up are taken for each other: the gate's rows come first", gated(shares_TK, ids_TK, swapped)
        interleaved = _experts(scene, spec, torch.cat([rows_I[::2], rows_I[1::2]]))
        yield "gate and up rows are read in turn; they are halves", gated(shares_TK, ids_TK, interleaved)
    if spec.expert_bias:
        plain = _experts(scene, spec, biases=False)
        yield "the experts' biases are left out", gated(shares_TK, ids_TK, plain)
        assert scene.weights.down_bias is not None
        no_down_bias = _experts(scene, spec) - scene.weights.down_bias.double()
        bias_TKD = scene.weights.down_bias.double()[ids_TK] * scene.routing.kept.unsqueeze(-1)
        yield (
            "the down projection's bias is added after weighting",
            (gated(shares_TK, ids_TK, no_down_bias) + bias_TKD.sum(1)),
        )
    for other in ("silu", "gelu", "relu", "swiglu", "geglu"):
        other_spec = replace(spec, activation=other)
        if other != spec.activation and other_spec.gated == spec.gated:
            wrong = _experts(scene, other_spec)
            yield f"it computes the activation {other}, not {spec.activation}", gated(shares_TK, ids_TK, wrong)


def _experts(scene: Scene, spec: LayerSpec, rows_I: Tensor | None = None, *, biases: bool = True) -> Tensor:
    """Every expert on every token: (T, E, D)."""
    weights = scene.weights
    outputs = []
    for e in range(spec.num_experts):
        into, down = weights.in_proj[e].detach().double(), weights.down_proj[e].detach().double()
        in_bias = weights.in_bias[e].detach().double() if biases and weights.in_bias is not None else None
        down_bias = weights.down_bias[e].detach().double() if biases and weights.down_bias is not None else None
        if rows_I is not None:
            into, in_bias = into[rows_I], None if in_bias is None else in_bias[rows_I]
        outputs.append(feed_forward(spec, scene.x_TD, into, down, in_bias, down_bias))
    return torch.stack(outputs, dim=1)


def _combine(shares_TK: Tensor, ids_TK: Tensor, y_TED: Tensor) -> Tensor:
    index_TKD = ids_TK.unsqueeze(-1).expand(-1, -1, y_TED.shape[-1])
    return (shares_TK.unsqueeze(-1) * y_TED.gather(1, index_TKD)).sum(1)


def _kept_in_token_order(ids_TK: Tensor, capacity: int) -> Tensor:
    """Which assignments have room where a token's choices all come before the next token's."""
    one_hot_NE = torch.nn.functional.one_hot(ids_TK.reshape(-1))
    places_N = (one_hot_NE.cumsum(0) - 1).gather(1, ids_TK.reshape(-1, 1)).squeeze(1)
    return (places_N < capacity).view_as(ids_TK)
