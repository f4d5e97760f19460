"""First touches of memory: they are counted, and what one costs is read off memory that was not there before."""

import json
import mmap
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import pages

MIB = 2**20
FAULTS_OF_CALLS = """
import json, sys, torch
from bench.measure.pages import keep_pages, timed

keeps = sys.argv[1] == "True"


def call() -> None:
    # one block after the other is given back while its neighbours live
    blocks = [torch.ones(10007 * number) for number in range(1, 30)]
    del blocks[::2]
    blocks += [torch.ones(9973 * number) for number in range(1, 30, 2)]


def fails() -> None:
    raise RuntimeError("this call fails")


assert not keeps or keep_pages([call, fails])
print(json.dumps([timed(call).faults for _ in range(40)]))
"""


def test_every_page_that_is_written_to_for_the_first_time_is_counted_once() -> None:
    stretch = mmap.mmap(-1, MIB)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        stretch.madvise(mmap.MADV_NOHUGEPAGE)
    before = pages.num_faults()
    stretch[:] = bytes(MIB)
    between = pages.num_faults()
    stretch[:] = bytes(MIB)
    after = pages.num_faults()
    assert None not in (before, between, after)
    num_pages = MIB // resource.getpagesize()
    first, again = (between or 0) - (before or 0), (after or 0) - (between or 0)
    # the zeros themselves are made anew each time, and touch pages of their own
    assert num_pages <= first <= 3 * num_pages
    assert first - again >= num_pages // 2


def test_a_calls_first_touches_are_counted_beside_its_time() -> None:
    stretch = pages.fresh_memory(MIB)
    first = pages.timed(lambda: stretch.write(bytes(MIB)))
    assert first.faults is not None
    assert first.faults > 0
    assert first.seconds > 0
    assert first.touching_s(pages.PageCost(touch_s=2.0, return_s=5.0)) == 2 * first.faults
    assert first.touching_s(None) == 0


def test_a_first_touch_costs_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "HUGE_PAGES", tmp_path / "absent")
    cost = pages.page_cost()
    assert cost is not None
    assert 0 < cost.touch_s < 1e-3
    assert 0 <= cost.return_s < 1e-3


def test_a_first_touch_has_no_cost_where_pages_may_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "HUGE_PAGES", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert pages.why_no_cost() == ""
    (tmp_path / "enabled").write_text("[always] madvise never\n")
    assert pages.page_cost() is None
    assert pages.why_no_cost().startswith("transparent huge pages are always on")


def test_where_the_system_counts_no_faults_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "resource", None)
    assert pages.num_faults() is None
    assert pages.page_cost() is None
    call = pages.timed(lambda: bytes(MIB))
    assert call.faults is None
    assert call.seconds > 0
    assert call.touching_s(pages.PageCost(1.0, 1.0)) == 0


def test_without_the_c_librarys_switch_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not pages.can_keep_pages()
    assert not pages.keep_pages([])


@pytest.mark.skipif(not pages.can_keep_pages(), reason="this C library cannot be told to keep what is given back")
def test_calls_after_which_memory_is_kept_touch_none_for_the_first_time() -> None:
    faults = {}
    for keeps in (False, True):
        command = [sys.executable, "-c", FAULTS_OF_CALLS, str(keeps)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        faults[keeps] = json.loads(done.stdout)
    assert statistics.mean(faults[True]) < 0.1 * statistics.mean(faults[False])


def test_memory_that_cannot_be_had_is_not_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pages, "available_bytes", lambda: 10 * MIB)
    monkeypatch.setattr(pages, "resident_bytes", iter([0, 100 * MIB]).__next__)
    monkeypatch.setattr(pages, "_touch", lambda _, num_bytes: asked.append(num_bytes))
    library = Library()
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert pages.keep_pages([])
    assert asked == [5 * MIB]
    assert library.orders == {pages.M_MMAP_MAX: 0, pages.M_TRIM_THRESHOLD: -1}, "-1 is never; else a size, as an int"


class Library:
    """A C library that takes every order and does nothing."""

    def __init__(self) -> None:
        self.orders: dict[int, int] = {}

    def mallopt(self, order: int, value: int) -> int:
        self.orders[order] = value
        return 1

    def malloc_trim(self, _: int) -> int:
        return 0
