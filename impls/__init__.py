"""Mixture-of-Experts layer implementations behind one interface.

The names below are loaded when they are first used, so that the torch-free parts (`impls.spec`, `impls.registry`)
can be imported without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impls.factory import Availability, available, build
    from impls.huggingface.blocks import from_huggingface
    from impls.layer import MoELayer, Unsupported
    from impls.routing import Routing
    from impls.spec import LayerSpec

__all__ = ["Availability", "LayerSpec", "MoELayer", "Routing", "Unsupported", "available", "build", "from_huggingface"]

_HOMES = {
    "Availability": "impls.factory",
    "LayerSpec": "impls.spec",
    "MoELayer": "impls.layer",
    "Routing": "impls.routing",
    "Unsupported": "impls.layer",
    "available": "impls.factory",
    "build": "impls.factory",
    "from_huggingface": "impls.huggingface.blocks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'impls' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
