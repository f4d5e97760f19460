"""Makes a workload's weights, tokens, forced routing and output gradient once, for every process to map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench import inputs
from bench.cases import Workload
from bench.cost import ELEMENT_BYTES, cost_of_call
from bench.runner.jobs.mapped import read_tensors, write_tensors
from bench.runner.jobs.room import require_disk, require_memory
from bench.runner.jobs.shared import INPUTS, WEIGHT_PREFIX
from bench.runner.protocol import Announce, Answer, MaterialiseJob
from bench.store.schema import Status
from impls.weights import make_weights


def materialise(job: MaterialiseJob, announce: Callable[[Announce], None]) -> Answer:
    """Store the workload's tensors under ``job.folder``; what is there already is kept."""
    workload, folder = job.workload, Path(job.folder)
    num_bytes = _stored_bytes(workload, folder)
    if num_bytes is not None:
        return Answer(materialised_bytes=num_bytes)
    if workload.layer.impossible:
        return Answer(status=Status.UNSUPPORTED, reason=workload.layer.impossible)
    if workload.routing != "router" and workload.layer.unforceable:
        return Answer(status=Status.UNSUPPORTED, reason=workload.layer.unforceable)
    folder.mkdir(parents=True, exist_ok=True)
    needed_bytes = _needed_bytes(workload)
    what = "weights and tokens of the workload"
    require_memory(what, needed_bytes, torch.device("cpu"))
    require_disk(what, needed_bytes, folder)
    announce(Announce(what="make weights and tokens"))
    torch.set_num_threads(workload.threads)
    forced = inputs.forced_ids(workload)
    facts = {"workload_id": workload.id, "note": "" if forced is None else forced.note}
    return Answer(materialised_bytes=write_tensors(folder, INPUTS, _tensors(workload, forced), facts))


def _stored_bytes(workload: Workload, folder: Path) -> int | None:
    """Size of what is stored for this workload already; None where there is nothing whole."""
    try:
        stored = read_tensors(folder, INPUTS)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return stored.num_bytes if stored.facts["workload_id"] == workload.id else None


def _needed_bytes(workload: Workload) -> int:
    weight_bytes = cost_of_call(workload, "ensemble", None).weight_bytes
    token_bytes = workload.num_tokens * workload.layer.d_model * ELEMENT_BYTES[workload.dtype]
    id_bytes = 0 if workload.routing == "router" else 8 * workload.num_tokens * workload.layer.top_k
    return weight_bytes + (2 if workload.direction == "train" else 1) * token_bytes + id_bytes


def _tensors(workload: Workload, forced: inputs.ForcedIds | None) -> Iterator[tuple[str, torch.Tensor]]:
    weights = make_weights(workload.layer, dtype=inputs.DTYPES[workload.dtype], seed=workload.seed)
    for name, weight in weights.named_parameters():
        yield WEIGHT_PREFIX + name, weight
    del weights
    yield "tokens", inputs.tokens(workload)
    if workload.direction == "train":
        yield "output_gradient", inputs.output_gradient(workload)
    if forced is not None:
        yield "expert_ids", forced.expert_ids
