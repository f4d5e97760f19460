"""What a check of a limit says of one case in one process: variants of it, and what each of them has to do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Lever = Literal["base", "tokens", "one_expert", "few_experts", "tiny", "threads", "pages"]

LEVERS: dict[Lever, str] = {
    "base": "the case as it is",
    "tokens": "the same tokens twice: the same operators and weights, twice the arithmetic",
    "one_expert": "the first expert's weights for all: the same operators and arithmetic, weights that fit a cache",
    "few_experts": "the first experts only, whose weights fit a cache; where every token meets all experts",
    "tiny": "widths of 16 and the same assignments: the same operators, with next to nothing to do",
    "threads": "another number of threads",
    "pages": "memory that was given back is kept: no page is touched for the first time",
}
"""The variants, and what each leaves alone and changes."""


class Work(BaseModel):
    """What one call has to do, as the ledger counts it.

    Attributes:
        flops: of matrix products.
        moved_bytes: in and out of all operators.
        existing_bytes: the part of it that was there before the call: weights, tokens, the output's gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops: Annotated[int, Field(ge=0)]
    moved_bytes: Annotated[int, Field(ge=0)]
    existing_bytes: Annotated[int, Field(ge=0)]
