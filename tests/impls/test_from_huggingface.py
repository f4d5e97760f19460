"""A transformers block and the layer read from it return the same, with the same gradients, for every known family."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed (dependency group `peers`)")

from huggingface_blocks import BLOCKS
from layer_testing import relative_error

from impls import build, from_huggingface
from impls.huggingface.families import FAMILIES
from impls.huggingface.tensors import UnknownBlock

TOLERANCE = 1e-5
SHARED_STORAGE = ("mixtral", "qwen3_moe", "deepseek_v3", "phimoe", "olmoe", "jamba", "granitemoe", "llama4_text")
NO_BLOCK_HERE = {"kimi_k2", "granitemoehybrid"}  # the first is deepseek_v3's block, the second granitemoeshared's


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging: Any = importlib.import_module("transformers.utils.logging")

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def output_of(block: nn.Module, x: Tensor) -> Tensor:
    found = block(x)
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return tensor.reshape(x.shape)


@pytest.mark.parametrize("name", BLOCKS)
def test_our_layers_return_what_the_block_returns(name: str) -> None:
    block, config = BLOCKS[name].make()
    spec, weights = from_huggingface(block, config)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 48, spec.d_model, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    theirs_in = x.clone().requires_grad_()
    theirs = output_of(block, theirs_in)
    torch.autograd.backward(theirs, grad)
    assert theirs_in.grad is not None
    for impl in ("loop", "grouped"):
        ours_in = x.clone().requires_grad_()
        ours = build(impl, spec, weights=weights)(ours_in)
        ours.backward(grad)
        assert ours_in.grad is not None
        assert relative_error(ours.detach(), theirs.detach()) < TOLERANCE, impl
        assert relative_error(ours_in.grad, theirs_in.grad) < TOLERANCE, impl


def test_every_family_has_a_block() -> None:
    assert {name.partition(",")[0] for name in BLOCKS} | NO_BLOCK_HERE == set(FAMILIES)


@pytest.mark.parametrize("name", SHARED_STORAGE)
def test_weights_are_the_blocks_own_where_the_layout_allows(name: str) -> None:
    block, config = BLOCKS[name].make()
    _, weights = from_huggingface(block, config)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in block.parameters()}
    assert weights.in_proj.untyped_storage().data_ptr() in theirs
    assert weights.down_proj.untyped_storage().data_ptr() in theirs
    assert weights.router_weight.untyped_storage().data_ptr() in theirs


def test_an_unknown_family_is_taken_where_the_outputs_agree() -> None:
    block, config = BLOCKS["qwen3_moe, renormalised"].make()
    renamed = config.to_dict() | {"model_type": "something_new"}
    spec, weights = from_huggingface(block, renamed)
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
    assert relative_error(build("loop", spec, weights=weights)(x).detach(), output_of(block, x).detach()) < TOLERANCE


def test_an_unknown_family_is_refused_where_they_do_not() -> None:
    block, config = BLOCKS["deepseek_v2"].make()
    with pytest.raises(UnknownBlock, match=r"computes something else .* relative error .* model_type something_new"):
        from_huggingface(block, {**config.to_dict(), "model_type": "something_new", "norm_topk_prob": None})


def _without_experts(block: Any) -> None:
    del block.experts


def _without_router(block: Any) -> None:
    del block.gate


def _other_activation(block: Any) -> None:
    block.experts.act_fn = nn.Tanh()


def _other_experts(block: Any) -> None:
    block.experts = nn.Sequential(nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_experts, r"has not experts: looked for experts; it has gate"),
        (_without_router, r"has not a router: looked for gate, router; it has experts"),
        (_other_activation, r"activates with Tanh, which is not swiglu"),
        (_other_experts, r"has not the experts' projections: looked for gate_up_proj"),
    ],
)
def test_a_block_that_is_not_understood_is_refused_with_what_was_found(spoil: Any, message: str) -> None:
    block, config = BLOCKS["mixtral"].make()
    spoil(block)
    with pytest.raises(UnknownBlock, match=message):
        from_huggingface(block, config)


def test_experts_kept_as_one_module_each_are_stacked() -> None:
    block, config = BLOCKS["mixtral"].make()
    truth = output_of(block, x := torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3)))
    experts = nn.ModuleList()
    stacked: Any = block.experts
    for gate_up, down in zip(stacked.gate_up_proj, stacked.down_proj, strict=True):
        expert = nn.Module()
        for name, weight in zip(("w1", "w3", "w2"), (*gate_up.chunk(2), down), strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data.copy_(weight.data)
            setattr(expert, name, linear)
        experts.append(expert)
    block.experts = experts
    spec, weights = from_huggingface(block, config)
    assert relative_error(build("loop", spec, weights=weights)(x).detach(), truth.detach()) < TOLERANCE
