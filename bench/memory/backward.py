"""The backward pass of tensors without numbers: which step runs when, what it waits for, and what it gives back.

It follows torch's engine: a step runs once all gradients of its results are there, the youngest first; a step's inputs
and what was kept for it go as soon as it has run; several gradients of one tensor are summed as they arrive, in place
where nobody else has the first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from bench.memory.tensors import Shape, Tensor, contiguous_strides, fresh, same_layout

Gradients = list[Tensor | None]
Kept = Sequence[Tensor | None]
Rule = Callable[[Gradients, Kept, Sequence[bool]], Gradients]
"""Gradients of the results, what was kept, and which inputs need theirs -> gradients of the inputs."""


def only(gradients: Sequence[Tensor | None]) -> Tensor:
    """The gradient of the only result."""
    (gradient,) = gradients
    assert gradient is not None
    return gradient


class Node:
    """One step of the backward pass.

    Attributes:
        number: its age: later steps of the forward pass have larger ones.
        inputs: for every input the step that made it, which of its results it is, or None where nothing is propagated.
        kept: what the step needs from the forward pass.
        results: shape and element size of the results.
    """

    def __init__(self, number: float, inputs: Sequence[Tensor | None], kept: Kept, rule: Rule) -> None:
        self.number = number
        self.inputs = [None if t is None or t.node is None else (t.node, t.place) for t in inputs]
        self.kept = tuple(kept)
        self.results: list[tuple[Shape, int]] = []
        self._rule = rule

    def run(self, gradients: Gradients) -> Gradients:
        """Gradients of the inputs, in their shapes and number formats; empties ``gradients`` and what was kept."""
        found = self._rule(gradients, self.kept, [edge is not None for edge in self.inputs])
        for i, edge in enumerate(self.inputs):
            gradient = found[i]
            if edge is None or gradient is None:
                found[i] = None
                continue
            shape, item_bytes = edge[0].results[edge[1]]
            if gradient.shape != shape:  # summed over what was broadcast
                gradient = found[i] = fresh(gradient, shape, gradient.item_bytes)
            if gradient.item_bytes != item_bytes:
                found[i] = fresh(gradient, shape, item_bytes)
            del gradient
        gradients.clear()
        self.kept = ()
        return found


class Leaf(Node):
    """Where a gradient stays: a weight's, or the tokens'."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(float("inf"), (), (), lambda *_: [])
        self.results = [(tensor.shape, tensor.item_bytes)]
        self.gradient: Tensor | None = None

    def run(self, gradients: Gradients) -> Gradients:
        """Keep the gradient, copied where it does not lie as its tensor does."""
        (gradient,) = gradients
        gradients.clear()
        assert gradient is not None
        assert self.gradient is None
        if not same_layout(gradient, contiguous_strides(gradient.shape)):
            gradient = fresh(gradient, gradient.shape, gradient.item_bytes)
        gradient.belongs_to = "gradients"
        self.gradient = gradient
        return []


def require_gradient(tensor: Tensor) -> Leaf:
    """Make an existing tensor collect its gradient."""
    tensor.node = leaf = Leaf(tensor)
    return leaf


def propagates(*inputs: Tensor | None) -> bool:
    """Whether a result of these takes part in the backward pass."""
    needed = [t for t in inputs if t is not None and t.node is not None]
    return bool(needed) and needed[0].account.differentiates


def note(results: Sequence[Tensor], inputs: Sequence[Tensor | None], kept: Sequence[Tensor | None], rule: Rule) -> None:
    """Note the backward step of an operator, where one of its inputs needs it."""
    if not propagates(*inputs):
        return
    account = results[0].account
    account.num_nodes += 1
    node = Node(account.num_nodes, inputs, kept, rule)
    for place, result in enumerate(results):
        result.node, result.place = node, place
        node.results.append((result.shape, result.item_bytes))


def propagate(output: Tensor, gradient: Tensor) -> None:
    """The backward pass from ``output``."""
    root = output.node
    assert root is not None, "nothing to propagate to"
    waiting = _num_users(root)
    arrived: dict[Node, Gradients] = {root: [None] * len(root.results)}
    arrived[root][output.place] = gradient
    ready = [(-root.number, 0, root)]
    num_pushed = 0
    while ready:
        *_, node = heapq.heappop(ready)
        found = node.run(arrived.pop(node))
        for i, edge in enumerate(node.inputs):
            if edge is None:
                continue
            maker, place = edge
            _add(arrived.setdefault(maker, [None] * len(maker.results)), place, found, i)
            waiting[maker] -= 1
            if not waiting[maker]:
                num_pushed += 1
                heapq.heappush(ready, (-maker.number, num_pushed, maker))


def _add(sums: Gradients, place: int, found: Gradients, i: int) -> None:
    """Add ``found[i]`` to ``sums[place]``, and forget it there."""
    gradient, found[i] = found[i], None
    before = sums[place]
    if gradient is None or before is None:
        sums[place] = before if gradient is None else gradient
    elif before.viewed or not before.alone():
        sums[place] = fresh(before, before.shape, before.item_bytes)


def _num_users(root: Node) -> dict[Node, int]:
    users: dict[Node, int] = {root: 0}
    found = [root]
    while found:
        for edge in found.pop().inputs:
            if edge is None:
                continue
            maker, _ = edge
            if maker not in users:
                users[maker] = 0
                found.append(maker)
            users[maker] += 1
    return users
