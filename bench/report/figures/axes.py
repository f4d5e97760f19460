"""What an axis of the sweep is called, how a picture against it is read, and what follows from it."""

from __future__ import annotations

from bench.report.view import CATEGORIES, FIELD_WORDS

_LABELS = {
    "capacity_factor": "capacity factor",
    "num_experts": "number of experts",
    "num_tokens": "number of tokens in a call",
    "top_k": "top-k: experts a token is sent to",
    "routing": "load imbalance: fullest expert over the mean load  (1 is even)",
    "dtype": "number format",
    "cache": "cache",
}
_LARGER_SIZES = (
    "A line that rises less than the work does still pays for calls and small products: larger sizes use this machine "
    "better. Where two lines cross, change the implementation."
)
_ADVICE = {
    "num_experts": "A token's work does not grow with the number of experts, so a rising line pays for every expert, "
    "used or not: take an implementation whose line stays level, or fewer and larger experts.",
    "top_k": "The work grows in proportion to top-k, and a line as steep as that pays for work alone. Where a line is "
    "flatter, a larger top-k is cheap; where it is steeper, try another implementation.",
    "capacity_factor": "Where dropless costs little more than a capacity, take it: nothing is lost. Where a capacity "
    "is much faster, look under Routing at what it drops before taking it.",
    "num_tokens": "Where a line is level, more tokens a call cost next to nothing: batch until it rises in proportion. "
    "Where two lines cross, change the implementation.",
    "d_model": _LARGER_SIZES,
    "d_ff": _LARGER_SIZES,
    "threads": "Stop at the number of threads from which a line no longer falls. A line that rises again has threads "
    "that wait for each other: give it fewer.",
    "routing": "With a skewed router take a line that stays level, or bound the load with a capacity. A line that "
    "rises pads every expert to the fullest, or waits for it.",
    "dtype": "Take the shortest format that is faster here and exact enough for the model: a processor without "
    "instructions for a format is slower in it, however short it is.",
    "direction": "Choose by the direction that you run. Where lines cross, who is first in inference is not first in "
    "training.",
    "cache": "Layers of a model run one after the other and mostly find cold caches: choose by the cold marks, and by "
    "the warm ones only for a layer that is called again and again.",
    "device": "Choose on the device that you will use. Where lines cross, the other one's ranking does not hold.",
}
_THROUGHPUT_ADVICE = (
    "Choose the smallest call that reaches the top of its line: beyond it, a larger call only takes longer."
)


def axis_label(axis: str) -> str:
    """What stands along an axis."""
    return _LABELS.get(axis, axis)


def axis_title(axis: str) -> str:
    """What an axis is called in titles."""
    return {"routing": "load imbalance", "dtype": "number format", "cache": "cache state"}.get(
        axis, FIELD_WORDS.get(axis, axis)
    )


def how_to_follow(axis: str) -> str:
    """The sentence's beginning that says how to read an axis."""
    if axis == "routing":
        return (
            "Each point is one routing, placed by how much fuller it made the fullest expert than the mean; follow one "
            "colour to the right to see what skew costs"
        )
    if axis in CATEGORIES:
        return "Follow one colour from setting to setting; the lines between have no meaning of their own"
    larger = axis_label(axis).split(":")[0]
    return f"Follow one colour from left to right to see what a larger {larger} does"


def advice(axis: str, quantity: str) -> str:
    """What to do about a picture of ``latency`` or ``throughput`` against an axis."""
    return _THROUGHPUT_ADVICE if (quantity, axis) == ("throughput", "num_tokens") else _ADVICE[axis]
