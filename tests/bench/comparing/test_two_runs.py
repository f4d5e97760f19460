from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comparing_maker import (
    ENVIRONMENT,
    case_record,
    control,
    energy,
    info,
    quiet,
    samples,
    simple_run,
    workload,
    write,
)

import bench
from bench.cli import main
from bench.comparing.limits import Limit, exit_code, judge_limits, parse_limit
from bench.comparing.model import Comparison
from bench.comparing.spread import Spread
from bench.comparing.two_runs import compare_records, compare_two_runs
from bench.errors import Exit, RequestError
from bench.store.schema import AnyRecord, RunInfo, Status

QUIET = Spread(0.005, 20.0, "A quiet machine.")
Side = tuple[RunInfo, list[AnyRecord]]


def side(
    run_id: str = "a", *, mean: float = 0.0, impl: str = "loop", extra: tuple[AnyRecord, ...] = (), **fields: Any
) -> Side:
    on = workload(**fields.pop("on", {}))
    record = case_record(impl, on, **fields)
    timed = samples(on, {impl: quiet(mean, len(run_id))}) if record.status is Status.OK else []
    return info(run_id), [record, *control(), *timed, *extra]


def only(comparison: Comparison) -> Any:
    (case,) = comparison.cases
    return case


def test_an_effect_beyond_the_spread_is_a_verdict_and_one_within_is_not() -> None:
    slower = only(compare_records(side(), side("b", mean=0.1), spread=QUIET))
    assert (slower.verdict, slower.reason) == ("slower", "")
    assert slower.change("latency").ratio.low > 1.05
    within = only(compare_records(side(), side("b", mean=0.1), spread=Spread(0.2, 8.0, "")))
    assert within.verdict == "inconclusive"
    assert "runs made one after the other show differences beyond about" in within.reason
    assert within.more_processes is None, "no number of processes averages the spread between runs"


def test_faster_mirrors_slower() -> None:
    there = only(compare_records(side(), side("b", mean=0.1), spread=QUIET)).change("latency").ratio
    back = compare_records((info("b"), side("b", mean=0.1)[1]), side(), spread=QUIET)
    assert only(back).verdict == "faster"
    assert only(back).change("latency").ratio.value == pytest.approx(1 / there.value)


def test_a_failed_control_withholds_the_verdict() -> None:
    run, records = side("b", mean=0.5)
    unsound: list[AnyRecord] = [record for record in records if record.kind != "control"]
    unsound += control(sound=False)
    comparison = compare_records(side(), (run, unsound), spread=QUIET)
    assert only(comparison).verdict == "inconclusive"
    assert only(comparison).reason == "the control of NEW did not pass"


def test_few_processes_get_no_verdict() -> None:
    on = workload()
    few: Side = info("b"), [case_record("loop", on), *control(), *samples(on, {"loop": quiet(1.0, 3, count=5)})]
    assert "5 independent processes" in only(compare_records(side(), few, spread=QUIET)).reason


@pytest.mark.parametrize(("peak", "word"), [(65_536, "same"), (65_537, "more"), (65_000, "less")])
def test_memory_is_compared_to_the_byte(peak: int, word: str) -> None:
    change = only(compare_records(side(), side("b", peak=peak), spread=QUIET)).change("memory")
    assert (change.verdict, change.ratio.value) == (word, peak / 65_536)


def test_energy_needs_intervals_apart_beyond_the_spread() -> None:
    on = workload()

    def with_energy(run_id: str, joules: float) -> Side:
        return side(run_id, extra=(energy("loop", on, joules, 0.99 * joules, 1.01 * joules),))

    def word(joules: float) -> str:
        return str(
            only(compare_records(with_energy("a", 1.0), with_energy("b", joules), spread=QUIET))
            .change("energy")
            .verdict
        )

    assert [word(joules) for joules in (0.8, 1.02, 1.2)] == ["less", "inconclusive", "more"]
    assert only(compare_records(side(), with_energy("b", 1.0), spread=QUIET)).change("energy").reason == (
        "not measured in BASE"
    )


@pytest.mark.parametrize(("error", "word"), [(1.5e-7, "same"), (1e-6, "worse"), (1e-9, "same")])
def test_accuracy_is_worse_by_a_factor_and_never_below_rounding(error: float, word: str) -> None:
    change = only(compare_records(side(relative_error=1e-7), side("b", relative_error=error), spread=QUIET)).change(
        "accuracy"
    )
    assert change.verdict == word


def test_a_status_that_got_worse_is_told_and_fails_any_limit() -> None:
    broken = compare_records(side(), side("b", status=Status.CRASHED), spread=QUIET)
    assert (only(broken).verdict, only(broken).change("latency").ratio) == ("broken", None)
    assert exit_code(broken) is Exit.OK, "without limits a comparison informs"
    assert exit_code(judge_limits(broken, [Limit("latency", 0.05)])) is Exit.REGRESSION
    wrong = compare_records(side(), side("b", status=Status.WRONG_RESULT), spread=QUIET)
    assert exit_code(judge_limits(wrong, [Limit("latency", 0.05)])) is Exit.WRONG_NUMERICS
    new = compare_records(side(status=Status.UNSUPPORTED), side("b", status=Status.WRONG_RESULT), spread=QUIET)
    assert exit_code(judge_limits(new, [Limit("latency", 0.05)])) is Exit.WRONG_NUMERICS
    neither = compare_records(side(status=Status.UNSUPPORTED), side("b", status=Status.UNSUPPORTED), spread=QUIET)
    assert exit_code(judge_limits(neither, [Limit("latency", 0.05)])) is Exit.OK
    repaired = compare_records(side(status=Status.CRASHED), side("b"), spread=QUIET)
    assert only(repaired).verdict == "repaired"
    assert exit_code(judge_limits(repaired, [Limit("latency", 0.05)])) is Exit.OK


def test_cases_of_one_run_only_are_listed_with_what_is_nearest() -> None:
    on, more = workload(), workload(num_tokens=256)
    new = info("b"), [
        *side()[1], case_record("loop", more), *samples(more, {"loop": quiet(0.0, 4)}),
    ]  # fmt: skip
    comparison = compare_records(side(), new, spread=QUIET)
    assert [(case.case.workload, case.verdict) for case in comparison.cases][1] == (more, "only_in_new")
    assert comparison.cases[1].reason == "the other side's most similar case has num_tokens 128 instead of 256"
    assert comparison.cases[0].case.workload == on


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cpu": {"model": "another", "usable_cores": 2}}, "cpu.model: a processor in BASE, another in NEW"),
        ({"packages": {"torch": "2.14.0", "numpy": "2.3"}}, "packages.torch: 2.13.0 in BASE, 2.14.0 in NEW"),
        ({"settings": {}}, "settings.OMP_NUM_THREADS: 2 in BASE, not set in NEW"),
        ({"gpu_driver": "570"}, "gpu_driver: null in BASE, 570 in NEW"),
        (
            {"settings": {"OMP_NUM_THREADS": "2", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
            "settings.PYTORCH_CUDA_ALLOC_CONF: not set in BASE, expandable_segments:True in NEW",
        ),
        (
            {"system": {"allocator": "jemalloc"}},
            "system.allocator: glibc in BASE, jemalloc in NEW",
        ),
    ],
)
def test_other_machines_and_software_are_refused_by_name_and_can_be_forced(changed: Any, named: str) -> None:
    other = info("b", environment={**ENVIRONMENT, **changed}), side("b", mean=0.1)[1]
    with pytest.raises(RequestError) as refused:
        compare_records(side(), other, spread=QUIET)
    assert refused.value.exit_code is Exit.CANNOT
    assert named in str(refused.value)
    forced = compare_records(side(), other, spread=QUIET, force=True)
    assert (forced.forced, only(forced).verdict) == ([named], "slower")


def test_rounds_and_processes_of_their_own_are_different_ways_to_measure() -> None:
    other = info("b", config={"measure": {"isolate": True}}), side("b")[1]
    with pytest.raises(RequestError, match=r"timed in turns with the others in BASE, in processes of its own in NEW"):
        compare_records(side(), other, spread=QUIET)


def test_what_is_harmless_is_only_told() -> None:
    other = info("b", environment={**ENVIRONMENT, "python": "CPython 3.11.5"}), side()[1]
    comparison = compare_records(side(), other, spread=QUIET)
    assert "Also different: python: CPython 3.11.4 in BASE, CPython 3.11.5 in NEW." in comparison.caveats


def test_other_settings_are_named_and_forced_cases_are_matched_without_them() -> None:
    new = side("b", on={"threads": 4, "dtype": "bfloat16"})
    with pytest.raises(RequestError, match=r"dtype: float32 in BASE, bfloat16 in NEW\n  threads: 1 in BASE, 4 in NEW"):
        compare_records(side(), new, spread=QUIET)
    assert only(compare_records(side(), new, spread=QUIET, force=True)).status_base is Status.OK


def test_runs_without_a_common_case_are_refused() -> None:
    with pytest.raises(RequestError, match=r"no case in common; .*num_tokens 128 instead of 64"):
        compare_records(side(), side("b", on={"num_tokens": 64}), spread=QUIET)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency > 5%", Limit("latency", 0.05)),
        (" Memory>0 % ", Limit("memory", 0.0)),
        ("energy>2.5%", Limit("energy", 0.025)),
    ],
)
def test_limits_are_read(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latncy > 5%", "did you mean 'latency'"),
        ("latency < 5%", "its sign is '>'"),
        ("latency > 5", "ends in %"),
        ("latency > %", "is no number"),
        ("latency > 1.2.3%", "is no number"),
        ("latency > -5%", "below 0 %"),
        ("latency > 5% and memory > 3%", "is no limit|ends in %"),
        ("", "is no limit|there is no metric"),
    ],
)
def test_what_is_no_limit_is_refused_with_an_example(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_limit(text)


@pytest.mark.parametrize(("limit", "code"), [("latency > 5%", 3), ("latency > 50%", 0), ("energy > 5%", 0)])
def test_the_whole_interval_must_lie_beyond_the_limit(limit: str, code: int) -> None:
    comparison = judge_limits(compare_records(side(), side("b", mean=0.2), spread=QUIET), [parse_limit(limit)])
    assert exit_code(comparison) == code
    assert any("'energy > 5%' could not be judged" in caveat for caveat in comparison.caveats) == ("energy" in limit)


def test_a_point_estimate_beyond_the_limit_fails_nothing() -> None:
    comparison = compare_records(side(), side("b", mean=0.2), spread=Spread(0.2, 8.0, ""))
    judged = judge_limits(comparison, [Limit("latency", 0.05)])
    assert only(judged).change("latency").ratio.value > 1.2
    assert exit_code(judged) is Exit.OK


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six earlier runs of one commit, and NEW of another that takes 30 % more time."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        simple_run(
            tmp_path / "results", f"r{number}", 0.0, drift=0.004 * (number % 3), commit="c", created=number, seed=number
        )
    simple_run(tmp_path / "results", "new", 0.26, drift=0.004, commit="d", created=10.0, seed=40)
    return tmp_path / "results"


def test_the_command_line_finds_a_regression_from_what_earlier_runs_say(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "r5", "latest", "--fail-if", "latency > 5%", "--json"]) == 3
    objects = json.loads(capsys.readouterr().out)
    assert [(found["impl"], found["verdict"], found["fails"]) for found in objects] == [
        ("loop", "slower", ["latency > 5%"]),
        ("grouped", "slower", ["latency > 5%"]),
    ]
    assert all(found["ratio_low"] < found["ratio"] < found["ratio_high"] for found in objects)
    assert main(["compare", "r4", "r5", "--fail-if", "latency > 5%"]) == 0
    assert "none fails" in capsys.readouterr().out
    assert bench.compare("r5", "new")[0]["verdict"] == "slower"
    stored = results / "m" / "r5"
    assert main(["compare", str(stored), str(results / "m" / "new"), "--results", "elsewhere", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("**new against r5: 2 slower**")
    assert str(results) not in printed


def test_a_torn_log_is_told_and_other_faults_are_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = results / "m" / "new" / "measurements.jsonl"
    log.write_bytes(log.read_bytes()[:-7])
    assert main(["compare", "r5", "new", "--json"]) == 0
    told = capsys.readouterr().err
    assert "NEW: measurements.jsonl: the last line" in told
    assert str(results) not in told
    run = results / "m" / "new" / "run.json"
    run.write_text(run.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    assert main(["compare", "r5", str(run.parent)]) == 2
    assert "schema_version 99" in capsys.readouterr().err
    run.write_text("{")
    for arguments in (["r5", str(run.parent)], ["r5", "rr4"], ["r5", "r4", "smoke"], ["r5", "r4", "--fail-if", "x"]):
        assert main(["compare", *arguments]) == 2
        assert capsys.readouterr().err.startswith("moebench: ")


def test_names_from_data_cannot_break_the_markdown() -> None:
    from bench.comparing.writing import as_markdown

    name = "/home/somebody/a|<b>.py:Mine"
    comparison = compare_records(side(impl=name), side("b", impl=name), spread=QUIET)
    text = as_markdown(comparison)
    assert "somebody" not in text
    assert "<b>" not in text
    assert "\\|" in text


def test_an_unreadable_neighbour_does_not_stop_a_comparison(results: Path) -> None:
    (results / "m" / "r1" / "measurements.jsonl").unlink()
    (results / "m" / "r2" / "run.json").write_text("[]")
    comparison = compare_two_runs("r5", "new", results=results)
    assert [case.verdict for case in comparison.cases] == ["slower", "slower"]


def test_a_case_without_a_time_says_so() -> None:
    on = workload()
    comparison = compare_records((info("a"), [case_record("loop", on)]), (info("b"), [case_record("loop", on)]))
    assert only(comparison).verdict == "not_compared"
    assert only(comparison).reason == "not timed in both runs"


def test_written_runs_are_read_back(tmp_path: Path) -> None:
    on = workload()
    for name in ("a", "b"):
        write(tmp_path, info(name), [case_record("loop", on), *control(), *samples(on, {"loop": quiet(0.0, 2)})])
    found = compare_two_runs("a", "b", results=tmp_path)
    assert only(found).change("latency").ratio.value == pytest.approx(1.0)
    assert "is assumed" in found.caveats[0]
