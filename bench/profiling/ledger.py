"""Writes down every operator of a call: what it costs, what it allocates, and when that is given back.

An observer that stands between Python and torch's kernels. It is slow, so nothing is timed under it; it is exact, so
what it counts does not depend on the machine. Memory that a kernel takes and gives back inside itself is not seen. And
autograd, which adds gradients of the same tensor in place, does not do so while somebody watches: where a weight is
used more than once, as by a loop over ``w[e]``, a step's peak is higher here than without the ledger.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.profiler import record_function

from bench.measure.pages import num_faults
from bench.profiling.costs import makes_nothing, moved_bytes, product_flops
from bench.profiling.operator_mode import OperatorMode, shapes_of_arguments, tensors_in

OPERATOR = "moebench-operator:"


@dataclass(slots=True)
class Allocation:
    """A tensor's memory, from the operator that made it to the one during which it was given back.

    Attributes:
        num_bytes: its size.
        pointer: its address, and a key while it lives.
        born: number of the operator that made it.
        died: number of operators that had run when it was given back; None where it outlived the call.
        shape, dtype: of the tensor that it was made for.
    """

    num_bytes: int
    pointer: int
    born: int
    shape: tuple[int, ...]
    dtype: str
    died: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One operator.

    Attributes:
        name: as in ``aten::mm``.
        shapes: of its tensors, in order; those in lists are left out, as the profiler does.
        flops: of a matrix product; None for others, whose operations do not matter beside their bytes.
        moved_bytes: tensors in and out, 0 for a view.
        existing_bytes: the part of it that was there before the call: weights, tokens, given gradients.
        allocated_bytes: memory that it made for its results and wrote to.
        faults: pages that were touched for the first time; None where the system does not tell.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    flops: int | None
    moved_bytes: int
    existing_bytes: int = 0
    allocated_bytes: int = 0
    faults: int | None = None


@dataclass
class Ledger(OperatorMode):
    """Open around a call, under torch's profiler, which then knows the place of entry ``i`` as ``OPERATOR + str(i)``.

    Attributes:
        entries: operators in order.
        allocations: what they made, in order.
        forward_end: number of operators in the forward part.
        outputs: addresses of the layer's output.
    """

    entries: list[Entry] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    forward_end: int = 0
    outputs: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._alive: dict[int, Allocation] = {}
        self._closed = False

    def end_forward(self, output: Tensor) -> None:
        """Note that the forward part is over, and what it gave."""
        self.forward_end = len(self.entries)
        self.outputs = frozenset({output.untyped_storage().data_ptr()})

    def close(self) -> None:
        """Note that the call is over: what is given back from now on outlived it."""
        self._closed = True

    def run(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write the operator down."""
        number = len(self.entries)
        inputs = tensors_in(args, kwargs)
        before = num_faults()
        with record_function(f"{OPERATOR}{number}"):
            result = func(*args, **kwargs)
        after = num_faults()
        outputs = tensors_in(result)
        written, read = moved_bytes(name, inputs, outputs)
        existing = [n for n, one in zip(read, inputs, strict=True) if _address(one) not in self._alive]
        known = set(map(_address, inputs))
        allocated_bytes = sum(self._note(tensor, number, known) for tensor in outputs)
        self.entries.append(
            Entry(
                name=name,
                shapes=shapes_of_arguments(args, kwargs),
                flops=product_flops(name, inputs, outputs[0]) if outputs else None,
                moved_bytes=written + sum(read),
                existing_bytes=sum(existing),
                allocated_bytes=0 if makes_nothing(name) else allocated_bytes,
                faults=None if before is None or after is None else after - before,
            )
        )
        return result

    def _note(self, tensor: Tensor, number: int, known: set[int]) -> int:
        """The bytes that were allocated for a result: 0 where it lies in memory that is known."""
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if not pointer or pointer in known or pointer in self._alive or not storage.nbytes():
            return 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        allocation = Allocation(storage.nbytes(), pointer, number, tuple(tensor.shape), dtype)
        self.allocations.append(allocation)
        self._alive[pointer] = allocation
        weakref.finalize(storage, self._freed, allocation).atexit = False
        return allocation.num_bytes

    def _freed(self, allocation: Allocation) -> None:
        if self._closed:
            return
        allocation.died = len(self.entries)
        if self._alive.get(allocation.pointer) is allocation:
            del self._alive[allocation.pointer]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
