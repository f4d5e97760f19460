"""Names of implementations, and the classes behind them; imports no torch before a class is asked for.

A third party's implementation is named ``path/to/file.py:ClassName``, or by an entry point in :data:`GROUP`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impls.packages import MIXTURE_OF_EXPERTS, PYTORCH_MIXTURES, ST_MOE_PYTORCH, TRANSFORMERS, Package

if TYPE_CHECKING:
    from impls.layer import MoELayer

GROUP = "moebench.impls"


class UnknownImplementation(LookupError):  # noqa: N818  reads as what it is in `except`
    """A name that stands for no implementation, or for more than one."""


class InvalidImplementation(TypeError):  # noqa: N818  reads as what it is in `except`
    """A name that leads to something that is not an implementation or cannot be imported."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One implementation of this project.

    Attributes:
        target: ``module:Class``.
        summary: what it does, in one line.
        semantics: what it computes: ``moe``, or a baseline's own label.
        package: what it needs besides torch: it is somebody else's, a peer.
        router: the one router that it executes; None where it takes any.
    """

    target: str
    summary: str
    semantics: str = "moe"
    package: Package | None = None
    router: str | None = None


ENTRIES = {
    "loop": Entry("impls.loop:Loop", "expert by expert over sorted tokens"),
    "scatter_gather": Entry("impls.scatter_gather:ScatterGather", "padded capacity buffers and batched matmul"),
    "einsum": Entry("impls.einsum:Einsum", "GShard's dispatch and combine tensors"),
    "grouped": Entry("impls.grouped:Grouped", "sorted tokens and torch's grouped_mm"),
    "batched": Entry("impls.batched:Batched", "weights gathered for every assignment, for few tokens"),
    "loop_indexed": Entry("impls.loop_indexed:LoopIndexed", "the common loop on w[e]: backward quadratic in experts"),
    "dense_masked": Entry("impls.dense_masked:DenseMasked", "every expert on every token, masked"),
    "expert_choice": Entry(
        "impls.expert_choice:ExpertChoice", "the tokens that each expert chose, gathered", router="expert_choice"
    ),
    "hf_eager": Entry("impls.peers.transformers:Eager", "transformers' loop in the model's file", package=TRANSFORMERS),
    "hf_batched_mm": Entry(
        "impls.peers.transformers:BatchedMM", "transformers' gathered weights and bmm", package=TRANSFORMERS
    ),
    "hf_grouped_mm": Entry(
        "impls.peers.transformers:GroupedMM", "transformers' sorted tokens and grouped_mm", package=TRANSFORMERS
    ),
    "mixture_of_experts": Entry(
        "impls.peers.lucidrains:MixtureOfExperts",
        "lucidrains' layer with its own gate: top-2, one-hot dispatch",
        package=MIXTURE_OF_EXPERTS,
    ),
    "st_moe": Entry(
        "impls.peers.lucidrains:StMoePytorch",
        "lucidrains' ST-MoE layer with its own gate: one-hot dispatch",
        package=ST_MOE_PYTORCH,
    ),
    "pytorch_mixtures": Entry(
        "impls.peers.pytorch_mixtures:PytorchMixtures",
        "pytorch-mixtures' loop over a list of experts",
        package=PYTORCH_MIXTURES,
    ),
    "dense": Entry("impls.dense:Dense", "the first top_k experts as one FFN: same active FLOPs", "dense"),
    "dense_total": Entry("impls.dense:DenseTotal", "all experts as one FFN: same parameters", "dense_total"),
    "ensemble": Entry("impls.ensemble:Ensemble", "mean of all experts", "ensemble"),
    "ensemble_weighted": Entry(
        "impls.ensemble:EnsembleWeighted", "all experts under the full softmax gate", "ensemble_weighted"
    ),
}


NO_ADAPTER = {
    "tutel": "has no release on the package index; its repository would have to be built",
    "scattermoe": "has no release on the package index; its kernels are Triton, which needs a GPU",
    "fastmoe": "has no release on the package index; its repository would have to be built",
    "megablocks": "0.10 needs stanford-stk, whose kernels are Triton, which needs a GPU",
    "sonic-moe": "asks for Python 3.12 or later; its kernels are for Hopper and Blackwell GPUs",
    "liger-kernel": "installs, but its kernels are Triton, which needs a GPU",
    "soft-moe-pytorch": "runs, and computes something else: soft slots mix all tokens",
    "switch-transformers": "computes something else: every expert sees every token, gates are scaled over a batch",
}
"""Public packages without an adapter, and why: none is written that could not be run and compared."""


def missing(name: str) -> str | None:
    """What an implementation of this project lacks besides torch, found without importing anything; None where nothing.

    An installed entry point lacks nothing here: only its class can tell.
    """
    entry = ENTRIES.get(name)
    return entry.package.missing() if entry and entry.package else None


def idle(name: str, routers: Sequence[str]) -> str | None:
    """Why none of ``routers`` gives an implementation of this project anything to do, or None."""
    entry = ENTRIES.get(name)
    if entry is None or entry.router is None or entry.router in routers:
        return None
    return f"it executes router {entry.router!r} only"


def preloads(names: Iterable[str]) -> list[str]:
    """Modules that a process should import once before it forks others that run these implementations."""
    entries = (ENTRIES.get(name) for name in dict.fromkeys(names))
    packages = {entry.package for entry in entries if entry and entry.package and not entry.package.missing()}
    return sorted(module for package in packages for module in package.preload)


def names() -> list[str]:
    """Every name that can be resolved: this project's in the order of the table, then installed entry points."""
    return list(dict.fromkeys([*ENTRIES, *sorted(point.name for point in entry_points(group=GROUP))]))


def resolve(name: str) -> type[MoELayer]:
    """The class that ``name`` stands for: a name of :func:`names`, or ``path/to/file.py:ClassName``.

    Raises:
        UnknownImplementation: nothing has this name, or more than one thing; the message has the nearest name.
        InvalidImplementation: it is no subclass of MoELayer, does not set `compute`, or its file fails to import.
        ImportError: a package that it needs is not installed.
    """
    if ".py:" in name or name.endswith(".py"):
        return _checked(name, _from_file(name))
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    found = [f"{point.value} (entry point)" for point in points]
    if name in ENTRIES:
        found.insert(0, f"{ENTRIES[name].target} (moebench)")
    if len(found) > 1:
        raise UnknownImplementation(
            f"implementation {name!r} is ambiguous: {', '.join(found)}; uninstall or rename one"
        )
    if not found:
        raise UnknownImplementation(_unknown(name))
    return _checked(name, _load(points[0] if points else EntryPoint(name, ENTRIES[name].target, GROUP)))


def _unknown(name: str) -> str:
    known = names()
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    return f"no implementation is named {name!r}; {hint} A file is given as path/to/file.py:ClassName"


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except AttributeError as error:
        raise InvalidImplementation(f"implementation {point.name!r}: {point.value} does not exist ({error})") from error


def _from_file(name: str) -> Any:
    file, colon, class_name = name.rpartition(":")
    if not colon or not class_name.isidentifier():
        raise UnknownImplementation(f"{name!r} names no class; give path/to/file.py:ClassName")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UnknownImplementation(f"implementation {name!r}: there is no file {path}")
    module_name = f"moebench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # before it runs: dataclasses and pickle look it up
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[module_name]
            if isinstance(error, Exception):
                raise InvalidImplementation(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
            raise
    module = sys.modules[module_name]
    if not hasattr(module, class_name):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name]
        raise UnknownImplementation(f"{path} has no class {class_name!r}; it has {', '.join(classes) or 'none'}")
    return getattr(module, class_name)


def _checked(name: str, found: Any) -> type[MoELayer]:
    from impls.layer import MoELayer

    if not (inspect.isclass(found) and issubclass(found, MoELayer)):
        raise InvalidImplementation(f"implementation {name!r} must be a subclass of impls.MoELayer, found {found!r}")
    if inspect.isabstract(found):
        unset = ", ".join(sorted(found.__abstractmethods__))
        raise InvalidImplementation(f"implementation {name!r}: {found.__name__} does not set {unset}")
    known = list(dict.fromkeys(entry.semantics for entry in ENTRIES.values()))
    if found.semantics not in known:
        raise InvalidImplementation(
            f"implementation {name!r}: {found.__name__}.semantics is {found.semantics!r}, and there is no truth to "
            f"check that against; allowed are {', '.join(known)}"
        )
    return found
