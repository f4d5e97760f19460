"""Laws of routers: parts of a batch, renamed experts, shifted logits, and slopes in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_testing import make_tokens
from router_specs import ROUTED

from impls import LayerSpec
from impls.routers import TABLE
from impls.routing import route
from impls.weights import make_weights

DRAWS_BY_POSITION = {"noisy_topk", "gshard"}
DROPLESS = {label: spec for label, spec in ROUTED.items() if spec.capacity_factor is None}


@pytest.mark.parametrize(
    "label", [n for n, spec in DROPLESS.items() if spec.router not in {"expert_choice", *DRAWS_BY_POSITION}]
)
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_splitting_a_batch_splits_the_routing(label: str, cut: int) -> None:
    spec, x_TD = DROPLESS[label], make_tokens(12, 32)
    weights = make_weights(spec)
    whole, parts = route(spec, weights, x_TD), [route(spec, weights, x) for x in (x_TD[:cut], x_TD[cut:])]
    assert torch.equal(torch.cat([part.expert_ids for part in parts]), whole.expert_ids)
    torch.testing.assert_close(torch.cat([part.weights for part in parts]), whole.weights)


@pytest.mark.parametrize("label", [n for n, spec in ROUTED.items() if spec.router not in {"hash", "noisy_topk"}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_renaming_the_experts_renames_the_choice(label: str, seed: int) -> None:
    """Groups are renamed as wholes, and their members within them."""
    spec, x_TD = ROUTED[label], make_tokens(12, 32, seed=seed)
    weights = make_weights(spec, seed=seed)
    before = route(spec, weights, x_TD)
    generator = torch.Generator().manual_seed(seed)
    size = spec.num_experts // spec.num_expert_groups
    groups = torch.randperm(spec.num_expert_groups, generator=generator).tolist()
    old_E = torch.cat([group * size + torch.randperm(size, generator=generator) for group in groups])
    with torch.no_grad():
        for name, parameter in weights.named_parameters():
            if name.startswith("router_"):
                parameter.copy_(parameter[old_E])
    after = route(spec, weights, x_TD)
    torch.testing.assert_close(by_old_expert(after, old_E), by_old_expert(before, torch.arange(spec.num_experts)))


def by_old_expert(routing: Any, old_E: torch.Tensor) -> torch.Tensor:
    """What every token gives every expert, under the experts' first names, nothing where it is dropped: (T, E)."""
    kept_TK = routing.weights.detach() * routing.kept
    return torch.zeros(kept_TK.shape[0], len(old_E)).scatter(1, old_E[routing.expert_ids], kept_TK)


@pytest.mark.parametrize(
    "label", [n for n, spec in ROUTED.items() if spec.router_bias and not n.startswith(("sigmoid", "sparse"))]
)
def test_a_constant_on_all_logits_changes_nothing_under_softmax(label: str) -> None:
    spec, x_TD = ROUTED[label], make_tokens(12, 32)
    weights = make_weights(spec)
    before = route(spec, weights, x_TD)
    assert weights.router_bias is not None
    with torch.no_grad():
        weights.router_bias.add_(1.5)
    after = route(spec, weights, x_TD)
    assert torch.equal(after.expert_ids, before.expert_ids)
    torch.testing.assert_close(after.weights, before.weights)


@pytest.mark.parametrize("label", [n for n, spec in ROUTED.items() if spec.router != "hash"])
def test_weights_of_the_chosen_have_the_slopes_of_finite_differences(label: str) -> None:
    spec: LayerSpec = ROUTED[label]
    weights, x_TD = make_weights(spec), make_tokens(5, 32)
    router = TABLE[spec.router]
    logits_TE = router.scores(spec, weights, x_TD).logits.detach().double().requires_grad_()
    ids_TK = router.choose(spec, weights, x_TD, logits_TE.detach())
    assert torch.autograd.gradcheck(lambda logits: router.weigh(spec, logits, ids_TK), logits_TE)


def test_a_hash_weighs_without_a_slope() -> None:
    spec = ROUTED["hash"]
    logits_TE = torch.randn(3, spec.num_experts, requires_grad=True)
    assert not TABLE["hash"].weigh(spec, logits_TE, torch.zeros(3, spec.top_k, dtype=torch.int64)).requires_grad
