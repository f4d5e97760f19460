"""Drives a report in headless Chromium as a reader would; skips itself where there is no Chromium to drive."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install --group tests")

from analysis_maker import Report
from open_page import AUDIT, Page
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from bench.analysis.model import Analysis
from bench.report import write_report

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers give no namespaces, and the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
SECONDS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("needs Chromium and its driver: apt install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(service)) as started:
        started.get("about:blank")  # the browser's own first page asks for much
        yield started


@pytest.fixture(scope="module")
def shown(whole_report: Report) -> Analysis:
    return whole_report.analysis


@pytest.fixture(scope="module")
def index(whole_report: Report) -> Path:
    return whole_report.page


@pytest.fixture
def page(driver: Chrome, index: Path) -> Iterator[Page]:
    """The report, freshly opened; whatever a test does to it, the console and the network stay silent."""
    page = Page(driver, index)
    page.complaints()
    page.open()
    yield page
    assert page.complaints() == []


def number(text: str) -> float | None:
    """The number that a cell begins with, None where it is empty."""
    if text == "dropless":
        return float("inf")
    found = re.match(r"[-\d.,e+]+", text)
    return float(found[0].replace(",", "")) if found else None


def test_watch_sees_what_a_page_logs_and_asks_for(driver: Chrome, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.html"
    faulty.write_text("<title>t</title><img src='http://127.0.0.1:1/x.png'><script>nothing()</script>", "utf-8")
    page = Page(driver, faulty)
    page.open()
    complaints = "\n".join(page.complaints())
    assert "request: http://127.0.0.1:1/x.png" in complaints
    assert "nothing is not defined" in complaints


def test_audit_finds_what_it_looks_for(driver: Chrome, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.html"
    faulty.write_text(
        "<title>t</title><meta name=viewport content='user-scalable=no'><style>:focus { outline: none }</style>"
        "<h1>a</h1><h3 style='color: #999; background: #fff'>b</h3><a href='#no'>c</a><button tabindex=2>d</button>",
        "utf-8",
    )
    page = Page(driver, faulty)
    page.open()
    found = "\n".join(page.audit("structureFaults().concat(lowContrast('*'))"))
    for words in ("skips a level", "dead link", "jumps the tab order", "0 of <main>", "cannot be enlarged", "2.85"):
        assert words in found
    page.js(f"{AUDIT}\nwatchFocus(); window.faults = focusFaults;")
    ActionChains(driver, duration=0).send_keys(Keys.TAB).perform()
    faults = "\n".join(page.js("return faults();"))
    assert "focus not visible: <button" in faults
    assert "never reached: <a" in faults
    page.complaints()


@pytest.mark.parametrize("name", ["latency_s", "capacity_factor", "peak_memory_bytes", "dropped_fraction"])
def test_click_sorts_numbers_by_value_with_empty_cells_last(page: Page, name: str) -> None:
    before = page.column(name)
    heading = page.one(f"#rows th[data-name={name}]")
    for direction in ("ascending", "descending"):
        heading.find_element(By.TAG_NAME, "button").click()
        after = page.column(name)
        known = [value for text in after if (value := number(text)) is not None]
        assert heading.get_attribute("aria-sort") == direction
        assert known == sorted(known, reverse=direction == "descending")
        assert len(set(known)) > 1
        assert all(number(text) is None for text in after[len(known) :])
        assert sorted(after) == sorted(before)
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_keys_sort_as_clicks_do(page: Page) -> None:
    press = page.one("#rows th[data-name=impl] button")
    press.send_keys(Keys.ENTER)
    assert page.column("impl") == sorted(page.column("impl"))
    press.send_keys(Keys.SPACE)
    assert page.column("impl") == sorted(page.column("impl"), reverse=True)
    assert page.one("#rows th[data-name=impl]").get_attribute("aria-sort") == "descending"
    assert page.driver.switch_to.active_element == press


def test_filters_narrow_the_rows_together_and_say_how_many_are_left(page: Page, shown: Analysis) -> None:
    total = len(shown.frame)
    words, status = page.one("#filter-words"), page.one("#filter-count")
    assert status.aria_role == "status"  # announced when it changes
    assert status.text == f"{total} of {total} rows"
    words.send_keys("scatter DROPLESS")
    dropless = shown.frame.query("impl == 'scatter_gather' and capacity_factor == 'none'")
    assert page.column("impl", shown_only=True) == ["scatter_gather"] * len(dropless)
    assert set(page.column("capacity_factor", shown_only=True)) == {"dropless"}
    assert status.text == f"{len(dropless)} of {total} rows"
    words.send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    page.one("#filter-impl").send_keys("loop")
    page.one("#filter-status").send_keys("timeout")
    late = shown.frame.query("impl == 'loop' and status == 'timeout'")
    assert page.column("reason", shown_only=True) == list(late["reason"])
    page.one("#rows th[data-name=impl] button").click()
    assert status.text == f"{len(late)} of {total} rows"
    assert len(page.column("impl", shown_only=True)) == len(late) > 0
    words.send_keys("no such row")
    assert page.column("impl", shown_only=True) == []
    assert status.text == f"0 of {total} rows"


def best_rows(page: Page, section: str = "choose") -> dict[str, list[str]]:
    """Implementation to the cells of its best configuration, those without one left out."""
    rows: list[list[str]] = page.js(
        """return Array.from(document.querySelectorAll(`#${arguments[0]} .best tbody tr.fits`),
           (row) => Array.from(row.cells, (cell) => cell.textContent));""",
        section,
    )
    return {impl: cells for impl, *cells in rows}


def test_sliders_without_a_limit_leave_the_best_of_everybody(page: Page, shown: Analysis) -> None:
    best = shown.frame.groupby("impl")["tokens_per_s"].max().to_dict()
    rates = {impl: number(cells[-1]) for impl, cells in best_rows(page).items()}
    assert rates == pytest.approx(best, rel=0.006)  # the page prints three digits
    assert list(rates) == sorted(best, key=lambda impl: -best[impl])
    assert page.one("#limit-latency-value").text == "no limit"


@pytest.mark.parametrize(
    ("which", "column", "units"), [("latency", "latency_s", SECONDS), ("memory", "peak_memory_bytes", BYTES)]
)
def test_slider_by_key_leaves_what_fits_its_limit(
    page: Page, shown: Analysis, which: str, column: str, units: dict[str, float]
) -> None:
    slider, output = page.one(f"#limit-{which}"), page.one(f"#limit-{which}-value")
    least, kept = shown.frame.groupby("impl")[column].min(), len(best_rows(page))
    slider.send_keys(Keys.HOME)
    assert set(best_rows(page)) == set(least[least <= least.min() * 1.001].index)
    slider.send_keys(Keys.END)
    assert len(best_rows(page)) == kept
    for _ in range(6):
        slider.send_keys(Keys.ARROW_LEFT * 30)
        amount, unit = output.text.split()
        limit = float(amount.replace(",", "")) * units[unit]
        assert slider.get_attribute("aria-valuetext") == output.text
        rates = {impl: number(cells[-1]) or 0.0 for impl, cells in best_rows(page).items()}
        assert set(least[least < 0.99 * limit].index) <= set(rates) <= set(least[least < 1.01 * limit].index)
        assert len(rates) <= kept
        for impl, rate in rates.items():  # the limit is printed to three digits
            own = shown.frame[shown.frame["impl"] == impl]
            assert rate <= own[own[column] < 1.01 * limit]["tokens_per_s"].max() * 1.006
            surely = own[own[column] < 0.99 * limit]["tokens_per_s"]
            assert surely.empty or rate >= surely.max() * 0.994
        kept = len(rates)
        assert page.one("#choose [role=status]").text.startswith(f"{kept} of {len(least)} ")
    assert kept < len(least)


def test_pinned_setting_holds_in_every_best_row(page: Page) -> None:
    menus = page.driver.find_elements(By.CSS_SELECTOR, "#choose select")
    names = [menu.accessible_name.strip() for menu in menus]
    at = names.index("experts")
    menus[at].send_keys("128")
    assert {cells[at] for cells in best_rows(page).values()} == {"128"}
    assert "einsum" not in best_rows(page)  # ran out of memory there


def test_pictures_change_by_arrow_key(page: Page) -> None:
    figures = page.driver.find_elements(By.CSS_SELECTOR, ".tabs:first-of-type > figure")[:2]
    assert [figure.is_displayed() for figure in figures] == [True, False]
    page.one(".tabs > input:checked").send_keys(Keys.ARROW_RIGHT)
    assert [figure.is_displayed() for figure in figures] == [False, True]


def ground(page: Page) -> str:
    colour: str = page.js("return getComputedStyle(document.body).backgroundColor;")
    return colour


def ink(page: Page) -> str:
    """Fill of a picture's title."""
    colour: str = page.js("return getComputedStyle(document.querySelector('figure svg text')).fill;")
    return colour


def test_colours_follow_the_system_until_the_reader_chooses(page: Page) -> None:
    light, light_ink = ground(page), ink(page)
    page.prefer("dark")
    page.next_frame()
    dark, dark_ink = ground(page), ink(page)
    assert light != dark
    assert light_ink != dark_ink
    toggle = page.one("#theme")
    assert toggle.accessible_name == "Change to light colours"
    toggle.send_keys(Keys.ENTER)
    assert (ground(page), ink(page)) == (light, light_ink)
    assert toggle.accessible_name == "Change to dark colours"
    page.prefer("light")
    page.next_frame()
    toggle.click()
    assert (ground(page), ink(page)) == (dark, dark_ink)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page: Page, colours: str) -> None:
    page.open(colours=colours)
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    # profiles, compiled rows and rows that are not supported are among it
    assert page.js("return document.querySelectorAll('#profiles svg, #compiled table').length;") > 6
    assert "unsupported" in page.column("status")
    assert page.audit("lowContrast('*')") == []


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_went_wrong_is_as_readable(
    driver: Chrome, analysis_factory: Callable[..., Analysis], tmp_path: Path
) -> None:
    full = analysis_factory(experts=(8, 128), top_ks=(8,), capacities=("none", 1.0))
    control = dataclasses.replace(full.control, passed=False, sentence="The control failed: twins differed by 9 %.")
    page = Page(driver, write_report([dataclasses.replace(full, control=control, finished=False)], tmp_path))
    page.complaints()
    for colours in ("light", "dark"):
        page.open(width=375, colours=colours)
        assert "The control failed" in page.one(".alert + .alert").text
        page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
        assert page.audit("structureFaults().concat(lowContrast('*'))") == []
        assert page.js("return document.scrollingElement.scrollWidth;") == 375
    assert page.complaints() == []


@pytest.mark.parametrize("width", [320, 375])
def test_phone_scrolls_wide_things_in_their_own_box_only(page: Page, width: int) -> None:
    page.open(width=width)
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    assert page.js("return [innerWidth, document.scrollingElement.scrollWidth];") == [width, width]
    boxes = page.driver.find_elements(By.CSS_SELECTOR, ".scroll, .picture")
    wide = [box for box in boxes if page.js("return arguments[0].scrollWidth > arguments[0].clientWidth;", box)]
    assert page.one(".scroll:has(#rows)") in wide
    for box in wide:
        assert page.js("const own = arguments[0]; own.scrollLeft = 50; return own.scrollLeft;", box) > 0


@pytest.mark.usefixtures("undrawn")
def test_several_runs_have_sliders_of_their_own(
    driver: Chrome, analysis_factory: Callable[..., Analysis], tmp_path: Path
) -> None:
    runs = [analysis_factory(experts=(8,), capacities=("none",), run_id=run_id) for run_id in ("one", "two")]
    page = Page(driver, write_report(runs, tmp_path))
    page.complaints()
    page.open(width=375)
    first = best_rows(page)
    page.one("#run2-limit-latency").send_keys(Keys.HOME)
    assert len(best_rows(page, "run2-choose")) == 1 < len(first)
    assert best_rows(page) == first
    assert page.audit("structureFaults().concat(lowContrast('*'))") == []
    assert page.js("return document.scrollingElement.scrollWidth;") == 375
    assert page.complaints() == []


def test_structure_is_what_assistive_technology_expects(page: Page) -> None:
    assert page.audit("structureFaults()") == []
    assert page.js("return document.documentElement.lang;") == "en"
    assert page.driver.title


def test_everything_that_is_not_text_has_a_name(page: Page) -> None:
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if not node["ignored"]
    ]
    spoken = {"button", "combobox", "image", "link", "navigation", "radio", "region", "searchbox", "slider"}
    spoken.add("DisclosureTriangle")  # Chromium's word for a summary
    assert spoken <= {role for role, _ in named}
    assert [role for role, name in named if role in spoken and not name] == []


def test_keyboard_reaches_every_control_in_order_and_shows_where_it_is(page: Page) -> None:
    page.js(f"{AUDIT}\nwatchFocus(); window.audit = {{ stops, focusFaults }};")
    num_stops = page.js("return audit.stops().length;")
    ActionChains(page.driver, duration=0).send_keys(Keys.TAB).perform()
    first = page.driver.switch_to.active_element
    assert first.text == "Skip to the answer"
    assert first.rect["x"] >= 0
    ActionChains(page.driver, duration=0).send_keys(Keys.TAB * (num_stops + 20)).perform()
    assert page.js("return audit.focusFaults();") == []
    page.js("arguments[0].focus();", first)
    ActionChains(page.driver, duration=0).send_keys(Keys.ENTER).perform()
    assert page.driver.current_url.endswith("#answer")


def test_page_without_javascript_has_every_row_and_no_dead_control(page: Page, shown: Analysis) -> None:
    page.open(javascript=False, colours="dark")
    assert len(page.column("impl", shown_only=True)) == len(shown.frame)
    assert not page.one("#filters").is_displayed()
    assert not page.one("#theme").is_displayed()
    assert not page.one("#choose input").is_displayed()
    assert "need JavaScript" in page.one("#choose").text
    assert page.audit("lowContrast('p, li, td, th')") == []
