"""What a profile says of one call of one case: where its time, its operations and its memory went.

A profile explains; it is not a measurement to compare by. The profiler slows what it watches, small operators most, so
the record says by how much (``whole_s`` against ``plain_s``), and no time of it enters a table of latencies.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STEADY = (0.8, 1.5)
"""Between these, a profiled call's time over a plain one's is the profiler's; beyond, the machine may be disturbed."""
SLOW = 1.5
"""So much longer than when the case was timed, a plain call is no usual one."""
EVENT_S = 5e-6
"""What an event costs the profiler at most: one or two microseconds, as seen on two machines of 2.5 GHz."""
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Timed(_Part):
    """What took time in a stage of one of the phases."""

    phase: Literal["forward", "backward"]
    stage: str
    host_s: float
    device_s: float | None = None

    @property
    def seconds(self) -> float:
        """On the device where there is one, else on the host."""
        return self.host_s if self.device_s is None else self.device_s


class StageTime(_Timed):
    """One stage of a call, the mean over the profiled calls that count.

    Attributes:
        phase: ``forward`` or ``backward``.
        stage: ``route``, ``dispatch``, ``experts``, ``combine``, ``shared``, ``gradients`` (adding them to ``.grad``,
            and giving them back at the end), ``waiting`` (the host for its device, at the end), ``fused`` (kernels of
            compiled code that do the work of several) or ``other``: what no stage claims. Over both phases they add up
            to ``whole_s``.
        expert: set in the parts of an implementation that works expert by expert.
        host_s: time on the host from the stage's beginnings to its ends.
        idle_s: the part of it in which no operator ran: Python, autograd, waiting for the next call.
        device_s: time of its kernels; null on the CPU, where host and device are the same.
        launches: operators, or on CUDA kernels.
        flops: of its matrix products; null where the gap ``work`` says why it is not known.
        moved_bytes: of its operators; null likewise.
    """

    expert: int | None = None
    idle_s: float
    launches: Count
    flops: Count | None
    moved_bytes: Count | None


class OperatorTime(_Timed):
    """All calls of one operator with one set of shapes in one stage, the mean over the profiled calls that count.

    Attributes:
        phase, stage: as in :class:`StageTime`.
        name: as in ``aten::mm``.
        shapes: of its tensors, as in ``256x64, 64x8``.
        calls: how many in one call of the layer.
        folded: whether this row is of several shapes.
        host_s, device_s: their time together.
        flops: operations of all of them; null for what is no matrix product.
        moved_bytes: bytes that all of them read and wrote; null where it is not known.
        existing_bytes: the part of these that was there before the call: weights, tokens, the output's gradient.
        allocated_bytes: memory that they made for their results, which they may be the first to touch; null likewise.
        near_s: time of all of them, repeated with what they multiply in the cache; null for what was not repeated.
        follows_s: the part of it that follows the arithmetic: what twice as much takes longer; null likewise.
        first_touches: pages that they touched for the first time; null where the system does not tell.
        events: what the profiler wrote down inside them: each costs time that is in ``host_s``.
    """

    name: str
    shapes: str
    calls: Count
    folded: bool = False
    flops: int | None = None
    moved_bytes: int | None = None
    existing_bytes: int | None = None
    allocated_bytes: int | None = None
    near_s: Seconds | None = None
    follows_s: Seconds | None = None
    first_touches: Count | None = None
    events: Count = 0


class FirstTouches(_Part):
    """Pages that a call touches for the first time, because their memory was given back to the system before.

    Attributes:
        num_pages: in a call that nobody watches, the median over all.
        touch_s: what one costs, beyond writing to it again, measured beside the calls.
        return_s: what giving one back costs.
        page_bytes: size of a page.
    """

    num_pages: Annotated[float, Field(ge=0)]
    touch_s: Seconds
    return_s: Seconds
    page_bytes: Annotated[int, Field(gt=0)] = 4096


class Tensors(_Part):
    """A tensor that was alive at the peak: its size, what it is for and which operator made it."""

    category: str
    shape: str
    dtype: str
    num_bytes: Count
    made_by: str


class Timeline(_Part):
    """Bytes alive during one call, above what existed before it.

    Attributes:
        at_s: moments, from the beginning of the call; the order of operators is exact, their moments are those of the
            profiled calls' stages.
        stages: ``phase stage`` at each moment.
        bytes_alive: by category, one number a moment.
        existing_bytes: what is there all the time: ``weights`` and ``input``.
        peak_bytes: the most; ``peak_index`` is its moment.
        peak_made_by: the operator that made the peak.
        largest: the largest tensors alive at the peak.
    """

    at_s: list[Seconds]
    stages: list[str]
    bytes_alive: dict[str, list[Count]]
    existing_bytes: dict[str, Count]
    peak_bytes: Count
    peak_index: Count
    peak_made_by: str
    largest: list[Tensors]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Timeline:
        lengths = {len(self.at_s), len(self.stages), *map(len, self.bytes_alive.values())}
        if len(lengths) != 1:
            raise ValueError(f"the rows of a timeline have different lengths: {sorted(lengths)}")
        return self


class Profile(_Part):
    """One case's profile.

    Attributes:
        calls: profiled calls behind the means: the quicker half, because what comes between makes a call longer.
        plain_s: time of a call without the profiler, made in turns with the others: the mean of the quicker half.
        timed_s: time of a call in the run's own timing, or roughly where there was none; null in old records, and on a
            device, where timed calls overlap and these do not.
        whole_s: mean time of a profiled call; over ``plain_s`` it is the profiler's own slowdown.
        events: what the profiler wrote down in it: its slowdown is in proportion to them.
        pages: memory touched for the first time; null where that is not told, as on a device.
        stages: the stages, without an expert's number; they add up to ``whole_s``.
        experts: the same by expert, where the implementation works so.
        operators: the longest first; the shapes of many short ones are folded into a row an operator and stage.
        left_out: operators and shapes that have no row of their own, and their time together.
        timeline: null where it was not made, with the reason in ``gaps``.
        traces: file names beside the log by kind: ``perfetto``, ``memory``, on a GPU also ``allocator``.
        gaps: what is not known, and why.
    """

    calls: int
    plain_s: Seconds
    timed_s: Seconds | None = None
    whole_s: Seconds
    events: Count = 0
    pages: FirstTouches | None = None
    stages: list[StageTime]
    experts: list[StageTime]
    operators: list[OperatorTime]
    left_out: tuple[int, float] = (0, 0.0)
    timeline: Timeline | None = None
    traces: dict[str, str] = Field(default_factory=dict)
    gaps: dict[str, str] = Field(default_factory=dict)

    @property
    def disturbed(self) -> str:
        """Why the machine must have been disturbed meanwhile; empty where nothing says so.

        Plain and profiled calls differ by more than a profiler explains, or both took longer than the case does.
        """
        explained_s = max(STEADY[1] * self.plain_s, self.plain_s + EVENT_S * self.events)
        if not STEADY[0] * self.plain_s <= self.whole_s <= explained_s:
            ratio = self.whole_s / self.plain_s if self.plain_s else 1.0
            return f"profiled calls took {ratio:.2f} times the plain ones'"
        if self.timed_s and self.plain_s > SLOW * self.timed_s:
            return f"calls took {self.plain_s / self.timed_s:.2f} times as long as when the case was timed"
        return ""

    @property
    def on_device(self) -> bool:
        """Whether the work was a device's, beside which the host ran ahead."""
        return any(stage.device_s is not None for stage in self.stages)
