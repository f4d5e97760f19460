"""Analytic memory of one call of each implementation: how many bytes of what are alive at the worst moment.

Each model walks through the tensors that an implementation makes and frees, in its order, with their sizes from the
layer's description and the routing that happened. Nothing is run and no measurement enters, so that a measured peak
can be held against it: where the two differ, either the model or the implementation does what nobody thought of.

**What is counted**: every tensor with a row of D, F or C numbers, the router's (T, E) logits, and the index vectors
that last. Left out are short-lived vectors of a few bytes an assignment, and what libraries take for themselves
(packed weights of a matrix product), which no allocator of tensors sees.

**Parts** (:data:`PARTS`) of the peak: the output; the routing; dispatched tokens (copies of tokens, and one-hot
tensors); activations, kept for the backward pass in ``train``; workspace (gradients of activations, and copies that
live for one operator); gradients of weights and tokens. The input and the canonical weights exist before the call:
they are given beside the peak, not in it.

T tokens, D d_model, F d_ff of one expert, I 2F where gated else F, E experts, K top-k, N = T * K assignments,
R kept assignments, C slots of one expert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import Workload
from bench.cost import ELEMENT_BYTES

PARTS = ("output", "routing", "dispatched", "activations", "workspace", "gradients")
FLOAT_BYTES, INDEX_BYTES = 4, 8


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What a call allocates at its worst moment.

    Attributes:
        peak_bytes: all parts together.
        parts: bytes of each of :data:`PARTS` at that moment.
        input_bytes: the tokens, which exist before the call and are not in the peak.
    """

    peak_bytes: int
    parts: dict[str, int]
    input_bytes: int


class Ledger:
    """Bytes alive by part, and their composition when their sum was highest."""

    def __init__(self) -> None:
        self._live: Counter[str] = Counter()
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = dict.fromkeys(PARTS, 0)

    def take(self, part: str, num_bytes: int) -> None:
        """A tensor of ``part`` is made."""
        self._live[part] += num_bytes
        if (total := self._live.total()) > self.peak_bytes:
            self.peak_bytes = total
            self.at_peak = {name: self._live[name] for name in PARTS}

    def free(self, part: str, num_bytes: int) -> None:
        """A tensor of ``part`` is gone."""
        self._live[part] -= num_bytes
        assert self._live[part] >= 0, f"more {part} freed than taken"

    def live(self, part: str) -> int:
        """Bytes of ``part`` now."""
        return self._live[part]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers that a walk needs, in bytes where the name says so.

    Attributes:
        workload: the layer, tokens, dtype and direction.
        loads: assignments that each expert kept.
    """

    workload: Workload
    loads: Sequence[int]

    @property
    def element_bytes(self) -> int:
        """Bytes of one number of the layer's dtype."""
        return ELEMENT_BYTES[self.workload.dtype]

    @property
    def train(self) -> bool:
        """Whether the call has a backward pass."""
        return self.workload.direction == "train"

    @property
    def half(self) -> bool:
        """Whether numbers are narrower than the router's float32."""
        return self.element_bytes < FLOAT_BYTES

    @property
    def num_assignments(self) -> int:
        """N."""
        return self.workload.num_tokens * self.workload.layer.top_k

    @property
    def capacity(self) -> int:
        """C: the layer's, or the fullest expert's load where nothing is dropped."""
        capacity = self.workload.layer.capacity(self.workload.num_tokens)
        return max(1, *self.loads) if capacity is None else capacity

    def rows(self, num_rows: int) -> int:
        """Bytes of (num_rows, D)."""
        return num_rows * self.workload.layer.d_model * self.element_bytes

    @property
    def tokens_bytes(self) -> int:
        """Bytes of (T, D)."""
        return self.rows(self.workload.num_tokens)

    def down_bytes(self, width: int) -> int:
        """Bytes of a down projection from ``width``."""
        return width * self.rows(1)

    def in_bytes(self, width: int) -> int:
        """Bytes of an input projection to ``width``, both halves where gated."""
        return (1 + self.workload.layer.gated) * self.down_bytes(width)


def run_forward(ledger: Ledger, s: Sizes, num_rows: int, width: int, *, named: bool = False) -> None:
    """One feed-forward of ``width`` on ``num_rows`` rows; the result stays, and in training what backward needs.

    Args:
        ledger: takes it.
        s: sizes.
        num_rows: rows.
        width: hidden width, F of one expert.
        named: the caller keeps the hidden values in variables of its own until it returns.
    """
    hidden = num_rows * width * s.element_bytes
    gated, relu = s.workload.layer.gated, s.workload.layer.activation == "relu"
    projected = (1 + gated) * hidden
    ledger.take("activations", projected)
    ledger.take("activations", hidden)
    if gated:
        ledger.take("activations", hidden)  # activated gate times up
        if not s.train:
            ledger.free("activations", hidden)
    if not named and (not s.train or relu):  # relu's backward needs its result only
        ledger.free("activations", projected)
    ledger.take("activations", s.rows(num_rows))
    if not named and not s.train:
        ledger.free("activations", hidden)


def run_backward(
    ledger: Ledger,
    s: Sizes,
    num_rows: int,
    width: int,
    *,
    experts: int = 1,
    weights: str = "gradients",
    copied: bool = False,
    gradient_bytes: int | None = None,
    input_part: str | None = None,
) -> None:
    """The backward pass of :func:`run_forward`; the gradient of its rows stays as workspace.

    Args:
        ledger: takes it.
        s: sizes.
        num_rows: rows.
        width: hidden width.
        experts: projections in one tensor.
        weights: part that the weights' gradients belong to: workspace where they are gathered later.
        copied: they come transposed, and are copied once more where they are accumulated.
        gradient_bytes: the gradient of the output that is freed on the way; None for its usual size, 0 to keep it.
        input_part: part of the input that is freed with it, None to keep it.
    """
    hidden = num_rows * width * s.element_bytes
    gated, relu = s.workload.layer.gated, s.workload.layer.activation == "relu"
    down, into = experts * s.down_bytes(width), experts * s.in_bytes(width)
    ledger.take(weights, down)
    ledger.take("workspace", hidden)
    ledger.free("workspace", s.rows(num_rows) if gradient_bytes is None else gradient_bytes)
    if not relu:
        ledger.free("activations", hidden)
    _copy(ledger, down if copied else 0)
    if gated:
        ledger.take("workspace", hidden)
        ledger.take("workspace", hidden)
        ledger.free("workspace", hidden)
        ledger.free("activations", hidden)
    ledger.take("workspace", hidden)
    ledger.free("workspace", hidden)
    if relu:
        ledger.free("activations", hidden)
    else:
        ledger.free("activations", (1 + gated) * hidden)
    if gated:  # both halves side by side
        ledger.take("workspace", 2 * hidden)
        ledger.free("workspace", 2 * hidden)
    ledger.take(weights, into)
    ledger.take("workspace", s.rows(num_rows))
    ledger.free("workspace", (1 + gated) * hidden)
    if input_part is not None:
        ledger.free(input_part, s.rows(num_rows))
    _copy(ledger, into if copied else 0)


def _copy(ledger: Ledger, num_bytes: int) -> None:
    """Something that lives for one operator."""
    ledger.take("workspace", num_bytes)
    ledger.free("workspace", num_bytes)
