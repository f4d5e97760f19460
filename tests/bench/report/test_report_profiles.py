from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from profile_maker import make_profile, with_profiles

from bench.analysis.model import Analysis
from bench.report import write_report
from bench.report.figures.causes import causes_picture, stages_picture
from bench.report.figures.experts import expert_times
from bench.report.figures.loads import loads
from bench.report.figures.stage_roof import above_roof
from bench.report.figures.timeline import timeline_picture
from bench.report.page import MAX_PAGE_BYTES
from bench.report.profiles.answers import answers
from bench.report.profiles.cases import MAX_WORKLOADS, drawn_workloads, limit_sentence, profiled_cases
from bench.report.profiles.export import COLUMNS, MAX_TRACE_BYTES, find_traces
from bench.report.profiles.operators import IDLE, KINDS, PRODUCTS, differences, grouped, kind_of, seconds_by_kind
from bench.report.profiles.tables import peak_sentence
from bench.report.skew import skew_costs
from bench.report.style import LOOKS, TIMES
from bench.report.view import make_view

Factory = Callable[..., Analysis]


@pytest.fixture(scope="module")
def small(analysis_factory: Factory, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("run")
    (folder / "traces").mkdir()
    for impl in ("loop", "einsum", "grouped"):
        (folder / "traces" / f"{impl}.trace.json.gz").write_bytes(b"a trace")
    return with_profiles(analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",)), folder)


@pytest.fixture(scope="module")
def written(small: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([small], tmp_path_factory.mktemp("report")).parent


def test_every_picture_says_how_to_read_it_and_what_to_do(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    for slug in ("limits", "stages", "experts", "memory-1", "roofline", "bandwidth"):
        assert (written / f"profile-{slug}.png").is_file()
        caption = re.search(rf'<figcaption id="profile-{slug}-caption">(.*?)</figcaption>', text, re.DOTALL)
        assert caption is not None, slug
        assert "How to read this." in caption[1]
        assert "What to do about it." in caption[1]
    assert '<a href="#profiles">Why</a>' in text
    assert "Limited by arithmetic on loop." in text
    assert "loop calls 8 experts one after the other" in text


@pytest.mark.usefixtures("undrawn")
def test_without_profiles_there_is_no_section_and_no_file(analysis_factory: Factory, tmp_path: Path) -> None:
    page = write_report([analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert 'id="profiles"' not in text
    assert "#profiles" not in text
    assert not (tmp_path / "profiles.csv").exists()
    assert not (tmp_path / "traces").exists()


def test_traces_go_along_and_every_link_leads_to_one(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(traces/[^"]+)"', text)
    assert len(links) == 3
    assert all((written / link).read_bytes() == b"a trace" for link in links)
    assert "The traces of 1 case are not here" in text
    outside = set(re.findall(r'(?:href|src)="(https?://[^"]+)"', text))
    assert outside == {"https://ui.perfetto.dev", "https://docs.pytorch.org/memory_viz"}
    assert not re.search(r'(?:src|<link[^>]*href)="https?:', text)


def test_a_log_cannot_make_the_report_carry_other_files(small: Analysis, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    (tmp_path / "traces" / "link").symlink_to(secret)
    case_id, profile = next(iter(small.profiles.items()))
    for name in ("../secret", "..", "link", str(secret)):
        hostile = profile.model_copy(update={"traces": {"perfetto": name}})
        view = make_view(dataclasses.replace(small, profiles={case_id: hostile}, folder=tmp_path))
        assert find_traces(view, profiled_cases(view)) == []


def test_traces_past_the_cap_stay_behind(small: Analysis, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for name in ("loop.trace.json.gz", "grouped.trace.json.gz"):
        with (tmp_path / "traces" / name).open("wb") as file:
            file.truncate(MAX_TRACE_BYTES // 2 + 1)
    view = make_view(dataclasses.replace(small, folder=tmp_path))
    assert len(find_traces(view, profiled_cases(view))) == 1


def test_the_numbers_are_in_a_file_of_their_own(written: Path, small: Analysis) -> None:
    rows = pd.read_csv(written / "profiles.csv")
    assert tuple(rows.columns) == COLUMNS
    assert set(rows["case_id"]) == set(small.profiles)
    case_id, profile = next(iter(small.profiles.items()))
    own = rows[rows["case_id"] == case_id]
    assert own[own["what"] == "stage"]["host_s"].sum() == pytest.approx(profile.whole_s)
    assert own[own["what"] == "cause"]["host_s"].sum() == pytest.approx(profile.plain_s)


@pytest.mark.usefixtures("only_profiles_drawn")
def test_names_from_data_are_text(analysis_factory: Factory, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>{{ 7 * 7 }}$x$"
    plain = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",), names={"grouped": hostile})
    text = write_report([with_profiles(plain, operator=hostile)], tmp_path).read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "{{ 7 * 7 }}" in text


@pytest.mark.usefixtures("only_profiles_drawn")
def test_large_sweeps_draw_a_few_workloads_and_list_the_rest(analysis_factory: Factory, tmp_path: Path) -> None:
    analysis = with_profiles(analysis_factory(experts=(8, 16, 32, 64), top_ks=(1, 2), capacities=("none",)))
    groups = drawn_workloads(profiled_cases(make_view(analysis)))
    assert len(groups) == MAX_WORKLOADS
    text = write_report([analysis], tmp_path).read_text(encoding="utf-8")
    assert "4 of 8 workloads are shown." in text
    assert len(text.encode()) < MAX_PAGE_BYTES
    assert set(pd.read_csv(tmp_path / "profiles.csv")["case_id"]) == set(analysis.profiles)


def test_kinds_and_stages_add_up_to_the_call(small: Analysis) -> None:
    for case in profiled_cases(make_view(small)):
        seconds = seconds_by_kind(case)
        assert set(seconds) == set(KINDS)
        assert sum(seconds.values()) == pytest.approx(case.profile.plain_s)
        assert seconds[IDLE] > 0
        assert not case.disturbed
        assert [group.seconds for group in grouped(case)] == sorted((g.seconds for g in grouped(case)), reverse=True)


@pytest.mark.parametrize(
    ("name", "stage", "kind"),
    [
        ("aten::_grouped_mm", "experts", PRODUCTS),
        ("aten::addmm", "route", PRODUCTS),
        ("aten::_to_copy", "dispatch", "copying and permuting"),
        ("aten::index_copy_", "dispatch", "copying and permuting"),
        ("aten::silu", "experts", "activation and elementwise"),
        ("aten::mul", "route", "routing and sorting"),
        ("aten::_softmax", "experts", "routing and sorting"),
        ("mine::thing", "experts", "other operators"),
    ],
)
def test_operators_are_told_apart_by_name_and_stage(name: str, stage: str, kind: str) -> None:
    row = make_profile("loop", 8, plain_s=1.0).operators[1].model_copy(update={"name": name, "stage": stage})
    assert kind_of(row) == kind


def test_the_difference_names_what_the_slower_one_spends_more_on(small: Analysis) -> None:
    cases = profiled_cases(make_view(small))
    found = {one.case.impl: one for one in differences(cases)}
    assert {one.base.impl for one in found.values()} == {min(cases, key=lambda case: case.profile.plain_s).impl}
    assert "einsum takes" in found["einsum"].sentence
    assert "copying and permuting" in found["einsum"].sentence
    assert found["einsum"].rows[0][0] in {"aten::bmm in experts, forward", "aten::index_copy in dispatch, forward"}


def test_the_peak_is_told_by_what_is_alive(small: Analysis) -> None:
    (case,) = [case for case in profiled_cases(make_view(small)) if case.impl == "einsum"]
    sentence = peak_sentence(case)
    assert (
        sentence
        == "einsum peaks at 8.00 MiB in aten::bmm in experts (forward): 75 % workspace, 25 % dispatched tokens."
    )


def test_experts_stand_at_the_tokens_that_they_got(small: Analysis) -> None:
    times = {case.impl: expert_times(case) for case in profiled_cases(make_view(small))}
    assert times["grouped"] is None
    loop = times["loop"]
    assert loop is not None
    assert loop.tokens.tolist() == [125, *[128] * 7]
    assert (loop.needed_s > 0).all()


def test_a_stage_above_its_roof_is_called_a_fault(small: Analysis) -> None:
    view = make_view(small)
    assert above_roof(profiled_cases(view)) == []
    case_id, profile = next(iter(small.profiles.items()))
    fast = [stage.model_copy(update={"flops": 10**13}) for stage in profile.stages]
    broken = dataclasses.replace(small, profiles={case_id: profile.model_copy(update={"stages": fast})})
    sentences = above_roof(profiled_cases(make_view(broken)))
    assert len(sentences) == len(fast)
    assert "fault of the ceiling" in sentences[0]


def test_loads_count_what_was_dropped(small: Analysis) -> None:
    (load,) = loads(make_view(small))
    assert load.num_dropping == 1
    assert load.num_idle == 0
    assert load.entropy == pytest.approx(1.0)
    assert sum(load.wanted) - sum(load.kept) == 3


def test_skew_is_the_time_under_the_most_over_the_least_uneven_load(analysis_factory: Factory) -> None:
    one = analysis_factory(experts=(8,), top_ks=(2,), capacities=("none",))
    skewed = one.frame.assign(routing="zipf:1.2", workload_id="skewed", case_id="z" + one.frame["case_id"])
    skewed["load_imbalance"] *= 4
    skewed["latency_s"] *= 3
    both = dataclasses.replace(one, frame=pd.concat([one.frame, skewed], ignore_index=True), comparisons=(), winners=())
    found = skew_costs(make_view(both))
    assert found is not None
    assert {cell.text for cell in found.table.rows[0][1]} == {f"3.00{TIMES}"}
    assert "zipf:1.2" in found.sentence
    assert skew_costs(make_view(one)) is None


def test_the_section_begins_with_its_answers(small: Analysis) -> None:
    cases = profiled_cases(make_view(small))
    found = {one.picture: one for one in answers(drawn_workloads(cases))}
    assert set(found) == {"profile-limits", "profile-stages", "profile-experts", "profile-memory-1"}
    assert found["profile-limits"].text == "grouped, scatter_gather, einsum and loop by arithmetic."
    assert found["profile-stages"].question == "Why is einsum slow at the only workload?"
    assert "copying and permuting" in found["profile-stages"].text
    assert found["profile-experts"].text.startswith("loop calls 8 experts one after the other")
    assert "beyond need" in found["profile-experts"].text
    assert found["profile-memory-1"].text.endswith("dispatched tokens.")


def test_baselines_are_neither_compared_with_nor_asked_about(small: Analysis) -> None:
    cases = profiled_cases(make_view(small))
    fast = min(cases, key=lambda case: case.profile.plain_s)
    baseline = dataclasses.replace(fast, impl="dense", look=LOOKS["dense"])
    rest = [case for case in cases if case is not fast]
    assert {one.base.impl for one in differences([baseline, *rest])} <= {case.impl for case in rest}
    assert not any("dense" in one.question + one.text for one in answers([[baseline, *rest]]))


def test_a_bar_far_longer_than_the_others_is_cut_and_says_so(small: Analysis) -> None:
    view = make_view(small)
    cases = profiled_cases(view)
    plain = causes_picture(view, cases)
    slow = dataclasses.replace(
        cases[0], profile=cases[0].profile.model_copy(update={"plain_s": 100 * cases[0].profile.plain_s})
    )
    for picture in (causes_picture, stages_picture):
        drawn = picture(view, [slow, *cases[1:]])
        assert drawn is not None
        assert drawn.svg.count("not to scale") == 1
    assert plain is not None
    assert "not to scale" not in plain.svg


@pytest.mark.parametrize(("growth", "words"), [(1, "All panels share the height"), (50, "its own height")])
def test_small_peaks_are_seen_beside_a_large_one(small: Analysis, growth: int, words: str) -> None:
    view = make_view(small)
    first, *rest = profiled_cases(view)
    timeline = first.profile.timeline
    assert timeline is not None
    larger = timeline.model_copy(update={"peak_bytes": growth * timeline.peak_bytes})
    grown = dataclasses.replace(first, profile=first.profile.model_copy(update={"timeline": larger}))
    picture = timeline_picture(view, [grown, *rest], 1)
    assert picture is not None
    assert words in picture.caption


def test_a_devices_time_is_not_scaled_by_what_the_profiler_took_of_the_host(small: Analysis) -> None:
    case = profiled_cases(make_view(small))[0]
    stage = case.profile.stages[0]
    assert case.scale == pytest.approx(1 / 1.1)
    assert case.seconds(stage) == pytest.approx(stage.host_s / 1.1)
    assert case.seconds(stage.model_copy(update={"device_s": 1e-3})) == 1e-3


def test_a_case_without_a_limit_says_why(small: Analysis) -> None:
    first, *_ = profiled_cases(make_view(small))
    limits = {case_id: limit for case_id, limit in small.limits.items() if case_id != first.case_id}
    without = dataclasses.replace(small, limits=limits, not_limited={first.case_id: "it is a riddle"})
    case = profiled_cases(make_view(without))[0]
    assert limit_sentence(case) == "What limits it cannot be said: it is a riddle."
