"""Recommendations: who is named, who is ruled out, and when there is no answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from run_maker import making

from bench.analysis import analyse
from bench.analysis.advise import Advice, Limits, advise, interval
from bench.analysis.model import Analysis
from bench.cases import Workload
from bench.errors import RequestError
from bench.store.schema import AnyRecord, Status

NO_LIMITS = Limits()
MIB = 2**20


def run_of(workloads: Mapping[Workload, Mapping[str, float]], *, slowed: float = 1.05, **peaks: int) -> Analysis:
    """A finished run with these true latencies; ``peaks`` are peak memory in bytes by implementation."""
    records: list[AnyRecord] = [making.note("started", 0.0), *making.control(slowed=slowed)]
    for seed, (workload, true_s) in enumerate(workloads.items()):
        for impl in true_s:
            peak_bytes = peaks.get(impl, 65_536)
            records.append(making.case(impl, workload, qualified=making.qualified(allocator_peak_bytes=peak_bytes)))
        records += making.timed(workload, true_s, seed=seed)
    return analyse(making.info, [*records, making.note("finished", 100.0)])


def one(analysis: Analysis, limits: Limits = NO_LIMITS, **asked: Any) -> Advice:
    (answer,) = advise(analysis, asked, limits)
    return answer


GROUPED_WINS = {"loop": 2e-3, "grouped": 1e-3, "dense": 0.5e-3}
LOOP_WINS = {"loop": 1e-3, "grouped": 2e-3}
TIE = {"loop": 1e-3, "grouped": 1e-3}


def test_the_winner_is_recommended_with_what_others_cost_and_baselines_never_are() -> None:
    answer = one(run_of({making.workload(): GROUPED_WINS}))
    (choice,) = answer.choices
    assert (answer.impl, answer.between) == ("grouped", {})
    assert "grouped is 2.0" in choice.why or "grouped is 1.9" in choice.why
    (cost,) = choice.others
    assert (cost.impl, cost.base) == ("loop", "grouped")
    assert cost.ratio.low < 2 < cost.ratio.high
    assert [candidate.impl for candidate in choice.candidates] == ["grouped", "loop"]


def test_without_a_winner_the_contenders_are_given() -> None:
    answer = one(run_of({making.workload(): TIE | {"einsum": 5e-3}}))
    (choice,) = answer.choices
    assert answer.impl is None
    assert set(choice.contenders) == {"loop", "grouped"}
    assert "einsum" in {cost.impl for cost in choice.others}


def test_a_failed_control_recommends_nobody() -> None:
    answer = one(run_of({making.workload(): GROUPED_WINS}, slowed=1.0))
    assert answer.impl is None
    assert "did not pass" in answer.choices[0].why


def test_memory_counts_weights_and_names_need_and_limit() -> None:
    analysis = run_of({making.workload(): GROUPED_WINS}, grouped=4 * MIB, loop=MIB)
    weight_bytes = making.qualified().weight_bytes
    assert one(analysis, Limits(memory_bytes=4 * MIB + weight_bytes)).impl == "grouped"
    answer = one(analysis, Limits(memory_bytes=4 * MIB + weight_bytes - 1))
    assert answer.impl == "loop"
    (ruled_out,) = [c for c in answer.choices[0].candidates if c.ruled_out]
    assert ruled_out.impl == "grouped"
    assert ruled_out.ruled_out == "needs 4.19 MiB, the limit is 4.19 MiB"


def test_memory_that_was_not_measured_is_within_no_limit() -> None:
    workload = making.workload()
    records = making.run(workload, LOOP_WINS)
    gaps = {"allocator_peak_bytes": "no profiler", "reserved_peak_bytes": "not on a CPU"}
    gap = making.qualified(allocator_peak_bytes=None, gaps=gaps)
    records.insert(3, making.case("loop", workload, qualified=gap))
    answer = one(analyse(making.info, records), Limits(memory_bytes=1e12))
    assert answer.impl == "grouped"
    assert "not measured" in answer.choices[0].candidates[0].ruled_out


def test_a_latency_counts_by_the_upper_end_of_its_interval() -> None:
    analysis = run_of({making.workload(): LOOP_WINS})
    (choice,) = one(analysis).choices
    latency = choice.candidates[0].latency
    assert latency is not None
    assert one(analysis, Limits(latency_s=latency.high)).impl == "loop"
    (strict,) = one(analysis, Limits(latency_s=(latency.value + latency.high) / 2)).choices
    assert strict.candidates[0].ruled_out.startswith("may take more")
    assert (strict.impl, strict.reference) == (None, None)
    assert strict.candidates[1].ruled_out.startswith("takes")


def test_one_process_has_no_interval_to_print() -> None:
    workload = making.workload()
    records = making.run(workload, LOOP_WINS, num_processes=1)
    (choice,) = one(analyse(making.info, records)).choices
    assert choice.impl is None
    latency = choice.candidates[0].latency
    assert latency is not None
    assert "to" not in interval(latency)


def test_what_failed_is_ruled_out_with_its_reason() -> None:
    workload = making.workload()
    records = [*making.run(workload, LOOP_WINS), making.case("einsum", workload, status=Status.OUT_OF_MEMORY)]
    (choice,) = one(analyse(making.info, records)).choices
    assert choice.candidates[-1].ruled_out == "out_of_memory: because the test says so"


def tokens(num_tokens: int, **fields: Any) -> Workload:
    return making.workload(num_tokens=num_tokens, **fields)


def test_between_two_measured_sizes_both_must_agree() -> None:
    analysis = run_of({tokens(16): GROUPED_WINS, tokens(64): GROUPED_WINS, tokens(256): LOOP_WINS})
    assert one(analysis, num_tokens=64).between == {}
    agreed = one(analysis, num_tokens=32)
    assert (agreed.impl, agreed.between) == ("grouped", {"num_tokens": 32})
    assert [choice.workload["num_tokens"] for choice in agreed.choices] == [16, 64]
    assert one(analysis, num_tokens=100).impl is None
    for outside in (8, 512):
        with pytest.raises(RequestError, match="nothing is extrapolated"):
            one(analysis, num_tokens=outside)


def test_two_sizes_between_measured_ones_need_all_four_corners() -> None:
    corners = {tokens(t, num_experts=e): GROUPED_WINS for t in (16, 64) for e in (8, 32)}
    answer = one(run_of(corners), num_tokens=32, num_experts=16)
    assert answer.impl == "grouped"
    assert len(answer.choices) == 4
    corners.popitem()
    with pytest.raises(RequestError, match="were not all measured"):
        one(run_of(corners), num_tokens=32, num_experts=16)


def test_axes_that_are_not_asked_for_give_an_answer_each() -> None:
    analysis = run_of({tokens(16): GROUPED_WINS, tokens(16, direction="train"): LOOP_WINS})
    assert [answer.impl for answer in advise(analysis, {"num_tokens": 16}, NO_LIMITS)] == ["grouped", "loop"]
    assert one(analysis, direction="train").impl == "loop"
    with pytest.raises(RequestError, match="dtype bfloat16 was not measured in this run; measured were: float32"):
        one(analysis, dtype="bfloat16")


def test_a_run_without_times_cannot_advise() -> None:
    records = [making.case("loop", making.workload(), status=Status.CRASHED)]
    with pytest.raises(RequestError, match="timed no exact implementation"):
        one(analyse(making.info, records))
