"""Routing as data: records which experts a real model sends its tokens to, for ``routing = "trace:FILE.npy"``.

Hooks on a transformers model's routers collect the expert ids (T, K) of every layer with experts while the model runs;
they are saved as whole numbers, one ``.npy`` a layer, the best choice first. Any block with a router (``gate`` or
``router``) beside its ``experts`` is found, whatever the model::

    with record(model) as recording:
        model(input_ids)
    recording.save("traces")

T tokens, E experts, K top-k.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.errors import RequestError
from impls.huggingface.tensors import ROUTERS

Ids = NDArray[np.integer[Any]]
_INDEX = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class TracedLayer:
    """A layer with experts, and the ids that it has chosen so far.

    Attributes:
        name: of the block in the model, as ``model.layers.3.mlp``.
        index: the first number in its name, which is the layer's; None where there is none.
        num_experts: E.
        parts: (T, K) of every call, in order.
    """

    name: str
    index: int | None
    num_experts: int
    parts: list[Ids] = field(default_factory=list)

    @property
    def expert_ids(self) -> Ids:
        """The ids (T, K) of all calls, one after the other."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, 0), np.int16)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a model's routers chose while they were recorded.

    Attributes:
        layers: in the order of the model.
    """

    layers: list[TracedLayer]

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write one ``.npy`` a layer into ``folder``, which is made, and give the files by the layers' names."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        twice = {index for index, times in Counter(layer.index for layer in self.layers).items() if times > 1}
        files = {}
        for layer in self.layers:
            plain = layer.index is not None and layer.index not in twice
            name = f"layer-{layer.index:02d}" if plain else layer.name.replace(".", "-")
            files[layer.name] = place / f"{name}.npy"
            np.save(files[layer.name], layer.expert_ids, allow_pickle=False)
        return files


@contextmanager
def record(model: nn.Module, layers: Collection[int] | None = None) -> Iterator[Recording]:
    """Record the expert ids of every call of ``model`` inside the ``with`` block.

    Args:
        model: with blocks that have a router beside their experts; its computation is not changed.
        layers: numbers of the layers to record; all by default.

    Raises:
        RequestError: it has no such block, or none of these numbers.
    """
    found = dict(_blocks(model))
    if not found:
        raise RequestError(
            f"{type(model).__name__} has no block with experts: looked for modules with `experts` beside "
            f"{' or '.join(f'`{name}`' for name in ROUTERS)}"
        )
    chosen = {name: block for name, block in found.items() if layers is None or _index(name) in layers}
    if layers is not None and (absent := sorted(set(layers) - {_index(name) for name in chosen})):
        have = ", ".join(str(_index(name)) for name in found)
        raise RequestError(f"no layer {', '.join(map(str, absent))} with experts; there are {have}")
    traced, handles = [], []
    try:
        for name, block in chosen.items():
            router = block.get_submodule(_router_name(block))
            layer = TracedLayer(name, _index(name), _num_experts(block, router))
            handles.append(router.register_forward_hook(_Hook(layer, block, router)))
            traced.append(layer)
        yield Recording(traced)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class _Hook:
    layer: TracedLayer
    block: nn.Module
    router: nn.Module

    def __call__(self, _router: nn.Module, _inputs: Any, output: Any) -> None:
        ids_TK = _expert_ids(output, self.layer.num_experts, self._top_k)
        narrow = np.int16 if self.layer.num_experts < 2**15 else np.int32
        self.layer.parts.append(ids_TK.detach().cpu().numpy().astype(narrow))

    def _top_k(self) -> int:
        for module in (self.router, self.block):
            if isinstance(value := getattr(module, "top_k", None), int):
                return value
        return 1  # a router that chooses one expert has no need to say so


def _expert_ids(output: Any, num_experts: int, top_k: Any) -> Tensor:
    """The ids (T, K) in what a router returns, best first: given as whole numbers, else the K largest of its scores."""
    tensors = [t.flatten(0, -2) for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]
    given = [t for t in tensors if not t.is_floating_point() and t.shape[-1] < num_experts]
    scores = [t for t in tensors if t.is_floating_point()]
    if given:
        ids_TK = given[-1]
        weights = [t for t in scores if t.shape == ids_TK.shape]
        return ids_TK.gather(1, weights[-1].argsort(dim=1, descending=True, stable=True)) if weights else ids_TK
    wide = [t for t in scores if t.shape[-1] == num_experts]
    if not wide:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise RequestError(f"the router returns neither expert ids nor {num_experts} scores a token; found {shapes}")
    return wide[0].topk(top_k(), dim=1).indices


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "experts", None), nn.Module) and _router_name(module):
            yield name, module


def _router_name(block: nn.Module) -> str:
    """Which child routes; empty where none does."""
    return next((name for name in ROUTERS if isinstance(getattr(block, name, None), nn.Module)), "")


def _num_experts(block: nn.Module, router: nn.Module) -> int:
    """As the modules say, else the rows of the router's matrix."""
    for module in (router, block.experts, block):
        for name in ("num_experts", "moe_num_experts", "n_routed_experts"):
            if isinstance(value := getattr(module, name, None), int):
                return value
    return max(parameter.shape[0] for parameter in router.parameters() if parameter.ndim == 2)


def _index(name: str) -> int | None:
    match = _INDEX.search(name)
    return int(match[1]) if match else None
