"""Operators on tensors without numbers: how large a result is, what lives beside it, what is kept for the gradient.

One function an operator of torch, of the same name; what its kernel on the CPU takes and gives back inside itself is
written down too, down to the eight bytes of a Python number that is made a tensor. What gradients take, and in which
order, is torch's. Those on indices are in :mod:`bench.memory.indexing`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.memory.backward import Gradients, Kept, note, only, propagates
from bench.memory.tensors import BOOL, INDEX, Shape, Tensor, fresh, fresh_like
from bench.memory.views import transpose

Needed = Sequence[bool]


def to(x: Tensor, item_bytes: int) -> Tensor:
    """In another number format; itself where it is that already."""
    if x.item_bytes == item_bytes:
        return x
    result, before = fresh_like(x, item_bytes), x.item_bytes
    note([result], [x], (), lambda gradients, *_: [fresh_like(only(gradients), before)])
    return result


# products


def mm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product (n, m) x (m, p), to which a bias (p,) is added."""
    result, shape_a, shape_b = fresh(a, (a.shape[0], b.shape[1]), a.item_bytes), a.shape, b.shape
    column_major = b.strides[0] == 1 and b.strides[1] == b.shape[0]

    def rule(gradients: Gradients, _: Kept, needed: Needed) -> Gradients:
        gradient = only(gradients)
        of_a = of_b = None
        if needed[1] and column_major:  # as the weight lies from which b was transposed
            of_b = transpose(fresh(gradient, shape_b[::-1], gradient.item_bytes))
        elif needed[1]:
            of_b = fresh(gradient, shape_b, gradient.item_bytes)
        if needed[0]:
            of_a = fresh(gradient, shape_a, gradient.item_bytes)
        return [of_a, of_b, gradient.alias() if needed[2] else None]

    note([result], [a, b, bias], kept_factors(a, b), rule)
    return result


def bmm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix products (B, n, m) x (B, m, p), to which a bias (B, 1, p) is added."""
    result = fresh(a, (a.shape[0], a.shape[1], b.shape[2]), a.item_bytes)
    shape_a, shape_b = a.shape, b.shape

    def rule(gradients: Gradients, _: Kept, needed: Needed) -> Gradients:
        gradient = only(gradients)
        of_b = fresh(gradient, shape_b, gradient.item_bytes) if needed[1] else None
        of_a = fresh(gradient, shape_a, gradient.item_bytes) if needed[0] else None
        return [of_a, of_b, gradient.alias() if needed[2] else None]

    note([result], [a, b, bias], kept_factors(a, b), rule)
    return result


def kept_factors(a: Tensor, b: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What a product keeps: each factor for the gradient of the other."""
    return a if propagates(b) else None, b if propagates(a) else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, m) x (p, m) -> (n, p)."""
    return mm(x, transpose(weight), bias)


def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows (n, m) of several experts times (E, m, p); the weights' gradients lie as these."""
    result = fresh(x, (x.shape[0], weight.shape[2]), x.item_bytes)
    shape_x, shape_w, strides_w = x.shape, weight.shape, weight.strides

    def rule(gradients: Gradients, _: Kept, needed: Needed) -> Gradients:
        gradient = only(gradients)
        of_w = fresh(gradient, shape_w, gradient.item_bytes).view(shape_w, strides_w) if needed[1] else None
        of_x = fresh(gradient, shape_x, gradient.item_bytes) if needed[0] else None
        return [of_x, of_w]

    note([result], [x, weight], (*kept_factors(x, weight), ends), rule)
    return result


# element by element


def _function(x: Tensor, result: Tensor, kept: Kept) -> Tensor:
    note([result], [x], kept, lambda gradients, *_: [fresh_like(only(gradients))])
    return result


def gelu(x: Tensor) -> Tensor:
    """Its gradient needs the argument."""
    return _function(x, fresh_like(x), (x,))


silu = softplus = gelu


def relu(x: Tensor) -> Tensor:
    """Its gradient needs the result only."""
    result = fresh_like(x)
    return _function(x, result, (result.alias(),))


sigmoid = softmax = relu


def logsigmoid(x: Tensor) -> Tensor:
    """Its gradient needs the argument, and a table as large that the CPU makes."""
    result, table = fresh_like(x), fresh_like(x)
    return _function(x, result, (x, table))


def mul(a: Tensor, b: Tensor) -> Tensor:
    """A product of every two elements, broadcast, in the wider format."""
    result = combined(a, b)

    def rule(gradients: Gradients, kept: Kept, _: Needed) -> Gradients:
        gradient, (a, b) = only(gradients), kept
        of_b = None if a is None else combined(gradient, a)
        of_a = None if b is None else combined(gradient, b)
        return [of_a, of_b]

    note([result], [a, b], kept_factors(a, b), rule)
    return result


def add(a: Tensor, b: Tensor) -> Tensor:
    """A sum of every two elements, broadcast."""
    result = combined(a, b)
    note([result], [a, b], (), lambda gradients, *_: [only(gradients), only(gradients).alias()])
    return result


def combined(a: Tensor, b: Tensor) -> Tensor:
    """What two tensors give element by element, broadcast; the narrower is converted beside it. Without a gradient."""
    item_bytes = max(a.item_bytes, b.item_bytes)
    converted = [fresh(t, t.shape, item_bytes, _beside(t)) for t in (a, b) if t.item_bytes < item_bytes]
    shape = _broadcast(a.shape, b.shape)
    result = fresh_like(a, item_bytes) if a.shape == shape else fresh(a, shape, item_bytes)
    del converted
    return result


def _beside(x: Tensor) -> str:
    """The part of what lives for one operator: workspace, but of masks and indices the routing."""
    return "routing" if x.item_bytes in (BOOL, INDEX) else "workspace"


def _broadcast(a: Shape, b: Shape) -> Shape:
    length = max(len(a), len(b))
    pairs = zip((1,) * (length - len(a)) + a, (1,) * (length - len(b)) + b, strict=True)
    return tuple(m if n == 1 else n for n, m in pairs)


def with_number(x: Tensor, item_bytes: int | None = None, *, number: Tensor | None = None) -> Tensor:
    """What a tensor and a Python number give, by default in the tensor's format. Without a gradient.

    Args:
        x: the tensor.
        item_bytes: of the result.
        number: the Python number as a tensor, where that is there already.
    """
    number = _number(x) if number is None else number
    converted = None if x.item_bytes == INDEX else fresh(x, (), x.item_bytes, "workspace")
    result = fresh_like(x, item_bytes)
    del converted, number
    return result


def _number(x: Tensor) -> Tensor:
    """A Python number made a tensor beside ``x``: float64 or int64."""
    return fresh(x, (), INDEX, "workspace")


def mul_number(x: Tensor) -> Tensor:
    """Times a Python number, which the gradient needs."""
    number = _number(x)
    result = with_number(x, number=number)
    note([result], [x], (number,), lambda gradients, kept, _: [with_number(only(gradients), number=only(kept))])
    return result


def add_number(x: Tensor) -> Tensor:
    """Plus a Python number."""
    result = with_number(x)
    note([result], [x], (), lambda gradients, *_: [only(gradients)])
    return result


def compare(x: Tensor) -> Tensor:
    """A mask: every element against a Python number."""
    return with_number(x, BOOL)


def clamp(x: Tensor, num_limits: int) -> Tensor:
    """Within one limit or two; the gradient is zero outside, which takes a mask a limit."""
    result = fresh_like(x)

    def rule(gradients: Gradients, kept: Kept, _: Needed) -> Gradients:
        gradient, x = only(gradients), only(kept)
        zero = fresh(gradient, (), gradient.item_bytes)
        masks = [compare(x) for _ in range(num_limits)]
        masked = fresh_like(gradient)
        del masks, zero
        return [masked]

    note([result], [x], (x,), rule)
    return result


def masked_fill(x: Tensor, mask: Tensor) -> Tensor:
    """A copy, row after row, with a number where the mask says so; its gradient is masked likewise."""
    result, shape = fresh(x, x.shape, x.item_bytes), x.shape
    note([result], [x], (mask,), lambda gradients, *_: [fresh(only(gradients), shape, only(gradients).item_bytes)])
    return result


# along dimensions


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Side by side; every part's gradient is a view of the whole one."""
    shapes = [part.shape for part in parts]
    size = sum(shape[dim] for shape in shapes)
    result = fresh(parts[0], (*shapes[0][:dim], size, *shapes[0][dim + 1 :]), parts[0].item_bytes)

    def rule(gradients: Gradients, _: Kept, needed: Needed) -> Gradients:
        whole = only(gradients)
        return [whole.view(shape, whole.strides) if need else None for shape, need in zip(shapes, needed, strict=True)]

    note([result], parts, (), rule)
    return result


def sum_over(x: Tensor, dim: int) -> Tensor:
    """Summed over a dimension; the gradient is expanded without a copy."""
    shape = x.shape
    result = fresh(x, shape[:dim] + shape[dim + 1 :], x.item_bytes)

    def rule(gradients: Gradients, *_: object) -> Gradients:
        gradient = only(gradients)
        return [gradient.view(shape, (*gradient.strides[:dim], 0, *gradient.strides[dim:]))]

    note([result], [x], (), rule)
    return result


def pad_rows(x: Tensor) -> Tensor:
    """One row of zeros more; the gradient is a copy of the other rows."""
    shape = x.shape
    result = fresh(x, (shape[0] + 1, *shape[1:]), x.item_bytes)
    note([result], [x], (), lambda gradients, *_: [fresh(only(gradients), shape, only(gradients).item_bytes)])
    return result
