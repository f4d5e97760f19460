"""Computes the float64 truth of a workload once, for every implementation to be checked against.

It costs one float64 forward (and backward) of the layer. Where that is more than the run can afford, it is computed
for a random sample of the tokens: an output depends on its own token only once the routing is known, and gradients are
then those of the sampled tokens alone (:mod:`bench.runner.jobs.qualify` propagates nothing from the others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch

from bench import inputs
from bench.cost import cost_of_call
from bench.measure.opening import open_device
from bench.runner.jobs.mapped import read_tensors, write_tensors
from bench.runner.jobs.room import require_disk, require_memory
from bench.runner.jobs.shared import Shared, open_shared
from bench.runner.protocol import Announce, Answer, TruthJob
from impls.routing import route
from impls.truth import expertwise_truth

GRADIENT_PREFIX = "gradient."


@dataclass(frozen=True)
class StoredTruth:
    """The truth of one semantics, mapped.

    Attributes:
        output: (n, D) float64 output of the tokens that it was computed for.
        gradients: float64, by name of the weight and ``input``; empty in ``forward``.
        tokens: (n,) which tokens those are, in ascending order.
        expert_ids: (T, K) the ids that it was computed for.
        uncancelled: norms before cancellation of the router's gradients, by name.
        kept: (T, K) which of these were kept, where that depends on routing weights; else None, and the ids say it.
    """

    output: torch.Tensor
    gradients: dict[str, torch.Tensor]
    tokens: torch.Tensor
    expert_ids: torch.Tensor
    uncancelled: dict[str, float]
    kept: torch.Tensor | None = None


def compute_truth(job: TruthJob, announce: Callable[[Announce], None]) -> Answer:
    """Store the truth of each semantics under ``job.folder``; what is there already is kept."""
    folder = Path(job.folder)
    device = open_device(job.workload.device, job.workload.threads)
    shared = open_shared(job.workload, folder, device.torch_device)
    for semantics in job.semantics:
        if (folder / f"{_set_name(semantics)}.json").exists():
            continue
        announce(Announce(what=f"truth of {semantics}"))
        _compute(shared, semantics, job.max_flops)
    return Answer()


def read_truth(folder: Path, semantics: str) -> StoredTruth:
    """Map the truth of ``semantics``.

    Raises:
        FileNotFoundError: it was not computed.
    """
    stored = read_tensors(folder, _set_name(semantics))
    tensors = stored.tensors
    gradients = {
        name.removeprefix(GRADIENT_PREFIX): t for name, t in tensors.items() if name.startswith(GRADIENT_PREFIX)
    }
    uncancelled = stored.facts["uncancelled"]
    kept = tensors["kept"].bool() if "kept" in tensors else None
    return StoredTruth(tensors["output"], gradients, tensors["tokens"], tensors["expert_ids"], uncancelled, kept)


def _set_name(semantics: str) -> str:
    return f"truth-{quote(semantics, safe='')}"


def _compute(shared: Shared, semantics: str, max_flops: float) -> None:
    """Store one truth."""
    workload = shared.workload
    with torch.no_grad():
        routing = shared.routing or route(workload.layer, shared.weights, shared.x)
    kept_E = torch.bincount(routing.expert_ids[routing.kept], minlength=workload.layer.num_experts).tolist()
    tokens_n = _sample(
        workload.num_tokens, workload.seed, max_flops / max(1, cost_of_call(workload, semantics, kept_E).flops)
    )
    ids_TK = routing.expert_ids.cpu()
    kept_TK = routing.kept.cpu() if workload.layer.keeps_by_value else None
    del routing
    num_floats = len(tokens_n) * workload.layer.d_model
    if workload.direction == "train":
        num_floats *= 2
        num_floats += sum(weight.numel() for weight in shared.weights.parameters())
    what, cpu = f"the float64 results that {semantics} is checked against", torch.device("cpu")
    require_memory(what, 8 * num_floats, cpu)
    require_disk(what, 8 * num_floats, shared.folder)
    truth = expertwise_truth(
        semantics,
        workload.layer,
        shared.weights,
        shared.x.detach(),
        ids_TK.to(shared.x.device),
        kept_TK=kept_TK,
        grad_output_TD=shared.output_gradient,
        tokens=tokens_n.to(shared.x.device),
    )
    tensors = {"output": truth.output, "tokens": tokens_n, "expert_ids": ids_TK}
    if kept_TK is not None:
        tensors["kept"] = kept_TK.long()
    tensors |= {GRADIENT_PREFIX + name: gradient for name, gradient in truth.gradients.items()}
    facts = {"workload_id": workload.id, "uncancelled": truth.uncancelled}
    write_tensors(shared.folder, _set_name(semantics), tensors.items(), facts)


def _sample(num_tokens: int, seed: int, affordable: float) -> torch.Tensor:
    """Token numbers in ascending order: all, or at least one and as large a share as is affordable."""
    if affordable >= 1:
        return torch.arange(num_tokens)
    wanted = max(1, int(num_tokens * affordable))
    return torch.randperm(num_tokens, generator=inputs.stream(seed, "truth"))[:wanted].sort().values
