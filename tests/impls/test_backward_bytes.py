"""No implementation's backward is quadratic in the number of experts, counted in bytes that operators allocate.

Indexing a stacked parameter, `w[e]`, gives a gradient as large as all experts, for every expert.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_testing import BASELINES, EXACT, make_spec, make_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from impls import MoELayer, Routing, build
from impls.ffn import feed_forward
from impls.weights import make_weights

NUM_TOKENS = 8


class AllocatedBytes(TorchDispatchMode):
    """Sums the storage of every operator's results that are not views of its arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        results = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tree_leaves(results)
            if isinstance(t, Tensor)
        }
        self.total += sum(size for pointer, size in made.items() if pointer not in given)
        return results


class IndexingLoop(MoELayer):
    """The trap itself."""

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for e in range(self.spec.num_experts):
            token_n, choice_n = (routing.expert_ids == e).nonzero(as_tuple=True)
            rows = feed_forward(self.spec, x_TD[token_n], self.weights.in_proj[e], self.weights.down_proj[e])
            y_TD = y_TD.index_add(0, token_n, rows * routing.weights[token_n, choice_n].unsqueeze(1))
        return y_TD


def bytes_of_a_step(name: str, num_experts: int) -> int:
    spec = make_spec(num_experts=num_experts, top_k=1, capacity_factor=None)
    if name == "indexing":
        layer: MoELayer = IndexingLoop(spec, make_weights(spec))
    else:
        layer = build(name, spec, direction="train")
    x_TD = make_tokens(NUM_TOKENS, 32).requires_grad_()
    routing = layer.route(x_TD, torch.arange(NUM_TOKENS).unsqueeze(1) % num_experts)
    allocated = AllocatedBytes()
    with allocated:
        layer(x_TD, routing=routing).backward(torch.ones(NUM_TOKENS, 32))
    return allocated.total


def growth(name: str) -> float:
    """How much more the second doubling of the experts costs than the first: 2 where linear, 4 where quadratic."""
    small, middle, large = (bytes_of_a_step(name, n) for n in (16, 32, 64))
    return (large - middle) / (middle - small)


@pytest.mark.parametrize("name", [name for name in (*EXACT, *BASELINES) if name != "loop_indexed"])
def test_a_training_step_is_linear_in_the_number_of_experts(name: str) -> None:
    if name == "dense":  # takes top_k experts, whatever their number
        assert bytes_of_a_step(name, 64) - bytes_of_a_step(name, 32) <= 64 * 2 * 16 * 32 * 4 * 2
    else:
        assert growth(name) < 2.2


@pytest.mark.parametrize("name", ["indexing", "loop_indexed"])
def test_the_trap_is_seen(name: str) -> None:
    assert growth(name) > 3.3
