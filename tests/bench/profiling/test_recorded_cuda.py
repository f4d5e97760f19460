"""A recorded step of a GPU: device time, launches and gaps go to the stages that they belong to."""

import gzip
import json
from pathlib import Path

import pytest
from recorded_cuda import STREAM, read_step

from bench.analysis.divisions import Limit
from bench.analysis.interval import Estimate
from bench.analysis.limits import find_limit
from bench.analysis.roofline import Ceilings
from bench.cases import Workload
from bench.profiling import measure
from bench.profiling.calls import Watched
from bench.profiling.export import write_perfetto
from bench.profiling.ledger import Ledger
from bench.profiling.measure import Counted
from bench.profiling.spans import Kernel, Span, calls_of, kernels_of
from bench.profiling.stages import break_down
from bench.store.profiles import Profile
from impls.spec import LayerSpec

MICROSECOND = 1e-6
PRODUCTS = frozenset({"aten::mm", "aten::mul", "aten::index_add_"})


@pytest.fixture(scope="module")
def call() -> list[Span]:
    (found,) = calls_of(read_step())  # and not a second one, as the device saw it
    return found


@pytest.fixture(scope="module")
def kernels(call: list[Span]) -> list[Kernel]:
    return kernels_of(read_step(), call)


@pytest.fixture(scope="module")
def profile(call: list[Span]) -> Profile:
    sums = break_down([call], {"forward": PRODUCTS, "backward": PRODUCTS}, on_device=True)
    nothing = Counted(Ledger(), [], [])
    return measure.describe(sums, nothing, Watched([], plain_s=0.9e-3), None, {}, on_device=True)


def test_every_stage_has_its_own_time_launches_and_gaps(profile: Profile) -> None:
    def microseconds(seconds: float | None) -> float:
        return round((seconds or 0) / MICROSECOND, 6)

    found = {
        (one.phase, one.stage): (*map(microseconds, (one.host_s, one.device_s, one.idle_s)), one.launches)
        for one in profile.stages
    }
    assert found == {
        # 230 of it on the host: 50 and 40 in operators, 10 in a launch by Python; 300, 60 and 40 on the device
        ("forward", "experts"): (230, 400, 130, 3),
        ("forward", "combine"): (35, 100, 10, 1),
        # what the host waits at the end is no gap: the device works
        ("forward", "waiting"): (585, 0, 0, 0),
        # a kernel that Python launches outside of all stages is nobody's gap
        ("forward", "other"): (45, 50, 45, 1),
        ("backward", "experts"): (80, 200, 40, 1),
        ("backward", "gradients"): (7, 0, 7, 0),
        ("backward", "other"): (18, 0, 18, 0),
    }
    assert sum(one.host_s for one in profile.stages) == pytest.approx(profile.whole_s)
    assert profile.whole_s == pytest.approx(1e-3)


def test_rows_are_operators_and_never_calls_of_the_library(profile: Profile) -> None:
    found = {(row.phase, row.name, row.shapes): row.device_s for row in profile.operators}
    assert found == {
        ("forward", "aten::mm", "64x32, 32x16"): pytest.approx(300e-6),
        ("forward", "aten::mul", "64x16, 64x16"): pytest.approx(60e-6),
        ("forward", "aten::index_add_", "64x16"): pytest.approx(100e-6),
        ("forward", "triton_gate", ""): pytest.approx(40e-6),  # launched by Python itself
        ("forward", "triton_tail", ""): pytest.approx(50e-6),
        ("backward", "aten::mm", "32x64, 64x16"): pytest.approx(200e-6),
    }
    assert profile.operators[0].name == "aten::mm"


def test_an_operator_without_operators_in_it_is_a_row_though_it_launches(call: list[Span]) -> None:
    sums = break_down([call], {"forward": frozenset(), "backward": frozenset()}, on_device=True)
    assert {name for _, name, _ in sums.operators} == PRODUCTS | {"triton_gate", "triton_tail"}


def test_kernels_know_their_stage_and_when_they_ran(kernels: list[Kernel]) -> None:
    found = [(one.event.name, one.event.time_range.start, one.place.phase, one.place.stage) for one in kernels]
    assert found == [
        ("gemm_bf16", 200, "forward", "experts"),
        ("elementwise", 500, "forward", "experts"),
        ("triton_gate", 560, "forward", "experts"),
        ("index_add", 600, "forward", "combine"),
        ("gemm_bf16", 700, "backward", "experts"),
        ("triton_tail", 900, "forward", "other"),
    ]


def test_a_trace_shows_kernels_when_they_ran(call: list[Span], kernels: list[Kernel], tmp_path: Path) -> None:
    write_perfetto(tmp_path / "a.gz", "title", call, kernels, None)
    events = json.loads(gzip.decompress((tmp_path / "a.gz").read_bytes()))["traceEvents"]
    ran = [event for event in events if event.get("cat") == "kernel"]
    expected = [(200, 300), (500, 60), (560, 40), (600, 100), (700, 200), (900, 50)]
    assert [(one["ts"], one["dur"]) for one in ran] == expected
    assert {one["tid"] for one in ran} == {STREAM}
    kinds = {event["name"]: event["cat"] for event in events if event["ph"] == "X"}
    assert (kinds["aten::mm"], kinds["cudaLaunchKernel"], kinds["moebench:experts"]) == ("operator", "library", "stage")
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert (names.count("aten::mm"), names.count("cudaLaunchKernel")) == (2, 4), (
        "numbers that are used twice hide nothing"
    )


def test_the_host_is_blamed_only_for_time_in_which_the_device_had_nothing_to_do(profile: Profile) -> None:
    layer = LayerSpec(d_model=32, d_ff=16, num_experts=4, top_k=2)
    workload = Workload(
        layer=layer, num_tokens=64, dtype="bfloat16", device="cuda", direction="train", routing="router", threads=1,
        cache="cold", seed=0,
    )  # fmt: skip
    peaks = {
        ("matmul", "cuda", "bfloat16", 1): Estimate(1e12, 1e12, 1e12),
        ("memory", "cuda", "float32", 1): Estimate(1e12, 1e12, 1e12),
    }
    unknown = find_limit(profile, workload, Ceilings(peaks, {}))
    assert unknown == "what aten::mm, aten::index_add_ had to do is not known, and they take 75% of the time"
    known = [row.model_copy(update={"moved_bytes": 1000}) for row in profile.operators]
    found = find_limit(profile.model_copy(update={"operators": known}), workload, Ceilings(peaks, {}))
    assert not isinstance(found, str)
    # 1000 us in all, 750 of them on the device; the profiler's own 100 are the host's
    assert found.whole.seconds[Limit.HOST] == pytest.approx(150e-6)
    assert sum(found.whole.seconds.values()) == pytest.approx(900e-6)
