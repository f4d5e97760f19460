"""Every router and every implementation has its section in the documentation, with all its parts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from impls.registry import ENTRIES
from impls.spec import ROUTERS

DOCS = Path(__file__).parents[2] / "docs"


def sections(page: str, level: str) -> dict[str, str]:
    """The text under every heading of a level, up to the next heading."""
    parts = re.split(r"^(#+) (.+)$", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title: text for mark, title, text in zip(*(parts[i::3] for i in (1, 2, 3)), strict=True) if mark == level}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_implementation_has_its_section(name: str) -> None:
    text = sections("implementations.md", "###").get(name, "")
    parts = ("Idea.", "Formula.", "Cost.", "Wins.", "Loses.")
    assert [part for part in parts if not re.search(rf"^\* \*\*{part}\*\* \S", text, re.MULTILINE)] == []


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_has_its_section(name: str) -> None:
    text = sections("routers.md", "##").get(name, "")
    parts = ("Idea.", "Formula.", "Source.", "Cost.", "Used by.", "Prefer it where", "Beware:")
    assert [part for part in parts if not re.search(rf"^\* \*\*{part}\*\* \S", text, re.MULTILINE)] == []
    example = tomllib.loads("\n".join(re.findall(r"^    (.+)$", text, re.MULTILINE)))
    assert example["router"] == name


def test_no_section_is_of_something_that_is_gone() -> None:
    assert set(sections("implementations.md", "###")) == set(ENTRIES)
