"""The Compare page in a real browser: maps move and select together, a picked bar fills the gallery."""

from __future__ import annotations

from typing import Any

import pytest
from acts import drag, picture

WAIT = 180_000  # ms; the machine may be busy
VIEW = "/compare?dataset=fashion-web&detectors=knn-label,lsa,small-loss"


@pytest.fixture
def visit(open_tab: Any, server: str) -> Any:
    """A function that opens an address in a fresh session and waits for that many maps."""

    def go(path: str, maps: int, width: int = 1400, scheme: str = "light") -> Any:
        page = open_tab(server + path, width, 2600, scheme, wait=WAIT)
        drawn(page, maps)
        return page

    return go


def drawn(page: Any, maps: int) -> None:
    """Wait until so many maps are drawn and the page is not running any more."""
    page.wait_for_function(
        "n => document.querySelectorAll('.chf-map[data-paint]').length === n", arg=maps, timeout=WAIT
    )
    page.wait_for_timeout(1000)
    page.wait_for_function(
        "() => document.querySelector('.stApp')?.dataset.testScriptState === 'notRunning'", timeout=WAIT
    )


def cameras(page: Any) -> list[list[float]]:
    script = """() => [...document.querySelectorAll('.chf-plot')].map(({ layout: { xaxis, yaxis } }) =>
                [...xaxis.range, ...yaxis.range].map(Number))"""
    found: list[list[float]] = page.evaluate(script)
    return found


def together(page: Any) -> list[float]:
    """The camera, once all maps have the same one."""
    page.wait_for_function(
        """() => { const all = [...document.querySelectorAll('.chf-plot')].map((e) => e.layout.xaxis.range.map(Number));
                   return all.every((r) => r.every((v, k) => Math.abs(v - all[0][k]) < 1e-6)); }""",
        timeout=WAIT,
    )
    return cameras(page)[0]


def test_maps_move_and_select_together_and_a_bar_fills_the_gallery(visit: Any) -> None:
    page = visit(VIEW, 3)
    home = together(page)
    assert home == pytest.approx(cameras(page)[2])
    drag(page, [(0.3, 0.5), (0.6, 0.6)])  # one is moved
    page.wait_for_function(
        "x => Math.abs(document.querySelectorAll('.chf-plot')[2].layout.xaxis.range[0] - x) > 1", arg=home[0]
    )
    moved = together(page)
    assert moved[0] - home[0] == pytest.approx(-0.3 * (home[1] - home[0]), rel=0.05)
    page.get_by_label("Zoom in").nth(2).click()  # another is zoomed
    page.wait_for_function(
        "w => { const r = document.querySelector('.chf-plot').layout.xaxis.range; return r[1] - r[0] < 0.7 * w; }",
        arg=home[1] - home[0],
    )
    together(page)

    page.get_by_label("Select with a box").nth(1).click()  # the tool is in hand on all
    assert page.get_by_label("Select with a box").nth(0).get_attribute("aria-pressed") == "true"
    drag(page, [(0.25, 0.3), (0.75, 0.8)])
    outlines = page.locator(".chf-outline")
    assert len({outlines.nth(i).get_attribute("d") for i in range(3)} - {""}) == 1
    page.wait_for_selector("text=of the selection")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=of the selection", state="detached")
    assert {outlines.nth(i).get_attribute("d") for i in range(3)} == {""}

    gallery = page.locator(".st-key-contrast-gallery .chf-tile")
    before = gallery.first.get_attribute("data-index")
    column = page.locator(".st-key-overlaps .nsewdrag").first.bounding_box()
    page.mouse.click(column["x"] + column["width"] * 2.5 / 7, column["y"] + 12)  # high above the third, short bar
    page.wait_for_function("() => new URL(location).searchParams.get('contrast')?.startsWith('exactly:')", timeout=WAIT)
    page.wait_for_function(
        "old => document.querySelector('.st-key-contrast-gallery .chf-tile').dataset.index !== old",
        arg=before,
        timeout=WAIT,
    )
    assert page.locator("text=/Flagged by .*, by no other/").is_visible()
    gallery.first.click()
    page.wait_for_selector(".st-key-inspector .cf-bar")
    assert page.locator(".chf-focus").nth(2).is_visible()


def test_the_view_goes_along_to_another_page_and_back(visit: Any) -> None:
    page = visit(f"{VIEW}&outline=-6,-6 6,-6 6,6 -6,6", 3)
    page.get_by_role("link", name="Explore").click()
    drawn(page, 1)
    assert page.locator(".chf-outline").get_attribute("d")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !location.search.includes('outline')", timeout=WAIT)
    page.get_by_role("link", name="Compare").click()
    drawn(page, 3)
    assert not page.locator(".chf-outline").first.get_attribute("d")
    assert "knn-label" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_maps_are_stacked(visit: Any, scheme: str) -> None:
    page = visit(VIEW, 3, width=420, scheme=scheme)
    boxes = [page.locator(".chf-map").nth(i).bounding_box() for i in range(3)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert all(box["width"] <= 420 for box in boxes)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    picture(page, f"compare-narrow-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_four_maps_are_drawn_without_losing_a_context(visit: Any, scheme: str) -> None:
    page = visit(VIEW + ",confident-learning", 4, scheme=scheme)
    page.wait_for_timeout(1000)
    assert not page.get_by_text("graphics context was lost").count()
    picture(page, f"compare-{scheme}")
