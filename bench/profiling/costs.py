"""Operations and bytes of single operators, from the tensors that go in and come out.

Only operators that do work count: a view moves nothing. Matrix products count ``2 * M * K * N``, ``grouped_mm`` those
of the rows that its offsets name (torch's own counter gives it 0). Everything else counts no operations: it is bound by
its bytes. Bytes are each tensor's once; an operator that picks rows is charged for the rows it picks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shape = Sequence[int]
# They read as many rows of their first tensor as they write, whatever its size.
PICKING = frozenset({"aten::index_select", "aten::gather", "aten::embedding", "aten::index", "aten::take_along_dim"})
# They read the rows that their second tensor names.
SUMMING = frozenset({"aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"})
GROUPED = "aten::_grouped_mm"
PRODUCTS = frozenset({"aten::mm", "aten::bmm", "aten::linear", "aten::matmul", "aten::mv", "aten::dot"})
ADDED_PRODUCTS = frozenset({"aten::addmm", "aten::baddbmm", "aten::addmv"})


def product_flops(name: str, tensors: Sequence[Tensor]) -> int | None:
    """Floating-point operations of a matrix product, or None where the operator is none."""
    if name in ADDED_PRODUCTS:
        return _product(tensors[1].shape, tensors[2].shape)
    if name == "aten::linear":
        return 2 * tensors[0].numel() * tensors[1].shape[0]
    if name in PRODUCTS:
        return _product(tensors[0].shape, tensors[1].shape)
    if name == GROUPED:
        return _grouped(tensors)
    return None


def _product(a: Shape, b: Shape) -> int:
    """Of (..., M, K) with (..., K, N), batches that fit each other counted once."""
    rows = math.prod(a)
    return 2 * rows * (b[-1] if len(b) > 1 else 1)


def _grouped(tensors: Sequence[Tensor]) -> int:
    a, b = tensors[0], tensors[1]
    if a.dim() == 3 and b.dim() == 3:
        return _product(a.shape, b.shape)
    rows = int(tensors[2][-1]) if len(tensors) > 2 else a.shape[0 if a.dim() == 2 else 1]
    if a.dim() == 2 and b.dim() == 3:
        return 2 * rows * a.shape[1] * b.shape[2]
    # (M, rows) with (rows, N), one product a group: what gives the weights' gradients
    return 2 * rows * a.shape[-2] * b.shape[-1]


def moved_bytes(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes that an operator reads and writes; 0 where it only looks at tensors in another way."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()}
    written = [tensor for tensor in outputs if tensor.numel()]
    if all(tensor.untyped_storage().data_ptr() in storages for tensor in written) and not name.endswith("_"):
        return 0
    out_bytes = sum(map(_bytes, written))
    if name in PICKING:
        return 2 * out_bytes + sum(map(_bytes, inputs[1:]))
    if name in SUMMING:
        row_bytes = inputs[0].shape[-1] * inputs[0].element_size()
        return out_bytes + inputs[1].numel() * row_bytes + sum(map(_bytes, inputs[1:]))
    return out_bytes + sum(map(_bytes, inputs))


def _bytes(tensor: Tensor) -> int:
    # A tensor that repeats itself (a stride of 0) is read once.
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return distinct * tensor.element_size() if tensor.layout == torch.strided else tensor.numel()
