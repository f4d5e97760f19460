"""The record schema: every line of ``measurements.jsonl`` is one of these, and so is ``run.json``.

Values are SI units with the unit in the name. Raw samples are kept whole: medians and intervals are made when the log
is read, never stored. What could not be measured is null and has its reason under the same name in ``gaps``.
The models validate themselves: a case that is not ``ok`` cannot carry a time, and a null cannot lack its reason.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from bench.cases import Case
from bench.plain_text import Line, one_line
from bench.store.levers import Lever, Work
from bench.store.profiles import Profile
from bench.store.qualified import Qualified

SCHEMA_VERSION = 2
"""1: the first. 2: adds fields, which readers of 1 would refuse; everything written under 1 is read."""


class Status(StrEnum):
    """How a case ended. ``not_run`` is a word of tables only: what the budget did not reach has no record."""

    OK = "ok"
    WRONG_RESULT = "wrong_result"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"
    NOT_RUN = "not_run"


class Record(BaseModel):
    """What all records have in common.

    Attributes:
        environment_hash: hash of the environment that the record was made in (see ``RunInfo.environment``).
        unix_time_s: when the record was written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    environment_hash: Line
    unix_time_s: float


class CaseRecord(Record):
    """The outcome of qualifying a case, or of its death later on.

    A later record for the same case replaces an earlier one: a case that qualified and then crashed while it was
    timed has a second record with the status ``crashed``, and its samples no longer count.

    Attributes:
        case_id: ``case.id``, written out for readers of the raw file.
        status: how it ended; only ``ok`` is timed.
        reason: why not, in a sentence for the user; empty only for ``ok``.
        semantics: what is computed: ``moe`` for implementations of the layer, else a baseline's label.
        exact: False for implementations that do not compute the layer to rounding (quantised).
        relative_error: also given for ``wrong_result``.
    """

    kind: Literal["case"] = "case"
    case: Case
    case_id: str
    status: Status
    reason: Line = ""
    semantics: Line = "moe"
    exact: bool = True
    relative_error: float | None = None
    qualified: Qualified | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CaseRecord:
        if self.case_id != self.case.id:
            raise ValueError(f"case_id {self.case_id} is not the id of the case, {self.case.id}")
        if (self.status is Status.OK) != (self.qualified is not None):
            raise ValueError(f"status {self.status} and measurements do not go together")
        if (self.status is Status.OK) == bool(self.reason):
            raise ValueError("every status but ok has a reason, and ok has none")
        return self


class Disturbance(BaseModel):
    """What else happened on the machine while a process was timed; null where the system does not say.

    Attributes:
        steal_s: time that the hypervisor gave to others, summed over processors.
        involuntary_switches: times that the process lost its processor.
        load_1min: load average at the end.
        cpu_pressure_s: time in which some task waited for a processor (Linux pressure stall information).
        gpu: clocks, temperature and throttle counters before and after, by name; empty without a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steal_s: float | None = None
    involuntary_switches: int | None = None
    load_1min: float | None = None
    cpu_pressure_s: float | None = None
    gpu: dict[str, float] = Field(default_factory=dict)


class Arm(BaseModel):
    """The samples of one implementation in one process.

    Attributes:
        latency_s: one value a round, in round order: seconds of one call (the mean of ``inner_calls`` calls).
        warmup_s: the samples before the steady state, in order.
        inner_calls: calls in one sample.
        steady: whether a steady state was found (not merely a warm-up whose time was up); None where there are too few
            samples to tell.
        host_s: median seconds that the host needed to issue one call on an asynchronous device; where this is above
            the latency, the call is launch-bound. Null on the CPU, where the two are the same thing.
        warmup_rounds: how many of the last of ``warmup_s`` were taken in rounds, in random order as the samples are;
            those before found the number of inner calls. Null in logs of version 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_s: list[Annotated[float, Field(gt=0)]]
    warmup_s: list[float]
    inner_calls: int = Field(default=1, ge=1)
    steady: bool | None = True
    host_s: float | None = None
    warmup_rounds: int | None = Field(default=None, ge=0)


class SamplesRecord(Record):
    """All samples of one workload in one process: round ``i`` is entry ``i`` of every arm.

    Attributes:
        workload_id: the workload.
        replicate: number of the fork server, hence of the independent replicate, from 0.
        arms: case id -> its samples; all of the same length.
        order_seed: seed of the random order within rounds.
        wall_s: seconds from the request to the answer.
        disturbance: what else happened meanwhile.
        isolated: every arm had a process of its own, one after the other in an order drawn from ``order_seed``; then
            rounds are not pairs, and arms may have different numbers of them.
    """

    kind: Literal["samples"] = "samples"
    workload_id: Line
    replicate: int = Field(ge=0)
    arms: dict[Line, Arm]
    order_seed: int
    wall_s: float
    disturbance: Disturbance = Disturbance()
    isolated: bool = False

    @model_validator(mode="after")
    def _rounds_are_whole(self) -> SamplesRecord:
        if not self.isolated and len({len(arm.latency_s) for arm in self.arms.values()}) > 1:
            raise ValueError("arms of one process have different numbers of rounds")
        return self


class ControlRecord(Record):
    """The self-test in one process: a fixed piece of work against its identical twin and a slowed twin.

    Attributes:
        replicate: as in :class:`SamplesRecord`.
        arms: ``base``, ``twin`` (identical code) and ``slowed`` (the same plus ``planted_slowdown`` of its time).
        planted_slowdown: relative slowdown that was planted, for example 0.05.
        device, threads: where it ran; null in records of version 1.
        isolated: as in :class:`SamplesRecord`.
    """

    kind: Literal["control"] = "control"
    replicate: int = Field(ge=0)
    arms: dict[Literal["base", "twin", "slowed"], Arm]
    planted_slowdown: float
    wall_s: float
    device: Line | None = None
    threads: int | None = None
    isolated: bool = False


class CeilingRecord(Record):
    """What the hardware can do at best, measured in one process.

    Attributes:
        what: ``matmul`` (floating-point operations per second of a large matrix product in ``dtype``), ``memory``
            (bytes per second from main memory) or ``cache`` (bytes per second from the last-level cache).
        per_s: one value a repetition.
        working_set_bytes: size of what was read.
    """

    kind: Literal["ceiling"] = "ceiling"
    what: Literal["matmul", "memory", "cache"]
    device: Line
    dtype: Line
    threads: int
    replicate: int = Field(ge=0)
    per_s: list[float]
    working_set_bytes: int


class EnergyReading(BaseModel):
    """What an energy meter read over a sustained loop, or the reason why it read nothing.

    Attributes:
        energy_j: joules of the whole window, idle power included.
        energy_low_j, energy_high_j: interval from the meter's resolution and sampling.
        calls: calls in the window, the last one counted by the fraction inside.
        window_s: length of the window.
        idle_power_w: power of the idle device around the window.
        meter: which meter it was.
        reason: ``code: sentence`` where there is no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    energy_j: float | None = None
    energy_low_j: float | None = None
    energy_high_j: float | None = None
    calls: float | None = None
    window_s: float | None = None
    idle_power_w: float | None = None
    meter: Line = ""
    reason: Line = ""

    @model_validator(mode="after")
    def _null_has_reason(self) -> EnergyReading:
        if (self.energy_j is None) == (not self.reason):
            raise ValueError("energy is either a value or a reason")
        return self


class EnergyRecord(Record, EnergyReading):
    """Energy of a sustained loop over one case, or the reason why there is none."""

    kind: Literal["energy"] = "energy"
    case_id: str


class ProfileRecord(Record):
    """Where the time, the memory and the operations of one case go, or the reason why that is not known.

    Attributes:
        case_id: the case.
        profile: what was found; its traces are files under ``traces/`` beside the log.
        reason: ``status: sentence`` where there is no profile.
    """

    kind: Literal["profile"] = "profile"
    case_id: str
    profile: Profile | None = None
    reason: Line = ""

    @model_validator(mode="after")
    def _null_has_reason(self) -> ProfileRecord:
        if (self.profile is None) == (not self.reason):
            raise ValueError("a profile is either there or has a reason")
        return self


class LimitCheckRecord(Record):
    """A case beside variants of it in which one lever is pulled, in one process, or the reason why there are none.

    Attributes:
        case_id: the case.
        replicate: as in :class:`SamplesRecord`.
        arms: samples by lever, in rounds. Where ``pages`` is among them, ``base`` was timed before and alone; where it
            is neither here nor in ``gaps``, the case touches hardly any memory for the first time.
        work: what every variant has to do; empty where another process of the case has counted it.
        gaps: levers that could not be pulled, and why.
        other_threads: how many the lever ``threads`` took.
        reason: ``status: sentence`` where there is nothing.
        wall_s: seconds from the request to the answer.
    """

    kind: Literal["limit_check"] = "limit_check"
    case_id: str
    replicate: int = Field(ge=0)
    arms: dict[Lever, Arm] = Field(default_factory=dict)
    work: dict[Lever, Work] = Field(default_factory=dict)
    gaps: dict[Lever, Line] = Field(default_factory=dict)
    other_threads: int | None = None
    reason: Line = ""
    wall_s: float = 0.0

    @model_validator(mode="after")
    def _nothing_has_reason(self) -> LimitCheckRecord:
        if bool(self.arms) == bool(self.reason):
            raise ValueError("a check is either there or has a reason")
        if self.arms and not ("base" in self.arms and (not self.work or "base" in self.work)):
            raise ValueError("a check without its base says nothing")
        alone = self.reference != "base"
        rounds = {len(arm.latency_s) for lever, arm in self.arms.items() if not (alone and lever == "base")}
        if len(rounds) > 1:
            raise ValueError("levers of one process have different numbers of rounds")
        return self

    @property
    def reference(self) -> Lever:
        """What the levers were timed beside: the case with its memory kept, where that could be done."""
        return "pages" if "pages" in self.arms else "base"


class NoteRecord(Record):
    """Something about the whole run that a reader must know: an interruption, an exhausted budget, the end.

    Attributes:
        event: ``started``, ``resumed``, ``interrupted``, ``budget_spent``, ``finished`` or ``warning``.
        text: a sentence for the user.
        wall_s: seconds since this process began the run.
    """

    kind: Literal["note"] = "note"
    event: Literal["started", "resumed", "interrupted", "budget_spent", "finished", "warning"]
    text: Line = ""
    wall_s: float = 0.0


AnyRecord = Annotated[
    CaseRecord
    | SamplesRecord
    | ControlRecord
    | CeilingRecord
    | EnergyRecord
    | ProfileRecord
    | LimitCheckRecord
    | NoteRecord,
    Field(discriminator="kind"),
]
record_adapter: TypeAdapter[AnyRecord] = TypeAdapter(AnyRecord)


PlainName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$")]
"""A name that is one folder's: runs and machines name folders, and a file that was sent by somebody is not trusted."""


class RunInfo(BaseModel):
    """``run.json``: what was asked for, and where it ran.

    Attributes:
        schema_version: refused by readers when newer than their own.
        run_id: name of the run's folder.
        machine: readable key of the machine: its processor or GPU model and core count, never its host name.
        created_unix_s: start of the run.
        command: the exact command line.
        source: name of the preset, or of the TOML file.
        config: the configuration as given, after overrides.
        seed: seed of the sweep.
        git_commit: commit of moebench where it runs from a checkout, with ``-dirty`` where it was changed.
        environment: see :mod:`bench.environment`.
        environment_hash: hash of ``environment``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    run_id: PlainName
    machine: PlainName
    created_unix_s: float
    command: list[Line]
    source: Line
    config: dict[str, Any]
    seed: int
    git_commit: str | None
    environment: dict[str, Any]
    environment_hash: Line

    @property
    def label(self) -> str:
        """Whose layer was measured, as in ``qwen3-30b-a3b at 1/4``; empty where it is no real model's."""
        return one_line(str(self.config.get("label") or ""))

    @property
    def isolated(self) -> bool:
        """Whether every implementation was timed in processes of its own."""
        measure = self.config.get("measure")
        return isinstance(measure, dict) and measure.get("isolate") is True

    @property
    def title(self) -> str:
        """The sweep, and the model that it was made with."""
        return f"{self.source}, {self.label}" if self.label else self.source
