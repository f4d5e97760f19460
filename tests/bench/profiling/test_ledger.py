"""The ledger is exact: operations by hand, the allocator's own peak, and nothing counted outside its stage."""

import pytest
import torch
from profiled_layers import NUM_TOKENS, SPEC, layer_step, make_step

from bench.measure.memory import cpu_allocator_peak_bytes
from bench.measure.operators import watch_operators
from bench.profiling.measure import count
from bench.profiling.timeline import make_timeline
from impls import LayerSpec

OURS = ("loop", "batched", "grouped", "scatter_gather", "einsum", "dense_masked", "loop_indexed")
MARKED = OURS[:5]  # the last two stand for what others write, with little work between the marks
NUM_ASSIGNMENTS = NUM_TOKENS * SPEC.top_k
ROUTER_FLOPS = 2 * NUM_TOKENS * SPEC.d_model * SPEC.num_experts
EXPERT_FLOPS = 2 * NUM_ASSIGNMENTS * 3 * SPEC.d_model * SPEC.d_ff
train = pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])


@train
@pytest.mark.parametrize("name", OURS[:-1])
def test_the_peak_is_the_allocators_to_the_byte(name: str, train: bool) -> None:
    step = layer_step(name, train=train)
    step()
    counted = count(step)
    timeline = make_timeline(counted.ledger, counted.places, counted.durations_s, {}, {})
    assert timeline.peak_bytes == cpu_allocator_peak_bytes(step)


@pytest.mark.parametrize("name", ["loop", "grouped"])
def test_operations_are_those_of_the_layer(name: str) -> None:
    forward, step = (count(layer_step(name, train=train)).ledger.entries for train in (False, True))
    assert sum(entry.flops or 0 for entry in forward) == ROUTER_FLOPS + EXPERT_FLOPS
    # every product has two gradients; the routing weights' is one dot product an assignment
    weights_flops = 2 * NUM_ASSIGNMENTS * SPEC.d_model
    assert sum(entry.flops or 0 for entry in step) == 3 * (ROUTER_FLOPS + EXPERT_FLOPS) + weights_flops


@train
@pytest.mark.parametrize("name", OURS)
def test_the_watch_of_conduct_counts_the_same_operations(name: str, train: bool) -> None:
    step = layer_step(name, train=train)
    watched = watch_operators(step, {}, num_rows=NUM_ASSIGNMENTS, width=SPEC.d_model)
    assert watched.flops == sum(entry.flops or 0 for entry in count(step).ledger.entries)


@train
@pytest.mark.parametrize("name", MARKED)
def test_every_operator_of_ours_that_moves_something_lies_in_a_stage(name: str, train: bool) -> None:
    spec = LayerSpec(**{**SPEC.to_dict(), "num_shared_experts": 1, "d_ff_shared": 16})
    counted = count(layer_step(name, train=train, spec=spec))
    outside = [
        entry.name
        for entry, place in zip(counted.ledger.entries, counted.places, strict=True)
        if place.stage == "other" and entry.moved_bytes
    ]
    assert outside == []


def test_an_einsum_counts_as_the_product_that_it_is() -> None:
    weight_DF = torch.randn(SPEC.d_model, 5)
    entries = count(make_step(lambda x: torch.einsum("td,df->tf", x, weight_DF), [], train=False)).ledger.entries
    assert sum(entry.flops or 0 for entry in entries) == 2 * NUM_TOKENS * SPEC.d_model * 5


def test_what_was_there_before_the_call_is_told_from_what_it_made() -> None:
    weight_DF = torch.randn(SPEC.d_model, 8)
    ledger = count(make_step(lambda x: torch.relu(x @ weight_DF), [], train=False)).ledger
    product, relu = (entry for entry in ledger.entries if entry.moved_bytes)
    x_bytes, weight_bytes, out_bytes = 4 * NUM_TOKENS * SPEC.d_model, 4 * SPEC.d_model * 8, 4 * NUM_TOKENS * 8
    assert (product.moved_bytes, product.existing_bytes) == (x_bytes + weight_bytes + out_bytes, x_bytes + weight_bytes)
    assert (relu.moved_bytes, relu.existing_bytes) == (2 * out_bytes, 0)


def test_a_tensor_that_is_a_template_or_is_overwritten_is_not_read() -> None:
    def forward(x_TD: torch.Tensor) -> torch.Tensor:
        zeros_TD = x_TD.new_zeros(x_TD.shape)
        like_TD = torch.zeros_like(x_TD)
        torch.empty_like(x_TD).copy_(x_TD).fill_(1.0)
        return zeros_TD + like_TD

    entries = count(make_step(forward, [], train=False)).ledger.entries
    found = {entry.name: (entry.moved_bytes, entry.allocated_bytes) for entry in entries if "record" not in entry.name}
    x_bytes = 4 * NUM_TOKENS * SPEC.d_model
    assert found == {
        "aten::new_zeros": (x_bytes, x_bytes),
        "aten::zeros_like": (x_bytes, x_bytes),
        "aten::empty_like": (0, 0),  # whoever writes to it first touches its pages
        "aten::copy_": (2 * x_bytes, 0),
        "aten::fill_": (x_bytes, 0),
        "aten::add": (3 * x_bytes, x_bytes),
    }


def test_experts_without_tokens_are_not_read() -> None:
    weights_EDF = torch.randn(4, SPEC.d_model, 16)
    ends = torch.tensor([NUM_TOKENS, NUM_TOKENS, NUM_TOKENS, NUM_TOKENS], dtype=torch.int32)
    step = make_step(lambda x: torch.nn.functional.grouped_mm(x, weights_EDF, offs=ends), [], train=False)
    (product,) = (entry for entry in count(step).ledger.entries if entry.flops)
    assert product.flops == 2 * NUM_TOKENS * SPEC.d_model * 16
    assert product.existing_bytes == 4 * (NUM_TOKENS * SPEC.d_model + SPEC.d_model * 16 + 4)
