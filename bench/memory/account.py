"""The account of one call: what it takes and gives back, the most it ever held, and what that was made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PARTS = ("output", "routing", "dispatched", "activations", "workspace", "gradients")
"""What a peak is made of.

The output of the layer; the routing (logits, weights, and every vector of indices); dispatched copies of tokens, and
one-hot tensors; activations of the experts, kept for the backward pass in ``train``; workspace (gradients of
activations, and what lives for one operator); gradients of weights and tokens.
"""


@dataclass(slots=True)
class Block:
    """Memory of one tensor.

    Attributes:
        num_bytes: its size.
        part: one of :data:`PARTS`; the last word counts, so that what turns out to be a gradient was one all along.
        born, died: numbers of the changes in which it came and went; ``died`` is None while it lives.
    """

    num_bytes: int
    part: str
    born: int
    died: int | None = None


class Account:
    """Bytes alive in one call, change by change.

    Args:
        differentiates: as the attribute.
        num_threads: how many threads an operator uses, some of which have memory for each.

    Attributes:
        part: what new blocks belong to.
        differentiates: whether what is made now can be propagated back.
        num_nodes: how many steps of a backward pass were noted; it numbers the next one.
        peak_bytes: the most that was ever alive.
    """

    def __init__(self, *, differentiates: bool, num_threads: int) -> None:
        self.num_threads = num_threads
        self.part = "activations"
        self.differentiates = differentiates
        self.num_nodes = 0
        self.peak_bytes = 0
        self._alive_bytes = 0
        self._num_changes = 0
        self._peak_change = 0
        self._blocks: list[Block] = []

    def take(self, num_bytes: int, part: str) -> Block:
        """Memory for a tensor."""
        self._num_changes += 1
        block = Block(num_bytes, part, self._num_changes)
        self._blocks.append(block)
        self._alive_bytes += num_bytes
        if self._alive_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_change = self._alive_bytes, self._num_changes
        return block

    def give_back(self, block: Block) -> None:
        """It is no longer needed."""
        assert block.died is None, "given back twice"
        self._num_changes += 1
        block.died = self._num_changes
        self._alive_bytes -= block.num_bytes

    @contextmanager
    def stage(self, part: str) -> Iterator[None]:
        """What is made inside belongs to ``part``."""
        before, self.part = self.part, part
        yield
        self.part = before

    @contextmanager
    def undifferentiated(self) -> Iterator[None]:
        """What is made inside cannot be propagated back."""
        before, self.differentiates = self.differentiates, False
        yield
        self.differentiates = before

    def parts_at_peak(self) -> dict[str, int]:
        """Bytes of each of :data:`PARTS` when the most was alive; they add up to it."""
        parts = dict.fromkeys(PARTS, 0)
        for block in self._blocks:
            if block.born <= self._peak_change and (block.died is None or block.died > self._peak_change):
                parts[block.part] += block.num_bytes
        return parts
