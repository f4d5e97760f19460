"""Views of tensors without numbers, and copies where a view is not possible."""

from __future__ import annotations

from collections.abc import Sequence

from bench.memory.backward import Gradients, note, only
from bench.memory.tensors import Shape, Tensor, fresh, is_contiguous, strides_as


def transpose(x: Tensor, first: int = -2, second: int = -1) -> Tensor:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return permute(x, order)


def permute(x: Tensor, order: Sequence[int]) -> Tensor:
    """Dimensions in another order."""
    result = x.view(tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order))
    back = tuple(sorted(range(len(order)), key=lambda i: order[i]))
    note([result], [x], (), lambda gradients, *_: [_permuted(only(gradients), back)])
    return result


def _permuted(x: Tensor, order: Sequence[int]) -> Tensor:
    return x.view(tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a dimension of one."""
    dim %= len(x.shape) + 1
    shape = (*x.shape[:dim], 1, *x.shape[dim:])
    stride = x.shape[dim] * x.strides[dim] if dim < len(x.shape) else 1
    result = x.view(shape, (*x.strides[:dim], stride, *x.strides[dim:]))
    note([result], [x], (), lambda gradients, *_: [_without(only(gradients), dim)])
    return result


def squeeze(x: Tensor, dim: int) -> Tensor:
    """Without a dimension of one."""
    dim %= len(x.shape)
    result = _without(x, dim)
    shape = x.shape

    def rule(gradients: Gradients, *_: object) -> Gradients:
        gradient = only(gradients)
        return [gradient.view(shape, (*gradient.strides[:dim], 1, *gradient.strides[dim:]))]

    note([result], [x], (), rule)
    return result


def _without(x: Tensor, dim: int) -> Tensor:
    return x.view(x.shape[:dim] + x.shape[dim + 1 :], x.strides[:dim] + x.strides[dim + 1 :])


def expand(x: Tensor, shape: Shape) -> Tensor:
    """Repeated along dimensions of one, without a copy; the gradient is summed over them."""
    before = x.shape
    strides = tuple(0 if n != m else s for n, m, s in zip(x.shape, shape, x.strides, strict=True))
    result = x.view(shape, strides)

    def rule(gradients: Gradients, *_: object) -> Gradients:
        gradient = only(gradients)
        return [gradient if gradient.shape == before else fresh(gradient, before, gradient.item_bytes)]

    note([result], [x], (), rule)
    return result


def reshape(x: Tensor, *shape: int) -> Tensor:
    """In another shape: a view where the elements lie so, else a copy. One size may be -1."""
    shape = _resolved(x, shape)
    strides = strides_as(x, shape)
    if strides is None:
        return reshape(clone(x), *shape)
    result = x.view(shape, strides)
    before = x.shape
    note([result], [x], (), lambda gradients, *_: [_reshaped(only(gradients), before)])
    return result


def _reshaped(x: Tensor, shape: Shape) -> Tensor:
    strides = strides_as(x, shape)
    if strides is None:
        return fresh(x, shape, x.item_bytes)
    return x.view(shape, strides)


def _resolved(x: Tensor, shape: Shape) -> Shape:
    if -1 not in shape:
        return shape
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    return tuple(x.numel // max(1, known) if size == -1 else size for size in shape)


def clone(x: Tensor) -> Tensor:
    """A copy, row after row."""
    result = fresh(x, x.shape, x.item_bytes)
    note([result], [x], (), lambda gradients, *_: [gradients[0]])
    return result


def contiguous(x: Tensor) -> Tensor:
    """Row after row: itself, or a copy."""
    return x if is_contiguous(x) else clone(x)


def narrow(x: Tensor, dim: int, size: int) -> Tensor:
    """The first ``size`` along a dimension; the gradient is as large as the whole, with zeros."""
    dim %= len(x.shape)
    shape = x.shape
    if size == shape[dim]:  # all of it
        result = x.alias()
        result.viewed = True
        note([result], [x], (), lambda gradients, *_: [fresh(only(gradients), shape, only(gradients).item_bytes)])
        return result
    result = x.view((*shape[:dim], size, *shape[dim + 1 :]), x.strides)
    note([result], [x], (), lambda gradients, *_: [fresh(only(gradients), shape, only(gradients).item_bytes)])
    return result


def select(x: Tensor) -> Tensor:
    """One along the first dimension; the gradient is as large as the whole, with zeros."""
    shape = x.shape
    result = x.view(shape[1:], x.strides[1:])
    note([result], [x], (), lambda gradients, *_: [fresh(only(gradients), shape, only(gradients).item_bytes)])
    return result


def unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    """Every one along a dimension; their gradients are stacked into one tensor, none being a zero."""
    dim %= len(x.shape)
    shape, item_bytes = x.shape, x.item_bytes
    results = [_without(x, dim) for _ in range(shape[dim])]

    def rule(gradients: Gradients, *_: object) -> Gradients:
        found = next(g for g in gradients if g is not None)
        zeros = [fresh(found, (), item_bytes) for g in gradients if g is None]
        stacked = fresh(found, shape, item_bytes)
        del zeros
        return [stacked]

    note(results, [x], (), rule)
    return results


def split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    """Parts along a dimension; their gradients are put side by side, none being zeros."""
    dim %= len(x.shape)
    shape, item_bytes = x.shape, x.item_bytes
    results = [x.view((*shape[:dim], size, *shape[dim + 1 :]), x.strides) for size in sizes]
    shapes = [part.shape for part in results]

    def rule(gradients: Gradients, *_: object) -> Gradients:
        found = next(g for g in gradients if g is not None)
        zeros = [fresh(found, part, item_bytes) for g, part in zip(gradients, shapes, strict=True) if g is None]
        whole = fresh(found, shape, item_bytes)
        del zeros
        return [whole]

    note(results, [x], (), rule)
    return results
