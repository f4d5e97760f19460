"""Tensors without numbers: they have a shape, an element size and memory, and know what refers to them.

They stand for torch's in the algorithms that are written down beside this file. Memory is given back when the last
tensor on it is gone, which is when nothing refers to that any more: no variable of a running function, nothing that
the backward pass waits for. That is the rule of torch on CPython, and so a function with the same variables keeps the
same memory alive. No number is ever computed, and torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.memory.account import Account, Block

if TYPE_CHECKING:
    from bench.memory.backward import Node

Shape = tuple[int, ...]
BOOL, HALF, FLOAT, INDEX = 1, 2, 4, 8
"""Bytes of an element. Integers narrower than an index are given by their size."""


class Storage:
    """Memory that tensors share; given back with the last of them. ``block`` is None where it was there before."""

    __slots__ = ("account", "block", "num_tensors")

    def __init__(self, account: Account, block: Block | None) -> None:
        self.account, self.block = account, block
        self.num_tensors = 0


class Tensor:
    """A shape on a storage.

    Attributes:
        storage: its memory.
        shape, strides: in elements; strides matter for what has to be copied.
        item_bytes: bytes of an element.
        node: the step of the backward pass that it is a result of; None where nothing is propagated back.
        place: which of that step's results it is.
        viewed: whether it is a view of another tensor.
    """

    __slots__ = ("item_bytes", "node", "place", "shape", "storage", "strides", "viewed")

    def __init__(self, storage: Storage, shape: Shape, strides: Shape, item_bytes: int, *, viewed: bool) -> None:
        self.storage, self.shape, self.strides, self.item_bytes = storage, shape, strides, item_bytes
        self.node: Node | None = None
        self.place = 0
        self.viewed = viewed
        storage.num_tensors += 1

    def __del__(self) -> None:
        storage = self.storage
        storage.num_tensors -= 1
        if not storage.num_tensors and storage.block is not None:
            storage.account.give_back(storage.block)

    @property
    def account(self) -> Account:
        """Of its call."""
        return self.storage.account

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def belongs_to(self) -> str:
        """Its part of the peak."""
        assert self.storage.block is not None
        return self.storage.block.part

    @belongs_to.setter
    def belongs_to(self, part: str) -> None:
        if self.storage.block is not None:
            self.storage.block.part = part

    def view(self, shape: Shape, strides: Shape) -> Tensor:
        """The same memory in another shape; nothing is propagated through it."""
        return Tensor(self.storage, shape, strides, self.item_bytes, viewed=True)

    def alias(self) -> Tensor:
        """The same tensor once more, cut off from the backward pass."""
        return Tensor(self.storage, self.shape, self.strides, self.item_bytes, viewed=self.viewed)

    def alone(self) -> bool:
        """Whether no other tensor shares its memory, and the call itself made that."""
        return self.storage.block is not None and self.storage.num_tensors == 1


def existing(account: Account, shape: Shape, item_bytes: int) -> Tensor:
    """A tensor that was there before the call."""
    return Tensor(Storage(account, None), shape, contiguous_strides(shape), item_bytes, viewed=False)


def fresh(like: Tensor | Account, shape: Shape, item_bytes: int, part: str | None = None) -> Tensor:
    """A new tensor.

    Args:
        like: the call, or a tensor of it.
        shape: of the new tensor.
        item_bytes: of an element.
        part: what it belongs to; by default what is under way, where masks and indices belong to the routing.
    """
    account = like if isinstance(like, Account) else like.account
    if part is None:
        part = "routing" if item_bytes in (BOOL, INDEX) and account.part in ("dispatched", "output") else account.part
    num_bytes = math.prod(shape) * item_bytes
    # without elements there is no memory
    storage = Storage(account, account.take(num_bytes, part) if num_bytes else None)
    return Tensor(storage, shape, contiguous_strides(shape), item_bytes, viewed=False)


def fresh_like(x: Tensor, item_bytes: int | None = None, part: str | None = None) -> Tensor:
    """A new tensor of the shape of ``x``, its dimensions in the same order in memory where they fill it."""
    result = fresh(x, x.shape, x.item_bytes if item_bytes is None else item_bytes, part)
    step = 1
    for size, stride in sorted(zip(x.shape, x.strides, strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != step:
            return result
        step *= size
    result.strides = x.strides
    return result


def contiguous_strides(shape: Sequence[int]) -> Shape:
    """Strides of rows one after the other."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def same_layout(tensor: Tensor, strides: Shape) -> bool:
    """Whether elements lie as ``strides`` say; where a size is one, a stride does not matter."""
    return all(a == b or n == 1 for a, b, n in zip(tensor.strides, strides, tensor.shape, strict=True))


def is_contiguous(tensor: Tensor) -> bool:
    """Whether rows lie one after the other."""
    return tensor.numel == 0 or same_layout(tensor, contiguous_strides(tensor.shape))


def strides_as(tensor: Tensor, shape: Shape) -> Shape | None:
    """Strides with which ``tensor`` can be seen in another shape, or None where it has to be copied for that."""
    if is_contiguous(tensor):
        return contiguous_strides(shape)
    # runs of dimensions that lie as one, each to be cut anew
    runs: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    strides: list[int] = []
    left, step = runs.pop() if runs else (1, 1)
    for size in reversed(shape):
        if left == 1 and runs and size != 1:
            left, step = runs.pop()
        if left % size:
            return None
        strides.append(step)
        left, step = left // size, step * size
    return tuple(reversed(strides))
