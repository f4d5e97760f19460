"""What is seen of a call: each kind of operator by a call that does it, and by one that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.measure.operators import Operators, watch_operators

T, E, F, D = 32, 4, 6, 8
WEIGHT_EFD = torch.randn(E, F, D)
X_TD = torch.randn(T, D)
MASK_T = torch.arange(T) % 2 == 0


def watch(call: Callable[[], object], weight: Tensor = WEIGHT_EFD, *, num_rows: int = T) -> Operators:
    return watch_operators(call, {"up_proj": weight}, num_rows=num_rows, width=D)


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda: X_TD.sum().item(), {"_local_scalar_dense": 1}),
        (lambda: X_TD[0].tolist(), {"tolist": 1}),
        (lambda: X_TD.numpy(), {"numpy": 1}),
        (lambda: MASK_T.nonzero(), {"nonzero": 1}),
        (lambda: X_TD[MASK_T], {"index": 1}),
        (lambda: torch.bincount(torch.arange(T)), {"bincount": 1}),
        (lambda: torch.repeat_interleave(torch.ones(3, dtype=torch.long)), {"repeat_interleave": 1}),
        (lambda: torch.repeat_interleave(torch.ones(3, dtype=torch.long), output_size=3), {}),
        (lambda: X_TD[torch.arange(3)], {}),
        (lambda: torch.where(MASK_T.unsqueeze(1), X_TD, 0), {}),
        (lambda: X_TD @ X_TD.T, {}),
    ],
)
def test_waits_are_what_needs_a_value_on_the_host(call: Callable[[], object], waits: dict[str, int]) -> None:
    assert dict(watch(call).waits) == waits


def test_products_are_counted_in_forward_and_backward() -> None:
    weight_FD = torch.randn(F, D, requires_grad=True)
    x_TD = X_TD.clone().requires_grad_()
    assert watch(lambda: x_TD.detach() @ weight_FD.detach().T).flops == 2 * T * D * F
    assert watch(lambda: torch.autograd.backward((x_TD @ weight_FD.T).sum())).flops == 3 * 2 * T * D * F


def test_views_are_no_operators() -> None:
    assert watch(lambda: X_TD.T.reshape(D, T)[1:].unbind(0)).num_operators == 0
    assert watch(lambda: X_TD + 1).num_operators == 1


def test_a_part_of_a_stacked_weight_has_a_gradient_of_the_whole_weights_size() -> None:
    weight_EFD = WEIGHT_EFD.clone().requires_grad_()
    indexed = watch(lambda: torch.autograd.backward([(X_TD @ weight_EFD[e].T).sum() for e in range(E)]), weight_EFD)
    assert (indexed.full_gradients, indexed.full_gradient_bytes) == (E, E * weight_EFD.numel() * 4)
    apart = watch(lambda: torch.autograd.backward([(X_TD @ w.T).sum() for w in weight_EFD.unbind(0)]), weight_EFD)
    assert apart.full_gradients == 0


def test_copies_of_weights_are_told_from_copies_of_tokens() -> None:
    assert dict(watch(lambda: WEIGHT_EFD[1].T.contiguous()).weight_copies) == {"clone": 1}
    assert watch(lambda: WEIGHT_EFD[1].T.contiguous()).weight_copy_bytes == F * D * 4
    assert watch(lambda: X_TD.T.contiguous()).weight_copies.total() == 0
    assert watch(lambda: X_TD @ WEIGHT_EFD[1].T).weight_copies.total() == 0


def test_a_weight_in_neither_rows_nor_columns_is_strided() -> None:
    wide_EFD = torch.randn(E, 2 * F, 2 * D)
    assert watch(lambda: X_TD @ wide_EFD[1, ::2, ::2].T, wide_EFD).strided_weights == 1
    assert watch(lambda: X_TD @ wide_EFD[1, ::2, :D].T, wide_EFD).strided_weights == 0


def test_interleaved_activations_and_float64_are_seen() -> None:
    assert watch(lambda: functional.silu(X_TD[:, ::2])).strided_activations == 1
    assert watch(lambda: functional.silu(X_TD[:, :4])).strided_activations == 0
    assert watch(lambda: X_TD.double().exp()).float64 == {"_to_copy": 1, "exp": 1}


def test_a_one_hot_tensor_counts_where_it_is_larger_than_the_rows_it_moves() -> None:
    places = torch.randperm(50 * T)[:T]

    def dispatch(num_nonzero: int) -> Tensor:
        return torch.zeros(T, 50 * T).index_put((torch.arange(num_nonzero), places[:num_nonzero]), torch.tensor(1.0))

    found = watch(lambda: dispatch(T)).one_hot
    assert found is not None
    assert (found.shape, found.num_bytes, found.num_nonzero) == ((T, 50 * T), 50 * T * T * 4, T)
    assert watch(lambda: dispatch(T), num_rows=T - 1).one_hot is None
    assert watch(lambda: functional.one_hot(torch.arange(E))).one_hot is None
