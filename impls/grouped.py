"""Sorted assignments and torch's grouped matmul: every expert's tokens in one call, whatever their number.

Shapes: T tokens, D d_model, F d_ff, I 2F or F, E experts, K top-k, N = T * K assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from impls.ffn import activate
from impls.layer import Direction, MoELayer
from impls.permute import combine_rows, gather_rows
from impls.routing import Routing, invert, sort_by_expert
from impls.spec import LayerSpec
from impls.stages import stage
from impls.weights import Weights

ALIGNMENT_BYTES = 16


class Grouped(MoELayer):
    """`torch.nn.functional.grouped_mm` on sorted rows; nothing here waits for the device.

    What torch itself does depends on the device, see :attr:`path`: ``fused`` is one kernel that reads the offsets on
    the device (bfloat16 on compute capability 9.0 and 10.0), ``per_expert`` copies them to the host and loops over
    matmuls (everything else).
    """

    def __init__(self, spec: LayerSpec, weights: Weights) -> None:
        super().__init__(spec, weights)
        fused = (
            weights.device.type == "cuda"
            and weights.dtype == torch.bfloat16
            and torch.cuda.get_device_capability(weights.device) in ((9, 0), (10, 0))
        )
        self.path = "fused" if fused else "per_expert"

    @classmethod
    def missing(cls) -> str | None:
        """torch.nn.functional.grouped_mm, where torch is older than it."""
        if hasattr(functional, "grouped_mm"):
            return None
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm; it needs 2.10 or later"

    @classmethod
    def supports(cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction) -> str | None:
        """Rows must begin at multiples of 16 bytes; a bias before relu cannot be added exactly enough to train."""
        del device
        multiple = ALIGNMENT_BYTES // dtype.itemsize
        if direction == "train" and spec.expert_bias and spec.activation == "relu" and dtype.itemsize < 4:
            return (
                f"grouped_mm has no bias, and one added to its rounded {dtype} result turns signs before relu: "
                "gradients miss the tolerance"
            )
        if spec.d_model % multiple or spec.d_ff % multiple:
            return (
                f"grouped_mm needs rows of a multiple of {ALIGNMENT_BYTES} bytes: in {dtype} d_model ({spec.d_model}) "
                f"and d_ff ({spec.d_ff}) must be multiples of {multiple}"
            )
        return None

    @classmethod
    def cannot_compile(
        cls, spec: LayerSpec, device: torch.device, dtype: torch.dtype, direction: Direction
    ) -> str | None:
        """What torch's own description of grouped_mm for its compiler refuses: all but bfloat16, in torch 2.13."""
        del spec, device, direction
        rows, stack = torch.empty(8, 8, dtype=dtype, device="meta"), torch.empty(1, 8, 8, dtype=dtype, device="meta")
        try:
            functional.grouped_mm(rows, stack, offs=torch.empty(1, dtype=torch.int32, device="meta"))
        except RuntimeError as error:
            return f"torch {torch.__version__} cannot trace grouped_mm in {dtype} ({str(error).splitlines()[0]})"
        return None

    def compute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Gather by expert, two grouped matmuls, combine."""
        num_experts, top_k = routing.num_experts, routing.expert_ids.shape[1]
        with stage("dispatch"):
            ids_N = routing.expert_ids.masked_fill(~routing.kept, num_experts).view(-1)
            order_N, begins = sort_by_expert(ids_N, num_experts)
            ends_E = begins[1:].to(torch.int32)
            num_rows = ids_N.numel()
            # Dropped assignments come last, past the last end: grouped_mm leaves their rows uninitialised, here and in
            # the gradients, so no row of theirs may be read.
            row_TK = invert(order_N).view_as(routing.expert_ids).masked_fill(~routing.kept, num_rows)
            expert_N = ids_N.index_select(0, order_N)
            x_ND = gather_rows(x_TD, order_N // top_k, row_TK)
        with stage("experts"):
            weights = self.weights
            hidden_NI = functional.grouped_mm(x_ND, weights.in_proj.transpose(1, 2), offs=ends_E)
            hidden_NF = activate(self.spec, _add_bias(hidden_NI, weights.in_bias, expert_N))
            y_ND = functional.grouped_mm(hidden_NF, weights.down_proj.transpose(1, 2), offs=ends_E)
            y_ND = _add_bias(y_ND, weights.down_bias, expert_N)
        with stage("combine"):
            return combine_rows(y_ND, routing.weights, row_TK)


def _add_bias(rows: Tensor, bias: Tensor | None, expert_N: Tensor) -> Tensor:
    if bias is None:
        return rows
    # A last row for dropped assignments takes their meaningless gradient, and is cut off.
    return rows + functional.pad(bias, (0, 0, 0, 1)).index_select(0, expert_N)
