"""The analytic peak against the allocator's, to the byte, for every implementation of this project."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd.profiler import profile

from bench.cases import Workload
from bench.inputs import DTYPES
from bench.measure.memory import cpu_allocator_peak_bytes
from bench.memory import MemoryModel, memory_of_call
from bench.memory.walks import BASELINES, ROUTED
from impls.factory import build
from impls.layer import Unsupported
from impls.routing import Routing
from impls.spec import ACTIVATIONS, FIXED_TOP_K, ROUTERS, SELECTING_ROUTERS, LayerSpec

NUM_CASES = 20
WRITTEN_FOR = "2.13."
PRODUCTS = frozenset({"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"})

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(WRITTEN_FOR) or platform.machine() != "x86_64",
    reason=f"what operators keep and take is written down for torch {WRITTEN_FOR}x on x86-64",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn_workload(rng: random.Random, impl: str) -> tuple[Workload, bool]:
    """A tiny workload out of everything that a layer can be, and whether expert ids are forced."""
    num_experts = rng.choice([1, 4, 16])
    router = "expert_choice" if impl == "expert_choice" else rng.choice(["softmax_topk", *ROUTERS])
    selecting, shared = router in SELECTING_ROUTERS, rng.choice([0, 0, 1, 2])
    grouped = selecting and num_experts > 1 and rng.random() < 0.2
    spec = LayerSpec(
        d_model=rng.choice([8, 24, 64]),
        d_ff=rng.choice([8, 40]),
        num_experts=num_experts,
        top_k=FIXED_TOP_K.get(router, rng.randint(1, min(3, num_experts))),
        capacity_factor=rng.choice([None, None, 0.5, 1.25]),
        activation=rng.choice(ACTIVATIONS),
        router=router,
        norm_topk_prob=rng.random() < 0.7,
        num_shared_experts=shared,
        shared_gate=bool(shared) and rng.random() < 0.5,
        router_bias=rng.random() < 0.2,
        expert_bias=rng.random() < 0.3,
        selection_bias=selecting and rng.random() < 0.2,
        num_expert_groups=4 if grouped else 1,
        top_k_groups=2 if grouped else 1,
        routed_scaling=rng.choice([1.0, 1.0, 2.5]),
        capacity_policy="gshard" if router == "expert_choice" else rng.choice(["gshard", "gshard", "score"]),
    )
    forced = spec.unforceable is None and rng.random() < 0.2
    workload = Workload(
        layer=spec,
        num_tokens=rng.choice([0, 1, 2, 7, 40]),
        dtype=rng.choice(["float32", "float32", "bfloat16", "float16"]),
        direction=rng.choice(["forward", "train"]),
        routing="balanced" if forced else "router",
    )
    return workload, forced


def call_and_loads(impl: str, w: Workload, *, forced: bool) -> tuple[Callable[[], torch.Tensor | None], Any]:
    """One call as a run makes it, which leaves nothing behind, and the assignments that each expert keeps."""
    train, dtype = w.direction == "train", DTYPES[w.dtype]
    layer = build(impl, w.layer, device="cpu", dtype=dtype, direction=w.direction, seed=0)
    generator = torch.Generator().manual_seed(1)
    x_TD, gradient_TD = (torch.randn(w.num_tokens, w.layer.d_model, generator=generator).to(dtype) for _ in range(2))
    x_TD.requires_grad_(train)
    given = routing = None
    if layer.routes:
        with torch.no_grad():
            if forced:
                ids_TK = torch.rand(w.num_tokens, w.layer.num_experts, generator=generator).argsort(1)
                given = layer.route(x_TD, ids_TK[:, : w.layer.top_k].contiguous())
            routing = layer.route(x_TD, given)

    def call() -> torch.Tensor | None:
        if not train:
            with torch.inference_mode():
                y_TD: torch.Tensor = layer(x_TD, routing=given)
                return y_TD
        layer(x_TD, routing=given).backward(gradient_TD)
        for leaf in (x_TD, *layer.weights.parameters()):
            leaf.grad = None
        return None

    return call, None if routing is None else loads_of(routing)


def loads_of(routing: Routing) -> list[int]:
    loads: list[int] = torch.bincount(routing.expert_ids[routing.kept], minlength=routing.num_experts).tolist()
    return loads


def peak_without_scratch_of_products(call: Callable[[], object]) -> int:
    """The allocator's peak without what a product took and gave back inside itself: oneDNN's, in half precision."""
    with profile(profile_memory=True) as profiler:
        call()
    assert profiler.kineto_results is not None
    events = profiler.kineto_results.events()
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    scratch: set[int] = set()
    for event in events:
        if event.name() in PRODUCTS:
            begin, end = event.start_ns(), event.start_ns() + event.duration_ns()
            open_ = []
            for i, (time, num_bytes) in enumerate(memory):
                if not begin <= time <= end:
                    continue
                if num_bytes > 0:
                    open_.append(i)
                else:
                    taken = next(k for k in reversed(open_) if memory[k][1] == -num_bytes)
                    open_.remove(taken)
                    scratch |= {taken, i}
    alive_bytes = peak_bytes = 0
    for i, (_, num_bytes) in enumerate(memory):
        alive_bytes += num_bytes if i not in scratch else 0
        peak_bytes = max(peak_bytes, alive_bytes)
    return peak_bytes


@pytest.mark.parametrize("impl", [*ROUTED, *BASELINES])
def test_measured_peak_is_the_models_to_the_byte(impl: str) -> None:
    rng = random.Random(impl)
    num_compared = 0
    while num_compared < NUM_CASES:
        w, forced = drawn_workload(rng, impl)
        try:
            call, loads = call_and_loads(impl, w, forced=forced)
        except Unsupported:
            continue
        call()  # what happens once, such as a router's noise, is drawn
        measured = cpu_allocator_peak_bytes if w.dtype == "float32" else peak_without_scratch_of_products
        model = memory_of_call(impl, w, loads)
        assert isinstance(model, MemoryModel), model
        assert model.peak_bytes == measured(call), w
        assert sum(model.parts.values()) == model.peak_bytes
        num_compared += 1


@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("impl", ROUTED)
def test_one_expert_of_one_token(impl: str, direction: str) -> None:
    spec = LayerSpec(
        d_model=16,
        d_ff=24,
        num_experts=1,
        top_k=1,
        activation="swiglu",
        router="expert_choice" if impl == "expert_choice" else "softmax_topk",
    )
    w = Workload.model_validate({"layer": spec, "num_tokens": 1, "direction": direction})
    call, loads = call_and_loads(impl, w, forced=False)
    call()
    model = memory_of_call(impl, w, loads)
    assert isinstance(model, MemoryModel)
    assert model.peak_bytes == cpu_allocator_peak_bytes(call)


@pytest.mark.parametrize("impl", ["loop_indexed", "expert_choice"])
def test_rows_are_summed_in_a_row_a_thread(impl: str) -> None:
    """In half precision rows are added in float32, where the number of threads shows."""
    spec = LayerSpec(d_model=64, d_ff=8, num_experts=2, top_k=1, router="expert_choice", activation="relu")
    w = Workload(layer=spec, num_tokens=40, dtype="bfloat16", direction="train", threads=2)
    call, loads = call_and_loads(impl, w, forced=False)
    torch.set_num_threads(2)
    call()
    measured_bytes = peak_without_scratch_of_products(call)
    model = memory_of_call(impl, w, loads)
    assert isinstance(model, MemoryModel)
    assert model.peak_bytes == measured_bytes
