"""Options that several commands share: the axes of a sweep, and a real model's layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from bench.models import Selection

AXES = Group("Overrides (a comma makes an axis)", sort_key=2)
MODEL = Group("A real model's layer", sort_key=1)


@Parameter(name="*", group=AXES)
@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a sweep varies, as text; None where the option was not given.

    Attributes:
        tokens: Tokens in one call.
        dtype: float32, bfloat16, float16, or fp32, bf16, fp16.
        device: auto, cpu or cuda.
        direction: forward or train.
        routing: router, balanced, zipf:S, hot:P, or trace:FILE.npy with recorded expert ids.
        threads: Threads of one operation on the CPU: a number, or `all`.
        compile: Modes of torch.compile: none, default, max-autotune.
        set_: TABLE.KEY=VALUE[,VALUE] for any key of the sweep, as in layer.num_experts=8,64.
    """

    tokens: str | None = None
    dtype: str | None = None
    device: str | None = None
    direction: str | None = None
    routing: str | None = None
    threads: str | None = None
    compile: str | None = None
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = ()

    def overrides(self, **others: str | None) -> dict[str, object]:
        """What was given here and in ``others``, as values of the sweep's document by ``table.key``."""
        from bench.overrides import overrides

        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "set_"}
        return overrides(self.set_, own | others)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A real model's layer in place of the sweep's.

    Attributes:
        model: A model by name (`moebench list models`); --set still changes it.
        hf_config: The same from a Hugging Face config.json, or the folder of a model.
        scale: With either, a fraction such as 1/4 that divides its widths; experts and top-k stay.
    """

    model: str | None = None
    hf_config: Path | None = None
    scale: str | None = None

    def select(self) -> Selection | None:
        """The layer that was chosen; None where none was."""
        from bench.models import select

        return select(self.model, self.hf_config, self.scale)
