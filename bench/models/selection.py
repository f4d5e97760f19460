"""What ``--model``, ``--hf-config`` and ``--scale`` ask for: a layer's fields, and the label that says whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.errors import ConfigError, RequestError
from bench.faults import nearest
from bench.models.presets import models
from bench.models.scale import parse_scale, scaled
from impls.huggingface.config import UnreadableConfig, layer_from_config, read_config

KEPT = ("capacity_factor", "capacity_policy", "capacity_multiple", "router_seed")
"""Fields of a layer that a model does not fix: they say how it is run."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A real model's layer, to be put into a sweep.

    Attributes:
        label: whose layer it is, at which scale: ``qwen3-30b-a3b at 1/4``.
        layer: fields of :class:`impls.LayerSpec`, scaled; those that a model does not fix (capacity) are absent.
        notes: what was assumed or not understood, one sentence each.
    """

    label: str
    layer: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def put_into(self, document: Mapping[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
        """A copy of a sweep's document with this layer in place of its own; its capacity stays (:data:`KEPT`).

        The label says what ``overrides`` will change of the layer.
        """
        kept = {key: value for key, value in _layer(document).items() if key in KEPT}
        changes = [f"{key} = {_written(value)}" for key, value in _of_layer(overrides).items() if key not in KEPT]
        label = f"{self.label}, with {', '.join(changes)}" if changes else self.label
        return {**document, "label": label, "notes": list(self.notes), "layer": {**self.layer, **kept}}

    def displaced(self, document: Mapping[str, Any], overrides: Mapping[str, object]) -> tuple[str, ...]:
        """One sentence for every axis of the sweep that gives way to this layer."""
        stays = {*KEPT, *_of_layer(overrides)}
        return tuple(
            f"the sweep's {key} = {_written(value)} gives way to {self.label}; "
            f"--set layer.{key}={_written(value).replace(' ', '')} sweeps it again"
            for key, value in _layer(document).items()
            if isinstance(value, list) and key not in stays
        )


def select(model: str | None, hf_config: Path | None, scale: str | None) -> Selection | None:
    """What the options ask for, or None where they ask for no model.

    Raises:
        ConfigError, RequestError: as :func:`select_model` and :func:`select_config`, or where the options do not go
            together.
    """
    if model is not None and hf_config is not None:
        raise RequestError("--model and --hf-config both name a layer; give one of them")
    if model is not None:
        return select_model(model, scale)
    if hf_config is not None:
        return select_config(hf_config, scale)
    if scale is not None:
        raise RequestError(f"--scale {scale}: there is nothing to scale without --model or --hf-config")
    return None


def select_model(name: str, scale: str | None = None) -> Selection:
    """The layer of a model that moebench knows by name.

    Raises:
        RequestError: it does not, or the scale cannot be had.
    """
    known = models()
    if name not in known:
        raise RequestError(
            f"--model {name}: there is no such model{nearest(name, known)}; `moebench list models` shows all, "
            "--hf-config FILE reads any other"
        )
    model = known[name]
    notes = [f"{name}: {model.note}"] if model.note else []
    if model.unconfirmed:
        notes.append(f"{name}: not confirmed in a configuration file: {', '.join(model.unconfirmed)}")
    return _scaled(name, model.layer, scale, tuple(notes))


def select_config(path: Path, scale: str | None = None) -> Selection:
    """The layer of a Hugging Face configuration: a ``config.json``, or the folder that holds one.

    Raises:
        ConfigError: it cannot be read as the configuration of a model with experts, with every fault.
        RequestError: the scale cannot be had.
    """
    try:
        found = layer_from_config(read_config(path))
    except UnreadableConfig as error:
        raise ConfigError(str(path), list(error.faults)) from None
    return _scaled(
        f"{found.model_type} of {'config.json' if path.is_dir() else path.name}", found.layer, scale, found.notes
    )


def _layer(document: Mapping[str, Any]) -> Mapping[str, Any]:
    table = document.get("layer")
    return table if isinstance(table, Mapping) else {}


def _of_layer(overrides: Mapping[str, object]) -> dict[str, object]:
    return {name.removeprefix("layer."): value for name, value in overrides.items() if name.startswith("layer.")}


def _written(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _scaled(name: str, layer: Mapping[str, Any], scale: str | None, notes: tuple[str, ...]) -> Selection:
    part = Fraction(1) if scale is None else parse_scale(scale)
    label = name if part == 1 else f"{name} at {part}"
    return Selection(label, scaled(layer, part, name=name), notes)
