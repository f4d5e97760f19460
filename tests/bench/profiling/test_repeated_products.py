"""Products that are repeated in the cache: every one of a call, none twice, and nothing of the call is changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled_layers import SPEC, layer_step, make_step

from bench.measure.pages import PageCost
from bench.profiling.costs import product_flops
from bench.profiling.measure import count, profile_step
from bench.profiling.replay import Repeated, Replay, doubled, nearby
from impls import build

LARGE = 10**9
aten = torch.ops.aten


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("name", ["loop", "grouped", "einsum", "scatter_gather", "batched"])
def test_every_product_of_a_call_is_timed_once_a_shape(name: str, train: bool) -> None:
    step = layer_step(name, train=train)
    products = {(entry.name, entry.shapes) for entry in count(step).ledger.entries if entry.flops}
    replay = Replay(LARGE, None)
    with replay:
        step()
    assert replay.found.keys() == products
    assert all(0 <= one.follows_s <= one.near_s for one in replay.found.values())
    assert sum(one.near_s for one in replay.found.values()) > 0


def test_what_is_repeated_changes_nothing() -> None:
    layer = build("loop", SPEC, direction="train", seed=0)
    found = []
    for mode in (Replay(LARGE, None), Replay(64, None), None):
        x = torch.ones(6, SPEC.d_model, requires_grad=True)
        layer.zero_grad()
        if mode is None:
            layer(x).sum().backward()
        else:
            with mode:
                layer(x).sum().backward()
        found.append([leaf.grad for leaf in (x, *layer.parameters()) if leaf.grad is not None])
    assert len(found[2]) == 1 + len(list(layer.parameters()))
    for replayed in found[:2]:
        assert all(torch.equal(one, plain) for one, plain in zip(replayed, found[2], strict=True))


def test_pages_that_a_repetition_touches_first_are_not_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_DF = torch.randn(SPEC.d_model, 8)
    faults = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("bench.measure.pages.num_faults", lambda: next(faults))
    replay = Replay(LARGE, PageCost(touch_s=1.0, return_s=0.0))
    with replay:
        make_step(lambda x: x @ weight_DF, [], train=False)()
    assert list(replay.found.values()) == [Repeated(0.0, 0.0)]


def test_rows_of_a_profile_bear_the_time_of_all_their_repetitions() -> None:
    profile = profile_step(layer_step("loop", train=True), {}, 0.01).profile
    assert all((row.near_s is not None) == bool(row.flops) for row in profile.operators)
    assert profile.events > sum(row.events for row in profile.operators) > 0


def _result(name: str, args: list[Any]) -> torch.Tensor:
    result: torch.Tensor = getattr(aten, name)(*args)
    return result


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["mm", "addmm"]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(8, 200),
    st.booleans(),
)  # fmt: skip
def test_a_matrix_that_is_cut_gives_a_part_of_the_product(
    name: str, rows: int, inner: int, columns: int, fits_bytes: int, spread: bool
) -> None:
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    added = torch.randn(columns) if spread else torch.randn(rows, columns)
    args = [left, right] if name == "mm" else [added, left, right]
    if name == "addmm" and (added.numel() * 4 > fits_bytes):
        return  # what is added is no factor
    near = nearby(f"aten::{name}", args, fits_bytes)
    assert near is not None
    part, whole = _result(name, near[0]), _result(name, args)
    torch.testing.assert_close(part, whole[: part.shape[0], : part.shape[1]])
    assert near[1] == pytest.approx(whole.numel() / part.numel())


@pytest.mark.parametrize("fits_bytes", [4 * 3 * 8 * 4, 100], ids=["matrix fits", "matrix is cut"])
def test_of_a_stack_the_first_matrix_stands_for_all(fits_bytes: int) -> None:
    """Where even one matrix is too large it is cut, with its time in proportion: else it would come from memory."""
    x_END, weights_EDF = torch.randn(4, 3, 8), torch.randn(4, 8, 64)
    near = nearby("aten::bmm", [x_END, weights_EDF], max(fits_bytes, 4 * 3 * 8 * 4))
    assert near is not None
    (same, repeated), factor = near
    assert same is x_END
    assert repeated.stride(0) == 0
    assert repeated[0].numel() * 4 <= max(fits_bytes, 4 * 3 * 8 * 4)
    torch.testing.assert_close(_result("bmm", [same, repeated]), x_END @ weights_EDF[0, :, : repeated.shape[2]])
    assert factor == pytest.approx(64 / repeated.shape[2])


def test_grouped_weights_are_cut_where_one_experts_are_too_large() -> None:
    x_ND, weights_EDF = torch.randn(8, 16), torch.randn(4, 16, 64)
    ends = torch.tensor([2, 4, 6, 8], dtype=torch.int32)
    near = nearby("aten::_grouped_mm", [x_ND, weights_EDF, ends], 8 * 16 * 4)
    assert near is not None
    (x, repeated, _), factor = near
    assert (x is x_ND, repeated.shape, factor) == (True, (4, 16, 8), 8)


def test_an_operator_that_is_not_known_well_is_repeated_only_where_all_of_it_fits() -> None:
    matrix, vector = torch.randn(16, 8), torch.randn(8)
    assert nearby("aten::mv", [matrix, vector], 64) is None
    assert nearby("aten::mv", [matrix, vector], LARGE) is not None
    assert nearby("aten::_grouped_mm", [torch.randn(64, 16), torch.randn(1, 16, 4)], 1024) is None


def test_a_kernel_that_refuses_to_be_repeated_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise RuntimeError("strides must be multiples of 16 bytes")

    monkeypatch.setattr(Replay, "_time", refuse)
    replay = Replay(LARGE, None)
    weight_DF = torch.randn(SPEC.d_model, 8)
    with replay:
        make_step(lambda x: x @ weight_DF, [], train=False)()
    assert replay.found == {}


def test_what_fits_stays_as_it_is_and_what_cannot_be_made_smaller_is_not_repeated() -> None:
    left, right, added = torch.randn(2, 3), torch.randn(3, 2), torch.randn(2, 2)
    near = nearby("aten::addmm", [added, left, right], 24)
    assert near is not None
    assert all(one is other for one, other in zip(near[0], (added, left, right), strict=True))
    assert nearby("aten::addmm", [torch.randn(64, 64), left, right], 24) is None


PRODUCTS: dict[str, Callable[..., list[torch.Tensor]]] = {
    "mm": lambda m, k, n: [torch.randn(m, k), torch.randn(k, n)],
    "mm of a transposed weight": lambda m, k, n: [torch.randn(m, k), torch.randn(n, k).t()],
    "mm of a gradient": lambda m, k, n: [torch.randn(k, m).t(), torch.randn(k, n)],
    "addmm": lambda m, k, n: [torch.randn(n), torch.randn(m, k), torch.randn(k, n)],
    "addmm of all": lambda m, k, n: [torch.randn(m, n), torch.randn(m, k), torch.randn(k, n)],
    "bmm": lambda m, k, n: [torch.randn(3, m, k), torch.randn(3, k, n)],
    "bmm of one": lambda m, k, n: [torch.randn(3, m, k), torch.randn(k, n).expand(3, -1, -1)],
    "baddbmm": lambda m, k, n: [torch.randn(3, 1, n), torch.randn(3, m, k), torch.randn(3, k, n)],
    "mv": lambda m, k, _: [torch.randn(m, k), torch.randn(k)],
    "dot": lambda _, k, __: [torch.randn(k), torch.randn(k)],
}


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(sorted(PRODUCTS)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_twice_the_arithmetic_is_the_same_product_with_one_side_twice(kind: str, m: int, k: int, n: int) -> None:
    name = kind.split()[0]
    args = PRODUCTS[kind](m, k, n)
    twice = doubled(f"aten::{name}", args)
    whole, more = _result(name, args), _result(name, twice)
    flops, more_flops = (product_flops(f"aten::{name}", a, r) for a, r in ((args, whole), (twice, more)))
    assert more_flops == 2 * (flops or 0) > 0
    if more.shape != whole.shape:  # rows or columns: each half is the product
        side = next(i for i in range(whole.dim()) if whole.shape[i] != more.shape[i])
        for half in more.chunk(2, side):
            torch.testing.assert_close(half, whole)
    strides = [(one.stride(-1) == 1) == (other.stride(-1) == 1) for one, other in zip(args, twice, strict=True)
               if min(one.shape[-2:]) > 1]  # fmt: skip
    assert all(strides), "what was transposed stays so"
    if kind == "bmm of one":
        assert twice[1].stride(0) == 0


@pytest.mark.parametrize("kind", ["forward", "gradient of weights"])
def test_every_group_has_twice_the_rows(kind: str) -> None:
    ends = torch.tensor([2, 4, 4, 8], dtype=torch.int32)
    args = (
        [torch.randn(8, 16), torch.randn(4, 16, 8), ends]
        if kind == "forward"
        else [torch.randn(8, 16).t(), torch.randn(8, 8), ends]
    )
    twice = doubled("aten::_grouped_mm", args)
    whole, more = _result("_grouped_mm", args), _result("_grouped_mm", twice)
    flops = [product_flops("aten::_grouped_mm", a, r) for a, r in ((args, whole), (twice, more))]
    assert flops[1] == 2 * (flops[0] or 0) > 0
