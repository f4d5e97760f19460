"""Operations and bytes of single operators, from the tensors that go in and come out.

Only operators that do work count: a view moves nothing. Matrix products count ``2 * M * K * N``, ``grouped_mm`` those
of the rows that its offsets name (torch's own counter gives it 0). Everything else counts no operations: it is bound by
its bytes. Bytes are each tensor's once; an operator that picks rows is charged for the rows it picks. What an operator
does inside itself (a fused kernel's steps) is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# They read as many rows of their first tensor as they write, whatever its size.
PICKING = frozenset({"aten::index_select", "aten::gather", "aten::embedding", "aten::index", "aten::take_along_dim"})
# They read the rows that their second tensor names.
SUMMING = frozenset({"aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"})
# They take from their first tensor no more than its shape, or overwrite it.
OVERWRITING = frozenset({"aten::copy_", "aten::fill_", "aten::zero_"})
GROUPED = "aten::_grouped_mm"
# Which of their tensors is the left factor; the result's size times its columns, twice, are the operations.
LEFT_FACTOR = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::mv": 0,
    "aten::dot": 0,
    "aten::linear": 0,
    "aten::mkldnn_linear": 0,
    "mkldnn::_linear_pointwise": 0,
    "mkl::_mkl_linear": 0,
    "aten::addmm": 1,
    "aten::addmv": 1,
    "aten::baddbmm": 1,
    "aten::_addmm_activation": 1,
}


def has_kernel(func: Any) -> bool:
    """Whether an operator has a kernel of its own: some can also be composed of others, and are not."""
    keys = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    # the dispatcher tells it nowhere else
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) for key in keys)  # noqa: SLF001


def product_flops(name: str, inputs: Sequence[Tensor], result: Tensor) -> int | None:
    """Floating-point operations of a matrix product, or None where the operator is none.

    Args:
        name: as in ``aten::mm``.
        inputs: its tensors in order.
        result: what it gave.
    """
    if name in LEFT_FACTOR:
        return 2 * inputs[LEFT_FACTOR[name]].shape[-1] * result.numel()
    if name == GROUPED:
        return _grouped(inputs, result)
    return None


def _grouped(inputs: Sequence[Tensor], result: Tensor) -> int:
    """Of ``grouped_mm``: rows up to the last offset only."""
    left, right = inputs[0], inputs[1]
    if left.dim() == 3 and right.dim() == 3:
        return 2 * left.shape[-1] * result.numel()
    rows = int(inputs[2][-1])
    if left.dim() == 2 and right.dim() == 2:  # one product a group: what gives the weights' gradients
        return 2 * rows * left.shape[0] * right.shape[1]
    return 2 * rows * math.prod((right if left.dim() == 2 else left).shape[-2:])


def moved_bytes(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, list[int]]:
    """Bytes that an operator writes, and those that it reads of each input; all 0 where it only looks or makes room."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()}
    written = [tensor for tensor in outputs if tensor.numel()]
    nothing = 0, [0] * len(inputs)
    if all(tensor.untyped_storage().data_ptr() in storages for tensor in written) and not name.endswith("_"):
        return nothing
    out_bytes = sum(map(_bytes, written))
    read = [_bytes(tensor) for tensor in inputs]
    if makes_nothing(name):
        return nothing
    if name in PICKING:
        read[0] = out_bytes
    elif name in OVERWRITING or name.startswith("aten::new_") or name.endswith("_like"):
        read[0] = 0
    elif name in SUMMING:
        read[0] = inputs[1].numel() * inputs[0].shape[-1] * inputs[0].element_size()
    elif name == GROUPED:
        read = [round(num_bytes * _used(tensor, inputs)) for num_bytes, tensor in zip(read, inputs, strict=True)]
    return out_bytes, read


def makes_nothing(name: str) -> bool:
    """Whether an operator hands out memory without touching it."""
    return name.startswith(("aten::empty", "aten::new_empty"))


def _used(tensor: Tensor, inputs: Sequence[Tensor]) -> float:
    """The part of the groups of a stacked matrix that has rows: the others are not read."""
    if tensor.dim() != 3 or len(inputs) < 3:
        return 1.0
    ends: list[int] = inputs[2].tolist()
    return sum(begin < end for begin, end in zip([0, *ends[:-1]], ends, strict=True)) / len(ends)


def _bytes(tensor: Tensor) -> int:
    # A tensor that repeats itself (a stride of 0) is read once.
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return distinct * tensor.element_size() if tensor.layout == torch.strided else tensor.numel()
