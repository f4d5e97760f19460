from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cases import Workload
from bench.inputs import forced_ids, output_gradient, tokens
from impls.spec import LayerSpec


def workload(T: int = 64, E: int = 8, K: int = 2, **fields: Any) -> Workload:
    spec = LayerSpec(d_model=16, d_ff=8, num_experts=E, top_k=K)
    return Workload(layer=spec, num_tokens=T, **fields)


def ids_of(w: Workload) -> torch.Tensor:
    forced = forced_ids(w)
    assert forced is not None
    return forced.expert_ids


def loads(ids_TK: torch.Tensor, E: int) -> list[int]:
    return list(torch.bincount(ids_TK.flatten(), minlength=E).tolist())


sizes = st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12)).filter(lambda s: s[2] <= s[1])


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(["balanced", "zipf:0", "zipf:1.3", "hot:0", "hot:0.37", "hot:1"]), st.integers(0, 5))
def test_every_distribution_gives_distinct_ids_in_range_and_repeats_for_its_seed(
    size: tuple[int, int, int], routing: str, seed: int
) -> None:
    T, E, K = size
    w = workload(T, E, K, routing=routing, seed=seed)
    ids_TK = ids_of(w)
    assert ids_TK.shape == (T, K)
    assert ids_TK.dtype == torch.int64
    assert all(0 <= e < E for row in ids_TK.tolist() for e in row)
    assert all(len(set(row)) == K for row in ids_TK.tolist())
    assert torch.equal(ids_TK, ids_of(w))


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_balanced_loads_differ_by_at_most_one(size: tuple[int, int, int]) -> None:
    T, E, K = size
    found = loads(ids_of(workload(T, E, K, routing="balanced")), E)
    assert max(found) - min(found) <= 1


@settings(deadline=None, max_examples=40)
@given(sizes, st.floats(0, 1))
def test_hot_expert_gets_exactly_its_share_and_the_others_are_even(size: tuple[int, int, int], share: float) -> None:
    T, E, K = size
    ids_TK = ids_of(workload(T, E, K, routing=f"hot:{share}"))
    num_hot = round(share * T)
    first = loads(ids_TK[:, 0], E)
    found = loads(ids_TK, E)
    expected = T if K == E else num_hot
    candidates = [
        e
        for e in range(E)
        if found[e] == expected
        and (first[e] == num_hot or E == 1)
        and max(found[:e] + found[e + 1 :], default=0) - min(found[:e] + found[e + 1 :], default=0) <= 1
    ]
    assert candidates


def test_zipf_first_choices_follow_the_law() -> None:
    T, E, S = 20_000, 6, 1.2
    ids_TK = ids_of(workload(T, E, 2, routing=f"zipf:{S}"))
    found = np.sort(np.array(loads(ids_TK[:, 0], E)) / T)[::-1]
    popularity = np.arange(1, E + 1) ** -S
    assert np.abs(found - popularity / popularity.sum()).max() < 0.015  # four standard deviations
    # the second choice is the same law without the first one's expert
    top = int(torch.bincount(ids_TK[:, 0]).argmax())
    second = np.array(loads(ids_TK[ids_TK[:, 0] == top, 1], E))
    assert second[top] == 0
    rest = popularity[1:] / popularity[1:].sum()
    assert np.abs(np.sort(second[second > 0])[::-1] / second.sum() - rest).max() < 0.03


def test_seeds_change_what_is_drawn_and_no_stream_repeats_another() -> None:
    assert not torch.equal(tokens(workload(seed=0)), tokens(workload(seed=1)))
    assert not torch.equal(tokens(workload()), output_gradient(workload()))
    assert not torch.equal(ids_of(workload(routing="zipf:1")), ids_of(workload(routing="zipf:1", seed=1)))


def test_tokens_are_standard_normal_and_the_cast_comes_last() -> None:
    full = tokens(workload(T=4096))
    assert abs(float(full.mean())) < 0.02
    assert abs(float(full.std()) - 1) < 0.02
    half = tokens(workload(T=4096, dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())


def test_router_forces_nothing() -> None:
    assert forced_ids(workload(routing="router")) is None


@pytest.mark.parametrize(
    "routing", ["", "nonsense", "balanced:1", "zipf", "zipf:", "zipf:-1", "zipf:nan", "hot:1.1", "hot:x", "trace:"]
)
def test_malformed_routing_is_refused_with_what_is_allowed(routing: str) -> None:
    with pytest.raises(ValueError, match=r"routing .* expected"):
        forced_ids(workload(routing=routing))


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="above num_experts"):
        forced_ids(workload(E=2, K=3, routing="balanced"))


@pytest.mark.parametrize(("rows", "note"), [(4, ""), (3, "of 3 tokens repeated to 4"), (9, "of 9 tokens cut to 4")])
def test_a_trace_is_repeated_or_cut_and_says_so(tmp_path: Path, rows: int, note: str) -> None:
    array = np.stack([np.arange(rows) % 8, (np.arange(rows) + 3) % 8], axis=1).astype(np.uint8)
    np.save(tmp_path / "ids.npy", array)
    forced = forced_ids(workload(T=4, routing=f"trace:{tmp_path / 'ids.npy'}"))
    assert forced is not None
    assert forced.expert_ids.tolist() == [array[t % rows].tolist() for t in range(4)]
    assert forced.note.endswith(note)
    assert bool(forced.note) == bool(note)


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((4, 2)), "holds float64"),
        (np.zeros((4, 3), dtype=int), r"shape \(4, 3\)"),
        (np.zeros(4, dtype=int), r"shape \(4,\)"),
        (np.zeros((0, 2), dtype=int), r"shape \(0, 2\)"),
        (np.array([[0, 1], [2, 8]]), "expert 8 for token 1"),
        (np.array([[-1, 1]]), "expert -1 for token 0"),
        (np.array([[0, 1], [5, 5]]), "distinct experts"),
        (np.array([["a", {}]], dtype=object), "cannot be read"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(tmp_path: Path, array: np.ndarray, fault: str) -> None:
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(ValueError, match=fault):
        forced_ids(workload(T=4, routing=f"trace:{tmp_path / 'ids.npy'}"))


def test_a_missing_trace_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.npy cannot be read"):
        forced_ids(workload(routing=f"trace:{tmp_path / 'absent.npy'}"))
