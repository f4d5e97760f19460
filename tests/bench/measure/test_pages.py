"""First touches of memory: they are counted, and what one costs is read off memory that was not there before."""

import mmap
import resource

import pytest

from bench.measure import pages

MIB = 2**20


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


def test_a_first_touch_costs_something() -> None:
    cost = pages.page_cost()
    assert cost is not None
    assert 0 < cost.touch_s < 1e-3
    assert 0 <= cost.return_s < 1e-3


def test_where_the_system_counts_no_faults_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "resource", None)
    assert pages.num_faults() is None
    assert pages.page_cost() is None


def test_without_the_c_librarys_switch_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not pages.can_keep_pages()
    assert not pages.keep_pages()
