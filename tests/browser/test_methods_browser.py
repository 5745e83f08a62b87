"""The Methods page in a real browser, by keyboard: find a method, read its card, try it."""

from __future__ import annotations

from typing import Any

import pytest
from acts import picture, settle

WAIT = 90_000  # ms; the machine may be busy


@pytest.fixture
def visit(open_tab: Any, server: str) -> Any:
    """A function that opens an address in a fresh session and waits for the cards."""

    def go(path: str, width: int = 1400, scheme: str = "light") -> Any:
        page = open_tab(server + path, width, scheme=scheme)
        page.wait_for_selector("[class*=st-key-card-] button")
        settle(page)
        return page

    return go


def drawn(page: Any) -> None:
    """Wait until the figure of the open card is there."""
    page.wait_for_selector(".st-key-method-scores .js-plotly-plot .scatterlayer path")
    page.wait_for_selector(".st-key-method-map canvas")
    settle(page)
    page.wait_for_timeout(800)


def held(page: Any, selector: str) -> bool:
    """Is the keyboard in there?"""
    return bool(page.evaluate("s => Boolean(document.activeElement.closest(s))", selector))


def test_find_read_and_try_by_keyboard(visit: Any) -> None:
    page = visit("/methods")
    assert page.locator("[class*=st-key-card-] button").count() > 5
    page.get_by_label("Search").focus()
    page.keyboard.type("neighbour")
    page.keyboard.press("Enter")
    page.wait_for_selector(".st-key-card-lsa", state="detached")
    assert "search=neighbour" in page.url
    page.locator(".st-key-card-knn-label button").focus()
    page.keyboard.press("Enter")
    drawn(page)
    assert "method=knn-label" in page.url
    page.wait_for_function("() => document.activeElement.closest('.st-key-method')")  # not lost with the grid
    card = page.locator(".st-key-method")
    assert card.locator(".katex").count()
    assert not card.locator(".katex-error").count()
    assert card.get_by_role("link", name="arXiv").get_attribute("href") == "https://arxiv.org/abs/2110.06283"
    assert card.locator(".cf-quality b").count() == 3
    picture(page, "methods-light")
    page.locator(".st-key-card-knn-distance button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".st-key-method h3:has-text('Neighbour distance')")
    drawn(page)
    assert held(page, ".st-key-card-knn-distance")  # in the list it stays where it was
    page.get_by_role("button", name="Try it on Explore").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".chf-map[data-paint]")
    page.wait_for_selector(".st-key-cut-knn-distance")
    assert page.get_by_role("switch", name="Neighbour distance").is_checked()
    assert "knn-distance" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_link_on_a_phone_shows_the_card(visit: Any, scheme: str) -> None:
    page = visit("/methods?method=simifeat&filters=mislabelled", width=420, scheme=scheme)
    drawn(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    page.wait_for_function(
        "() => { const y = document.querySelector('.st-key-method h3').getBoundingClientRect().y;"
        " return y > 0 && y < 500; }"
    )
    for part in (".st-key-method-map", ".st-key-method-scores", ".st-key-method pre"):
        box = page.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 420
    picture(page, f"methods-narrow-{scheme}")
