"""Stands between Python and torch's kernels: every operator that has one comes by, forward and backward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.profiling.costs import has_kernel


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Open around a call; what is made of other operators is seen as these, as it is where autograd is on."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler to keep it away from here: a second in every fresh process.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not has_kernel(func):
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        name = func._schema.name  # noqa: SLF001 - the only place where torch keeps an operator's name
        return self.run(func, name, args, kwargs or {})

    @abstractmethod
    def run(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``func`` with these arguments, once at least, and return what it gives."""


def tensors_in(*arguments: Any) -> list[Tensor]:
    """Every tensor in arguments or results, those in lists included, in order."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def shapes_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors among the arguments; those in lists are left out, as the profiler does."""
    return tuple(tuple(one.shape) for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
