"""Watches the operators of one call: how many, which of them wait for the device, what they multiply and copy.

Operators are seen as torch dispatches them, below autograd, so that a backward is seen like a forward. What an
operator does inside itself (the matrix products of `grouped_mm`, a fused kernel's steps) is not; an operator of another
library is seen by its name only.

On a CPU nothing ever waits, but which operators need a value on the host is the same everywhere. So they are counted
where they are called, and the count says what the call would wait for on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # torch's documented way to see operators has this home
from torch.utils._pytree import tree_leaves

from bench.profiling.costs import has_kernel, product_flops

# They give a value, or a tensor whose size is one, to the host.
_ALWAYS_WAIT = frozenset(
    {
        "_local_scalar_dense", "nonzero", "equal", "masked_select", "bincount", "unique_dim", "_unique", "_unique2",
        "unique_consecutive", "unique_dim_consecutive", "is_nonzero", "argwhere",
    }
)  # fmt: skip
# Methods that read a CPU tensor's memory without an operator; on a GPU they copy and wait.
_READERS = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.__array__: "__array__"}
_WEIGHT_GRADIENTS = frozenset({"select_backward", "slice_backward"})
_COPIES = frozenset({"clone", "_to_copy", "copy", "contiguous"})
_ACTIVATIONS = frozenset({"silu", "gelu", "sigmoid", "relu", "silu_backward", "gelu_backward", "sigmoid_backward"})
_ONE_HOT_CHECKS = 8  # counting entries reads the whole tensor


class OneHot(NamedTuple):
    """A large tensor of which hardly an entry is not zero."""

    shape: tuple[int, ...]
    num_bytes: int
    num_nonzero: int


@dataclass(slots=True)
class Operators:
    """What one call did.

    Attributes:
        num_operators: operators that compute something; views are left out.
        waits: operators that wait for the device, by name.
        flops: operations of the matrix products.
        unknown: operators of other libraries, whose products nobody counts.
        full_gradients: gradients of the full size of a stacked weight that were made for a part of it.
        full_gradient_bytes: their bytes.
        weight_copies: copies of expert weights, by operator.
        weight_copy_bytes: their bytes.
        strided_weights: matrix products whose weight lies neither in rows nor in columns.
        strided_activations: activations whose input is every second number of a row.
        float64: operators that computed in float64, by name.
        one_hot: the largest tensor that is one.
    """

    num_operators: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    full_gradients: int = 0
    full_gradient_bytes: int = 0
    weight_copies: Counter[str] = field(default_factory=Counter)
    weight_copy_bytes: int = 0
    strided_weights: int = 0
    strided_activations: int = 0
    float64: Counter[str] = field(default_factory=Counter)
    one_hot: OneHot | None = None


def watch_operators(
    call: Callable[[], object], stacked: Mapping[str, Tensor], *, num_rows: int, width: int
) -> Operators:
    """Make one call and tell what it did.

    Args:
        call: forward, or forward and backward.
        stacked: the experts' weights by name, (E, ...).
        num_rows: assignments, T * K: a tensor with at most so many entries that are not zero can be a one-hot one.
        width: D; a one-hot tensor counts where it holds more than four times what the rows themselves hold.
    """
    found = Operators()
    with _Readers(found), _Watch(found, stacked, num_rows, 4 * num_rows * width):
        call()
    return found


class _Readers(TorchFunctionMode):
    def __init__(self, found: Operators) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READERS:
            self._found.waits[_READERS[func]] += 1
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler to keep it away from here: a second in every fresh process.
        return False

    def __init__(self, found: Operators, stacked: Mapping[str, Tensor], num_rows: int, least_one_hot: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._found = found
        self._stacked = list(stacked.values())
        self._shapes = {tuple(weight.shape) for weight in stacked.values()}
        self._num_rows, self._least_one_hot = num_rows, least_one_hot
        self._one_hot_checks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not has_kernel(func):  # what is made of other operators is seen as these
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if func.namespace not in ("aten", "prim", "prims", "mkldnn", "mkl"):
            self._found.unknown[str(func)] += 1
        if not func.is_view:
            self._note(func._schema.name, name, args, kwargs, result)  # noqa: SLF001 - torch's only place for it
        return result

    def _note(self, full_name: str, name: str, args: Any, kwargs: Any, result: Any) -> None:
        found = self._found
        found.num_operators += 1
        tensors = [a for a in args if isinstance(a, Tensor)]
        if _waits(name, args, kwargs, result):
            found.waits[name] += 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        flops = product_flops(full_name, inputs, result) if isinstance(result, Tensor) else None
        if flops is not None:
            found.flops += flops
            found.strided_weights += sum(_is_strided(t) for t in tensors if self._weight_of(t) is not None)
        if name in _ACTIVATIONS and tensors and tensors[-1].dim() and tensors[-1].shape[-1] > 1:
            found.strided_activations += tensors[-1].stride(-1) == 2
        if not isinstance(result, Tensor):
            return
        if result.dtype is torch.float64 and result.dim():
            found.float64[name] += 1
        if name in _WEIGHT_GRADIENTS and tuple(result.shape) in self._shapes:
            found.full_gradients += 1
            found.full_gradient_bytes += result.numel() * result.element_size()
        weight = self._weight_of(tensors[0]) if name in _COPIES and tensors else None
        if weight is not None and result.numel() >= weight[0].numel():  # an expert, not a few of its numbers
            found.weight_copies[name] += 1
            found.weight_copy_bytes += result.numel() * result.element_size()
        self._look_for_one_hot(name, result)

    def _weight_of(self, tensor: Tensor) -> Tensor | None:
        """The stacked weight that a tensor is a view of; by address, because mapped weights share one storage."""
        if tensor.layout is not torch.strided or not tensor.numel():
            return None
        address = tensor.data_ptr()
        return next((w for w in self._stacked if 0 <= address - w.data_ptr() < w.numel() * w.element_size()), None)

    def _look_for_one_hot(self, name: str, result: Tensor) -> None:
        found = self._found
        large_enough = max(
            self._least_one_hot, found.one_hot.num_bytes // result.element_size() if found.one_hot else 0
        )
        if result.numel() <= large_enough or "zeros" in name or "empty" in name or name in ("fill_", "zero_"):
            return
        if self._one_hot_checks == _ONE_HOT_CHECKS:
            return
        self._one_hot_checks += 1
        num_nonzero = int(result.count_nonzero())
        if 0 < num_nonzero <= self._num_rows:
            found.one_hot = OneHot(tuple(result.shape), result.numel() * result.element_size(), num_nonzero)


def _waits(name: str, args: Any, kwargs: Any, result: Any) -> bool:
    if name in _ALWAYS_WAIT:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
        one_value = name != "index" and args[2].numel() == 1  # becomes masked_fill, which does not wait
        return bool(masks) and not one_value
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        target = result if name == "_to_copy" else args[0]
        return bool(source.device.type != "cpu" and target.device.type == "cpu")
    return False


def _is_strided(tensor: Tensor) -> bool:
    """Whether a matrix lies neither in rows nor in columns, so that it is copied before it is multiplied."""
    if tensor.dim() < 2 or min(tensor.shape[-2:]) < 2:
        return False
    return tensor.stride(-1) != 1 and tensor.stride(-2) != 1
