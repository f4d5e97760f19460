"""Operators with indices on tensors without numbers: choosing, sorting, gathering, and writing to places.

As in :mod:`bench.memory.operators`, one function an operator of torch. Half precision is summed in float32, in memory
that lives for one operator.
"""

from __future__ import annotations

from bench.memory.backward import Gradients, note, only, propagates
from bench.memory.tensors import FLOAT, INDEX, Shape, Tensor, fresh, fresh_like, is_contiguous

_LEAST_WIDTH = 16
"""Rows of at least so many numbers are added thread by thread on the CPU, each with a row of its own for the sum."""


def arange(like: Tensor, size: int) -> Tensor:
    """0, 1, 2, ..., int64."""
    return fresh(like, (size,), INDEX)


def top_k(x: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """The largest along a dimension, and where they are. Without a gradient."""
    dim %= len(x.shape)
    shape = (*x.shape[:dim], k, *x.shape[dim + 1 :])
    return fresh(x, shape, x.item_bytes), fresh(x, shape, INDEX)


def sort(x_N: Tensor) -> tuple[Tensor, Tensor]:
    """Values in order, and where they were."""
    values, order = fresh(x_N, x_N.shape, x_N.item_bytes, "routing"), fresh(x_N, x_N.shape, INDEX)
    arange(x_N, x_N.numel)
    return values, order


def search_sorted(x: Tensor) -> Tensor:
    """Where each would be put."""
    return fresh(x, x.shape, INDEX)


def largest(x: Tensor) -> None:
    """A maximum, read by Python; it copies what does not lie row after row."""
    result = fresh(x, (), x.item_bytes)
    if not is_contiguous(x):
        fresh(x, x.shape, x.item_bytes)
    del result


def invert(order_N: Tensor) -> Tensor:
    """The permutation that undoes it."""
    inverse = fresh(order_N, order_N.shape, INDEX)
    arange(order_N, order_N.numel)
    return inverse


def where_true(mask: Tensor, num_true: int) -> tuple[Tensor, Tensor]:
    """The indices (num_true,) along both dimensions where a matrix holds True: two columns of one tensor."""
    found = fresh(mask, (num_true, 2), INDEX)
    return found.view((num_true,), (2,)), found.view((num_true,), (2,))


# reading


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Elements along the last dimension; the gradient, as large as the whole, needs the whole for its shape."""
    return _read(x, fresh(x, index.shape, x.item_bytes), (x, index))


def index_elements(x: Tensor, *indices: Tensor) -> Tensor:
    """``x[i]`` or ``x[i, j]`` for vectors of indices; the gradient is as large as the whole."""
    return _read(x, fresh(x, indices[0].shape + x.shape[len(indices) :], x.item_bytes), indices)


def _read(x: Tensor, result: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    shape = x.shape
    note([result], [x], kept, lambda gradients, *_: [_whole(only(gradients), shape)])
    return result


def _whole(gradient: Tensor, shape: Shape) -> Tensor:
    return fresh(gradient, shape, gradient.item_bytes)


def index_select(x: Tensor, index: Tensor) -> Tensor:
    """Rows by number; the gradient is as large as the whole, with rows added to zeros."""
    result, shape = fresh(x, (index.numel, *x.shape[1:]), x.item_bytes), x.shape

    def rule(gradients: Gradients, *_: object) -> Gradients:
        whole = _whole(only(gradients), shape)
        _add_rows(whole)
        return [whole]

    note([result], [x], (index,), rule)
    return result


def _add_rows(into: Tensor) -> None:
    if into.item_bytes < FLOAT:
        width = into.shape[-1]
        fresh(into, (into.account.num_threads, width) if width >= _LEAST_WIDTH else into.shape, FLOAT, "workspace")


# writing: a copy of what was there; the gradient of what is written is read from its places


def index_copy(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Rows to their places; they are kept for their shape only."""
    return _write(fresh_like(base), base, source, (index, source))


def index_add(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Rows added to their places; they are kept for their shape only."""
    result = fresh_like(base)
    if source.numel:
        _add_rows(result)
    return _write(result, base, source, (index, source))


def scatter(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Elements to their places."""
    return _write(fresh_like(base), base, source, (index,))


def scatter_add(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Elements added to their places."""
    result = fresh_like(base)
    if result.item_bytes < FLOAT and source.numel:
        fresh(result, result.shape, FLOAT, "workspace")
    return _write(result, base, source, (index,))


def _write(result: Tensor, base: Tensor, source: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    shape, written = source.shape, propagates(source)

    def rule(gradients: Gradients, *_: object) -> Gradients:
        gradient = only(gradients)
        return [gradient.alias(), _whole(gradient, shape) if written else None]

    note([result], [base, source], kept if written else (), rule)
    return result


def embedding_sum(ids_TK: Tensor, rows_RD: Tensor, weights_TK: Tensor) -> Tensor:
    """`embedding_bag` with equal bags: the sum (T, D) of weighted rows. Without a gradient."""
    num_tokens, trains = ids_TK.shape[0], rows_RD.node is not None
    assert weights_TK.shape == ids_TK.shape
    offsets = arange(rows_RD, num_tokens)
    result = fresh(rows_RD, (num_tokens, rows_RD.shape[1]), rows_RD.item_bytes)
    bag_sizes = fresh(rows_RD, (num_tokens,), INDEX)
    if trains and num_tokens:  # bag sizes are differences of offsets
        fresh(rows_RD, (num_tokens - 1,), INDEX)
        fresh(rows_RD, (), INDEX)
    largest_ids = fresh(rows_RD, (num_tokens,), INDEX)
    if rows_RD.item_bytes < FLOAT:  # narrow indices for the kernel
        fresh(rows_RD, ids_TK.shape, 4, "routing")
    del largest_ids, bag_sizes, offsets
    return result
