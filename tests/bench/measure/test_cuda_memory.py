"""Peak memory on a GPU, three ways, on a made-up one: torch's allocator, what it reserves, and what the driver gave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench.measure import driver_memory
from bench.measure.energy.errors import MeterError
from bench.measure.memory import measure_peak

MIB = 2**20


class Card:
    """What torch and the driver tell of a card on which a call allocates 10 MiB, out of 32 MiB newly reserved."""

    torch_device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.said: list[str] = []
        self.allocated = self.peak = 100 * MIB
        self.reserved = self.reserved_peak = 164 * MIB
        self.others = 1000 * MIB

    def call(self) -> None:
        self.said.append("call")
        self.peak = self.allocated + 10 * MIB
        self.reserved = 160 * MIB
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def empty_cache(self) -> None:
        self.said.append("empty_cache")
        self.reserved = 128 * MIB

    def reset_peak_memory_stats(self, _: torch.device) -> None:
        self.said.append("reset")
        self.peak, self.reserved_peak = self.allocated, self.reserved

    def synchronize(self) -> None:
        self.said.append("synchronize")

    def identity(self) -> dict[str, str]:
        return {"uuid": "GPU-made-up"}

    def process_bytes(self, process: int) -> int:
        assert process == os.getpid()
        return 300 * MIB + self.reserved


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    for name, value in {
        "memory_allocated": lambda _: made.allocated,
        "memory_reserved": lambda _: made.reserved,
        "max_memory_allocated": lambda _: made.peak,
        "max_memory_reserved": lambda _: made.reserved_peak,
        "mem_get_info": lambda _: (80_000 * MIB - made.reserved - made.others, 80_000 * MIB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def session() -> Iterator[None]:
        made.said.append("nvml")
        yield
        made.said.append("end of nvml")

    monkeypatch.setattr(driver_memory, "session", session)
    monkeypatch.setattr(driver_memory, "find_gpu", lambda _: made)
    return made


def test_each_figure_is_what_the_call_added(card: Card) -> None:
    device: Any = card
    found = measure_peak(card.call, device)
    assert (found.allocator_peak_bytes, found.reserved_peak_bytes, found.os_peak_bytes) == (
        10 * MIB,
        32 * MIB,
        32 * MIB,
    )
    assert found.gaps == {}
    # what happens only once is over, then the cache is emptied, and only then the peaks are begun anew
    assert card.said == [
        "call", "synchronize", "empty_cache", "reset", "nvml", "call", "synchronize", "end of nvml"
    ]  # fmt: skip


def test_what_the_driver_does_not_tell_of_the_process_is_told_of_the_card(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise MeterError("not_supported", "the driver lists 2 processes, and not 7, as in a container")

    monkeypatch.setattr(card, "process_bytes", refuse)
    device: Any = card
    found = measure_peak(card.call, device)
    assert found.os_peak_bytes == 32 * MIB
    assert found.gaps["os_peak_bytes"].startswith("of the whole card, other processes included (not_supported: the dri")


def test_a_driver_that_does_not_answer_leaves_the_figure_of_the_card(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise MeterError("library_absent", "starting NVML: no library")

    monkeypatch.setattr(driver_memory, "session", absent)
    device: Any = card
    found = measure_peak(card.call, device)
    assert found.os_peak_bytes == 32 * MIB
    assert "library_absent" in found.gaps["os_peak_bytes"]
