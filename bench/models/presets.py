"""The real models that moebench knows by name: a table of data, ``models.toml``, read on demand."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from impls.shapes import parameter_shapes
from impls.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Model:
    """One layer with experts of a real model.

    Attributes:
        name: what to call it by.
        config: public name of the configuration, or the paper, that the numbers are from.
        layer: fields of :class:`impls.LayerSpec`; those of the capacity are not among them.
        layers: layers with experts in the model; None where that is not known.
        model_layers: all its layers.
        unconfirmed: fields that no configuration file confirms.
        note: what a reader must know; often empty.
    """

    name: str
    config: str
    layer: Mapping[str, Any]
    layers: int | None
    model_layers: int
    unconfirmed: tuple[str, ...] = ()
    note: str = ""

    @property
    def spec(self) -> LayerSpec:
        """The layer without a capacity."""
        return LayerSpec(**self.layer)

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one layer: router, experts and shared experts."""
        return sum(math.prod(shape) for shape in parameter_shapes(self.spec).values())


@cache
def models() -> dict[str, Model]:
    """Every model by its name, in the order of the table."""
    table = tomllib.loads(resources.files("bench.models").joinpath("models.toml").read_text(encoding="utf-8"))
    return {name: _model(name, entry) for name, entry in table.items()}


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    layers = entry.get("layers")
    return Model(
        name=name,
        config=entry["config"],
        layer=entry["layer"],
        layers=layers,
        model_layers=entry.get("model_layers", layers),
        unconfirmed=tuple(entry.get("unconfirmed", ())),
        note=entry.get("note", ""),
    )
