from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.loading import analyse
from bench.cases import Case, Workload
from bench.errors import ResultsError
from bench.store import pytest_benchmark
from bench.store.log import Run
from bench.store.pytest_benchmark import KEY, ExtraInfo, LoopInfo, SuiteInfo, read_pytest_benchmark
from bench.store.qualified import Qualified, RoutingFacts
from bench.store.schema import CaseRecord, Disturbance, NoteRecord, RunInfo, SamplesRecord, Status
from impls.spec import LayerSpec

WORKLOAD = Workload(layer=LayerSpec(d_model=8, d_ff=8, num_experts=2, top_k=1), num_tokens=8)
RUN = RunInfo(
    run_id="20260101-000000-pytest-abcd",
    machine="test-cpu-2-cores",
    created_unix_s=100.0,
    command=["pytest", "bench/suites"],
    source="pytest-benchmark",
    config={},
    seed=0,
    git_commit=None,
    environment={},
    environment_hash="e",
)
QUALIFIED = Qualified(
    relative_error=1e-7,
    worst_tensor="output",
    checked_tokens=8,
    routing=RoutingFacts(tokens_per_expert=[4, 4], dropped_fraction=0.0, load_imbalance=1.0),
    flops=1000,
    moved_bytes=1000,
    weight_bytes=1000,
    prepared_bytes=0,
    prepare_s=0.01,
    first_call_s=0.1,
    rough_latency_s=0.001,
    allocator_peak_bytes=512,
    os_peak_bytes=4096,
    reserved_peak_bytes=None,
    analytic_peak_bytes=256,
    gaps={"reserved_peak_bytes": "only CUDA's caching allocator reserves"},
)


def record(impl: str, status: Status = Status.OK) -> CaseRecord:
    case, ok = Case(impl=impl, workload=WORKLOAD), status is Status.OK
    return CaseRecord(
        environment_hash="e",
        unix_time_s=110.0,
        case=case,
        case_id=case.id,
        status=status,
        reason="" if ok else "because the test says so",
        qualified=QUALIFIED if ok else None,
    )


def benchmark(impl: str, data: list[float]) -> dict[str, Any]:
    known = record(impl)
    extra = ExtraInfo(
        case_id=known.case_id,
        peak_memory_bytes=512,
        tokens_per_s=1.0,
        dropped_fraction=0.0,
        record=known,
        loop=LoopInfo(wall_s=2.0, steady=True, disturbance=Disturbance(steal_s=0.0)),
    )
    return {
        "fullname": f"test_forward.py::test_forward[{impl}]",
        "extra_info": extra.model_dump(mode="json"),
        "stats": {"data": data, "iterations": 3, "median": 1.0},
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """Two timed cases of one workload, and one that was skipped."""
    suite = SuiteInfo(run=RUN, not_timed=[record("einsum", Status.UNSUPPORTED)])
    return {
        "machine_info": {},
        "benchmarks": [benchmark("loop", [0.2, 0.3, 0.4]), benchmark("grouped", [0.1] * 5)],
        "version": "5.3.1",
        KEY: suite.model_dump(mode="json"),
    }


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], Run]:
    def write_and_read(document: Any) -> Run:
        path = tmp_path / "out.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return read_pytest_benchmark(path)

    return write_and_read


def test_a_file_becomes_the_records_of_a_run(document: Any, read: Any) -> None:
    info, records, faults = read(document)
    assert info == RUN
    assert faults == []
    cases = {r.case.impl: r.status for r in records if isinstance(r, CaseRecord)}
    assert cases == {"loop": "ok", "grouped": "ok", "einsum": "unsupported"}
    samples = [r for r in records if isinstance(r, SamplesRecord)]
    assert [arm.latency_s for r in samples for arm in r.arms.values()] == [[0.2, 0.3, 0.4], [0.1] * 5]
    assert {(r.replicate, r.wall_s, len(r.arms)) for r in samples} == {(0, 2.0, 1)}
    assert {arm.inner_calls for r in samples for arm in r.arms.values()} == {3}
    assert [r.event for r in records if isinstance(r, NoteRecord)] == ["started", "warning", "finished"]


def test_however_far_apart_no_implementation_wins(document: Any, read: Any) -> None:
    document["benchmarks"] = [benchmark("loop", [1.0] * 1000), benchmark("grouped", [0.001] * 1000)]
    analysis = analyse(*read(document))
    assert [winner.impl for winner in analysis.winners] == [None]
    assert not {comparison.verdict for comparison in analysis.comparisons} - {"inconclusive"}
    timed = analysis.frame[analysis.frame["status"] == "ok"]
    assert timed.set_index("impl")["latency_s"].to_dict() == {"loop": 1.0, "grouped": 0.001}
    assert set(timed["num_processes"]) == {1}
    assert analysis.finished
    assert any("82 %" in warning for warning in analysis.warnings)


def test_the_same_case_twice_is_still_one_process(document: Any, read: Any) -> None:
    document["benchmarks"] *= 12
    frame = analyse(*read(document)).frame
    assert frame["num_processes"].max() == 1


def _foreign(entry: dict[str, Any]) -> None:
    entry["extra_info"] = {"anything": 1}


def _without_data(entry: dict[str, Any]) -> None:
    del entry["stats"]["data"]


def _negative(entry: dict[str, Any]) -> None:
    entry["stats"]["data"][1] = -0.5


def _not_a_number(entry: dict[str, Any]) -> None:
    entry["stats"]["data"][1] = float("nan")


def _no_iterations(entry: dict[str, Any]) -> None:
    entry["stats"]["iterations"] = 0


def _other_case(entry: dict[str, Any]) -> None:
    entry["extra_info"]["case_id"] = "0" * 12


def _changed_case(entry: dict[str, Any]) -> None:
    entry["extra_info"]["record"]["case"]["workload"]["num_tokens"] = 9


def _disabled(entry: dict[str, Any]) -> None:
    entry["extra_info"]["loop"] = None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_foreign, "not of bench/suites"),
        (_without_data, "--benchmark-save-data"),
        (_negative, "stats.data.1"),
        (_not_a_number, "stats.data.1"),
        (_no_iterations, "stats.iterations"),
        (_other_case, "000000000000"),
        (_changed_case, "is not the id of the case"),
        (_disabled, "no raw timings"),
    ],
)
def test_a_benchmark_that_cannot_be_trusted_is_left_out_and_named(
    document: Any, read: Any, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    spoil(document["benchmarks"][0])
    _, records, faults = read(document)
    assert len(faults) == 1
    assert "test_forward[loop]" in faults[0]
    assert words in faults[0]
    assert [r.case.impl for r in records if isinstance(r, CaseRecord) and r.status is Status.OK] == ["grouped"]


@pytest.mark.parametrize("entry", [None, 7, [], {"stats": {}}, {"extra_info": []}])
def test_an_entry_of_any_shape_is_left_out(document: Any, read: Any, entry: Any) -> None:
    document["benchmarks"].append(entry)
    assert len(read(document).warnings) == 1


def test_many_faults_are_cut_short(document: Any, read: Any) -> None:
    document["benchmarks"] += [{"fullname": f"other{i}"} for i in range(100)]
    warnings = read(document).warnings
    assert len(warnings) == 21
    assert "80 more" in warnings[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ('{"benchmarks": [', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "found list"),
        ('{"rows": 1}', "found keys rows"),
        ('{"benchmarks": 3}', "not a file of pytest-benchmark"),
        ('{"benchmarks": [1, 2]}', "2 benchmarks and nothing of moebench"),
        ('{"benchmarks": [], "moebench": {"schema_version": 99}}', "update moebench"),
        ('{"benchmarks": [], "moebench": {"schema_version": 1}}', "damaged: run"),
    ],
)
def test_another_file_is_refused_with_what_was_found(read: Any, text: str, words: str) -> None:
    with pytest.raises(ResultsError, match=r"out\.json") as caught:
        read(text)
    assert words in str(caught.value)


def test_a_file_with_nothing_to_show_is_refused_with_the_reasons(document: Any, read: Any) -> None:
    document[KEY]["not_timed"] = []
    for entry in document["benchmarks"]:
        _without_data(entry)
    with pytest.raises(ResultsError, match="no case of bench/suites") as caught:
        read(document)
    assert str(caught.value).count("--benchmark-save-data") == 2


def test_a_case_that_is_ok_cannot_be_listed_as_not_timed(document: Any, read: Any) -> None:
    document[KEY]["not_timed"] = [record("loop").model_dump(mode="json")]
    with pytest.raises(ResultsError, match="yet its status is ok"):
        read(document)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ResultsError, match="cannot be read"):
            read_pytest_benchmark(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(b"\x80\x04\x95pickle\xff")
    with pytest.raises(ResultsError, match="not valid JSON"):
        read_pytest_benchmark(path)


def test_a_file_beyond_the_limit_is_not_read(document: Any, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_benchmark, "MAX_FILE_BYTES", 100)
    with pytest.raises(ResultsError, match="larger than"):
        read(document)
