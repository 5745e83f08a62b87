"""What a visitor does on any page, and waits for."""

from pathlib import Path
from typing import Any

import pandas as pd

OUTPUT = Path(__file__).parents[1] / "output"


def settle(page: Any) -> None:
    """Wait until the page has not been running for a while: on a busy machine one run follows another late."""
    page.evaluate("window.idleSince = undefined")
    page.wait_for_function(
        """() => {
            const idle = document.querySelector('.stApp')?.dataset.testScriptState === 'notRunning';
            window.idleSince = idle ? (window.idleSince ?? performance.now()) : undefined;
            return idle && performance.now() - window.idleSince > 600;
        }"""
    )


def picture(page: Any, name: str) -> Path:
    """Keep what the page looks like."""
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png")
    return OUTPUT / f"{name}.png"


def drag(page: Any, points: list[tuple[float, float]], at: int = 0) -> None:
    """Draw an outline on the map number ``at``; points in shares of its width and height."""
    box = page.locator(".chf-stage").nth(at).bounding_box()
    places = [(box["x"] + fx * box["width"], box["y"] + fy * box["height"]) for fx, fy in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def sample(page: Any) -> str:
    """Id of the sample on the Review page."""
    return str(page.locator(".cf-facts b").last.inner_text())


def press(page: Any, key: str) -> str:
    """On the Review page, press a key, wait for another sample, and give the id of the one before."""
    before = sample(page)
    page.keyboard.press(key)
    script = "old => { const b = [...document.querySelectorAll('.cf-facts b')]; return b.at(-1)?.innerText !== old; }"
    page.wait_for_function(script, arg=before)
    settle(page)
    return before


def take_home(page: Any, path: Path) -> pd.DataFrame:
    """On the Review page, download the cleaned table as CSV; its rows by id."""
    page.get_by_text("Export the cleaned dataset").click()
    page.locator(".st-key-export-csv button").wait_for()
    settle(page)
    with page.expect_download() as waiting:
        page.locator(".st-key-export-csv button").click()
    waiting.value.save_as(path)
    return pd.read_csv(path, keep_default_na=False).set_index("id")
