"""What routers draw at random: the same numbers for the same seed in every process and on every device.

They are drawn on the CPU and kept for the next call, so that a router's random choice is a fixed function of its
tokens' positions: implementations, repeats and the truth see the same routing. A timed call therefore holds the use of
the noise, and not its generation (about 10 ns a number, once a process) nor its copy to the device; the eight last
tables stay in memory.

Shapes: T tokens, E experts, D d_model.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Draw = Literal["normal", "uniform", "bits"]


def drawn(kind: Draw, seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers of ``shape`` that depend on nothing but ``kind``, ``seed`` and ``shape``.

    Args:
        kind: ``normal`` is N(0, 1) float32, ``uniform`` is float32 in [0, 1), ``bits`` is int64 over its whole range.
        seed: the layer's `router_seed`.
        shape: at least one dimension.
        device: where they are wanted. Do not write to them.
    """
    return _drawn(kind, seed, shape, str(device))


@lru_cache(maxsize=8)
def _drawn(kind: Draw, seed: int, shape: tuple[int, ...], device: str) -> Tensor:
    digest = hashlib.sha256(f"router {kind}:{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve a later backward
        if kind == "bits":
            high, low = (torch.randint(1 << 32, shape, generator=generator) for _ in range(2))
            return (high << 32 | low).to(device)
        numbers = torch.empty(shape)
        drawn_numbers = (
            numbers.normal_(generator=generator) if kind == "normal" else numbers.uniform_(generator=generator)
        )
        return drawn_numbers.to(device)
