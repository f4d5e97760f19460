"""What all implementations of a workload share: one set of weights, tokens and output gradient, from mapped files.

T tokens, D d_model, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.cases import Workload
from bench.measure.device import Call
from bench.runner.jobs.failures import WrongResultError
from bench.runner.jobs.mapped import read_tensors
from impls.layer import MoELayer
from impls.routing import Routing, route, with_kept
from impls.weights import Weights

INPUTS = "inputs"
WEIGHT_PREFIX = "weights."


@dataclass(frozen=True)
class Shared:
    """The tensors of one workload on its device.

    Attributes:
        workload: whose they are.
        folder: where the files are.
        weights: canonical weights; their parameters are views of the mapping on the CPU, copies on CUDA.
        x: tokens (T, D); in ``train`` a leaf that collects its gradient.
        output_gradient: (T, D), what a train step propagates back; None in ``forward``.
        routing: given to every call where ids are forced, else None.
        note: what a reader must know of forced ids.
    """

    workload: Workload
    folder: Path
    weights: Weights
    x: torch.Tensor
    output_gradient: torch.Tensor | None
    routing: Routing | None
    note: str

    def route(self, expert_ids: torch.Tensor) -> Routing:
        """The routing that follows from given ids, without gradients."""
        with torch.no_grad():
            return route(self.workload.layer, self.weights, self.x, expert_ids)

    def decided(self, expert_ids: torch.Tensor, kept: torch.Tensor | None) -> Routing:
        """The routing that follows from given ids and, where that is not theirs to say, from what is kept of them."""
        if kept is None:
            return self.route(expert_ids)
        with torch.no_grad():
            own = route(self.workload.layer, self.weights, self.x)
            return with_kept(replace(own, expert_ids=expert_ids.to(self.x.device)), kept)

    def leaves(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that collects a gradient: the weights by name, and ``input``."""
        yield from self.weights.named_parameters()
        yield "input", self.x

    def changed(self) -> str:
        """Names of the tensors that differ from what was stored, bit by bit; empty while all is as it was."""
        stored = read_tensors(self.folder, INPUTS).tensors
        with torch.no_grad():
            return ", ".join(name for name, tensor in self._now().items() if not _same(tensor, stored[name]))

    def restore(self) -> None:
        """Give every tensor its stored values again."""
        stored = read_tensors(self.folder, INPUTS).tensors
        with torch.no_grad():
            for name, tensor in self._now().items():
                tensor.copy_(stored[name])

    def _now(self) -> dict[str, torch.Tensor]:
        now = {WEIGHT_PREFIX + name: weight for name, weight in self.weights.named_parameters()} | {"tokens": self.x}
        return now if self.output_gradient is None else now | {"output_gradient": self.output_gradient}

    def require_unchanged(self) -> None:
        """Raise :class:`WrongResultError` where a call has written to what all implementations share."""
        if changed := self.changed():
            raise WrongResultError(f"it changed {changed} in place, which all implementations of the workload share")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    # integers of the same width: equal bits, whatever they mean (NaN included)
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.view(bits), b.to(a.device).view(bits))


def open_shared(workload: Workload, folder: Path, device: torch.device) -> Shared:
    """Map what :mod:`bench.runner.jobs.materialise` stored.

    Raises:
        FileNotFoundError: it was not stored, or not for this workload.
    """
    stored = read_tensors(folder, INPUTS)
    if stored.facts["workload_id"] != workload.id:
        raise FileNotFoundError(f"{folder} holds workload {stored.facts['workload_id']}, expected {workload.id}")
    tensors = {name: tensor.to(device) for name, tensor in stored.tensors.items()}
    train = workload.direction == "train"
    weights = Weights(
        workload.layer,
        {name.removeprefix(WEIGHT_PREFIX): t for name, t in tensors.items() if name.startswith(WEIGHT_PREFIX)},
    )
    x_TD = tensors["tokens"].requires_grad_(train)
    shared = Shared(workload, folder, weights, x_TD, tensors.get("output_gradient"), None, stored.facts["note"])
    if "expert_ids" not in tensors:
        return shared
    routing = shared.route(tensors["expert_ids"])
    return Shared(workload, folder, weights, x_TD, shared.output_gradient, routing, shared.note)


def make_call(layer: MoELayer, shared: Shared) -> Call:
    """One call of the layer, as it is timed: set-up is outside, only the work inside.

    A train step drops its gradients at its end, so that the next one, of whichever implementation, starts from None
    and allocates its own. Freeing them is part of every step, as it is in training.
    """
    if shared.workload.direction == "forward":
        x_TD, routing = shared.x, shared.routing

        def forward() -> torch.Tensor:
            with torch.inference_mode():
                return layer(x_TD, routing=routing)  # type: ignore[no-any-return] # nn.Module.__call__ is untyped

        return forward
    return _train_step(layer, shared)


def _train_step(layer: MoELayer, shared: Shared) -> Callable[[], None]:
    x_TD, routing, gradient_TD = shared.x, shared.routing, shared.output_gradient
    leaves = [leaf for _, leaf in shared.leaves()]

    def step() -> None:
        layer(x_TD, routing=routing).backward(gradient_TD)
        for leaf in leaves:
            leaf.grad = None

    return step


@contextmanager
def gradients_dropped(shared: Shared) -> Iterator[None]:
    """Leave no gradient behind, whatever happens inside."""
    try:
        yield
    finally:
        for _, leaf in shared.leaves():
            leaf.grad = None
