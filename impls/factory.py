"""Building a layer by the name of its implementation, and asking which implementations can run here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from impls import registry
from impls.ffn import clamp_in_the_way
from impls.layer import Direction, MoELayer, Unsupported
from impls.spec import LayerSpec
from impls.weights import Weights, check_shapes, make_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an implementation can run in this installation at all.

    Attributes:
        ok: it can.
        reason: why not; None where it can.
        exact: whether it computes its semantics to rounding; None where its class cannot be loaded.
    """

    ok: bool
    reason: str | None
    exact: bool | None


def build(
    name: str,
    spec: LayerSpec,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    direction: Direction = "forward",
    seed: int = 0,
    weights: Weights | None = None,
    prepare: bool = True,
) -> MoELayer:
    """A layer of the implementation ``name``, ready to call.

    Args:
        name: a registered name, or ``path/to/file.py:ClassName``.
        spec: the layer.
        device: where it runs; the weights' device, else the CPU.
        dtype: number format; the weights', else float32.
        direction: ``forward`` puts it in evaluation mode, ``train`` in training mode.
        seed: draws the weights, unless they are given.
        weights: another layer's, shared without a copy.
        prepare: whether to run the layer's `prepare`; False for a caller that times it.

    Raises:
        Unsupported: with the reason, where this implementation cannot run this here.
        UnknownImplementation, InvalidImplementation: by :func:`impls.registry.resolve`.
        ValueError: where the weights do not fit the specification, the device or the dtype.
    """
    if spec.impossible:
        raise Unsupported(spec.impossible)
    try:
        implementation = registry.resolve(name)
    except ImportError as error:
        raise Unsupported(f"{name} needs a package that cannot be imported: {error}") from error
    device = torch.device(device or (weights.device if weights else "cpu"))
    dtype = dtype or (weights.dtype if weights else torch.float32)
    reason = (
        implementation.missing()
        or _absent(device)
        or (None if dtype in DTYPES else f"{dtype} is not one of float32, bfloat16, float16")
        or clamp_in_the_way(spec, dtype, direction)
        or implementation.supports(spec, device, dtype, direction)
    )
    if reason:
        raise Unsupported(reason)
    if weights is None:
        weights = make_weights(spec, dtype=dtype, device=device, seed=seed)
    check_shapes(spec, dict(weights.named_parameters()))
    if weights.dtype != dtype or weights.device.type != device.type:
        raise ValueError(f"weights are {weights.dtype} on {weights.device}, asked for {dtype} on {device}")
    layer = implementation(spec, weights).train(direction == "train")
    if prepare:
        layer.prepare()
    return layer


def available() -> dict[str, Availability]:
    """Every registered implementation, and whether it can run in this installation."""
    return {name: _availability(name) for name in registry.names()}


def _availability(name: str) -> Availability:
    try:
        implementation = registry.resolve(name)
    except (ImportError, registry.UnknownImplementation, registry.InvalidImplementation) as error:
        return Availability(ok=False, reason=str(error), exact=None)
    reason = implementation.missing()
    return Availability(ok=reason is None, reason=reason, exact=implementation.exact)


def _absent(device: torch.device) -> str | None:
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    return None
