"""Seeded inputs of a workload: tokens, output gradient, and expert ids where the routing is forced.

Everything is drawn on the CPU from streams of its own (:func:`stream`), so that the same workload gets the same values
on every device and in every process, and no two tensors repeat each other. Values are random and never zero, because
matrix products on zeros run faster than on data.

Forced routing answers "what does this load cost?" without training a router until it has that load:

========== =============================================================================================
router     the layer's own choice; nothing is forced
balanced   every expert gets the same number of assignments, give or take one
zipf:S     expert popularity is proportional to rank ** -S; ranks are dealt to the experts by the seed
hot:P      one expert is the first choice of a share P of the tokens, the others share the rest evenly
trace:FILE recorded ids: an integer array (T', K) as saved by ``numpy.save``, repeated or cut to T tokens
========== =============================================================================================

T tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.cases import Workload

_ROWS_AT_ONCE = 4096  # bounds the (rows, E) keys of a Zipf draw, whatever T is

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ForcedIds(NamedTuple):
    """Expert ids that replace the router's choice.

    Attributes:
        expert_ids: (T, K) int64, distinct within a token, best choice first.
        note: what a reader of the record must know of them, for example that a trace was repeated; often empty.
    """

    expert_ids: torch.Tensor
    note: str = ""


def stream(seed: int, purpose: str) -> torch.Generator:
    """A random generator for one purpose: independent of those for other purposes under the same seed."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def tokens(workload: Workload) -> torch.Tensor:
    """The tokens x (T, D): N(0, 1), drawn in float32 on the CPU, then cast to the workload's dtype."""
    return _normal(workload, "tokens")


def output_gradient(workload: Workload) -> torch.Tensor:
    """The fixed gradient (T, D) that a train step propagates back: N(0, 1), drawn as the tokens are."""
    return _normal(workload, "output gradient")


def _normal(workload: Workload, purpose: str) -> torch.Tensor:
    shape = (workload.num_tokens, workload.layer.d_model)
    return torch.randn(shape, generator=stream(workload.seed, purpose)).to(DTYPES[workload.dtype])


def forced_ids(workload: Workload) -> ForcedIds | None:
    """The expert ids that ``workload.routing`` forces, or None where the router chooses.

    Raises:
        ValueError: the routing is unknown or malformed, or a trace does not fit the layer: what was found, what is
            allowed.
    """
    kind, _, argument = workload.routing.partition(":")
    layer, T = workload.layer, workload.num_tokens
    if kind == "router" and not argument:
        return None
    if layer.impossible:
        raise ValueError(layer.impossible)
    generator = stream(workload.seed, "routing")
    if kind == "balanced" and not argument:
        return ForcedIds(balanced(T, layer.num_experts, layer.top_k, generator))
    if kind == "zipf":
        exponent = _number(workload.routing, argument, "zipf:S with S at least 0", 0.0, math.inf)
        return ForcedIds(zipf(T, layer.num_experts, layer.top_k, exponent, generator))
    if kind == "hot":
        share = _number(workload.routing, argument, "hot:P with P from 0 to 1", 0.0, 1.0)
        return ForcedIds(hot(T, layer.num_experts, layer.top_k, share, generator))
    if kind == "trace" and argument:
        return trace(Path(argument), T, layer.num_experts, layer.top_k)
    raise ValueError(
        f"routing {workload.routing!r} is unknown; expected router, balanced, zipf:S, hot:P or trace:FILE.npy"
    )


def _number(routing: str, text: str, expected: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"routing {routing!r} is malformed; expected {expected}, such as zipf:1.2 or hot:0.5")
    return value


def balanced(num_tokens: int, num_experts: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """Ids (T, K) under which the experts' loads differ by at most one.

    The experts are dealt out in turn, in a random order: K neighbours of that order are distinct because K <= E. Which
    token gets which neighbours, and in which order, is random.
    """
    order_E = torch.randperm(num_experts, generator=generator)
    dealt_TK = torch.arange(num_tokens * top_k).view(num_tokens, top_k) % num_experts
    rows_T = torch.randperm(num_tokens, generator=generator)
    columns_TK = torch.rand(num_tokens, top_k, generator=generator).argsort(dim=1)
    return order_E[dealt_TK][rows_T].gather(1, columns_TK)


def zipf(num_tokens: int, num_experts: int, top_k: int, exponent: float, generator: torch.Generator) -> torch.Tensor:
    """Ids (T, K) whose first choices follow Zipf's law over the experts, further ones the same law without those taken.

    Drawn with the Gumbel top-k trick, which equals sampling one after the other without replacement
    (Kool et al., Stochastic Beams and Where to Find Them, 2019).
    """
    ranks_E = torch.randperm(num_experts, generator=generator) + 1
    log_popularity_E = -exponent * ranks_E.double().log()
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int64)
    for ids_RK in torch.split(ids_TK, _ROWS_AT_ONCE):
        uniform_RE = torch.rand(len(ids_RK), num_experts, dtype=torch.float64, generator=generator)
        gumbel_RE = -(-uniform_RE.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
        ids_RK.copy_((log_popularity_E + gumbel_RE).topk(top_k, dim=1).indices)
    return ids_TK


def hot(num_tokens: int, num_experts: int, top_k: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Ids (T, K) under which one expert is the first choice of exactly ``round(share * T)`` tokens.

    Which expert and which tokens is random. All other choices are dealt in turn to the other experts, whose loads
    therefore differ by at most one. No other token visits the hot expert, except where K = E leaves no choice: there it
    is the last one.
    """
    order_E = torch.randperm(num_experts, generator=generator)
    hot_expert, others = order_E[0], order_E[1:]
    is_hot_T = torch.zeros(num_tokens, dtype=torch.bool)
    is_hot_T[torch.randperm(num_tokens, generator=generator)[: round(share * num_tokens)]] = True
    forced_last_T = ~is_hot_T & (top_k == num_experts)
    num_others_T = top_k - (is_hot_T | forced_last_T).long()
    dealt_TK = (num_others_T.cumsum(0) - num_others_T).unsqueeze(1) + torch.arange(top_k) - is_hot_T.long().unsqueeze(1)
    # one expert alone has no others to deal; the columns that this leaves meaningless are overwritten below
    ids_TK = others[dealt_TK % len(others)] if len(others) else torch.empty_like(dealt_TK)
    ids_TK[is_hot_T, 0] = hot_expert
    ids_TK[forced_last_T, -1] = hot_expert
    return ids_TK


def trace(file: Path, num_tokens: int, num_experts: int, top_k: int) -> ForcedIds:
    """Recorded ids from a ``.npy`` file, repeated or cut to ``num_tokens`` rows.

    Raises:
        ValueError: the file cannot be read as an array, or its type, shape or values do not fit the layer.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"trace {file} cannot be read: {error}; expected an integer array saved by numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
        found = getattr(array, "dtype", "an archive of arrays")
        raise ValueError(f"trace {file} holds {found}; expected one array of integers")
    if array.ndim != 2 or array.shape[1] != top_k or (len(array) == 0 and num_tokens > 0):
        raise ValueError(f"trace {file} has shape {array.shape}; expected (tokens, {top_k}) with at least one token")
    ids_TK = torch.from_numpy(np.resize(array[:num_tokens], (num_tokens, top_k)).astype(np.int64))
    _check_trace(file, ids_TK[: len(array)], num_experts)
    if len(array) == num_tokens:
        return ForcedIds(ids_TK)
    done = "repeated" if len(array) < num_tokens else "cut"
    return ForcedIds(ids_TK, f"trace {file.name} of {len(array)} tokens {done} to {num_tokens}")


def _check_trace(file: Path, ids_TK: torch.Tensor, num_experts: int) -> None:
    outside = ((ids_TK < 0) | (ids_TK >= num_experts)).nonzero()
    if len(outside):
        token, choice = outside[0].tolist()
        raise ValueError(
            f"trace {file} names expert {ids_TK[token, choice]} for token {token}; expected 0 to {num_experts - 1}"
        )
    sorted_TK = ids_TK.sort(dim=1).values
    twice = (sorted_TK[:, 1:] == sorted_TK[:, :-1]).any(dim=1).nonzero()
    if len(twice):
        token = int(twice[0])
        raise ValueError(f"trace {file} sends token {token} to {ids_TK[token].tolist()}; expected distinct experts")
