"""Moving tokens into rows and weighted rows back, in tensors without numbers: as in :mod:`impls.permute`.

Both have a backward pass of their own. Shapes: T tokens, D d_model, K top-k, N = T * K assignments, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.memory.backward import Gradients, Kept, note, only
from bench.memory.indexing import embedding_sum, index_select
from bench.memory.operators import bmm, combined, compare, masked_fill, to
from bench.memory.tensors import FLOAT, Tensor, fresh
from bench.memory.views import reshape, squeeze, unsqueeze


def gather_rows(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """(T, D) -> (R, D)."""
    with x_TD.account.undifferentiated():
        rows_RD = index_select(x_TD, token_R)
    note([rows_RD], [x_TD], (row_TK,), _gather_backward)
    return rows_RD


def _gather_backward(gradients: Gradients, kept: Kept, _: Sequence[bool]) -> Gradients:
    gradient_RD, row_TK = only(gradients), only(kept)
    ones_TK = fresh(row_TK, row_TK.shape, FLOAT)
    return [_sum_rows(gradient_RD, ones_TK, row_TK)]


def combine_rows(y_RD: Tensor, weights_TK: Tensor, row_TK: Tensor) -> Tensor:
    """(R, D) -> (T, D)."""
    with y_RD.account.undifferentiated():
        y_TD = _sum_rows(y_RD, weights_TK, row_TK)
    note([y_TD], [y_RD, weights_TK], (y_RD, weights_TK, row_TK), _combine_backward)
    return y_TD


def _combine_backward(gradients: Gradients, kept: Kept, needed: Sequence[bool]) -> Gradients:
    gradient_TD, (y_RD, weights_TK, row_TK) = only(gradients), kept
    assert y_RD is not None
    assert weights_TK is not None
    assert row_TK is not None
    (num_rows, width), top_k = y_RD.shape, row_TK.shape[1]
    of_rows = of_weights = scaled_TKD = None
    if needed[0]:
        scaled_TKD = combined(unsqueeze(gradient_TD, 1), to(unsqueeze(weights_TK.alias(), -1), y_RD.item_bytes))
        of_rows = fresh(y_RD, (num_rows + 1, width), y_RD.item_bytes).view((num_rows, width), (width, 1))
    if needed[1]:
        dropped_TK = compare(row_TK)
        y_TKD = reshape(index_select(y_RD.alias(), reshape(masked_fill(row_TK, dropped_TK), -1)), -1, top_k, width)
        of_weights = masked_fill(to(squeeze(bmm(y_TKD, unsqueeze(gradient_TD, -1)), -1), FLOAT), dropped_TK)
    del scaled_TKD  # it lasts as long as the rest
    return [of_rows, of_weights]


def _sum_rows(y_RD: Tensor, weights_TK: Tensor, row_TK: Tensor) -> Tensor:
    if y_RD.shape[0] == 0:
        return fresh(y_RD, (row_TK.shape[0], y_RD.shape[1]), y_RD.item_bytes)
    dropped_TK = compare(row_TK)
    return embedding_sum(
        masked_fill(row_TK, dropped_TK), y_RD, to(masked_fill(weights_TK, dropped_TK), y_RD.item_bytes)
    )
