"""What is said about a run beside its table: every warning gives its evidence."""

from __future__ import annotations

import pytest
from run_maker import making

from bench.analysis import analyse
from bench.store.qualified import Conduct, RoutingFacts
from bench.store.schema import AnyRecord, CaseRecord, Disturbance

WORKLOAD = making.workload()
TRUE_S = {"grouped": 1e-3, "loop": 2e-3, "dense": 0.5e-3}
CASE_ID = {impl: making.case(impl, WORKLOAD).case_id for impl in TRUE_S}


def test_warnings_give_the_evidence() -> None:
    busy = Disturbance(steal_s=0.5, cpu_pressure_s=0.4)
    repeated = RoutingFacts(
        tokens_per_expert=[32] * 8, dropped_fraction=0.0, load_imbalance=1.0, note="The trace was repeated 3 times."
    )
    records: list[AnyRecord] = [
        making.note("started", 0.0),
        making.case("loop", making.workload(threads=4)),
        making.case("einsum", WORKLOAD, qualified=making.qualified(routing=repeated)),
        making.case("grouped", WORKLOAD, qualified=making.qualified(checked_tokens=16, moved_bytes=10**9)),
        *making.control(),
        making.ceiling("matmul", [1e12]),
        making.ceiling("memory", [1e10]),
        making.samples(WORKLOAD, 0, {"grouped": [1e-3], "einsum": [1e-3]}, disturbance=busy),
        making.samples(
            WORKLOAD, 1, {"grouped": [1e-3], "einsum": [1.1e-3]}, disturbance=busy, environment_hash="other"
        ),
        making.note("budget_spent", 40.0, text="The budget of 40 s is spent."),
    ]
    info = making.info.model_copy(update={"environment": {"cpu": {"usable_cores": 2}}})
    warnings = "\n".join(analyse(info, records, ["line 7 is not a valid record"]).warnings)
    for evidence in (
        "line 7 is not a valid record",
        "The budget of 40 s is spent.",
        "The trace was repeated 3 times.",
        "1 other environment ",
        "1 case was faster than the measured ceilings allow (most: grouped",
        "sample of their tokens only (at least 16)",
        "4 threads on 2 cores",
        "1 case was right but not timed",
        "2 cases were timed in too few independent processes for a verdict (the fewest: 2, needed: 6)",
        "50.0 % of a processor",
        "waited for a processor in 40.0 % of the time",
        "1 of 1 comparisons are inconclusive; about",
    ):
        assert evidence in warnings


def test_an_isolated_run_says_so() -> None:
    info = making.info.model_copy(update={"config": {"measure": {"isolate": True}}})
    (warning,) = analyse(info, making.run(WORKLOAD, TRUE_S)).warnings
    assert warning.startswith("Timed with --isolate: every implementation in processes of its own")


def test_a_sound_run_warns_of_nothing() -> None:
    assert analyse(making.info, making.run(WORKLOAD, TRUE_S)).warnings == ()


@pytest.mark.parametrize("others", [True, None])
def test_a_case_that_never_got_steady_is_labelled(others: bool | None) -> None:
    records = making.run(WORKLOAD, TRUE_S)
    restless = [
        record.model_copy(
            update={
                "arms": {
                    case_id: arm.model_copy(update={"steady": False if case_id == CASE_ID["loop"] else others})
                    for case_id, arm in record.arms.items()
                }
            }
        )
        if record.kind == "samples"
        else record
        for record in records
    ]
    analysis = analyse(making.info, restless)
    assert analysis.frame.set_index("impl")["steady"].to_dict() == {"grouped": others, "loop": False, "dense": others}
    assert "loop, in 12 of 12" in "\n".join(analysis.warnings)


def test_layers_that_compute_under_other_settings_are_told() -> None:
    def warnings(precision: str) -> str:
        def case(impl: str, value: str) -> CaseRecord:
            conduct = Conduct(
                threads=1,
                allocator="",
                numerics={"matmul_float32_precision": value, "deterministic": "default"},
                gaps=dict.fromkeys(
                    ("num_operators", "host_syncs", "computed_flops", "distinct_results", "deterministic_ratio"), "no"
                ),
            )
            return making.case(impl, WORKLOAD, qualified=making.qualified(conduct=conduct))

        records: list[AnyRecord] = [case("grouped", "none"), case("loop", precision)]
        return " ".join(analyse(making.info, records).warnings)

    assert "matmul_float32_precision was none in grouped, tf32 in loop" in warnings("tf32")
    assert "same setting" not in warnings("none")


@pytest.mark.parametrize(("counter", "words"), [("power", "its power limit"), ("thermal", "heat")])
def test_a_gpu_that_was_held_down_is_told(counter: str, words: str) -> None:
    def told(seconds: float) -> bool:
        record = making.samples(WORKLOAD, 0, {"grouped": [1e-3]})
        disturbance = Disturbance(gpu={f"{counter}_throttle_s": seconds * record.wall_s, "temperature_c_after": 80.0})
        samples = record.model_copy(update={"disturbance": disturbance})
        records: list[AnyRecord] = [making.case("grouped", WORKLOAD), samples]
        return any(f"clock down for {words}" in warning for warning in analyse(making.info, records).warnings)

    assert told(0.2)
    assert not told(0.01)
