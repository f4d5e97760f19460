from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from run_maker import making

from bench.analysis.crossover import crossover_maps
from bench.analysis.loading import analyse
from bench.analysis.model import Exponent
from bench.analysis.scaling import WORKLOAD_FIELDS, fit_exponents
from bench.analysis.theory import theory
from bench.store.schema import AnyRecord
from impls.registry import ENTRIES
from impls.spec import LayerSpec

TOKENS = (64, 128, 256, 512)


def exponents(latency_s: Callable[[int], float], peak: Callable[[int], int], **timing: int) -> dict[str, Exponent]:
    """Of einsum over tokens, by quantity."""
    records: list[AnyRecord] = []
    for tokens in TOKENS:
        workload = making.workload(num_tokens=tokens, capacity_factor=1.25)
        qualified = making.qualified(allocator_peak_bytes=peak(tokens))
        records.append(making.case("einsum", workload, qualified=qualified))
        records += making.timed(workload, {"einsum": latency_s(tokens)}, seed=tokens, **timing)
    return {found.quantity: found for found in analyse(making.info, records).exponents}


def test_a_power_law_gives_its_exponent_back_inside_the_interval() -> None:
    found = exponents(lambda t: 1e-9 * t**2, lambda t: 100 * t**2)
    latency, memory = found["latency"], found["memory"]
    assert latency.fitted.low < 2 < latency.fitted.high
    assert latency.fitted.half_width < 0.3
    assert latency.num_processes == 12
    assert (latency.theory, latency.num_points) == (2, 4)
    assert latency.span == pytest.approx((64, 512))
    assert memory.fitted.value == pytest.approx(2)
    assert memory.fitted.low == memory.fitted.high == memory.fitted.value
    assert latency.fixed == {}


def test_the_far_end_shows_what_a_fixed_cost_hides() -> None:
    found = exponents(lambda t: 1e-3 + 1e-8 * t**2, lambda t: 10_000_000 + 100 * t**2)
    assert found["memory"].fitted.value < found["memory"].at_end.value < 2
    assert found["latency"].fitted.value < found["latency"].at_end.value < 2


def test_what_one_process_adds_to_all_its_samples_leaves_its_slope() -> None:
    records: list[AnyRecord] = []
    for tokens in TOKENS:
        workload = making.workload(num_tokens=tokens)
        records.append(making.case("loop", workload))
        for replicate in range(6):
            slow = np.exp(replicate)  # six processes that differ by two orders of magnitude
            records.append(making.samples(workload, replicate, {"loop": [slow * tokens * 1e-6] * 3}))
    latency = next(found for found in analyse(making.info, records).exponents if found.quantity == "latency")
    assert latency.fitted.value == pytest.approx(1)
    assert latency.fitted.high - latency.fitted.low < 1e-9


def test_one_process_has_an_interval_without_ends_and_two_points_have_no_exponent() -> None:
    assert np.isinf(exponents(lambda t: 1e-6 * t, lambda t: t, num_processes=1)["latency"].fitted.high)
    workloads = [making.workload(num_tokens=tokens) for tokens in TOKENS[:2]]
    records = [record for workload in workloads for record in making.run(workload, {"loop": 1e-3})]
    assert analyse(making.info, records).exponents == []


def test_every_field_of_a_layer_and_workload_keeps_slices_apart() -> None:
    fields = set(LayerSpec(d_model=1, d_ff=1, num_experts=1, top_k=1).to_dict())
    fields |= set(type(making.workload()).model_fields) - {"layer"}
    assert fields == set(WORKLOAD_FIELDS)


def test_theory_speaks_of_known_implementations_and_claims_nothing_it_cannot_say_why() -> None:
    einsum = theory("latency", "num_tokens", "einsum", dropless=True)
    assert einsum is not None
    assert einsum.exponent == 2
    assert "quadratic" in einsum.why
    assert theory("latency", "num_experts", "scatter_gather", dropless=True) is None
    padded = theory("latency", "num_experts", "scatter_gather", dropless=False)
    assert padded is not None
    assert padded.exponent == 0
    assert theory("latency", "num_tokens", "mine.py:Layer", dropless=True) is None
    for name in ENTRIES:
        assert theory("latency", "num_tokens", name, dropless=True) is not None, name


def test_crossover_map_has_a_cell_a_workload_and_a_map_a_slice() -> None:
    records: list[AnyRecord] = []
    for tokens in (64, 128):
        for num_experts in (8, 16):
            for dtype in ("float32", "bfloat16"):
                workload = making.workload(num_tokens=tokens, num_experts=num_experts, dtype=dtype)
                fast, slow = ("loop", "grouped") if tokens == 64 else ("grouped", "loop")
                records += making.run(workload, {fast: 1e-3, slow: 2e-3})
    analysis = analyse(making.info, records)
    maps = crossover_maps(analysis.frame, analysis.winners, WORKLOAD_FIELDS)
    assert [found.fixed for found in maps] == [{"dtype": "bfloat16"}, {"dtype": "float32"}]
    for found in maps:
        outcome = {place: winner.impl for place, winner in found.cells.items()}
        assert outcome == {(64, 8): "loop", (64, 16): "loop", (128, 8): "grouped", (128, 16): "grouped"}
    nobody = [dataclasses.replace(winner, impl=None) for winner in analysis.winners]
    assert all(
        winner.impl is None
        for found in crossover_maps(analysis.frame, nobody, WORKLOAD_FIELDS)
        for winner in found.cells.values()
    )
    assert crossover_maps(analysis.frame, analysis.winners, WORKLOAD_FIELDS, y="top_k") == []


def test_untimed_rows_take_no_part() -> None:
    frame = analyse(making.info, [making.case("loop", making.workload(num_tokens=t)) for t in TOKENS]).frame
    assert fit_exponents(frame, []) == []
