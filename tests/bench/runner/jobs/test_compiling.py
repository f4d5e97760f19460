"""What torch.compile makes of layers: reasons, refusals, and real compilations where there is a C++ compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from bench.cases import Case, Compile, Workload
from bench.runner.jobs import compiling, perform
from bench.runner.jobs.shared import open_shared
from bench.runner.protocol import Announce, Answer, Job, MaterialiseJob, ProfileJob, QualifyJob, TimeJob, TruthJob
from bench.store.qualified import Compiled
from bench.store.schema import Status
from impls.factory import build
from impls.layer import MoELayer
from impls.spec import LayerSpec

CPU = torch.device("cpu")
NO_COMPILER = compiling.toolchain_gap(CPU)
compiles = pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # what a test sets is undone after it
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def workload(**fields: Any) -> Workload:
    spec = LayerSpec(d_model=16, d_ff=8, num_experts=4, top_k=2)
    return Workload.model_validate({"layer": spec, "num_tokens": 24, **fields})


def case(impl: str, w: Workload, mode: Compile = "default") -> Case:
    return Case(impl=impl, workload=w, compile=mode)


def do(job: Job) -> tuple[Answer, list[str]]:
    announced: list[Announce] = []
    answer = perform(job, announced.append)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    return answer, [message.what for message in announced]


def prepared(tmp_path: Path, w: Workload, semantics: str = "moe") -> Path:
    folder = tmp_path / "workload"
    for job in (
        MaterialiseJob(workload=w, folder=str(folder)),
        TruthJob(workload=w, folder=str(folder), semantics=[semantics], max_flops=1e12),
    ):
        assert do(job)[0].status is Status.OK
    return folder


def broken_at(line: int, reason: str, file: str = "/home/somebody/layer.py") -> SimpleNamespace:
    return SimpleNamespace(reason=reason, user_stack=[SimpleNamespace(filename=file, lineno=line, line="n = x.item()")])


def test_reasons_name_each_line_once_without_folders() -> None:
    text = "Unsupported call\n  Explanation: it needs a value.\n  Hint: do not.\n\n Developer context: /home/somebody"
    found = compiling.reasons([broken_at(3, text), broken_at(3, text), broken_at(9, "Other\x1b[31m")])
    assert found == [
        "layer.py:3 `n = x.item()`: Unsupported call. it needs a value. (2 breaks, the callers' among them)",
        "layer.py:9 `n = x.item()`: Other [31m",
    ]
    assert compiling.reasons([SimpleNamespace(reason="", user_stack=[])]) == [""]


def test_reasons_are_bounded() -> None:
    found = compiling.reasons([broken_at(line, "x" * 10_000) for line in range(100)])
    assert len(found) == compiling.MAX_REASONS + 1
    assert found[-1] == f"and {100 - compiling.MAX_REASONS} more lines of code"
    assert all(len(reason) < compiling.MAX_REASON_CHARS + 100 for reason in found)


def test_a_machine_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/no-such-compiler")
    w = workload()
    answer, _ = do(QualifyJob(case=case("loop", w), folder=str(prepared(tmp_path, w))))
    assert answer.status is Status.UNSUPPORTED
    assert "there is no no-such-compiler here" in answer.reason
    assert "nowhere" not in answer.reason


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "triton is not installed" in str(compiling.toolchain_gap(torch.device("cuda")))


@compiles
def test_what_torch_cannot_trace_is_unsupported_with_its_words(tmp_path: Path) -> None:
    w = workload(dtype="float32")
    answer, _ = do(QualifyJob(case=case("grouped", w), folder=str(prepared(tmp_path, w))))
    assert answer.status is Status.UNSUPPORTED
    assert "cannot trace grouped_mm in torch.float32" in answer.reason


@pytest.mark.parametrize(
    ("impl", "line"), [("loop", "tolist"), ("scatter_gather", "int(slots_TK.max())"), ("grouped", "")]
)
def test_breaks_are_explained_by_the_line_that_asks_for_a_value(tmp_path: Path, impl: str, line: str) -> None:
    w = workload(dtype="bfloat16")
    shared = open_shared(w, prepared(tmp_path, w), CPU)
    found = compiling.explain(build(impl, w.layer, dtype=torch.bfloat16, weights=shared.weights), shared)
    assert found.num_breaks == found.num_graphs - 1
    assert len(found.reasons) == bool(line)
    assert all(line in reason for reason in found.reasons)
    assert (found.num_breaks > 0) == bool(line)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def others() -> set[int]:
    """Processes that earlier tests keep, such as multiprocessing's own."""
    return children()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles as ever, but runs the graphs operator by operator: what is said of graphs needs no C++."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(MoELayer, "compile", lambda self, **_: compile_(self, backend="aot_eager"))


@pytest.mark.slow
@compiles
def test_a_compiled_layer_is_checked_and_then_timed_with_its_kernels(tmp_path: Path, others: set[int]) -> None:
    """The whole way, kernels included, with the layer that has the fewest of them."""
    w = workload(direction="train")
    folder = prepared(tmp_path, w, "dense")
    answer, announced = do(QualifyJob(case=case("dense", w), folder=str(folder)))
    assert (answer.status, answer.reason) == (Status.OK, "")
    found = answer.qualified
    assert found is not None
    facts = found.compiled
    assert isinstance(facts, Compiled)
    assert (facts.mode, facts.num_graphs, facts.num_graph_breaks, facts.break_reasons) == ("default", 1, 0, [])
    assert 0 < facts.compile_s < found.first_call_s
    assert {"predicted_peak_bytes"} < set(found.gaps)
    assert found.conduct is not None
    assert found.conduct.num_operators is None
    assert {"explain", "check", "compile again"} <= set(announced)
    kernels = tmp_path / compiling.KERNELS
    assert [one.name for one in kernels.iterdir()] == [case("dense", w).id]
    assert list(kernels.rglob("*.so"))
    assert children() <= others

    torch.compiler.reset()  # as another process, which finds the kernels
    job = TimeJob(
        cases=[case("dense", w, "none"), case("dense", w)],
        folder=str(folder),
        order_seed=0,
        time_budget_s=0.2,
        min_rounds=2,
    )
    timed, announced = do(job)
    assert timed.arms is not None
    plain, compiled = (timed.arms[one.id] for one in job.cases)
    assert len(plain.latency_s) == len(compiled.latency_s) >= 2
    assert announced.index("compile") < announced.index("warm-up")
    assert children() <= others


@compiles
@pytest.mark.usefixtures("without_kernels")
def test_a_whole_graph_is_compiled_again_for_other_sizes_and_not_for_other_tokens(tmp_path: Path) -> None:
    w = workload(dtype="bfloat16", direction="train")
    answer, _ = do(QualifyJob(case=case("grouped", w), folder=str(prepared(tmp_path, w))))
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.qualified is not None
    facts = answer.qualified.compiled
    assert facts is not None
    assert facts.num_graphs == 1
    assert [new.num_tokens for new in facts.new_inputs] == [24, 18, 12]
    assert facts.new_inputs[0].num_graphs == 0
    assert facts.new_inputs[1].num_graphs == 1


@compiles
@pytest.mark.usefixtures("without_kernels")
def test_a_broken_graph_still_gives_the_right_result(tmp_path: Path) -> None:
    """Counts in Python: breaks, and compiling again for other tokens of the same number."""
    w = workload()
    answer, _ = do(QualifyJob(case=case("loop", w), folder=str(prepared(tmp_path, w))))
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.qualified is not None
    facts = answer.qualified.compiled
    assert facts is not None
    assert facts.num_graph_breaks > 0
    assert facts.new_inputs[0].num_graphs > 0
    assert "tolist" in facts.break_reasons[0]


@compiles
@pytest.mark.usefixtures("without_kernels")
def test_a_compiled_case_has_a_profile_and_no_file_of_memory(tmp_path: Path) -> None:
    w = workload()
    one = case("dense", w)
    traces = tmp_path / "traces"
    folder = prepared(tmp_path, w, "dense")
    answer, _ = do(ProfileJob(case=one, folder=str(folder), traces=str(traces), time_budget_s=0.01))
    assert (answer.status, answer.reason) == (Status.OK, "")
    assert answer.profile is not None
    assert "timeline" in answer.profile.gaps
    assert answer.profile.traces == {"perfetto": f"{one.id}.trace.json.gz"}
    assert [file.name for file in traces.iterdir()] == [*answer.profile.traces.values()]
