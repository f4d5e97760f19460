"""Time and work go to the stage that they belong to, backward as well as forward, and add up to the whole."""

import dataclasses
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from profiled_layers import NUM_TOKENS, SPEC, layer_step, make_step

from bench.measure.cpu import CpuDevice
from bench.measure.pages import PageCost, TimedCall
from bench.profiling.calls import watch
from bench.profiling.measure import count, profile_step
from bench.store.profiles import Profile
from impls import build, stages
from impls.stages import recording, stage

EXISTING = {"weights": 1000, "input": 100}


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("name", ["loop", "grouped", "einsum", "scatter_gather"])
def test_stages_add_up_to_the_whole_and_operators_to_the_stages(name: str, train: bool) -> None:
    profile = profile_step(layer_step(name, train=train), EXISTING, 0.01).profile
    assert sum(one.host_s for one in profile.stages) == pytest.approx(profile.whole_s, rel=1e-6)
    assert all(one.idle_s <= one.host_s * 1.000001 for one in profile.stages)
    for one in profile.stages:
        rows = [row for row in profile.operators if (row.phase, row.stage) == (one.phase, one.stage)]
        assert sum(row.flops or 0 for row in rows) == one.flops
        # the rest is what operators that are made of others take for themselves
        assert sum(row.host_s for row in rows) + one.idle_s <= one.host_s * 1.000001


def test_backward_work_belongs_to_the_stage_that_made_it() -> None:
    first, second = (torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True) for _ in range(2))

    def forward(x: torch.Tensor) -> torch.Tensor:
        with stage("route"):
            x = x @ first
        x = x.exp()
        with stage("experts"), stage("experts", 3):
            return x @ second

    counted = count(make_step(forward, [first, second], train=True))
    found = [
        (entry.name, place.phase, place.stage, place.expert)
        for entry, place in zip(counted.ledger.entries, counted.places, strict=True)
        if entry.flops or entry.name in ("aten::exp", "aten::mul")
    ]
    assert found == [
        ("aten::mm", "forward", "route", None),
        ("aten::exp", "forward", "other", None),
        ("aten::mm", "forward", "experts", 3),
        ("aten::mm", "backward", "experts", 3),
        ("aten::mm", "backward", "experts", 3),
        ("aten::mul", "backward", "other", None),
        ("aten::mm", "backward", "route", None),
        ("aten::mm", "backward", "route", None),
    ]


def test_time_outside_of_operators_is_idle_in_its_own_stage() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with stage("dispatch"):
            time.sleep(0.2)
        with stage("experts"):
            return x * 2

    by_stage = {one.stage: one for one in profile_step(make_step(forward, [], train=False), {}, 0.01).profile.stages}
    assert by_stage["dispatch"].idle_s >= 0.2
    assert by_stage["experts"].idle_s < 0.15


def test_experts_are_told_apart_where_they_run_one_after_the_other() -> None:
    profile = profile_step(layer_step("loop", train=False), EXISTING, 0.01).profile
    assert [one.expert for one in profile.experts] == list(range(SPEC.num_experts))
    experts = next(one for one in profile.stages if one.stage == "experts")
    assert sum(one.flops or 0 for one in profile.experts) == experts.flops
    assert sum(one.host_s for one in profile.experts) <= experts.host_s


def test_many_shapes_lose_no_work_to_the_length_of_the_table() -> None:
    widths = list(range(1, 100))

    def forward(x: torch.Tensor) -> torch.Tensor:
        with stage("experts"):
            for width in widths:
                x[:, :1] @ x[:1, :1].expand(1, width)
        return x * 2

    profile = profile_step(make_step(forward, [], train=False), {}, 0.01).profile
    assert sum(row.flops or 0 for row in profile.operators) == sum(2 * NUM_TOKENS * width for width in widths)
    assert any("other shapes" in row.shapes for row in profile.operators)


def test_a_record_of_a_profile_survives_the_log() -> None:
    profile = profile_step(layer_step("grouped", train=True), EXISTING, 0.01).profile
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_marks_do_nothing_while_nobody_records() -> None:
    assert stage("route") is stage("experts", 7)
    with recording():
        assert stage("route") is not stage("route")
    assert stage("route") is stages.stage("combine")


def test_nvtx_is_told_of_stages_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: said.append(f"+{name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("-"))
    layer = build("grouped", SPEC, seed=0)
    with recording(nvtx=True), torch.inference_mode():
        layer(torch.randn(NUM_TOKENS, SPEC.d_model))
    names = [f"moebench:{name}" for name in ("route", "dispatch", "experts", "combine")]
    assert said == [word for name in names for word in (f"+{name}", "-")]


def test_marks_break_no_compiled_graph() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with stage("experts"):
            return x * 2

    compiled = torch.compile(forward, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))


def test_what_is_added_in_place_without_the_ledger_has_the_bytes_that_it_had_under_it() -> None:
    """Gradients of a weight that is used more than once."""
    weight_DD = torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True)
    step = make_step(lambda x: (x @ weight_DD) @ weight_DD, [weight_DD], train=True)
    (row,) = (row for row in profile_step(step, {}, 0.01).profile.operators if row.name == "aten::add_")
    (entry,) = (entry for entry in count(step).ledger.entries if entry.name == "aten::add")
    assert row.moved_bytes == entry.moved_bytes == 3 * 4 * SPEC.d_model**2


def test_gradients_that_are_added_in_both_ways_share_what_the_ledger_counted() -> None:
    """The first sum of a gradient that others hold is a new tensor, the second is made in place."""
    weight_DD = torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True)

    def forward(x_TD: torch.Tensor) -> torch.Tensor:
        h_TD = x_TD @ weight_DD
        return h_TD + h_TD + h_TD

    profile = profile_step(make_step(forward, [weight_DD], train=True), {}, 0.01).profile
    tensor_bytes = 4 * NUM_TOKENS * SPEC.d_model
    added = {
        row.name: (row.calls, row.shapes, row.moved_bytes, row.allocated_bytes)
        for row in profile.operators
        if row.phase == "backward" and "add" in row.name
    }
    shapes = ", ".join([f"{NUM_TOKENS}x{SPEC.d_model}"] * 2)
    assert added == {
        "aten::add": (1, shapes, 3 * tensor_bytes, tensor_bytes),
        "aten::add_": (1, shapes, 3 * tensor_bytes, 0),
    }


def test_giving_gradients_back_is_part_of_a_step_as_it_is_where_steps_are_timed() -> None:
    weight_DD = torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True)
    quick = make_step(lambda x: x @ weight_DD, [weight_DD], train=True)

    def drop() -> None:
        quick.drop()
        time.sleep(0.1)

    slow = dataclasses.replace(quick, drop=drop)
    profile = profile_step(slow, {}, 0.01).profile
    (gradients,) = (one for one in profile.stages if one.stage == "gradients")
    assert gradients.phase == "backward"
    assert gradients.idle_s >= 0.1
    assert profile.whole_s >= 0.1
    assert sum(one.host_s for one in profile.stages) == pytest.approx(profile.whole_s)


@pytest.mark.parametrize("cold", [True, False])
def test_caches_are_emptied_before_every_call_that_counts(cold: bool) -> None:
    log: list[str] = []

    class Logging(CpuDevice):
        def flush_cache(self) -> None:
            log.append("flush")

    def forward(x: torch.Tensor) -> torch.Tensor:
        log.append("call")
        return x * 2

    step = dataclasses.replace(make_step(forward, [], train=False), cold=cold, device=Logging(1))
    watch(step, 0.01, nullcontext)
    assert set(zip(log[::2], log[1::2], strict=True)) == ({("flush", "call")} if cold else {("call", "call")})


def test_time_is_of_the_quicker_calls_and_pages_are_of_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that find their memory kept are quicker, and not the usual ones."""
    plain = iter([TimedCall(0.03, 0)] * 2 + [TimedCall(0.06, 12_000)] * 4)
    monkeypatch.setattr("bench.profiling.calls.timed", lambda _: next(plain))
    monkeypatch.setattr("bench.profiling.calls.page_cost", lambda: PageCost(1e-6, 1e-7))
    watched = watch(make_step(lambda x: x * 2, [], train=False), 0.0, nullcontext)
    assert watched.pages is not None
    assert watched.plain_s == pytest.approx(0.04)
    assert watched.pages.num_pages == 12_000
    assert watched.no_pages == ""


class AddsInPlace(torch.autograd.Function):
    """A layer of somebody's whose backward has an `add_` of its own."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].clone().add_(1.0)


def test_an_add_in_place_of_ones_own_hides_nobody_elses() -> None:
    weight_DD = torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True)

    def forward(x_TD: torch.Tensor) -> torch.Tensor:
        with stage("dispatch"):
            x_TD = AddsInPlace.apply(x_TD)  # type: ignore[no-untyped-call]
        with stage("experts"):
            return (x_TD @ weight_DD) @ weight_DD

    rows = profile_step(make_step(forward, [weight_DD], train=True), {}, 0.01).profile.operators
    added = {row.stage: row.moved_bytes for row in rows if row.name == "aten::add_"}
    assert added == {"experts": 3 * 4 * SPEC.d_model**2, "dispatch": 2 * 4 * NUM_TOKENS * SPEC.d_model}
