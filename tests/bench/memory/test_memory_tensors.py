from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.memory.account import PARTS, Account
from bench.memory.backward import propagate, require_gradient
from bench.memory.operators import add, mul, relu
from bench.memory.tensors import FLOAT, existing, fresh, strides_as
from bench.memory.views import permute, reshape, unsqueeze


def account(*, differentiates: bool = False) -> Account:
    return Account(differentiates=differentiates, num_threads=1)


def test_an_account_remembers_its_worst_moment() -> None:
    call = account()
    call.take(3, "output")
    scratch = call.take(5, "workspace")
    call.give_back(scratch)
    late = call.take(4, "workspace")
    assert call.peak_bytes == 8
    assert call.parts_at_peak() == dict.fromkeys(PARTS, 0) | {"output": 3, "workspace": 5}
    call.give_back(late)
    with pytest.raises(AssertionError, match="given back twice"):
        call.give_back(late)


def test_memory_goes_with_the_last_tensor_on_it() -> None:
    call = account()
    x = fresh(call, (4, 2), FLOAT)
    view = reshape(x, 8)
    del x
    y = fresh(call, (1,), FLOAT)
    assert call.peak_bytes == 36
    del view, y
    z = fresh(call, (9,), FLOAT)
    assert call.peak_bytes == 36, "what was given back is free again"
    del z


def test_a_tensor_without_elements_has_no_memory() -> None:
    call = account()
    x = fresh(call, (0, 5), FLOAT)
    assert call.peak_bytes == 0
    assert x.numel == 0


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.randoms(use_true_random=False),
)
def test_a_view_is_possible_where_torch_says_so(sizes: list[int], seed: random.Random) -> None:
    order = list(range(len(sizes)))
    seed.shuffle(order)
    theirs = torch.zeros(sizes).permute(order)
    ours = permute(existing(account(), tuple(sizes), FLOAT), order)
    assert ours.strides == theirs.stride()
    cut = seed.randint(0, len(order))
    shape = (torch.Size(theirs.shape[:cut]).numel(), torch.Size(theirs.shape[cut:]).numel())
    try:
        expected = theirs.view(shape).stride()
    except RuntimeError:
        assert strides_as(ours, shape) is None
    else:
        found = strides_as(ours, shape)
        assert found is not None
        assert all(a == b or n == 1 for a, b, n in zip(found, expected, shape, strict=True))


def test_gradients_of_one_tensor_are_summed_in_place_unless_the_first_is_a_view() -> None:
    peaks = []
    for viewed in (False, True):
        call = account(differentiates=True)
        x = existing(call, (100,), FLOAT)
        leaf = require_gradient(x)
        same = reshape(x, 100)
        first = relu(same)
        last = reshape(relu(unsqueeze(same, 0)), 100) if viewed else relu(same)
        y = add(first, last)
        call.part = "workspace"
        propagate(y, existing(call, (100,), FLOAT))
        assert leaf.gradient is not None
        assert call.parts_at_peak()["gradients"] <= 400
        peaks.append(call.peak_bytes)
    # y, both results, the first gradient, the second; and where that cannot take the sum, the sum
    assert peaks == [5 * 400, 6 * 400]


def test_what_a_step_kept_goes_when_it_has_run() -> None:
    call = account(differentiates=True)
    a, b = (existing(call, (100,), FLOAT) for _ in range(2))
    leaves = [require_gradient(a), require_gradient(b)]
    product = mul(mul(a, b), mul(a, b))  # two products, kept for each other, and the result
    assert call.peak_bytes == 3 * 400
    propagate(product, existing(call, (100,), FLOAT))
    assert [leaf.gradient.shape for leaf in leaves if leaf.gradient] == [(100,), (100,)]
    # the result, the gradients that wait in both leaves, and at the last step its own gradient and its two results;
    # the two products went after the first step
    assert call.peak_bytes == 6 * 400


def test_parts_are_known_of_all_stages() -> None:
    call = account()
    tensors = []
    for part, size in zip(PARTS, itertools.count(1), strict=False):
        with call.stage(part):
            tensors.append(fresh(call, (size,), FLOAT))
    assert call.parts_at_peak() == {part: 4 * size for part, size in zip(PARTS, itertools.count(1), strict=False)}
    assert len(tensors) == len(PARTS)
