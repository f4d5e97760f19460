"""The table of real models: valid layers, parameters counted by hand, and the documentation's table."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.document import LayerTable
from bench.errors import RequestError
from bench.models import models, select_model
from bench.models.scale import DIMENSIONS, parse_scale, scaled

DOCS = Path(__file__).parents[3] / "docs" / "models.md"

LAYER_PARAMETERS = {
    # experts * matrices * d_model * d_ff, then the router, then shared experts, biases and gates
    "mixtral-8x7b": 8 * 3 * 4096 * 14336 + 8 * 4096,
    "qwen1.5-moe-a2.7b": 60 * 3 * 2048 * 1408 + 60 * 2048 + 3 * 2048 * 5632 + 2048,
    "qwen3-30b-a3b": 603_979_776 + 262_144,
    "qwen3-next-80b-a3b": 512 * 3 * 2048 * 512 + 512 * 2048 + 3 * 2048 * 512 + 2048,
    "deepseek-v2-lite": 64 * 3 * 2048 * 1408 + 64 * 2048 + 3 * 2048 * 2816,
    "deepseek-v3": 257 * 44_040_192 + 256 * 7168 + 256,
    "gpt-oss-20b": 32 * (3 * 2880 * 2880 + 2 * 2880 + 2880) + 32 * 2880 + 32,
    "llama-4-maverick": 129 * 3 * 5120 * 8192 + 128 * 5120,
    "switch-base-8": 8 * 2 * 768 * 3072 + 8 * 768,
    "st-moe-32b": 64 * 3 * 5120 * 20480 + 64 * 5120,
}
PUBLISHED_TOTALS = {  # of the whole model, to three digits: experts are nearly all of it
    "mixtral-8x7b": 46.7e9,
    "qwen3-30b-a3b": 30.5e9,
    "qwen3-235b-a22b": 235e9,
    "deepseek-v3": 671e9,
    "gpt-oss-120b": 117e9,
    "kimi-k2": 1.03e12,
}


@pytest.mark.parametrize("name", models())
def test_every_model_is_a_layer_that_a_sweep_accepts(name: str) -> None:
    model = models()[name]
    assert model.spec.impossible is None
    assert LayerTable.model_validate(model.layer).d_model == (model.spec.d_model,)
    assert model.layers is None or 0 < model.layers <= model.model_layers
    assert set(model.unconfirmed) <= {*model.layer, "layers", "model_layers"}
    assert not {key for key in model.layer if key.startswith("capacity")}


@pytest.mark.parametrize("name", LAYER_PARAMETERS)
def test_a_layer_has_the_parameters_counted_by_hand(name: str) -> None:
    assert models()[name].num_layer_parameters == LAYER_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_all_layers_with_experts_make_up_most_of_the_published_model(name: str) -> None:
    model = models()[name]
    assert model.layers is not None
    assert 0.93 < model.layers * model.num_layer_parameters / PUBLISHED_TOTALS[name] < 1.0


@pytest.mark.parametrize("name", models())
def test_a_scaled_layer_keeps_its_routing_and_divides_its_widths(name: str) -> None:
    whole, part = models()[name].layer, select_model(name, "1/16")
    assert part.label == f"{name} at 1/16"
    for key, value in whole.items():
        assert part.layer[key] == (value // 16 if key in DIMENSIONS else value), key


@given(
    widths=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    scale=st.fractions(min_value=Fraction(1, 64), max_value=1, max_denominator=64),
)
def test_scaling_is_exact_or_refused(widths: tuple[int, int], scale: Fraction) -> None:
    layer = {"d_model": widths[0], "d_ff": widths[1], "num_experts": 8, "d_ff_shared": None}
    if all((width * scale).denominator == 1 for width in widths):
        found = scaled(layer, scale, name="x")
        assert (found["d_model"] / scale, found["d_ff"] / scale, found["num_experts"]) == (*widths, 8)
    else:
        with pytest.raises(RequestError, match="no whole number"):
            scaled(layer, scale, name="x")


def test_the_refusal_names_scales_that_work() -> None:
    with pytest.raises(RequestError) as caught:
        select_model("gpt-oss-20b", "1/7")
    works = str(caught.value).partition("these are: ")[2].split(", ")
    assert "1/64" in works
    assert all(2880 % int(scale.removeprefix("1/")) == 0 for scale in works)


@pytest.mark.parametrize("text", ["0", "2", "-1/2", "a quarter", "1/0", "", "nan", "inf"])
def test_a_scale_is_a_fraction_up_to_one(text: str) -> None:
    with pytest.raises(RequestError, match="should be a fraction above 0 and at most 1"):
        parse_scale(text)


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"did you mean 'qwen3-30b-a3b'\?"):
        select_model("qwen3-30b")


def test_the_documentation_has_every_model_with_its_sizes() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS.read_text().splitlines() if "|" in line]
    documented = {row[0].strip("`"): row[1:5] for row in rows if row[0].startswith("`")}
    sizes = ("d_model", "d_ff", "num_experts", "top_k")
    assert documented == {name: [str(model.layer[key]) for key in sizes] for name, model in models().items()}
