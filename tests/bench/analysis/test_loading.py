"""From records to the table: what every row holds, what it must not hold, and what is said about the run."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_maker import PLANTED, making

from bench.analysis import analyse, load
from bench.analysis.frame import COLUMNS, NUMBERS, PERCENTILES, PREDICTED_PARTS, Timing, build_frame, percentiles
from bench.analysis.loading import in_samples_fraction
from bench.analysis.model import Verdict
from bench.analysis.pareto import front
from bench.analysis.roofline import Ceilings
from bench.config import load_sweep
from bench.console import data, print_summary
from bench.errors import ResultsError
from bench.store.log import append, create_run
from bench.store.schema import AnyRecord, EnergyRecord, Status
from bench.table import held_equal, short_table

WORKLOAD = making.workload()
TRUE_S = {"grouped": 1e-3, "loop": 2e-3, "dense": 0.5e-3}
CASE_ID = {impl: making.case(impl, WORKLOAD).case_id for impl in TRUE_S}

DESIGNED = (
    "case_id impl num_experts top_k capacity_factor num_tokens d_model d_ff activation router routing dtype device "
    "direction status reason latency_s latency_low_s latency_high_s tokens_per_s flops_per_s roofline_fraction "
    "peak_memory_bytes weight_bytes energy_j_per_token power_w dropped_fraction load_imbalance relative_error"
)


def energy(impl: str, **fields: Any) -> EnergyRecord:
    return EnergyRecord(environment_hash="e", unix_time_s=50.0, case_id=CASE_ID[impl], **fields)


def test_the_columns_begin_as_designed_and_are_unique() -> None:
    assert list(COLUMNS[: len(DESIGNED.split())]) == DESIGNED.split()
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_a_row_holds_what_was_measured() -> None:
    records: list[AnyRecord] = [
        *making.run(WORKLOAD, TRUE_S),
        making.ceiling("matmul", [1e10, 2e10, 2.2e10]),
        making.ceiling("memory", [1e9]),
        energy("grouped", energy_j=40.0, calls=1000.0, window_s=2.0),
    ]
    frame = analyse(making.info, records).frame.set_index("impl")
    row = frame.loc["grouped"]
    assert row["latency_low_s"] < row["latency_s"] < row["latency_high_s"]
    assert row["tokens_per_s"] == pytest.approx(128 / row["latency_s"])
    assert row["flops_per_s"] == pytest.approx(2e6 / row["latency_s"])
    assert row["roofline_fraction"] == pytest.approx(1e-3 / row["latency_s"]), "1 MB at 1 GB/s bounds it, not 2 MFLOP"
    assert row["energy_j_per_token"] == pytest.approx(40 / 128_000)
    assert row["power_w"] == pytest.approx(20)
    assert (row["num_processes"], row["num_samples"], row["steady"]) == (12, 132, True)
    assert (row["capacity_factor"], row["peak_memory_bytes"]) == ("none", 65_536)


def test_ratios_are_to_the_fastest_exact_implementation_and_baselines_never_are_it() -> None:
    analysis = analyse(making.info, making.run(WORKLOAD, TRUE_S))
    frame = analysis.frame.set_index("impl")
    assert set(frame["fastest_impl"]) == {"grouped"}
    assert [winner.impl for winner in analysis.winners] == ["grouped"]
    assert frame["ratio"].to_dict() == {
        "grouped": pytest.approx(math.nan, nan_ok=True),
        "loop": pytest.approx(2, rel=0.02),
        "dense": pytest.approx(0.5, rel=0.02),
    }
    assert frame["verdict"].to_dict() == {"grouped": "", "loop": "slower", "dense": "faster"}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_a_case_that_is_not_ok_never_carries_a_time(status: Status) -> None:
    """It died after it had been sampled: the later record counts, and the samples do not."""
    records = making.run(WORKLOAD, TRUE_S)
    dead = making.case("loop", WORKLOAD, status=status, relative_error=0.5 if status is Status.WRONG_RESULT else None)
    analysis = analyse(making.info, [*records, dead])
    row = analysis.frame.set_index("impl").loc["loop"]
    assert (row["status"], row["reason"]) == (status.value, "because the test says so")
    assert row.drop(index="relative_error")[[name for name in NUMBERS if name != "relative_error"]].isna().all()
    assert not [c for c in analysis.comparisons if "loop" in (c.impl, c.base)]
    assert pd.isna(row["relative_error"]) == (status is not Status.WRONG_RESULT)


def test_everything_that_an_ok_case_lacks_has_its_reason() -> None:
    unrouted = making.qualified(routing=None)
    records: list[AnyRecord] = [
        making.case("loop", WORKLOAD),
        making.case("dense", WORKLOAD, qualified=unrouted),
        *making.timed(WORKLOAD, {"dense": 1e-3}, num_processes=3),
        energy("dense", reason="not_supported: no meter"),
    ]
    frame = analyse(making.info, records).frame.set_index("impl")
    follows = {"latency_low_s", "latency_high_s", "tokens_per_s", "flops_per_s", "roofline_fraction", "inner_calls"}
    follows |= set(PERCENTILES)
    energy_bounds = {"energy_low_j_per_token", "energy_high_j_per_token"}  # follow energy_j_per_token
    ranking = {"ratio", "ratio_low", "ratio_high"}  # empty for what was not compared
    for impl in ("loop", "dense"):
        row = frame.loc[impl]
        lacking = {name for name in NUMBERS if pd.isna(row[name])} - ranking - energy_bounds
        if "latency_s" in lacking:
            lacking -= follows
        if "predicted_peak_bytes" in lacking:
            lacking -= set(PREDICTED_PARTS)
        if "energy_j_per_token" in lacking:
            lacking.discard("idle_power_w")
        if row["compile"] == "none":
            lacking -= {"compile_s", "graph_breaks", "recompiles", "recompiles_same_shape"}
        explained = {part.partition(":")[0] for part in str(row["gaps"]).split("; ")}
        assert lacking - explained == set()
    assert "energy_j_per_token: not_supported: no meter" in str(frame.loc["dense", "gaps"])
    assert "fewer than six" in str(frame.loc["dense", "gaps"])


def test_where_nobody_wins_the_fastest_is_the_one_with_the_lowest_latency_of_the_table() -> None:
    """A single slow process moves a mean, and no median."""
    arms = [{"loop": [1.0], "grouped": [1.1]}] * 6 + [{"loop": [9.0], "grouped": [1.1]}]
    records: list[AnyRecord] = [making.case("loop", WORKLOAD), making.case("grouped", WORKLOAD)]
    records += [making.samples(WORKLOAD, replicate, latencies) for replicate, latencies in enumerate(arms)]
    analysis = analyse(making.info, records)
    assert analysis.winners[0].contenders == ("loop", "grouped")
    assert set(analysis.frame["fastest_impl"]) == {"loop"}


def test_what_is_held_equal_is_said_where_it_says_something() -> None:
    values = {"num_experts": "8", "capacity_factor": "none", "dtype": "float32", "cache": "warm", "router_seed": "3"}
    assert held_equal(values) == "experts 8, capacity none, dtype float32, router_seed 3, 1 other as by default"


def test_csv_writes_none_for_dropless() -> None:
    records = [making.case("loop", making.workload(capacity_factor=factor)) for factor in (None, 1.25)]
    text = analyse(making.info, records).frame.to_csv(index=False)
    assert [row["capacity_factor"] for row in csv.DictReader(io.StringIO(text))] == ["1.25", "none"]


def test_a_run_without_any_record_loads(tmp_path: Path) -> None:
    folder = create_run(tmp_path, making.info)
    analysis = load(folder)
    assert analysis.frame.empty
    assert list(analysis.frame.columns) == list(COLUMNS)
    assert not analysis.finished
    assert analysis.in_samples_fraction is None
    with pytest.raises(ResultsError):
        load(tmp_path / "absent")


def test_an_unfinished_run_loads_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = create_run(tmp_path, making.info)
    for record in making.run(WORKLOAD, TRUE_S, num_processes=7)[:-1]:
        append(folder, record)
    with (folder / "measurements.jsonl").open("a") as log:
        log.write('{"kind": "samp')
    analysis = load(folder)
    assert not analysis.finished
    assert analysis.in_samples_fraction is None
    assert len(analysis.frame) == 3
    assert any("cut short" in warning for warning in analysis.warnings)
    assert any("--resume 20260101-000000-test" in warning for warning in analysis.warnings)


def test_cases_that_the_run_did_not_reach_are_rows_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = load_sweep("smoke", {"workload.device": "cpu", "workload.impls": ["loop", "grouped"]})
    info = making.info.model_copy(update={"config": json.loads(json.dumps(sweep.given)), "source": "smoke"})
    reached, *others = sweep.cases
    records: list[AnyRecord] = [
        making.note("started", 0.0),
        making.case(reached.impl, reached.workload),
        making.note("budget_spent", 5.0),
    ]
    analysis = analyse(info, records)
    rows = analysis.frame.set_index("case_id")
    assert set(rows.index) == {case.id for case in sweep.cases}
    assert rows.loc[reached.id, "status"] == "ok"
    lacking = rows.drop(reached.id)
    assert set(lacking["status"]) == {"not_run"}
    assert lacking["reason"].str.contains(f"moebench run --resume {info.run_id}", regex=False).all()
    assert lacking["latency_s"].isna().all()
    print_summary(data(), analysis, Path("run"))
    assert f"{len(others)} rows not_run (grouped, loop): the run ended before its turn" in capsys.readouterr().out
    elsewhere = info.model_copy(update={"config": {**info.config, "workload": {"impls": ["nobody.py:Here"]}}})
    assert len(analyse(elsewhere, records).frame) == 1, "what cannot be known here is not guessed"
    assert len(analyse(info, [*records, making.note("finished", 6.0)]).frame) == 1


def test_a_failed_control_withholds_every_verdict() -> None:
    records = making.run(WORKLOAD, TRUE_S)
    bad = making.control(twin=1.04)
    records = [record for record in records if record.kind != "control"] + [*bad]
    analysis = analyse(making.info, records)
    assert not analysis.control.passed
    assert {comparison.verdict for comparison in analysis.comparisons} == {Verdict.INCONCLUSIVE}
    assert [winner.impl for winner in analysis.winners] == [None]
    assert "control" in analysis.winners[0].sentence
    assert analysis.control.sentence in analysis.warnings
    assert {row[-1] for row in short_table(analysis).rows if row[0] in TRUE_S} == {"withheld"}
    assert bad[0].planted_slowdown == PLANTED


def test_time_inside_samples_is_counted_over_all_sessions() -> None:
    arms = {"loop": [1.0] * 3, "grouped": [2.0] * 3}
    records: list[AnyRecord] = [
        making.note("started", 0.0),
        making.samples(WORKLOAD, 0, arms, unix_time_s=15.0, wall_s=12.0),  # 9 s of rounds and 2 s of warm-up
        making.note("interrupted", 16.0, wall_s=16.0),
        making.note("resumed", 1000.0),
        making.samples(WORKLOAD, 1, arms, unix_time_s=1003.0, wall_s=3.0),  # cannot be more than its wall time
        making.note("finished", 1004.0, wall_s=4.0),
    ]
    assert in_samples_fraction(records) == pytest.approx((11 + 3) / (16 + 4))
    assert analyse(making.info, records).finished
    assert not analyse(making.info, records[:-1]).finished
    assert in_samples_fraction([]) is None


def test_a_warm_case_that_fits_the_cache_is_held_against_the_caches_bandwidth() -> None:
    ceilings = Ceilings.of(
        [
            making.ceiling("matmul", [1e12]),
            making.ceiling("memory", [1e9]),
            making.ceiling("cache", [1e10], working_set_bytes=5_000_000),
        ]
    )
    assert ceilings.needed_s(making.workload(), 1.0, 4_000_000) == pytest.approx(4e-4)
    assert ceilings.needed_s(making.workload(), 1.0, 6_000_000) == pytest.approx(6e-3)
    assert ceilings.needed_s(making.workload(cache="cold"), 1.0, 4_000_000) == pytest.approx(4e-3)
    assert ceilings.needed_s(making.workload(), 1e12, 4_000_000) == pytest.approx(1.0)
    assert "no matmul ceiling for bfloat16" in str(ceilings.needed_s(making.workload(dtype="bfloat16"), 1.0, 1.0))
    assert "cpu with 4 threads" in str(ceilings.needed_s(making.workload(threads=4), 1.0, 1.0))


def test_a_ceiling_is_the_best_process_and_shows_its_range() -> None:
    records = [making.ceiling("matmul", values) for values in ([1.0, 2.0, 9.0], [3.0, 4.0, 5.0], [])]
    (peak,) = Ceilings.of(records).peaks.values()
    assert (peak.low, peak.value, peak.high) == (2.0, 4.0, 9.0)


def test_the_front_holds_what_nobody_beats_in_both() -> None:
    #            fast, lean, beaten, like lean, leaner but slower, as fast and fatter, unknown
    latency_s = [1.0, 2.0, 3.0, 2.0, 4.0, 1.0, math.nan]
    memory_bytes = [9, 1, 9, 1, 0, 10, 0]
    assert front(latency_s, memory_bytes).tolist() == [True, True, False, True, True, False, False]
    assert front([], []).tolist() == []


@pytest.mark.parametrize(("host_s", "bound"), [(2e-3, True), (1e-6, False), (None, None)])
def test_a_launch_bound_case_is_labelled(host_s: float | None, bound: bool | None) -> None:
    record = making.samples(WORKLOAD, 0, {"grouped": [1e-3]})
    arms = {
        case_id: arm.model_copy(update={"host_s": host_s, "inner_calls": 8}) for case_id, arm in record.arms.items()
    }
    analysis = analyse(making.info, [making.case("grouped", WORKLOAD), record.model_copy(update={"arms": arms})])
    row = analysis.frame.iloc[0]
    assert row["launch_bound"] == bound
    assert row["inner_calls"] == 8
    assert any("launch-bound" in warning for warning in analysis.warnings) == bool(bound)


def test_every_figure_is_the_same_whatever_the_order_of_processes() -> None:
    records = making.run(WORKLOAD, TRUE_S)
    shuffled = [*records[:4], *records[4:-1][::-1], records[-1]]
    one, other = analyse(making.info, records), analyse(making.info, shuffled)
    assert one.frame.equals(other.frame)
    assert (one.comparisons, one.winners, one.control) == (other.comparisons, other.winners, other.control)


def test_a_large_sweep_is_one_table() -> None:
    cases = {
        record.case_id: record
        for record in (
            making.case(impl, making.workload(num_tokens=tokens)) for tokens in range(1, 1001) for impl in TRUE_S
        )
    }
    timing = Timing(units=np.linspace(1.0, 2.0, 12), num_samples=120, num_judged=12, num_unsteady=0)
    frame = build_frame(cases, dict.fromkeys(cases, timing), energy={}, ceilings=Ceilings({}, {}), winners=[], sides={})
    assert len(frame) == 3000
    assert frame["latency_s"].eq(1.5).all()


def test_a_percentile_needs_samples_beyond_it_that_are_single_calls() -> None:
    samples_s = [0.001 * i for i in range(1, 1001)]
    found = percentiles(samples_s, single_calls=True)
    assert found["latency_p50_s"] == pytest.approx(0.5005)
    assert found["latency_p99_s"] == pytest.approx(0.99001)
    assert percentiles(samples_s[:999], single_calls=True)["latency_p99_s"] == "fewer than 1,000 samples"
    assert percentiles(samples_s[:99], single_calls=True)["latency_p90_s"] == "fewer than 100 samples"
    assert set(percentiles(samples_s, single_calls=False).values()) == {"a sample is the mean of several calls"}


def test_energy_has_the_bounds_of_the_meter() -> None:
    measured = energy("loop", energy_j=10.0, energy_low_j=9.0, energy_high_j=12.0, calls=100.0, window_s=2.0)
    row = analyse(making.info, [making.case("loop", WORKLOAD), measured]).frame.iloc[0]
    tokens = WORKLOAD.num_tokens * 100
    assert row["energy_low_j_per_token"] == pytest.approx(9 / tokens)
    assert row["energy_high_j_per_token"] == pytest.approx(12 / tokens)


def test_single_calls_on_a_device_that_are_too_short_to_be_known_well_say_so() -> None:
    def gaps(seconds: float, host_s: float | None, inner_calls: int) -> str:
        record = making.samples(WORKLOAD, 0, {"grouped": [seconds]})
        update = {"host_s": host_s, "inner_calls": inner_calls}
        arms = {case_id: arm.model_copy(update=update) for case_id, arm in record.arms.items()}
        samples = record.model_copy(update={"arms": arms})
        analysis = analyse(making.info, [making.case("grouped", WORKLOAD), samples])
        return str(analysis.frame.iloc[0]["gaps"])

    assert "inner_calls: single calls, so short" in gaps(10e-6, 5e-6, 1)
    for known_well in (gaps(10e-6, 5e-6, 8), gaps(1e-3, 5e-6, 1), gaps(10e-6, None, 1)):
        assert "inner_calls" not in known_well
