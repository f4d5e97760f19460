"""Building layers: shared weights, seeds, what is refused and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from layer_testing import make_spec, make_tokens

from impls import MoELayer, Unsupported, available, build, registry
from impls.grouped import Grouped
from impls.loop import Loop
from impls.registry import ENTRIES, Entry, UnknownImplementation
from impls.weights import Weights, make_weights, parameter_shapes


def test_a_twin_shares_every_tensor() -> None:
    layer = build("grouped", make_spec(expert_bias=True), dtype=torch.bfloat16)
    twin = build("loop", layer.spec, weights=layer.weights)
    assert twin.weights is layer.weights
    pairs = zip(twin.parameters(), layer.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)
    assert twin(make_tokens(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_weights_made_of_tensors_do_not_copy_them() -> None:
    spec = make_spec()
    tensors = {name: torch.zeros(shape) for name, shape in parameter_shapes(spec).items()}
    weights = Weights(spec, tensors)
    assert {name: p.data_ptr() for name, p in weights.named_parameters()} == {
        name: tensor.data_ptr() for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_parameters_have_the_canonical_names_and_shapes(activation: str) -> None:
    spec = make_spec(activation=activation, expert_bias=True, router_bias=True, num_shared_experts=3)
    name, rows = ("gate_up", 2) if activation == "swiglu" else ("up", 1)
    assert {n: tuple(p.shape) for n, p in make_weights(spec).named_parameters()} == {
        "router_weight": (8, 32),
        "router_bias": (8,),
        f"{name}_proj": (8, rows * 16, 32),
        f"{name}_bias": (8, rows * 16),
        "down_proj": (8, 32, 16),
        "down_bias": (8, 32),
        f"shared_{name}_proj": (rows * 48, 32),
        "shared_down_proj": (32, 48),
    }


def test_the_seed_decides_the_weights_and_the_dtype_only_rounds_them() -> None:
    spec = make_spec()
    first, again, other = make_weights(spec, seed=1), make_weights(spec, seed=1), make_weights(spec, seed=2)
    half = make_weights(spec, seed=1, dtype=torch.bfloat16)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
        assert torch.equal(parameter.bfloat16(), half.get_parameter(name))
    assert half.num_bytes * 2 == first.num_bytes == sum(4 * math.prod(s) for s in parameter_shapes(spec).values())


def test_initial_values_have_a_deviation_of_one_over_the_root_of_the_fan_in() -> None:
    weights = make_weights(make_spec(d_model=64, d_ff=256, expert_bias=True))
    for found, fan_in in [(weights.in_proj, 64), (weights.down_proj, 256), (weights.in_bias, 64)]:
        assert found is not None
        assert float(found.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.05)


def test_weights_that_do_not_fit_name_every_fault() -> None:
    spec = make_spec()
    tensors: dict[str, torch.Tensor] = dict(make_weights(make_spec(d_ff=8, router_bias=True)).named_parameters())
    del tensors["down_proj"]
    with pytest.raises(ValueError, match="down_proj is missing") as fault:
        Weights(spec, tensors)
    assert "router_bias is not a parameter of this layer" in str(fault.value)
    assert "gate_up_proj has shape (8, 16, 32), expected (8, 32, 32)" in str(fault.value)
    with pytest.raises(ValueError, match="do not fit the specification"):
        build("loop", make_spec(num_experts=4), weights=make_weights(spec))
    with pytest.raises(ValueError, match=r"weights are torch.float32 on cpu, asked for torch.float16"):
        build("loop", spec, weights=make_weights(spec), dtype=torch.float16)


@pytest.mark.parametrize("name", ENTRIES)
def test_more_choices_than_experts_is_unsupported(name: str) -> None:
    with pytest.raises(Unsupported, match=r"top_k \(9\) is above num_experts \(8\)"):
        build(name, make_spec(top_k=9))


@pytest.mark.parametrize(("changes", "dtype"), [({"d_model": 6}, torch.float32), ({"d_ff": 12}, torch.bfloat16)])
def test_grouped_refuses_rows_that_are_not_aligned(changes: dict[str, Any], dtype: torch.dtype) -> None:
    with pytest.raises(Unsupported, match="multiple of 16 bytes") as answer:
        build("grouped", make_spec(**changes), dtype=dtype)
    assert "must be multiples of" in answer.value.reason


def test_grouped_says_which_path_torch_takes() -> None:
    assert build("grouped", make_spec()).path == "per_expert"
    assert build("loop", make_spec()).path == ""


def test_a_dtype_or_device_that_is_not_here_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match=r"torch.float64 is not one of"):
        build("loop", make_spec(), dtype=torch.float64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="no CUDA device"):
        build("loop", make_spec(), device="cuda")


def test_an_unknown_name_is_unknown() -> None:
    with pytest.raises(UnknownImplementation, match="did you mean 'loop'"):
        build("lop", make_spec())


def test_direction_sets_the_mode_and_prepare_runs_once_unless_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Loop, "prepare", lambda self: calls.append(type(self).__name__))
    assert not build("loop", make_spec()).training
    assert build("loop", make_spec(), direction="train", prepare=False).training
    assert calls == ["Loop"]


@pytest.mark.parametrize("name", [n for n, entry in ENTRIES.items() if not entry.router])
def test_what_prepare_derived_moves_with_the_layer_and_is_not_saved(name: str) -> None:
    if reason := registry.missing(name):
        pytest.skip(reason)
    layer = build(name, make_spec())
    assert set(layer.state_dict()) == {f"weights.{n}" for n, _ in layer.weights.named_parameters()}
    if layer.supports(layer.spec, torch.device("cpu"), torch.bfloat16, "forward"):
        return
    with torch.no_grad():
        assert layer.to(torch.bfloat16)(make_tokens(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_everything_is_available_here_but_peers_that_are_not_installed() -> None:
    found = available()
    assert list(found) == registry.names()
    for name in ENTRIES:
        reason = registry.missing(name)
        assert (found[name].ok, found[name].reason, found[name].exact) == (reason is None, reason, True)


def test_what_is_missing_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grouped, "missing", classmethod(lambda _: "torch is too old"))
    monkeypatch.setitem(ENTRIES, "theirs", Entry("no_such_package:Layer", "needs a package"))
    found = available()
    assert (found["grouped"].ok, found["grouped"].reason, found["grouped"].exact) == (False, "torch is too old", True)
    assert (found["theirs"].ok, found["theirs"].exact) == (False, None)
    assert "no_such_package" in str(found["theirs"].reason)
    for name in ("grouped", "theirs"):
        with pytest.raises(Unsupported, match=r"torch is too old|no_such_package"):
            build(name, make_spec())


@pytest.mark.parametrize(
    ("x", "fault"),
    [(torch.zeros(2, 31), r"found \(2, 31\)"), (torch.zeros(2, 32, dtype=torch.float16), "of torch.float16")],
)
def test_input_that_does_not_fit_is_refused(x: torch.Tensor, fault: str) -> None:
    layer: MoELayer = build("loop", make_spec())
    with pytest.raises(ValueError, match=fault):
        layer(x)
