"""Sentences about what a user got wrong: where, what was found, what is allowed, and the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

EXPECTED = {
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be a text",
    "model_type": "should be a table",
    "tuple_type": "should be a list of tables",
    "too_short": "should have at least one value",
}


def nearest(word: str, options: Iterable[str]) -> str:
    """``; did you mean 'loop'?`` for the option that is close to ``word``, else an empty text."""
    matches = get_close_matches(word.lower(), list(options), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def fault(message: str) -> PydanticCustomError:
    """An error for a pydantic validator to raise, with exactly this message."""
    return PydanticCustomError("moebench", "{message}", {"message": message})


def unknown(found: object, options: Sequence[str]) -> PydanticCustomError:
    """The error for a value that is none of ``options``, with the nearest of them."""
    return fault(f"should be one of {', '.join(options)}{nearest(str(found), options)}")


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every fault of a document that ``model`` refused, one sentence each, in the document's order."""
    return [_sentence(details, model) for details in error.errors(include_url=False)]


def _sentence(details: ErrorDetails, model: type[BaseModel]) -> str:
    location = details["loc"]
    place = _place(location)
    if details["type"] == "extra_forbidden":
        allowed = _keys(model, location[:-1])
        what = "table" if len(location) == 1 and isinstance(details["input"], dict | list) else "key"
        return f"{place}: no such {what}; allowed are {', '.join(allowed)}{nearest(str(location[-1]), allowed)}"
    if details["type"] == "missing":
        return f"{place}: is missing"
    expected = EXPECTED.get(details["type"], details["msg"].removeprefix("Input "))
    return f"{place}: found {details['input']!r}, {expected}"


def _place(location: tuple[int | str, ...]) -> str:
    """``[layer] top_k``, or ``[[exclude]] 2, top_k`` for the second of several tables."""
    if len(location) == 1:
        return str(location[0])
    table, *rest = location
    if isinstance(rest[0], int):
        return ", ".join([f"[[{table}]] {rest[0] + 1}", *map(str, rest[1:2])])
    return f"[{table}] {rest[0]}"


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed in the table at ``location``."""
    for name in location:
        if isinstance(name, str):
            annotation = model.model_fields[name].annotation
            candidates = (annotation, *get_args(annotation))
            model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
