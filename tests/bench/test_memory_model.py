from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cases import Workload
from bench.inputs import DTYPES
from bench.measure.memory import cpu_allocator_peak_bytes
from bench.memory_model import PARTS, Ledger, MemoryModel
from bench.memory_walks import WALKS, memory_of_call
from impls.factory import build
from impls.layer import MoELayer
from impls.spec import LayerSpec

LAYERS = st.fixed_dictionaries(
    {
        "d_model": st.sampled_from([32, 64, 128]),
        "d_ff": st.sampled_from([32, 96, 160]),
        "num_experts": st.sampled_from([2, 5, 8]),
        "top_k": st.integers(1, 2),
        "capacity_factor": st.sampled_from([None, 0.5, 1.25]),
        "activation": st.sampled_from(["relu", "gelu", "silu", "swiglu", "geglu"]),
        "num_shared_experts": st.integers(0, 2),
    }
)
MARGIN, ASSIGNMENT_BYTES, EXPERT_BYTES = 0.03, 56, 64
"""The model leaves out short-lived index vectors: a few bytes an assignment or an expert; 3 % is for the order of
steps that end at the same moment."""


def workload(num_tokens: int, direction: str, dtype: str = "float32", **layer: Any) -> Workload:
    return Workload.model_validate(
        {"layer": LayerSpec(**layer), "num_tokens": num_tokens, "direction": direction, "dtype": dtype}
    )


def measured_and_model(impl: str, w: Workload) -> tuple[int, MemoryModel]:
    train, dtype = w.direction == "train", DTYPES[w.dtype]
    layer: MoELayer = build(impl, w.layer, device="cpu", dtype=dtype, direction=w.direction, seed=0)
    generator = torch.Generator().manual_seed(1)
    x_TD, gradient_TD = (torch.randn(w.num_tokens, w.layer.d_model, generator=generator).to(dtype) for _ in range(2))
    x_TD.requires_grad_(train)

    def call() -> torch.Tensor:
        with torch.inference_mode(not train):
            y_TD: torch.Tensor = layer(x_TD)
        if train:
            torch.autograd.backward(y_TD, gradient_TD)
        return y_TD

    loads = None
    if layer.routes:
        with torch.no_grad():
            routing = layer.route(x_TD)
        loads = torch.bincount(routing.expert_ids[routing.kept], minlength=w.layer.num_experts).tolist()
    model = memory_of_call(impl, w, loads)
    assert isinstance(model, MemoryModel), model
    return cpu_allocator_peak_bytes(call), model


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("impl", WALKS)
@settings(deadline=None, max_examples=8)
@given(layer=LAYERS, num_tokens=st.sampled_from([16, 100, 300]))
def test_measured_peak_is_the_models(impl: str, direction: str, layer: dict[str, Any], num_tokens: int) -> None:
    w = workload(num_tokens, direction, **layer)
    measured_bytes, model = measured_and_model(impl, w)
    left_out = ASSIGNMENT_BYTES * num_tokens * layer["top_k"] + EXPERT_BYTES * layer["num_experts"]
    assert abs(measured_bytes - model.peak_bytes) <= MARGIN * model.peak_bytes + left_out
    assert sum(model.parts.values()) == model.peak_bytes
    assert model.parts.keys() == set(PARTS)


def test_by_hand_dense_forward() -> None:
    T, D, F, K = 10, 8, 6, 2
    w = workload(T, "forward", d_model=D, d_ff=F, num_experts=4, top_k=K, activation="swiglu")
    model = memory_of_call("dense", w, None)
    assert isinstance(model, MemoryModel)
    # gate and up side by side, the activated gate, their product: 2 + 1 + 1 times (T, K * F)
    assert model.peak_bytes == 4 * 4 * T * K * F
    assert model.parts == dict.fromkeys(PARTS, 0) | {"activations": 4 * 4 * T * K * F}
    assert model.input_bytes == 4 * T * D


def test_by_hand_dropless_buffers_are_as_large_as_the_fullest_expert() -> None:
    layer: dict[str, Any] = {"d_model": 8, "d_ff": 16, "num_experts": 4, "top_k": 1, "activation": "relu"}
    even, skewed = (
        memory_of_call("scatter_gather", workload(40, "forward", **layer), loads)
        for loads in ([10, 10, 10, 10], [40, 0, 0, 0])
    )
    assert isinstance(even, MemoryModel)
    assert isinstance(skewed, MemoryModel)
    hidden, buffer = 4 * 4 * 16, 4 * 4 * 8  # bytes a slot of all four experts
    routing = 40 * (4 * 4 + 8 + 4 + 1 + 16)
    # the buffer with the row that takes what is dropped, the projected and the activated rows, or the latter's output
    assert even.peak_bytes == routing + 10 * (2 * hidden + buffer) + 4 * 8
    assert skewed.peak_bytes == routing + 40 * (2 * hidden + buffer) + 4 * 8


def test_half_precision_on_a_cpu_takes_library_scratch_on_top() -> None:
    layer: dict[str, Any] = {"d_model": 64, "d_ff": 96, "num_experts": 4, "top_k": 2}
    for direction in ("forward", "train"):
        measured_bytes, model = measured_and_model("loop", workload(100, direction, "bfloat16", **layer))
        assert model.peak_bytes <= 1.03 * measured_bytes


@pytest.mark.parametrize(
    ("impl", "layer", "word"),
    [
        ("somebody.py:Else", {}, "somebody"),
        ("loop", {"activation": "swiglu_clamped"}, "swiglu_clamped"),
        ("loop", {"num_shared_experts": 1, "shared_gate": True}, "gate"),
        ("loop", {"router": "expert_choice", "capacity_factor": 1.0}, "expert_choice"),
    ],
)
def test_without_a_model_there_is_a_reason(impl: str, layer: dict[str, Any], word: str) -> None:
    w = workload(4, "forward", **{"d_model": 8, "d_ff": 8, "num_experts": 2, "top_k": 1, **layer})
    reason = memory_of_call(impl, w, [2, 2])
    assert isinstance(reason, str)
    assert reason.startswith("no_model: ")
    assert word in reason


def test_a_ledger_remembers_its_worst_moment() -> None:
    ledger = Ledger()
    ledger.take("output", 3)
    ledger.take("workspace", 5)
    ledger.free("workspace", 5)
    ledger.take("gradients", 4)
    assert ledger.peak_bytes == 8
    assert ledger.at_peak == dict.fromkeys(PARTS, 0) | {"output": 3, "workspace": 5}
    with pytest.raises(AssertionError, match="more output freed"):
        ledger.free("output", 4)
