"""What is known of a case whose result was right, before it is timed: routing, memory, conduct, compilation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.cases import Compile
from bench.plain_text import Line

MEASURED_AT_QUALIFICATION = ("allocator_peak_bytes", "os_peak_bytes", "reserved_peak_bytes")


class RoutingFacts(BaseModel):
    """The routing that really happened in one call of a workload.

    Attributes:
        tokens_per_expert: assignments that each expert kept, length E.
        dropped_fraction: share of the T*K assignments past their expert's capacity.
        load_imbalance: fullest expert over the mean load, before dropping (1 is balanced).
        dropped_per_expert: assignments past each expert's capacity, length E; empty in older logs.
        note: what a reader must know of forced ids, for example that a trace was repeated; empty where nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens_per_expert: list[int]
    dropped_fraction: float
    load_imbalance: float
    dropped_per_expert: list[int] = Field(default_factory=list)
    note: Line = ""


class Finding(BaseModel):
    """A known reason why a layer is slow, found by measuring it.

    Attributes:
        rule: which one, see :mod:`bench.lint`.
        evidence: what was measured, in a sentence.
        fix: what to do about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Line
    evidence: Line
    fix: Line


class Conduct(BaseModel):
    """How an implementation behaves in one call, apart from its time: see :mod:`bench.measure.conduct`.

    Attributes:
        num_operators: operators of one call that compute something (views are left out).
        host_syncs: times that one call waits for the device; on a CPU, times that it would wait on a GPU.
        sync_operators: which operators those are, with their counts.
        computed_flops: floating-point operations of all matrix products that ran, useful or not.
        repeats: calls that ``distinct_results`` is of.
        distinct_results: results among them that differ in at least one bit; 1 is deterministic.
        deterministic_ratio: time under ``torch.use_deterministic_algorithms`` over the time without; a rough one.
        threads: torch's intra-operator threads after the call.
        allocator: what decides how memory is handed out: the C library, and the environment variables that are set.
        findings: known reasons why it is slow.
        numerics: torch's settings after the call that change what a matrix product computes, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_operators: int | None = None
    host_syncs: int | None = None
    sync_operators: dict[str, int] = Field(default_factory=dict)
    computed_flops: int | None = None
    repeats: int = 0
    distinct_results: int | None = None
    deterministic_ratio: float | None = None
    threads: int
    allocator: Line
    findings: list[Finding] = Field(default_factory=list)
    numerics: dict[str, Line] = Field(default_factory=dict)
    gaps: dict[str, Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _nulls_have_reasons(self) -> Conduct:
        measured = ("num_operators", "host_syncs", "computed_flops", "distinct_results", "deterministic_ratio")
        missing = [name for name in measured if getattr(self, name) is None and name not in self.gaps]
        if missing:
            raise ValueError(f"null without a reason in gaps: {', '.join(missing)}")
        return self


class NewInput(BaseModel):
    """What a compiled layer did when it met tokens that it was not compiled with.

    Attributes:
        num_tokens: how many.
        num_graphs: graphs that were compiled for them; 0 where those that there were would do.
        first_call_s: time of the first call with them, that of compiling included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_tokens: int = Field(ge=0)
    num_graphs: int = Field(ge=0)
    first_call_s: float


class Compiled(BaseModel):
    """What ``torch.compile`` made of a layer, apart from the time of a call.

    Attributes:
        mode: how it was compiled.
        compile_s: the first call, which compiles, less a call afterwards.
        num_graphs: graphs that one call falls into; 1 is a layer compiled as a whole.
        num_graph_breaks: breaks between them, where Python runs as it would without.
        break_reasons: lines of code that break, each with the reason and the number of its breaks; the most frequent.
        new_inputs: first calls with other tokens, first as many as before and then other numbers of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Compile
    compile_s: float
    num_graphs: int = Field(ge=0)
    num_graph_breaks: int = Field(ge=0)
    break_reasons: list[str] = Field(default_factory=list)
    new_inputs: list[NewInput] = Field(default_factory=list)


class Qualified(BaseModel):
    """What is known of a case once its result was found right, before it is timed.

    Attributes:
        relative_error: norm of the difference over norm of the truth, the worst of output and gradients.
        worst_tensor: which tensor that was (``output``, ``input`` or a weight's name).
        checked_tokens: tokens that the truth was computed for (fewer than T where it had to be sampled).
        routing: the routing that happened; null for implementations that do not route.
        flops: useful floating-point operations of one call, analytic.
        moved_bytes: bytes that one call cannot avoid moving (weights in use, inputs, outputs), analytic.
        weight_bytes: bytes of the canonical weights.
        prepared_bytes: bytes that ``prepare()`` added to them.
        prepare_s: time of ``prepare()``, which derives another layout of the weights, once.
        first_call_s: time of the first call.
        rough_latency_s: one rough time, for planning only, never shown as a result.
        allocator_peak_bytes: peak of allocated bytes above what existed before the call (this is
            ``peak_memory_bytes`` in tables).
        os_peak_bytes: the operating system's (CPU) or the driver's (CUDA) peak above what existed before the call.
        reserved_peak_bytes: CUDA's caching allocator's peak; null elsewhere.
        analytic_peak_bytes: what any implementation must allocate: the output, and in ``train`` the gradients too.
        predicted_peak_bytes: the allocator's peak by the analytic model of this implementation; null without a model.
        predicted_parts_bytes: what that peak is made of, by part (see :mod:`bench.memory`).
        path: which kernel path ran, in the implementation's words; empty where there is one only.
        conduct: how it behaves in a call; null in records of the first schema.
        compiled: what the compiler made of it, where it is compiled; ``first_call_s`` is then mostly compiling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    relative_error: float
    worst_tensor: Line
    checked_tokens: int
    routing: RoutingFacts | None
    flops: int
    moved_bytes: int
    weight_bytes: int
    prepared_bytes: int
    prepare_s: float
    first_call_s: float
    rough_latency_s: float
    allocator_peak_bytes: int | None
    os_peak_bytes: int | None
    reserved_peak_bytes: int | None
    analytic_peak_bytes: int
    predicted_peak_bytes: int | None = None
    predicted_parts_bytes: dict[str, int] = Field(default_factory=dict)
    path: Line = ""
    conduct: Conduct | None = None
    compiled: Compiled | None = None
    gaps: dict[str, Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _nulls_have_reasons(self) -> Qualified:
        missing = [name for name in MEASURED_AT_QUALIFICATION if getattr(self, name) is None and name not in self.gaps]
        if missing:
            raise ValueError(f"null without a reason in gaps: {', '.join(missing)}")
        return self
