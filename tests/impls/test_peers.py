"""Peers against the token-by-token reference, and that their code is what runs; skipped where it is absent."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from layer_testing import TOLERANCE, assert_same, make_spec, make_tokens, reference_step, train_step

from impls import LayerSpec, Unsupported, build, packages, registry
from impls.packages import MIXTURE_OF_EXPERTS, PYTORCH_MIXTURES, TRANSFORMERS, Package
from impls.registry import ENTRIES
from impls.routing import route
from impls.weights import make_weights

PEERS = [name for name, entry in ENTRIES.items() if entry.package]
SPECS = {
    "plain": make_spec(),
    "relu": make_spec(activation="relu"),
    "silu_c1": make_spec(activation="silu", capacity_factor=1.0),
    "geglu_shared": make_spec(activation="geglu", num_shared_experts=2),
    "gelu_bias_c1.25": make_spec(activation="gelu", expert_bias=True, capacity_factor=1.25),
    "k1": make_spec(top_k=1),
    "raw_k3_c0.5": make_spec(top_k=3, norm_topk_prob=False, capacity_factor=0.5),
    "router_bias": make_spec(router_bias=True),
}
HF = {"gelu_bias_c1.25"}
OWN_ROUTER = {"raw_k3_c0.5", "router_bias", "k1"}
REFUSED = {name: HF if name.startswith("hf_") else set[str]() for name in PEERS}
REFUSED |= {"hf_eager": HF | {"silu_c1"}, "mixture_of_experts": OWN_ROUTER, "st_moe": OWN_ROUTER}
FLOAT32_ONLY = ("mixture_of_experts", "st_moe")
FORCED = torch.stack([torch.zeros(33, dtype=torch.int64), 1 + torch.arange(33) % 3], dim=1)


def require(name: str) -> None:
    reason = registry.missing(name)
    if reason:
        pytest.skip(reason)


def check(name: str, spec: LayerSpec, dtype: torch.dtype, ids_TK: torch.Tensor | None = None) -> None:
    weights = make_weights(spec, dtype=dtype, seed=3)
    x_TD, grad_TD = (make_tokens(33, spec.d_model, dtype=dtype, seed=seed) for seed in (33, 99))
    layer = build(name, spec, weights=weights, direction="train")
    routing = route(spec, weights, x_TD, ids_TK)
    truth = reference_step("moe", spec, weights, x_TD, routing.expert_ids, grad_TD)
    found = train_step(layer, x_TD, grad_TD, None if ids_TK is None else routing)
    assert found.output.dtype == dtype
    assert_same(found, truth, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("label", SPECS)
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_the_layer_or_says_why_not(name: str, label: str, dtype: torch.dtype) -> None:
    require(name)
    if label in REFUSED[name] or (name in FLOAT32_ONLY and dtype != torch.float32):
        with pytest.raises(Unsupported, match=ENTRIES[name].package.name):  # type: ignore[union-attr]  # a peer has one
            build(name, SPECS[label], dtype=dtype)
        return
    if name == "hf_batched_mm" and dtype != torch.float32:
        with pytest.raises(Unsupported, match=r"rounded to .* after every token"):
            build(name, SPECS[label], dtype=dtype, direction="train")
        return
    check(name, SPECS[label], dtype)


@pytest.mark.parametrize("name", PEERS)
def test_peers_take_no_tokens_or_say_why_not(name: str) -> None:
    require(name)
    with torch.inference_mode():
        assert build(name, make_spec())(make_tokens(0, 32)).shape == (0, 32)
    trained, nothing = build(name, make_spec(), direction="train"), make_tokens(0, 32)
    if name == "hf_eager":
        with pytest.raises(Unsupported, match="no gradient where there are no tokens"):
            train_step(trained, nothing, nothing)
    else:
        assert float(train_step(trained, nothing, nothing).gradients["down_proj"].abs().sum()) == 0


@pytest.mark.parametrize("name", [name for name in PEERS if name.startswith("hf_") or name == "pytorch_mixtures"])
def test_peers_follow_ids_that_are_given(name: str) -> None:
    require(name)
    for capacity_factor in (None, 1.0):
        check(name, make_spec(capacity_factor=capacity_factor), torch.float32, FORCED)


@pytest.mark.parametrize("name", ["mixture_of_experts", "st_moe"])
def test_peers_that_route_by_themselves_refuse_given_ids_and_few_slots(name: str) -> None:
    require(name)
    layer = build(name, make_spec(capacity_factor=0.5))
    x_TD = make_tokens(16, 32)
    with pytest.raises(Unsupported, match="cannot be given expert ids"):
        layer(x_TD, routing=layer.route(x_TD))
    with pytest.raises(Unsupported, match="at least 4 slots, here 2"):
        layer(x_TD)


@pytest.mark.parametrize(
    ("name", "function"),
    [("hf_batched_mm", "batched_mm_experts_forward"), ("hf_grouped_mm", "grouped_mm_experts_forward")],
)
def test_transformers_own_functions_do_the_work(name: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(name)
    moe = importlib.import_module("transformers.integrations.moe")
    original = getattr(moe, function)
    key = name.removeprefix("hf_")
    monkeypatch.setitem(moe.ExpertsInterface._global_mapping, key, lambda *a: 2 * original(*a))
    assert_doubled(name)


def test_mixtrals_own_loop_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    require("hf_eager")
    module = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    original = module.MixtralExperts.forward
    monkeypatch.setattr(module.MixtralExperts, "forward", lambda self, *a: 2 * original(self, *a))
    assert_doubled("hf_eager")


@pytest.mark.parametrize(
    ("name", "home", "class_name", "method"),
    [
        ("mixture_of_experts", "mixture_of_experts.mixture_of_experts", "MoE", "forward"),
        ("st_moe", "st_moe_pytorch.st_moe_pytorch", "MoE", "forward"),
        ("pytorch_mixtures", "pytorch_mixtures.topk_moe", "TopkMoE", "apply_routing_on_experts"),
    ],
)
def test_the_packages_own_layers_do_the_work(
    name: str, home: str, class_name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(name)
    layer = getattr(importlib.import_module(home), class_name)
    original = getattr(layer, method)

    def doubled(self: object, *arguments: object) -> Any:
        found = original(self, *arguments)
        return 2 * found if isinstance(found, torch.Tensor) else (2 * found[0], *found[1:])

    monkeypatch.setattr(layer, method, doubled)
    assert_doubled(name)


def assert_doubled(name: str) -> None:
    layer = build("loop", make_spec())
    x_TD = make_tokens(9, 32)
    with torch.no_grad():
        torch.testing.assert_close(build(name, layer.spec, weights=layer.weights)(x_TD), 2 * layer(x_TD))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_holds_no_copy_of_the_weights(name: str) -> None:
    require(name)
    package = ENTRIES[name].package
    assert package is not None
    layer: Any = build(name, make_spec())
    (theirs,) = layer._experts if name.startswith("hf_") else layer._theirs
    assert {p.data_ptr() for p in theirs.parameters()} <= {p.data_ptr() for p in layer.weights.parameters()}
    assert layer.path == f"{package.name} {package.version()}"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("5.23.0", None),
        ("6.0.0.dev0", None),
        ("5.9.1", "transformers 5.9.1 is older than 5.23: pip install 'transformers>=5.23'"),
        (None, "transformers is not installed: pip install 'transformers>=5.23'"),
    ],
)
def test_an_absent_or_old_package_is_a_reason(
    found: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(packages, "version", version)
    assert TRANSFORMERS.missing() == registry.missing("hf_eager") == reason
    assert registry.missing("loop") is None
    if reason:
        with pytest.raises(Unsupported, match="transformers"):
            build("hf_eager", make_spec())


def test_a_package_that_would_bring_an_old_torch_is_installed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "version", lambda _: None)
    assert "pip install --no-deps 'pytorch-mixtures" in str(PYTORCH_MIXTURES.missing())
    assert "--no-deps" not in str(MIXTURE_OF_EXPERTS.missing())


def test_only_packages_of_the_sweep_that_are_installed_are_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "missing", lambda _: None)
    assert registry.preloads(["loop", "own.py:Mine"]) == []
    assert "transformers.integrations.moe" in registry.preloads(["loop", "hf_eager"])
    monkeypatch.setattr(Package, "missing", lambda _: "absent")
    assert registry.preloads(["hf_eager"]) == []
