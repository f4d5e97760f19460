"""Times the matrix products of a call once more, each on its own, with what it multiplies in the cache.

In a call a product waits for whatever was not near: weights that come from main memory, outputs on pages that are
touched for the first time. Repeated at once, it finds everything where it left it. The difference is what the call paid
for memory; what is left is the product itself, at this size, on this machine. How much reading is hidden behind the
multiplying differs from one matrix library, shape and processor to the next, so it is measured and not modelled.

Repeated once more with twice the arithmetic (its smallest side doubled: of an expert's product, its tokens) it shows
how much of that time follows the arithmetic. A product of few rows takes much of its time for packing the other factor,
and would not be quicker for half of them.

What does not fit a quarter of the last-level cache is made smaller: of a stack of matrices the first one stands for
all, and a matrix that is too large by itself is cut along a side that the product keeps, its time taken in proportion.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.measure.pages import PageCost, timed
from bench.profiling.costs import GROUPED, LEFT_FACTOR, product_flops
from bench.profiling.operator_mode import OperatorMode, shapes_of_arguments, tensors_in

MIN_REPETITIONS, MAX_REPETITIONS = 3, 15
ENOUGH_S = 0.01
MANY = 100
Product = tuple[str, tuple[tuple[int, ...], ...]]
"""An operator's name and the shapes of its tensors."""
STACKED = frozenset({"aten::bmm", "aten::baddbmm", GROUPED})
FACTORED = frozenset({"aten::mm", "aten::addmm"})
"""Products of two plain tensors, whose sides are known; others are repeated only where all that they take fits."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """Seconds of a product that is repeated.

    Attributes:
        near_s: with what it multiplies in the cache.
        follows_s: the part of it that follows the arithmetic: what twice as much takes longer, as far as it is no more.
    """

    near_s: float
    follows_s: float


@dataclass
class Replay(OperatorMode):
    """Open around a call.

    Attributes:
        fits_bytes: tensors up to this size are taken to stay in the cache from one repetition to the next.
        page_cost: what the pages that a repetition touches first cost, which is not its own time.
        found: every product that could be repeated, by name and shapes.
    """

    fits_bytes: int
    page_cost: PageCost | None
    found: dict[Product, Repeated] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def run(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call it, and if it is a product of a shape that was not seen yet, time it again."""
        result = func(*args, **kwargs)
        shape = name, shapes_of_arguments(args, kwargs)
        if shape in self.found or "out" in kwargs or not isinstance(result, Tensor):
            return result
        near = nearby(name, args, self.fits_bytes) if product_flops(name, tensors_in(args, kwargs), result) else None
        if near is not None:
            arguments, factor = near
            with contextlib.suppress(RuntimeError):  # a kernel that takes no other strides is not repeated
                once_s = self._time(func, arguments, kwargs)
                twice_s = self._time(func, doubled(name, arguments), kwargs)
                follows_s = min(once_s, max(0.0, twice_s - once_s))
                self.found[shape] = Repeated(factor * once_s, factor * follows_s)
        return result

    @cached_property
    def calling_s(self) -> float:
        """What calling an operator from here costs, which is no part of its time in a profile."""
        nothing = torch.empty(1)
        seconds = []
        for _ in range(MANY):
            begin_s = time.perf_counter()
            torch.ops.aten.alias.default(nothing)
            seconds.append(time.perf_counter() - begin_s)
        return statistics.median(seconds)

    def _time(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
        """Median seconds of one repetition, less what calling and first touches cost it."""
        func(*args, **kwargs)
        seconds: list[float] = []
        while len(seconds) < MIN_REPETITIONS or (sum(seconds) < ENOUGH_S and len(seconds) < MAX_REPETITIONS):
            once = timed(lambda: func(*args, **kwargs))
            seconds.append(once.seconds - once.touching_s(self.page_cost))
        return max(0.0, statistics.median(seconds) - self.calling_s)


def nearby(name: str, args: Sequence[Any], fits_bytes: int) -> tuple[list[Any], float] | None:
    """The arguments of a product as they would be if they fitted the cache, and what to multiply its time with.

    None where that cannot be: what is too large is none of the factors, or the operator is not known well enough.
    """
    arguments, factor = list(args), 1.0
    left = LEFT_FACTOR.get(name, 0)
    for place, one in enumerate(args):
        if not isinstance(one, Tensor) or _bytes(one) <= fits_bytes:
            continue
        matrix = one[0] if one.dim() == 3 and name in STACKED else one
        if place not in (left, left + 1) or matrix.dim() != 2 or (matrix is one and name not in FACTORED):
            return None
        side = 0 if place == left else 1  # the dimension that the product keeps: of its rows or of its columns
        size = matrix.shape[side]
        kept = max(1, min(size, size * fits_bytes // _bytes(matrix)))
        small = matrix.narrow(side, 0, kept)
        arguments[place] = small if matrix is one else small.expand(one.shape[0], *small.shape)
        if kept < size and left == 1:
            arguments[0] = _cut(arguments[0], side - 2, size, kept)
        factor *= size / kept
    return arguments, factor


def doubled(name: str, args: Sequence[Any]) -> list[Any]:
    """The arguments of a product with twice the arithmetic: the smallest of its rows, columns and inner side twice."""
    arguments = list(args)
    place = LEFT_FACTOR.get(name, 0)
    left, right = arguments[place], arguments[place + 1]
    if name == GROUPED and (left.dim(), right.dim()) != (3, 3):
        arguments[2] = 2 * arguments[2]  # every group has twice the rows
        side = "rows" if right.dim() == 3 else "inner" if left.dim() == 2 else "columns"
    elif right.dim() < 2:  # a vector
        side = "rows" if left.dim() == 2 and left.shape[0] < left.shape[1] else "inner"
    else:
        sizes = {"rows": left.shape[-2], "inner": left.shape[-1], "columns": right.shape[-1]}
        side = min(sizes, key=lambda one: sizes[one])
    if side != "columns":
        arguments[place] = _twice(left, left.dim() - (2 if side == "rows" else 1))
    if side != "rows":
        arguments[place + 1] = _twice(right, right.dim() - 1 if side == "columns" else max(0, right.dim() - 2))
    if place == 1 and side != "inner":
        arguments[0] = _twice_where(arguments[0], -2 if side == "rows" else -1, left, right)
    return arguments


def _twice(tensor: Tensor, side: int) -> Tensor:
    """The tensor twice along a side, in memory as it was: a transposed one stays transposed."""
    if tensor.dim() > 1 and tensor.stride(-1) != 1 and tensor.stride(-2) == 1:
        other = {tensor.dim() - 1: tensor.dim() - 2, tensor.dim() - 2: tensor.dim() - 1}.get(side, side)
        return torch.cat([tensor.mT, tensor.mT], other).mT
    if tensor.dim() == 3 and tensor.stride(0) == 0:
        return _twice(tensor[0], side - 1).expand(tensor.shape[0], -1, -1)
    return torch.cat([tensor, tensor], side)


def _twice_where(added: Tensor, side: int, left: Tensor, right: Tensor) -> Tensor:
    """What is added to a product, twice along a side that has the product's length."""
    size = left.shape[-2] if side == -2 else right.shape[-1]
    if added.dim() < -side or added.shape[side] != size or size == 1:
        return added
    return torch.cat([added, added], side)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cut(added: Tensor, side: int, size: int, kept: int) -> Tensor:
    """What is added to a product, cut as the product is; as it is where it is spread along that side."""
    if added.dim() < -side or added.shape[side] != size:
        return added
    return added.narrow(side, 0, kept)
