"""Profiles of compiled code: kernels belong to the stage of the lines that they were made from, and to no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from profiled_layers import NUM_TOKENS, SPEC, make_step

from bench.analysis.limits import find_limit
from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.profiling.compiled import profile_compiled
from bench.profiling.measure import Profiled
from bench.profiling.origins import Called, Origins, event_name, stages_of
from bench.runner.jobs.compiling import toolchain_gap
from bench.store.profiles import Profile, StageTime
from impls.stages import stage

NO_COMPILER = toolchain_gap(torch.device("cpu"))
CODE = """\
with stage("route"):
    ids = route(x)
def helper(x):
    return x.sort()
with stage("experts"), other("dispatch"):
    y = product(x)
    with stage("combine", 3):
        z = add(y)
    w = y
"""


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("extern_kernels._grouped_mm:8", "aten::_grouped_mm"),
        ("torch.ops.aten.sort.stable:5", "aten::sort"),
        ("torch.ops.mkldnn._linear_pointwise.default:1", "mkldnn::_linear_pointwise"),
        ("cpp_fused_add_mul_0:12", "cpp_fused_add_mul_0"),
    ],
)
def test_the_profiler_knows_a_kernel_by_its_operator(called: str, name: str) -> None:
    assert event_name(called) == name


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([2], {"route"}),
        ([4], set()),
        ([2, 4], {"route"}),
        ([6], {"experts"}),
        ([8], {"combine"}),
        ([9], {"experts"}),
        ([9, 8], {"combine"}),
        ([1000], set()),
    ],
)
def test_a_line_belongs_to_the_innermost_mark_that_it_or_its_caller_stands_in(
    tmp_path: Path, lines: list[int], expected: set[str]
) -> None:
    file = tmp_path / "layer.py"
    file.write_text(CODE)
    trace = "".join(f'  File "{file}", line {line}, in f\n    code\n    ^^^^\n' for line in lines)
    assert stages_of([trace]) == expected


def test_lines_of_several_stages_are_of_all_of_them_and_lost_files_of_none(tmp_path: Path) -> None:
    file = tmp_path / "layer.py"
    file.write_text(CODE)
    frames = [f'File "{file}", line {line}, in f' for line in (2, 6)]
    assert stages_of(frames) == {"route", "experts"}
    assert stages_of([f'File "{tmp_path / "lost.py"}", line 2, in f', "no trace"]) == frozenset()


def test_a_kernel_of_several_stages_is_fused_and_what_does_not_fit_too() -> None:
    mm, fused = "aten::mm", "cpp_fused_add_0"
    kernels = [
        Called(mm, frozenset({"route"})),
        Called(fused, frozenset({"route", "experts"})),
        Called(mm, frozenset({"experts"})),
        Called("aten::sort", frozenset()),
    ]
    origins = Origins({(0, False): kernels})
    names = [mm, fused, mm, "aten::sort"]
    assert origins.stages_of_call(0, names, backward=False) == ["route", "fused", "experts", "fused"]
    assert origins.stages_of_call(0, [mm, "aten::copy_"], backward=False) == ["fused", "fused"], "one of two products"
    assert origins.stages_of_call(0, names, backward=True) == 4 * ["fused"]


def broken(x_TD: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    with stage("route"):
        y_TD = x_TD @ first
    torch._dynamo.graph_break()
    with stage("experts"):
        return (y_TD @ second).relu()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profiled]:
    """A train step of two graphs, compiled once for all tests here."""
    if NO_COMPILER is not None:
        pytest.skip(NO_COMPILER)
    import bench.runner.jobs.compiler as compiler

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # what is set here is undone
        compiler.keep_kernels_in(tmp_path_factory.mktemp("kernels"))
        torch.compiler.reset()
        weights = [torch.randn(SPEC.d_model, SPEC.d_model, requires_grad=True) for _ in range(2)]
        compiled = torch.compile(broken)
        yield profile_compiled(make_step(lambda x: compiled(x, *weights), weights, train=True), 0.01)
        torch.compiler.reset()


def of(profile: Profile, stage: str, phase: str = "forward") -> StageTime:
    (found,) = [one for one in profile.stages if (one.stage, one.phase) == (stage, phase)]
    return found


@pytest.mark.slow
def test_stages_of_a_compiled_call_add_up_to_the_whole(profiled: Profiled) -> None:
    profile = profiled.profile
    assert sum(one.host_s for one in profile.stages) == pytest.approx(profile.whole_s, rel=1e-6)
    for one in profile.stages:
        rows = [row for row in profile.operators if (row.phase, row.stage) == (one.phase, one.stage)]
        assert sum(row.host_s for row in rows) + one.idle_s == pytest.approx(one.host_s, rel=1e-6, abs=1e-9)
        assert sum(row.calls for row in rows) == one.launches


@pytest.mark.slow
def test_kernels_of_one_stage_are_found_there_in_both_directions(profiled: Profiled) -> None:
    profile = profiled.profile
    places = {(row.name, row.phase, row.stage): row for row in profile.operators}
    for name in ("route", "experts"):
        assert places["aten::mm", "forward", name].shapes.startswith(f"{NUM_TOKENS}x{SPEC.d_model}, ")
        assert of(profile, name, "backward").host_s > 0
    assert any(name.startswith("cpp_fused") and stage == "experts" for name, _, stage in places)
    assert of(profile, "gradients", "backward").launches == 3
    assert not any(name.startswith("graph_") for name, _, _ in places)


@pytest.mark.slow
def test_what_is_not_known_of_compiled_code_is_null_with_a_reason(profiled: Profiled) -> None:
    profile = profiled.profile
    assert set(profile.gaps) == {"work", "timeline", "stages"}
    assert (profile.timeline, profiled.counted) == (None, None)
    assert {(one.flops, one.moved_bytes) for one in profile.stages} == {(None, None)}
    assert {row.flops for row in profile.operators} == {None}
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    workload = Workload(layer=SPEC, num_tokens=NUM_TOKENS)
    assert find_limit(profile, workload, Ceilings({}, {})) == profile.gaps["work"]
