"""What the runner and its workers say to each other: one JSON object a line, both ways, over a socket.

The runner sends one :class:`Job`. The worker answers with any number of :class:`Announce` (what it is about to run, so
that its death is charged to the right case) and ends with one :class:`Answer`. A worker that closes the socket
without an answer has crashed. A person can repeat a job by hand: ``python -P -m bench.runner.worker < job.json``.

Neither side trusts the other's length: a line longer than :data:`MAX_LINE_BYTES` is a fault of its sender.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bench.cases import Case, Workload
from bench.conformance.battery import Probe
from bench.store.levers import Lever, Work
from bench.store.profiles import Profile
from bench.store.qualified import Qualified
from bench.store.schema import Arm, Disturbance, EnergyReading, Status

MAX_LINE_BYTES = 64 * 1024 * 1024
ControlArm = Literal["base", "twin", "slowed"]
CONTROL_ARMS: tuple[ControlArm, ...] = ("base", "twin", "slowed")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MaterialiseJob(_Message):
    """Make a workload's weights, tokens, forced routing and output gradient once, as files under ``folder``."""

    job: Literal["materialise"] = "materialise"
    workload: Workload
    folder: str


class TruthJob(_Message):
    """Compute the float64 truth of each semantics once, as files under ``folder`` (after MaterialiseJob).

    Attributes:
        max_flops: where the truth would cost more, tokens are sampled.
    """

    job: Literal["truth"] = "truth"
    workload: Workload
    folder: str
    semantics: list[str]
    max_flops: float


class QualifyJob(_Message):
    """Build one implementation, check it against the truth, and measure its memory and one rough time."""

    job: Literal["qualify"] = "qualify"
    case: Case
    folder: str


class TimeJob(_Message):
    """Time cases of one workload in interleaved rounds, in one process.

    Attributes:
        time_budget_s: warm-up and rounds end when this is spent, after at least ``min_rounds``.
        overrun_s: ``min_rounds`` are no longer waited for when this much more is spent; one round always is.
        max_rounds: rounds end here at the latest.
    """

    job: Literal["time"] = "time"
    cases: list[Case]
    folder: str
    order_seed: int
    time_budget_s: float
    overrun_s: float | None = None
    min_rounds: int = 5
    max_rounds: int = 10_000


class ControlJob(_Message):
    """The self-test: base, identical twin and slowed twin in interleaved rounds.

    Attributes:
        arm: only this one, in a process of its own.
    """

    job: Literal["control"] = "control"
    device: str
    threads: int
    planted_slowdown: float
    order_seed: int
    time_budget_s: float
    arm: ControlArm | None = None

    @property
    def arms(self) -> tuple[ControlArm, ...]:
        """What is to be timed."""
        return CONTROL_ARMS if self.arm is None else (self.arm,)


class CeilingJob(_Message):
    """Measure what the hardware can do at best."""

    job: Literal["ceiling"] = "ceiling"
    what: Literal["matmul", "memory", "cache"]
    device: str
    dtype: str
    threads: int
    time_budget_s: float


class EnergyJob(_Message):
    """A sustained loop over one case under the energy meter."""

    job: Literal["energy"] = "energy"
    case: Case
    folder: str
    window_s: float


class ProfileJob(_Message):
    """Say where the time, the memory and the operations of one case go.

    Attributes:
        case: what to profile.
        folder: the workload's files.
        traces: folder for the trace files, which are named after the case.
        time_budget_s: the watched calls end when this is spent, after a few at least.
        nvtx: whether the calls are watched by NVIDIA's tools, which then see its stages.
    """

    job: Literal["profile"] = "profile"
    case: Case
    folder: str
    traces: str
    time_budget_s: float
    nvtx: bool = False


class LimitCheckJob(_Message):
    """Time a case beside variants of it in which one lever is pulled (:data:`bench.store.levers.LEVERS`).

    Attributes:
        case: whose limit is checked.
        folder: the workload's files.
        order_seed, time_budget_s, overrun_s, min_rounds, max_rounds: as in :class:`TimeJob`.
        other_threads: how many the lever ``threads`` takes; None pulls no such lever.
        count: whether to count what every variant has to do: it is the same in every process.
    """

    job: Literal["limit_check"] = "limit_check"
    case: Case
    folder: str
    order_seed: int
    time_budget_s: float
    overrun_s: float = 0.0
    min_rounds: int = 7
    max_rounds: int = 200
    other_threads: int | None = None
    count: bool = True


class ConformJob(_Message):
    """Check an implementation with probes of the conformance battery.

    Attributes:
        impl: the implementation.
        probes: what to check.
        file: where the outcomes go, a line each, as soon as they are known.
    """

    job: Literal["conform"] = "conform"
    impl: str
    probes: list[Probe]
    file: str


class VersionResult(_Message):
    """Where one version of the layers stored its result, and what it says of its own exactness."""

    file: str
    semantics: str
    exact: bool
    tolerance: float | None = None


class RefereeJob(_Message):
    """Check the results that one or two versions of a layer stored (after MaterialiseJob and TruthJob).

    Attributes:
        workload: what they computed.
        folder: the workload's files.
        results: what they returned.
        file: where the findings go.
    """

    job: Literal["referee"] = "referee"
    workload: Workload
    folder: str
    results: list[VersionResult]
    file: str


Job = Annotated[
    MaterialiseJob
    | TruthJob
    | QualifyJob
    | TimeJob
    | ControlJob
    | CeilingJob
    | EnergyJob
    | ProfileJob
    | LimitCheckJob
    | ConformJob
    | RefereeJob,
    Field(discriminator="job"),
]
job_adapter: TypeAdapter[Job] = TypeAdapter(Job)


class Announce(_Message):
    """What the worker is about to run.

    Attributes:
        case_id: the case that a death from now on is charged to; empty for work of no case.
        what: for a person: ``build``, ``warm-up``, ``rounds`` ...
    """

    kind: Literal["announce"] = "announce"
    case_id: str = ""
    what: str


class Answer(_Message):
    """The end of a job: exactly the fields that the job's kind fills.

    Attributes:
        status: ``ok``, or how the job failed.
        reason: a sentence for the user where it failed.
        case_id: which case it was that failed, for a TimeJob.
        relative_error: QualifyJob, also when the result was wrong.
        semantics, exact: QualifyJob, from the implementation's class.
        qualified: QualifyJob.
        arms: TimeJob (by case id) and ControlJob (``base``, ``twin``, ``slowed``).
        disturbance: TimeJob.
        per_s, working_set_bytes: CeilingJob.
        energy: EnergyJob: the fields of an :class:`~bench.store.schema.EnergyRecord`, without its common ones.
        materialised_bytes: MaterialiseJob: size of the files.
        profile: ProfileJob.
        work, gaps: LimitCheckJob: what every variant has to do, and which could not be made; its samples are ``arms``.
    """

    kind: Literal["answer"] = "answer"
    status: Status = Status.OK
    reason: str = ""
    case_id: str = ""
    relative_error: float | None = None
    semantics: str = "moe"
    exact: bool = True
    qualified: Qualified | None = None
    arms: dict[str, Arm] | None = None
    disturbance: Disturbance = Disturbance()
    per_s: list[float] | None = None
    working_set_bytes: int | None = None
    energy: EnergyReading | None = None
    materialised_bytes: int | None = None
    profile: Profile | None = None
    work: dict[Lever, Work] = Field(default_factory=dict)
    gaps: dict[Lever, str] = Field(default_factory=dict)


WorkerMessage = Annotated[Announce | Answer, Field(discriminator="kind")]
message_adapter: TypeAdapter[WorkerMessage] = TypeAdapter(WorkerMessage)
