"""A report that is open in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

AUDIT = (Path(__file__).parent / "page_audit.js").read_text(encoding="utf-8")


class Page:
    """An open report: what a test does to it and reads from it."""

    def __init__(self, driver: Chrome, index: Path) -> None:
        self.driver = driver
        self.index = index

    def open(self, *, width: int = 1200, colours: str = "light", javascript: bool = True) -> None:
        self.prefer(colours)
        phone = {"width": width, "height": 812, "deviceScaleFactor": 2, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not javascript})
        self.driver.get(self.index.as_uri())

    def prefer(self, colours: str) -> None:
        """What the reader's system says of colours."""
        features = [
            {"name": "prefers-color-scheme", "value": colours},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def next_frame(self) -> None:
        """Waits until the page has been told of a change of its surroundings, which happens before a frame is drawn."""
        self.driver.execute_async_script("requestAnimationFrame(arguments[0]);")

    def audit(self, call: str) -> list[str]:
        found: list[str] = self.js(f"{AUDIT}\nreturn {call};")
        return found

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def column(self, name: str, *, shown_only: bool = False) -> list[str]:
        """Texts of one column of the table of every row, as it stands."""
        texts: list[str] = self.js(
            """const table = document.getElementById("rows");
            const at = Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.dataset.name === arguments[0]);
            return Array.from(table.tBodies[0].rows).filter((row) => !arguments[1] || row.checkVisibility())
              .map((row) => row.cells[at].textContent);""",
            name,
            shown_only,
        )
        return texts

    def complaints(self) -> list[str]:
        """What the console said, and every request that was not for a file or inside the page, since last asked."""
        said = [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        opened = ("Network.requestWillBeSent", "Network.webSocketCreated")
        asked = [event["params"] for event in events if event["method"] in opened]
        addresses = [one["request"]["url"] if "request" in one else one["url"] for one in asked]
        return said + [f"request: {address}" for address in addresses if not address.startswith(("file:", "data:"))]
