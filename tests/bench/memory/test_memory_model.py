from __future__ import annotations

from typing import Any

import pytest

from bench.cases import Workload
from bench.memory import PARTS, MemoryModel, memory_of_call
from bench.memory.walks import BASELINES, ROUTED
from impls.registry import ENTRIES
from impls.spec import LayerSpec


def workload(num_tokens: int, direction: str, dtype: str = "float32", **layer: Any) -> Workload:
    return Workload.model_validate(
        {"layer": LayerSpec(**layer), "num_tokens": num_tokens, "direction": direction, "dtype": dtype}
    )


def model_of(impl: str, w: Workload, loads: list[int] | None) -> MemoryModel:
    model = memory_of_call(impl, w, loads)
    assert isinstance(model, MemoryModel), model
    return model


def test_every_implementation_of_ours_has_a_walk() -> None:
    ours = {name: entry.semantics for name, entry in ENTRIES.items() if entry.package is None}
    assert ours.keys() == ROUTED.keys() | BASELINES.keys()
    assert ROUTED.keys() == {name for name, semantics in ours.items() if semantics == "moe"}


@pytest.mark.parametrize("impl", [*(name for name, entry in ENTRIES.items() if entry.package), "somebody.py:Else"])
def test_without_a_model_there_is_a_reason_that_names_whose_code_it_is(impl: str) -> None:
    w = workload(4, "forward", d_model=8, d_ff=8, num_experts=2, top_k=2)
    reason = memory_of_call(impl, w, [4, 4])
    assert isinstance(reason, str)
    assert reason.startswith("no_model: ")
    entry = ENTRIES.get(impl)
    assert (entry.package.name if entry is not None and entry.package is not None else impl) in reason


def test_by_hand_dense_forward() -> None:
    T, D, F, K = 10, 8, 6, 2
    w = workload(T, "forward", d_model=D, d_ff=F, num_experts=4, top_k=K, activation="swiglu")
    model = model_of("dense", w, None)
    # gate and up side by side, the activated gate, their product: 2 + 1 + 1 times (T, K * F)
    assert model.peak_bytes == 4 * 4 * T * K * F
    assert model.parts == dict.fromkeys(PARTS, 0) | {"activations": 4 * 4 * T * K * F}
    assert model.input_bytes == 4 * T * D


def test_by_hand_dense_train() -> None:
    T, D, F, E = 10, 8, 6, 4
    w = workload(T, "train", d_model=D, d_ff=F, num_experts=E, top_k=1, activation="relu")
    model = model_of("dense", w, None)
    # at the last step: the output, gradients of both projections and of the tokens, and the gradient of one expert,
    # which is about to be gone when it has been put into that of all
    gradients = 2 * E * F * D + T * D
    assert model.peak_bytes == 4 * (T * D + gradients + F * D)
    assert model.parts["gradients"] == 4 * gradients
    assert model.parts["workspace"] == 4 * F * D
    assert model.parts["output"] == 4 * T * D


def test_by_hand_batched_holds_gathered_weights_and_their_gradients_at_once() -> None:
    T, D, F, K, E = 5, 16, 32, 2, 4
    w = workload(T, "train", d_model=D, d_ff=F, num_experts=E, top_k=K, activation="swiglu")
    model = model_of("batched", w, [5, 0, 2, 3])
    gathered_in, gathered_down = 4 * T * K * 2 * F * D, 4 * T * K * F * D
    # the down projections' copies are gone, their gradient waits to be summed by expert
    assert model.parts["dispatched"] == gathered_in + 4 * T * K * D
    assert model.parts["workspace"] == gathered_down + gathered_in + 4 * T * K * (2 * F + D) + 4 * T * K


def test_by_hand_the_indexed_loop_holds_three_stacks_at_once() -> None:
    T, D, F, E = 4, 32, 64, 8
    w = workload(T, "train", d_model=D, d_ff=F, num_experts=E, top_k=1, activation="relu")
    model = model_of("loop_indexed", w, [1, 1, 1, 1, 0, 0, 0, 0])
    stack = 4 * E * F * D
    # the sums so far of both projections, and the next expert's zeros with its own gradient, which are added to one
    assert 3 * stack < model.parts["workspace"] + model.parts["gradients"] < 3.5 * stack


def test_by_hand_dropless_buffers_are_as_large_as_the_fullest_expert() -> None:
    layer: dict[str, Any] = {"d_model": 8, "d_ff": 16, "num_experts": 4, "top_k": 1, "activation": "relu"}
    even, skewed = (
        model_of("scatter_gather", workload(40, "forward", **layer), loads) for loads in ([10] * 4, [40, 0, 0, 0])
    )
    hidden, buffer = 4 * 4 * 16, 4 * 4 * 8  # bytes a slot of all four experts
    # the buffer with the row that takes what is dropped, and the projected and the activated rows
    routing = even.peak_bytes - (10 * (2 * hidden + buffer) + 4 * 8)
    # logits, ids, weights, what is kept, places, and rows: of every assignment
    assert routing == 40 * (4 * 4 + 8 + 4 + 1 + 8 + 8)
    assert skewed.peak_bytes - routing == 40 * (2 * hidden + buffer) + 4 * 8


@pytest.mark.parametrize("impl", [*ROUTED, *BASELINES])
def test_a_longer_batch_never_needs_less(impl: str) -> None:
    layer: dict[str, Any] = {"d_model": 8, "d_ff": 16, "num_experts": 4, "top_k": 1}
    layer["router"] = "expert_choice" if impl == "expert_choice" else "softmax_topk"
    for direction in ("forward", "train"):
        short, long = (model_of(impl, workload(4 * n, direction, **layer), [n] * 4) for n in (2, 20))
        assert short.peak_bytes < long.peak_bytes
