"""What kinds of work a call consists of, operator by operator, and how two implementations differ in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.profiles.cases import Profiled
from bench.store.profiles import OperatorTime
from bench.units import latency

PRODUCTS, COPYING, ELEMENTWISE = "matrix products", "copying and permuting", "activation and elementwise"
ROUTING, OTHER, IDLE = "routing and sorting", "other operators", "no operator running"
KINDS = (PRODUCTS, COPYING, ELEMENTWISE, ROUTING, OTHER, IDLE)
MAX_DIFFERENCES = 10
ALIKE = 0.05
"""Calls whose times differ by less are said to take about the same time."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRODUCTS = _names(
    "mm bmm addmm baddbmm linear matmul mv addmv dot einsum tensordot grouped_mm scaled_mm scaled_grouped_mm"
)
_COPYING = _names(
    "index_select index_copy index_add index index_put index_put_impl gather scatter scatter_add scatter_reduce take "
    "take_along_dim masked_scatter masked_select embedding embedding_bag embedding_bag_forward_only embedding_backward "
    "embedding_dense_backward embedding_bag_backward embedding_bag_dense_backward "
    "embedding_bag_per_sample_weights_backward index_backward index_select_backward slice_backward select_backward "
    "unbind_backward cat stack copy clone contiguous to to_copy repeat repeat_interleave roll flip pad constant_pad_nd "
    "split_with_sizes_copy new_zeros zeros zeros_like fill zero new_full full full_like new_empty_strided"
)
_ELEMENTWISE = _names(
    "silu silu_backward gelu gelu_backward relu threshold_backward sigmoid sigmoid_backward tanh tanh_backward "
    "softplus mul add sub rsub div neg pow exp exp2 log log1p sqrt rsqrt clamp clamp_min clamp_max where masked_fill "
    "sum mean addcmul addcdiv reciprocal abs lerp erf"
)
_ROUTING = _names(
    "softmax log_softmax softmax_backward_data log_softmax_backward_data topk sort argsort searchsorted bincount "
    "cumsum one_hot histc unique unique2 unique_consecutive max min amax argmax logsumexp arange eq ne lt le gt ge "
    "bitwise_not bitwise_and logical_not logical_and floor_divide remainder item local_scalar_dense nonzero any all"
)


def kind_of(row: OperatorTime) -> str:
    """What an operator does; whatever is no product counts as routing in the stage of that name."""
    name = row.name.rpartition("::")[2].strip("_")
    if row.flops is not None or name in _PRODUCTS:
        return PRODUCTS
    if row.stage == "route" or name in _ROUTING:
        return ROUTING
    if name in _COPYING:
        return COPYING
    return ELEMENTWISE if name in _ELEMENTWISE else OTHER


@dataclass(frozen=True)
class Group:
    """All calls of one operator in one stage, whatever their shapes; times are those of an unwatched call.

    Attributes:
        phase, stage, name: as recorded.
        kind: of :data:`KINDS`.
        calls, seconds, flops, moved_bytes: their sums; 0 where nothing is known.
        share: of the call.
        needed_s: what the machine's roofs need for it; None where nothing is known of roofs or work.
        rows: by shapes, the longest first.
    """

    phase: str
    stage: str
    name: str
    kind: str
    calls: int
    seconds: float
    flops: int
    moved_bytes: int
    share: float
    needed_s: float | None
    rows: Sequence[OperatorTime]

    @property
    def achieved(self) -> float | None:
        """Fraction of the roof."""
        return self.needed_s / self.seconds if self.needed_s and self.seconds else None


def grouped(case: Profiled) -> list[Group]:
    """The operators of a case by name and stage, the longest first."""
    groups: defaultdict[tuple[str, str, str], list[OperatorTime]] = defaultdict(list)
    for row in case.profile.operators:
        groups[row.phase, row.stage, row.name].append(row)
    found = []
    for (phase, stage, name), rows in groups.items():
        seconds = sum(map(case.seconds, rows))
        needed_s = None
        if case.roofs is not None:
            needed_s = sum(map(case.roofs.needed_s, rows)) or None
        found.append(
            Group(
                phase=phase,
                stage=stage,
                name=name,
                kind=kind_of(rows[0]),
                calls=sum(row.calls for row in rows),
                seconds=seconds,
                flops=sum(row.flops or 0 for row in rows),
                moved_bytes=sum(row.moved_bytes or 0 for row in rows),
                share=seconds / case.profile.plain_s if case.profile.plain_s else 0.0,
                needed_s=needed_s,
                rows=sorted(rows, key=lambda row: row.seconds, reverse=True),
            )
        )
    return sorted(found, key=lambda group: -group.seconds)


def seconds_by_kind(case: Profiled) -> dict[str, float]:
    """The whole call by kind of work; they add up to the time of an unwatched call."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for row in case.profile.operators:
        seconds[kind_of(row)] += case.seconds(row)
    seconds[IDLE] = max(0.0, case.profile.plain_s - sum(seconds.values()))
    return seconds


@dataclass(frozen=True)
class Difference:
    """How one implementation's call differs from that of the fastest on the same workload.

    Attributes:
        case, base: the two.
        sentence: the same in plain words.
        rows: the operators that differ most: stage and name, seconds of both.
        num_left_out: operators that are not among the rows.
    """

    case: Profiled
    base: Profiled
    sentence: str
    rows: Sequence[tuple[str, float, float]]
    num_left_out: int


def differences(cases: Sequence[Profiled]) -> list[Difference]:
    """Each layer of one workload against the one whose call was the shortest when it was profiled; no baselines."""
    layers = [case for case in cases if not case.look.baseline]
    base = min(layers, key=lambda case: case.profile.plain_s, default=None)
    return [_difference(case, base) for case in layers if base is not None and case is not base]


def _difference(case: Profiled, base: Profiled) -> Difference:
    longer_s = case.profile.plain_s - base.profile.plain_s
    mine, theirs = seconds_by_kind(case), seconds_by_kind(base)
    kind = max(KINDS, key=lambda name: mine[name] - theirs[name])
    shares = f"{_share(mine[kind], case)} of {case.impl}'s call, {_share(theirs[kind], base)} of {base.impl}'s"
    if longer_s < ALIKE * base.profile.plain_s:
        text = f"{case.impl} and {base.impl} take about the same time. They differ most in {kind}: {shares}."
    else:
        part = min(1.0, (mine[kind] - theirs[kind]) / longer_s)
        weight = "all of it" if part > 0.95 else "most of it" if part > 0.5 else "the largest part of it"
        text = (
            f"{case.impl} takes {latency(longer_s)} longer than {base.impl}, and {weight} goes into {kind}: "
            f"{latency(mine[kind])} against {latency(theirs[kind]) if theirs[kind] else 'none'} ({shares})."
        )
    own, other = _by_operator(case), _by_operator(base)
    names = sorted(own | other, key=lambda name: -abs(own[name] - other[name]))
    rows = [(name, own[name], other[name]) for name in names[:MAX_DIFFERENCES]]
    return Difference(case, base, text, rows, max(0, len(names) - MAX_DIFFERENCES))


def _by_operator(case: Profiled) -> Counter[str]:
    seconds: Counter[str] = Counter()
    for group in grouped(case):
        seconds[f"{group.name} in {group.stage}, {group.phase}"] += group.seconds  # type: ignore[assignment] # a Counter adds up any number
    return seconds


def _share(seconds: float, case: Profiled) -> str:
    return f"{100 * seconds / case.profile.plain_s:.0f} %" if case.profile.plain_s else "0 %"
