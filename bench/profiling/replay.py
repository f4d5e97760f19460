"""Times the matrix products of a call once more, each on its own, with what it multiplies in the cache.

In a call a product waits for whatever was not near: weights that come from main memory, outputs on pages that are
touched for the first time. Repeated at once, it finds everything where it left it. The difference is what the call paid
for memory; what is left is the product itself, at this size, on this machine. How much reading is hidden behind the
multiplying differs from one matrix library, shape and processor to the next, so it is measured and not modelled.

What does not fit a quarter of the last-level cache is made smaller: of a stack of matrices the first one stands for
all, and a single matrix is cut, its time taken in proportion.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.measure.pages import PageCost, num_faults
from bench.profiling.costs import LEFT_FACTOR, product_flops
from bench.profiling.operator_mode import OperatorMode, shapes_of_arguments, tensors_in

MIN_REPETITIONS, MAX_REPETITIONS = 3, 15
ENOUGH_S = 0.01
Product = tuple[str, tuple[tuple[int, ...], ...]]
"""An operator's name and the shapes of its tensors."""


@dataclass
class Replay(OperatorMode):
    """Open around a call.

    Attributes:
        fits_bytes: tensors up to this size are taken to stay in the cache from one repetition to the next.
        page_cost: what the pages that a repetition touches first cost, which is not its own time.
        seconds: of every product that could be repeated, by name and shapes.
    """

    fits_bytes: int
    page_cost: PageCost | None
    seconds: dict[Product, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def run(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call it, and if it is a product of a shape that was not seen yet, time it again."""
        result = func(*args, **kwargs)
        shape = name, shapes_of_arguments(args, kwargs)
        if shape in self.seconds or "out" in kwargs or not isinstance(result, Tensor):
            return result
        near = nearby(name, args, self.fits_bytes) if product_flops(name, tensors_in(args, kwargs), result) else None
        if near is not None:
            arguments, factor = near
            self.seconds[shape] = factor * self._time(func, arguments, kwargs)
        return result

    def _time(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
        """Median seconds of one repetition, less what first touches cost it."""
        func(*args, **kwargs)
        seconds: list[float] = []
        while len(seconds) < MIN_REPETITIONS or (sum(seconds) < ENOUGH_S and len(seconds) < MAX_REPETITIONS):
            faults = num_faults() or 0
            begin_s = time.perf_counter()
            func(*args, **kwargs)
            end_s = time.perf_counter()
            faults = (num_faults() or 0) - faults
            touching_s = faults * self.page_cost.touch_s if self.page_cost is not None else 0.0
            seconds.append(max(0.0, end_s - begin_s - touching_s))
        return statistics.median(seconds)


def nearby(name: str, args: Sequence[Any], fits_bytes: int) -> tuple[list[Any], float] | None:
    """The arguments of a product as they would be if they fitted the cache, and what to multiply its time with.

    None where that cannot be: a matrix of more than ``fits_bytes`` that is not one of the two factors.
    """
    arguments, factor = list(args), 1.0
    left = LEFT_FACTOR.get(name, 0)
    for place, one in enumerate(args):
        if not isinstance(one, Tensor) or one.numel() * one.element_size() <= fits_bytes:
            continue
        if one.dim() == 3:
            arguments[place] = one[:1].expand(one.shape)
        elif one.dim() == 2 and place in (left, left + 1):
            side = 0 if place == left else 1  # the dimension that the product keeps: of its rows or of its columns
            size = one.shape[side]
            kept = max(1, size * fits_bytes // (one.numel() * one.element_size()))
            arguments[place] = one.narrow(side, 0, kept)
            if left == 1:
                arguments[0] = _cut(arguments[0], side - 2, size, kept)
            factor *= size / kept
        else:
            return None
    return arguments, factor


def _cut(added: Tensor, side: int, size: int, kept: int) -> Tensor:
    """What is added to a product, cut as the product is; as it is where it is spread along that side."""
    if added.dim() < -side or added.shape[side] != size:
        return added
    return added.narrow(side, 0, kept)
