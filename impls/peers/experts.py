"""One expert on the canonical weights as a module, for peers that hold a list of such."""

from __future__ import annotations

from torch import Tensor, nn

from impls.ffn import feed_forward
from impls.spec import LayerSpec
from impls.weights import Weights


class OneExpert(nn.Module):
    """A feed-forward (..., D) -> (..., D) on the weights that :func:`put_weights` gave it last."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x_D: Tensor) -> Tensor:
        """One expert on every token."""
        in_ID, down_DF, in_bias_I, down_bias_D = self._parts
        assert in_ID is not None
        assert down_DF is not None
        return feed_forward(self.spec, x_D, in_ID, down_DF, in_bias_I, down_bias_D)

    def put(self, parts: tuple[Tensor | None, ...]) -> None:
        """Take the tensors of one expert: input projection, down projection, and their biases or None."""
        self._parts = parts


def make_experts(spec: LayerSpec) -> nn.ModuleList:
    """E experts without weights."""
    return nn.ModuleList(OneExpert(spec) for _ in range(spec.num_experts))


def put_weights(experts: nn.ModuleList, weights: Weights) -> None:
    """Give every expert its part of the stacks, in a way that training can differentiate: once a call."""
    stacks = (weights.in_proj, weights.down_proj, weights.in_bias, weights.down_bias)
    # unbind, not w[e]: the gradient of every w[e] would be as large as all experts together.
    parts = [[None] * len(experts) if stack is None else stack.unbind(0) for stack in stacks]
    for expert, *one in zip(experts, *parts, strict=True):
        assert isinstance(expert, OneExpert)
        expert.put(tuple(one))
