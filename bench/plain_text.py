"""Text from results and from other people's code, made fit to be shown: one line, and nothing that a terminal obeys.

A name or a reason in a log may hold anything: escape sequences that clear the screen or rewrite what stands above,
marks that turn the reading direction, line breaks that look like another message. None of it is needed to read it.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: controls, invisible marks of format and direction, halves of characters, separators of lines."""
SHOWN_AS = "\N{REPLACEMENT CHARACTER}"
FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula."""


def one_line(text: str) -> str:
    """The text with white space made plain spaces, and with a replacement character for what cannot be seen."""
    return text if text.isprintable() else printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The same, but with its line breaks: for messages that are several lines long."""
    if text.isprintable():
        return text
    return "".join(
        SHOWN_AS if character != "\n" and unicodedata.category(character) in HARMFUL else character
        for character in text.expandtabs(4)
    )


def cell(text: str) -> str:
    """The text as a spreadsheet's cell: an apostrophe keeps it from being computed."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) else line


def name(text: str) -> str:
    """The text itself, if it is a name that can be shown as it is.

    Raises:
        ValueError: it is empty or has characters in it that cannot be seen.
    """
    if not text or "\n" in text or printable(text) != text:
        raise ValueError(f"should be a name without line breaks and control characters, found {ascii(text)[:80]}")
    return text


Line = Annotated[str, AfterValidator(one_line)]
Name = Annotated[str, AfterValidator(name)]
