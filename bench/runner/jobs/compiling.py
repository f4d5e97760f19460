"""Compiles a layer with ``torch.compile``, and says what the compiler made of it.

Every process that calls the layer traces it anew, before anything is timed, and finds the kernels that the first made.

T tokens, D d_model.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch

from bench.cases import Case
from bench.measure.device import Device
from bench.runner.jobs.shared import Shared, gradients_dropped
from bench.store.qualified import NewInput
from impls.layer import MoELayer, Unsupported
from impls.routing import Routing

MAX_REASONS = 5
MAX_REASON_CHARS = 400


KERNELS = "kernels"
"""Folder of what the compiler makes, beside those of the workloads: a folder a case, which all processes share.

Kernels that two cases have in common are made for each, so that what compiling takes does not depend on who came first.
"""


def compile_layer(layer: MoELayer, case: Case, shared: Shared) -> None:
    """Have the layer's calls compiled, from the first one on; a case that is not to be compiled stays as it is.

    Raises:
        Unsupported: with the reason, where the layer or this machine cannot.
    """
    if case.compile == "none":
        return
    workload, device = case.workload, shared.x.device
    dtype = next(layer.weights.parameters()).dtype
    reason = layer.cannot_compile(workload.layer, device, dtype, workload.direction) or toolchain_gap(device)
    if reason:
        raise Unsupported(f"cannot be compiled: {reason}")
    from bench.runner.jobs.compiler import keep_kernels_in  # here: it loads the compiler, which takes seconds

    keep_kernels_in(shared.folder.absolute().parent / KERNELS / case.id)
    layer.compile(mode=case.compile)


def toolchain_gap(device: torch.device) -> str | None:
    """What torch's compiler lacks on this machine to make kernels for ``device``, or None."""
    if device.type == "cuda":
        missing = importlib.util.find_spec("triton") is None
        return (
            "torch.compile makes CUDA kernels with Triton, and the package triton is not installed" if missing else None
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile makes CPU kernels with a C++ compiler, and there is no {PurePath(compiler).name} here: "
            "install one, or set CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch.compile makes CPU kernels that include Python.h, which is not installed (package python3-dev)"
    return None


class Explained(NamedTuple):
    """Graphs that one call falls into, breaks between them, and why: each line of code that breaks, once.

    A break inside of a function also breaks the functions that called it, so there are more breaks than reasons.
    """

    num_graphs: int
    num_breaks: int
    reasons: list[str]


def explain(layer: MoELayer, shared: Shared) -> Explained:
    """What the compiler makes of one call, without making kernels. Forgets what was compiled before."""
    from torch import _dynamo  # torch documents its explain under this name; here, because it takes a second to import

    with gradients_dropped(shared), torch.inference_mode(shared.workload.direction != "train"):
        # the bound method: the layer itself may be compiled already
        found = _dynamo.explain(layer.forward)(shared.x, routing=shared.routing)
    return Explained(found.graph_count, found.graph_break_count, reasons(found.break_reasons))


def reasons(breaks: Iterable[Any]) -> list[str]:
    """Reasons of graph breaks for a person: the line, what torch says of it, and how many breaks it makes."""
    lines: Counter[str] = Counter()
    for found in breaks:
        frame = found.user_stack[-1] if found.user_stack else None
        where = f"{PurePath(frame.filename).name}:{frame.lineno} `{frame.line}`: " if frame else ""
        lines[where + _gist(found.reason)] += 1
    words = [
        text + (f" ({count} breaks, the callers' among them)" if count > 1 else "") for text, count in lines.items()
    ]
    more = [f"and {len(words) - MAX_REASONS} more lines of code"] if len(words) > MAX_REASONS else []
    return words[:MAX_REASONS] + more


def _gist(reason: str) -> str:
    """What broke and why, of torch's several paragraphs: the first line and the explanation."""
    title, *rest = reason.strip().splitlines() or [""]
    explanations = [line.strip().removeprefix("Explanation:").strip() for line in rest if "Explanation:" in line]
    text = ". ".join([title, *explanations[:1]])
    return "".join(character if character.isprintable() else " " for character in text)[:MAX_REASON_CHARS]


def num_graphs_compiled() -> int:
    """Graphs that were compiled in this process since dynamo was last reset."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def new_inputs(layer: MoELayer, shared: Shared, device: Device) -> list[NewInput]:
    """What a compiled layer does when it meets other tokens, first as many as before and then two other numbers.

    Fewer than before, so that nothing runs out of memory; one and two more where there are too few to lose any.
    """
    T = shared.workload.num_tokens
    if T == 0:
        return []
    step = T // 4
    counts = (T, T - step, T - 2 * step) if step else (T, T + 1, T + 2)
    return [_meet(layer, shared, device, num_tokens, seed) for seed, num_tokens in enumerate(counts)]


def _meet(layer: MoELayer, shared: Shared, device: Device, num_tokens: int, seed: int) -> NewInput:
    train = shared.workload.direction == "train"
    generator = torch.Generator().manual_seed(shared.workload.seed + 1 + seed)
    x_TD = torch.randn(num_tokens, shared.x.shape[1], generator=generator).to(shared.x.device, shared.x.dtype)
    routing: Routing | None = None
    if shared.routing is not None:  # a call with ids is another call to the compiler than one without
        with torch.no_grad():
            routing = layer.route(x_TD)
    x_TD.requires_grad_(train)
    before, start_s = num_graphs_compiled(), time.perf_counter()
    with gradients_dropped(shared):
        with torch.inference_mode(not train):
            y_TD = layer(x_TD, routing=routing)
        if train:
            y_TD.backward(torch.ones_like(y_TD))
        device.synchronize()
    seconds = time.perf_counter() - start_s
    return NewInput(num_tokens=num_tokens, num_graphs=num_graphs_compiled() - before, first_call_s=seconds)
