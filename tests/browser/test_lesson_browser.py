"""The Lesson page in a real browser: the line turns, the epochs play, and all of it fits a narrow screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from acts import picture
from made_lesson import write

ROOT = Path(__file__).parents[2]
WAIT = 120_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def server(start_app: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lesson")
    for name in ("brand", "fashion-web"):
        (folder / "assets").mkdir(exist_ok=True)
        (folder / "assets" / name).symlink_to(ROOT / "assets" / name)
    write(folder / "assets" / "experiments")
    return start_app(CHAFFINCH_THREADS="1", CHAFFINCH_ASSETS=str(folder / "assets"))


@pytest.fixture
def visit(open_tab: Any, server: str) -> Any:
    """A function that opens the page in a fresh session and waits for its maps."""

    def go(width: int = 1400, scheme: str = "light", query: str = "") -> Any:
        page = open_tab(f"{server}/lesson{query}", width, 1400, scheme, wait=WAIT)
        page.wait_for_function("() => document.querySelectorAll('.chf-map[data-paint]').length === 2", timeout=WAIT)
        page.wait_for_selector("#run-it-yourself")
        return page

    return go


AUROC = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(({ data }) => data)
  .filter(({ mode }) => mode === 'text').map(({ text }) => `${text}`)[0]"""


def test_the_line_is_turned_by_the_slider_without_the_server(visit: Any) -> None:
    page = visit()
    best = float(re.search(r"[\d.]+", page.evaluate(AUROC))[0])
    page.locator(".slider-rail-rect").scroll_into_view_if_needed()
    rail = page.locator(".slider-rail-rect").bounding_box()
    y = rail["y"] + rail["height"] / 2
    page.mouse.move(rail["x"] + rail["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(rail["x"] + rail["width"], y, steps=5)
    page.mouse.up()
    page.wait_for_function(f"best => Number(({AUROC})().match(/[\\d.]+/)[0]) < best - 0.3", arg=best)
    assert page.get_by_text("line turned by 90°").count() == 1


def test_the_truth_of_one_picture_is_told_by_a_click(visit: Any) -> None:
    page = visit()
    tile = page.locator(".chf-gallery").first.locator(".chf-tile").first
    assert tile.get_attribute("data-tone") == ""
    tile.click()
    page.wait_for_selector(".chf-gallery >> nth=0 >> .chf-tile:not([data-tone=''])")
    page.get_by_text("Show the truth").click()
    page.wait_for_function(
        "() => !document.querySelector('.chf-gallery').querySelector(\".chf-tile[data-tone='']\")", timeout=WAIT
    )


def test_the_epochs_play(visit: Any) -> None:
    page = visit(query="?epoch=2")
    assert page.get_by_text("Epoch 2 of 6:").count() == 1
    paint = "() => [...document.querySelectorAll('.chf-map')].pop().dataset.paint"
    before = page.evaluate(paint)
    page.locator(".st-key-lesson-play button").click()
    page.wait_for_selector("text=Epoch 6 of 6:")
    page.wait_for_selector(".st-key-lesson-play >> text=Play")
    assert page.evaluate(paint) != before
    page.wait_for_function("() => new URL(location).searchParams.get('epoch') === '6'")
    assert page.get_by_text("Epoch 6 of 6:").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(visit: Any, scheme: str) -> None:
    page = visit(width=420, scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    assert all(box["width"] <= 420 for box in (m.bounding_box() for m in page.locator(".chf-map").all()))
    page.set_viewport_size({"width": 420, "height": 10_000})
    picture(page, f"lesson-narrow-{scheme}")
