"""`torch.einsum` of two tensors without numbers: as a batched product, with the copies that this takes."""

from __future__ import annotations

import math

from bench.memory.operators import bmm, mul
from bench.memory.tensors import Tensor
from bench.memory.views import permute, reshape, unsqueeze


def einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """A sum of products, such as ``tec,td->ecd``, where every letter of ``b`` or ``a`` alone is a result's.

    Each operand is brought into the order of the result's letters, then the others in alphabetical order, and seen as
    (batch, rows, summed) or (batch, summed, columns): a copy, unless its elements lie so already. Where nothing longer
    than one is summed, the operands are multiplied instead.
    """
    inputs, result = equation.split("->")
    a_letters, b_letters = inputs.split(",")
    letters = result + "".join(sorted(set(a_letters + b_letters) - set(result)))
    a, b = _ordered(a, a_letters, letters), _ordered(b, b_letters, letters)
    sizes = [m if n == 1 else n for m, n in zip(a.shape, b.shape, strict=True)]
    outer, inner = range(len(result)), range(len(result), len(letters))
    summed = [i for i in inner if a.shape[i] != 1 and b.shape[i] != 1]
    if not summed:
        return reshape(mul(a, b), *sizes[: len(result)])
    batch = [i for i in outer if a.shape[i] != 1 and b.shape[i] != 1]
    rows = [i for i in outer if a.shape[i] != 1 and b.shape[i] == 1]
    columns = [i for i in outer if a.shape[i] == 1]
    ones = [i for i in inner if i not in summed]
    left = permute(a, [*batch, *rows, *summed, *columns, *ones])
    right = permute(b, [*batch, *summed, *columns, *rows, *ones])

    def size(group: list[int]) -> int:
        return math.prod(sizes[i] for i in group)

    product = bmm(
        reshape(left, size(batch), size(rows), size(summed)), reshape(right, size(batch), size(summed), size(columns))
    )
    order = [*batch, *rows, *columns]
    unordered = reshape(product, *(sizes[i] for i in order))
    return permute(unordered, [order.index(i) for i in outer])


def _ordered(x: Tensor, letters: str, order: str) -> Tensor:
    """Its dimensions in another order, those that it lacks being one."""
    present = permute(x, [letters.index(letter) for letter in order if letter in letters])
    for i, letter in enumerate(order):
        if letter not in letters:
            present = unsqueeze(present, i)
    return present
