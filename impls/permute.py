"""Moving tokens into rows that are sorted or padded by expert, and summing weighted rows back into tokens.

Both ways, forward and backward, are gathers with a sum over K: no atomics, so deterministic, and several times faster
than `index_add_`. A row number equal to the number of rows stands for a dropped assignment, which has no row.

Shapes: T tokens, D d_model, K top-k, N = T * K assignments, R rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def gather_rows(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """The token of every row: (T, D) -> (R, D).

    Args:
        x_TD: tokens.
        token_R: token of every row.
        row_TK: row of every assignment, R where it has none. The gradient sums only the rows that it names, so other
            rows may hold anything.
    """
    rows: Tensor = _GatherRows.apply(x_TD, token_R, row_TK)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return rows


def combine_rows(y_RD: Tensor, weights_TK: Tensor, row_TK: Tensor) -> Tensor:
    """Sum of every token's rows, each times its weight: (R, D) -> (T, D).

    Args:
        y_RD: experts' outputs; rows that ``row_TK`` does not name may hold anything.
        weights_TK: float32 weight of every assignment.
        row_TK: row of every assignment, R where it has none: it adds row 0 times zero, which is nothing as long as row
            0 is finite, and its weight's gradient is zero. Who has a row of zeros to spare names that one instead; its
            gradient means nothing.
    """
    tokens: Tensor = _CombineRows.apply(y_RD, weights_TK, row_TK)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tokens


def _sum_rows(y_RD: Tensor, weights_TK: Tensor, row_TK: Tensor) -> Tensor:
    if y_RD.shape[0] == 0:
        return y_RD.new_zeros(row_TK.shape[0], y_RD.shape[1])
    dropped_TK = row_TK == y_RD.shape[0]
    return functional.embedding_bag(
        row_TK.masked_fill(dropped_TK, 0),
        y_RD,
        mode="sum",
        per_sample_weights=weights_TK.masked_fill(dropped_TK, 0).to(y_RD.dtype),
    )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        ones_TK = torch.ones_like(row_TK, dtype=torch.float32)
        return _sum_rows(grad_RD.contiguous(), ones_TK, row_TK), None, None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weights_TK: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(y_RD, weights_TK, row_TK)
        return _sum_rows(y_RD, weights_TK, row_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y_RD, weights_TK, row_TK = ctx.saved_tensors
        num_rows, width = y_RD.shape
        top_k = row_TK.shape[1]
        row_N = row_TK.reshape(-1)
        grad_rows = grad_weights = None
        if ctx.needs_input_grad[0]:
            # One row more than there are takes the dropped assignments, and is cut off.
            scaled_TKD = grad_TD.unsqueeze(1) * weights_TK.unsqueeze(-1).to(y_RD.dtype)
            grad_rows = y_RD.new_zeros(num_rows + 1, width)
            grad_rows.index_copy_(0, row_N, scaled_TKD.view(-1, width))
            grad_rows = grad_rows[:num_rows]
        if ctx.needs_input_grad[1]:
            dropped_TK = row_TK == num_rows
            y_TKD = _rows_of(y_RD, row_TK.masked_fill(dropped_TK, 0).view(-1)).view(-1, top_k, width)
            grad_weights = torch.bmm(y_TKD, grad_TD.unsqueeze(-1)).squeeze(-1).float().masked_fill(dropped_TK, 0)
        return grad_rows, grad_weights, None


def _rows_of(y_RD: Tensor, row_N: Tensor) -> Tensor:
    return y_RD.index_select(0, row_N) if y_RD.shape[0] else y_RD.new_zeros(row_N.numel(), y_RD.shape[1])
