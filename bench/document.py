"""The sweep document: which tables and keys a sweep's TOML has, and which values they take.

Every key of ``[layer]`` and ``[workload]`` but ``seed`` is an axis: a value, or a list of values to sweep over. Here
each value is checked alone, and all faults are found in one pass; :mod:`bench.config` combines them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from bench.cases import VARIANTS, Compile
from bench.environment import usable_cores
from bench.faults import fault, nearest, unknown
from bench.units import parse_duration
from impls import registry
from impls.spec import ACTIVATIONS, CAPACITY_POLICIES, ROUTERS

Value = TypeVar("Value")

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ROUTINGS = ("router", "balanced", "zipf:S", "hot:P", "trace:FILE")


def _as_axis(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Axis = Annotated[tuple[Value, ...], BeforeValidator(_as_axis), Field(min_length=1)]


def _one_of(*options: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value not in options:
            raise unknown(value, options)
        return value

    return BeforeValidator(check)


def _dtype(value: object) -> object:
    name = DTYPES.get(value, value) if isinstance(value, str) else value
    if name not in DTYPES.values():
        raise unknown(value, (*DTYPES.values(), *DTYPES))
    return name


def _capacity_factor(value: object) -> float | None:
    if value is None or value == "none":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise fault("should be 'none' (nothing is dropped) or a number above 0")


def _impl(name: str) -> str:
    if name == "all" or name in registry.names():
        return name
    path, separator, class_name = name.rpartition(":")
    if separator and path.endswith(".py"):
        if not Path(path).is_file():
            raise fault(f"there is no file {path} in {'this folder' if not Path(path).is_absolute() else 'that place'}")
        if not class_name.isidentifier():
            raise fault(f"should name a class after the colon, as in {path}:MyLayer")
        return name
    if name in registry.NO_ADAPTER:
        raise fault(f"there is no adapter for it: {registry.NO_ADAPTER[name]}")
    names = registry.names()
    raise fault(
        f"no such implementation; there are {', '.join(names)}, 'all', or path/to/file.py:ClassName"
        f"{nearest(name, names)}"
    )


def _routing(name: str) -> str:
    kind, separator, argument = name.partition(":")
    if name in ("router", "balanced"):
        return name
    if kind == "trace" and argument:
        # absolute, so that workers and a resumed run find it wherever they start
        path = Path(argument).absolute()
        _check_trace(path)
        return f"trace:{path}"
    if kind not in ("zipf", "hot") or not separator:
        raise unknown(name, ROUTINGS)
    try:
        number = float(argument)
    except ValueError:
        raise fault(f"should have a number after the colon, as in {kind}:0.5") from None
    if kind == "zipf" and not (math.isfinite(number) and number >= 0):
        raise fault("the exponent S in zipf:S should be a number from 0 (balanced on average) upwards")
    if kind == "hot" and not 0 <= number <= 1:
        raise fault("the share P in hot:P, which goes to one expert, should be between 0 and 1")
    return f"{kind}:{number:g}"


def _check_trace(path: Path) -> None:
    import numpy as np  # only here: most sweeps have no trace, and the command line answers sooner without it

    if not path.is_file():
        raise fault(f"there is no file {path}")
    try:
        trace = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise fault(f"{path} is not a NumPy .npy file ({error})") from None
    if not isinstance(trace, np.ndarray) or trace.ndim != 2 or not np.issubdtype(trace.dtype, np.integer):
        raise fault(f"{path} should hold a whole-number array of shape (tokens, top_k): the expert ids")


def _threads(value: object) -> object:
    return usable_cores() if value == "all" else value


def _duration(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as error:
            raise fault(str(error)) from None
    return value


MOST = 2**31 - 1  # what a tensor's size and a seed can be everywhere
Size = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(strict=True, gt=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerTable(_Table):
    """``[layer]``: the fields of :class:`impls.LayerSpec`, each an axis."""

    d_model: Axis[Size]
    d_ff: Axis[Size]
    num_experts: Axis[Size]
    top_k: Axis[Size]
    capacity_factor: Axis[Annotated[float | None, BeforeValidator(_capacity_factor)]] = (None,)
    activation: Axis[Annotated[Text, _one_of(*ACTIVATIONS)]] = ("swiglu",)
    router: Axis[Annotated[Text, _one_of(*ROUTERS)]] = ("softmax_topk",)
    norm_topk_prob: Axis[Flag] = (True,)
    num_shared_experts: Axis[Count] = (0,)
    router_bias: Axis[Flag] = (False,)
    expert_bias: Axis[Flag] = (False,)
    d_ff_shared: Axis[Size | None] = (None,)
    shared_gate: Axis[Flag] = (False,)
    selection_bias: Axis[Flag] = (False,)
    num_expert_groups: Axis[Size] = (1,)
    top_k_groups: Axis[Size] = (1,)
    routed_scaling: Axis[Scale] = (1.0,)
    router_seed: Axis[Count] = (0,)
    capacity_policy: Axis[Annotated[Text, _one_of(*CAPACITY_POLICIES)]] = ("gshard",)
    capacity_multiple: Axis[Size] = (1,)
    swiglu_limit: Axis[Scale] = (7.0,)


class WorkloadTable(_Table):
    """``[workload]``: who is measured on what; every key but ``seed`` is an axis."""

    impls: Axis[Annotated[Text, AfterValidator(_impl)]] = ("all",)
    num_tokens: Axis[Count]
    dtype: Axis[Annotated[Literal["float32", "bfloat16", "float16"], BeforeValidator(_dtype)]] = ("float32",)
    device: Axis[Annotated[Text, _one_of("auto", "cpu", "cuda")]] = ("auto",)
    direction: Axis[Annotated[Literal["forward", "train"], _one_of("forward", "train")]] = ("forward",)
    routing: Axis[Annotated[Text, AfterValidator(_routing)]] = ("router",)
    threads: Axis[Annotated[Size, BeforeValidator(_threads)]] = Field(default_factory=lambda: (usable_cores(),))
    cache: Axis[Annotated[Literal["auto", "warm", "cold"], _one_of("auto", "warm", "cold")]] = ("auto",)
    compile: Axis[Annotated[Compile, _one_of(*VARIANTS)]] = ("none",)
    seed: Count = 0


class Measure(_Table):
    """``[measure]``: how long and how exactly to measure.

    Attributes:
        budget_s: time for the whole run (``budget = "3m"``).
        processes: independent processes that every workload is timed in; the interval is over these.
        half_width: relative half-width of the interval at which a workload is measured well enough.
        timeout_s: a worker that says nothing for this long is stopped (``timeout``).
        min_rounds: interleaved rounds in one process, at least.
        energy_window_s: length of the sustained loop under an energy meter (``energy_window``).
        planted_slowdown: relative slowdown of the control's slowed twin, which the run must find.
        profile: whether every case is profiled, in a pass of its own after it was timed.
        nvtx: whether profiled calls are marked for NVIDIA's tools, on a GPU only.
        check_limits: whether what limits the profiled cases is checked by pulling levers, in a pass after that.
        isolate: whether every implementation is timed in processes of its own, instead of in turns with the others.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    budget_s: Seconds = Field(default=300.0, alias="budget")
    processes: Annotated[int, Field(strict=True, ge=2)] = 12
    half_width: Share = 0.02
    timeout_s: Seconds = Field(default=120.0, alias="timeout")
    min_rounds: Size = 5
    energy_window_s: Seconds = Field(default=4.0, alias="energy_window")
    planted_slowdown: Annotated[float, Field(strict=True, ge=0.001, lt=1)] = 0.05
    profile: Flag = False
    nvtx: Flag = False
    check_limits: Flag = False
    isolate: Flag = False


def _matching(*tables: type[_Table]) -> dict[str, Any]:
    """The axes of ``tables`` as optional fields."""
    return {
        name: (field.rebuild_annotation() | None, None)
        for table in tables
        for name, field in table.model_fields.items()
        if name != "seed"
    }


Exclusion = create_model("Exclusion", __base__=_Table, **_matching(LayerTable, WorkloadTable))


class Document(_Table):
    """A whole sweep document."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    title: Text = ""
    question: Text = ""
    story: Text = ""
    label: Text = ""  # whose layer it is, where it is a real model's
    notes: tuple[Text, ...] = ()  # what a reader of the results must know of the layer
    layer: LayerTable
    workload: WorkloadTable
    measure: Measure = Measure()
    exclude: tuple[Exclusion, ...] = ()  # its fields are made from the tables above
