"""The Explore page in a real browser, on the bundled dataset: what a visitor does in the first five minutes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from acts import drag, picture, settle

ROOT = Path(__file__).parents[2]
WAIT = 90_000  # ms; the machine may be busy


@pytest.fixture
def visit(open_tab: Any, server: str) -> Any:
    """A function that opens an address in a fresh session and waits until every detector that is on has run."""

    def go(path: str = "/", width: int = 1400, height: int = 900, scheme: str = "light") -> Any:
        page = open_tab(server + path, width, height, scheme)
        page.wait_for_selector(".chf-map[data-paint]")
        page.wait_for_selector(".chf-tile")
        settle(page)
        return page

    return go


def figures(page: Any) -> dict[str, str]:
    text = page.locator(".cf-strip").inner_text()
    lines = [line for line in text.split("\n") if line]
    return dict(zip(lines[1::2], lines[::2], strict=True))


def camera(page: Any) -> list[float]:
    script = (
        "() => { const l = document.querySelector('.chf-plot').layout; return [...l.xaxis.range, ...l.yaxis.range]; }"
    )
    return [float(v) for v in page.evaluate(script)]


def lasso(page: Any, points: list[tuple[float, float]]) -> None:
    page.get_by_label("Select with a lasso").click()
    drag(page, points)


def pick(page: Any, key: str, option: str) -> None:
    """Choose from a menu."""
    page.locator(f".st-key-{key} input").click()
    page.get_by_role("option", name=option, exact=True).click()
    settle(page)


def switch(page: Any, name: str) -> None:
    """Press a detector's switch; one that is off is in an expander, which is opened first."""
    rest = page.locator("[data-testid=stExpander]").filter(has_text=name)
    if rest.count() and rest.locator("details:not([open])").count():
        rest.locator("summary").click()
    page.get_by_text(name, exact=True).click()
    settle(page)


def test_a_deep_link_on_a_fresh_server_opens_the_whole_app(visit: Any, server: str) -> None:
    page = visit("/explore?colour=kind&detectors=knn-label")
    assert page.get_by_text("the grain from the chaff").is_visible()
    assert "colour=kind" in page.url
    assert page.locator(".chf-legend").inner_text().startswith("True kind")
    assert page.get_by_role("switch", name="Neighbour labels").is_checked()
    page.get_by_text("Find foreign pictures").click()
    assert not page.get_by_role("switch", name="Linear separation (LSA)").is_checked()


def test_first_view_and_the_picture_in_the_readme(visit: Any) -> None:
    page = visit()
    shown = figures(page)
    assert shown["samples"] == "12,000"
    assert 3000 < int(shown["flagged"].replace(",", "")) < 8000
    assert float(shown["recall"].rstrip("%")) > 80
    assert page.locator(".chf-tile").count() == 40
    page.wait_for_timeout(1500)  # the last thumbnails
    shot = picture(page, "explore-light")
    if os.environ.get("CHAFFINCH_SCREENSHOT"):
        (ROOT / "assets" / "brand" / "explore.png").write_bytes(shot.read_bytes())


def test_toggles_and_thresholds_keep_zoom_and_selection(visit: Any) -> None:
    page = visit()
    page.get_by_label("Zoom in").click()
    page.wait_for_timeout(600)
    lasso(page, [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)])
    page.wait_for_selector("text=selected")
    settle(page)
    near, before = camera(page), figures(page)
    switch(page, "Neighbour labels")
    page.wait_for_selector(".st-key-cut-knn-label")
    settle(page)
    pick(page, "rule-lsa", "a share of all")
    page.wait_for_selector(".st-key-budget-lsa")
    page.locator(".st-key-budget-lsa").get_by_role("slider").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    settle(page)
    after = figures(page)
    assert camera(page) == near
    assert after["selected"] == before["selected"]
    assert after["flagged"] != before["flagged"]
    assert "lsa%40budget" in page.url or "lsa@budget" in page.url
    again = visit("/" + page.url[page.url.index("?") :])
    now = figures(again)
    assert (now["flagged"], now["precision"]) == (after["flagged"], after["precision"])  # the link gives the same view
    number = [int(figures_["selected"].replace(",", "")) for figures_ in (now, after)]
    assert number[0] == pytest.approx(number[1], rel=0.01)  # its outline has two decimals
    assert again.locator(".chf-outline").get_attribute("d")


def test_selection_fills_the_gallery_and_can_be_downloaded(visit: Any, tmp_path: Path) -> None:
    page = visit()
    lasso(page, [(0.1, 0.1), (0.5, 0.1), (0.5, 0.9), (0.1, 0.9)])
    page.wait_for_selector("text=The selection")
    settle(page)
    selected = int(figures(page)["selected"].replace(",", ""))
    assert 0 < selected < 12_000
    with page.expect_download() as waiting:
        page.get_by_role("button", name=re.compile("CSV")).click()
    waiting.value.save_as(tmp_path / "selection.csv")
    table = pd.read_csv(tmp_path / "selection.csv")
    assert len(table) == selected
    wanted = {"id", "label", "kind", "verdict", "probable_label", "p_clean", "p_mislabelled", "p_ood", "lsa_score"}
    assert wanted | {"lsa_chance", "lsa_flag", "small-loss_suggestion"} <= set(table.columns)
    counts = table["verdict"].value_counts()
    shown = page.locator(".cf-verdict").inner_text().replace(",", "")
    words = {"clean": "clean", "mislabelled": "wrong label", "ood": "foreign"}
    assert all(f"{counts.get(kind, 0)} {word} (" in shown for kind, word in words.items())


def test_the_verdict_colours_the_map_and_fills_the_gallery(visit: Any) -> None:
    page = visit()
    strip = page.locator(".cf-verdict").inner_text()
    counts = {word: int(count.replace(",", "")) for count, word in re.findall(r"([\d,]+) ([a-z ]+) \(", strip)}
    assert set(counts) == {"clean", "wrong label", "foreign"}
    assert sum(counts.values()) == 12_000
    assert min(counts.values()) > 300
    assert "of these judgements are right" in strip

    pick(page, "colour", "verdict")
    page.wait_for_function("() => document.querySelector('.chf-legend').innerText.startsWith('Verdict')", timeout=WAIT)
    pick(page, "show", "Verdict: wrong label")
    page.wait_for_selector(f"text={counts['wrong label']:,} samples, 40 a page")
    first = page.locator(".chf-tile").first
    assert first.get_attribute("data-tone") == "mislabelled"
    assert "→" in first.inner_text()
    page.wait_for_timeout(800)
    picture(page, "verdict-light")
    pick(page, "show", "Verdict: foreign picture")
    page.wait_for_selector(f"text={counts['foreign']:,} samples, 40 a page")
    page.wait_for_selector(".chf-tile[data-tone=ood]")
    assert page.locator(".chf-tile[data-tone=ood]").count() == 40
    assert "colour=verdict" in page.url
    assert "show=ood" in page.url


def test_a_detector_leaves_its_expander_and_returns(visit: Any) -> None:
    page = visit("/?detectors=lsa@own")
    before = figures(page)
    assert page.locator(".st-key-rule-lsa input").input_value() == "the method's own rule"
    switch(page, "Neighbour distance")
    page.wait_for_selector(".st-key-cut-knn-distance")
    settle(page)
    assert page.get_by_role("switch", name="Neighbour distance").is_checked()
    assert not page.locator("[data-testid=stExpander]").filter(has_text="Neighbour distance").count()
    assert "lsa%40own" in page.url or "lsa@own" in page.url
    assert "knn-distance" in page.url
    switch(page, "Neighbour distance")
    page.wait_for_selector(".st-key-cut-knn-distance", state="detached")
    settle(page)
    assert figures(page) == before
    assert page.locator("[data-testid=stExpander]").filter(has_text="Neighbour distance").count() == 1
    assert "knn-distance" not in page.url


def test_a_thumbnail_opens_the_inspector_and_a_neighbour_leads_on(visit: Any) -> None:
    page = visit()
    page.locator(".chf-tile").nth(2).click()
    page.wait_for_selector(".st-key-inspector .cf-bar")
    settle(page)
    inspector = page.locator(".st-key-inspector")
    first = inspector.locator(".cf-facts").inner_text()
    assert "True kind" in first
    assert inspector.locator(".cf-bar").count() == 3, "the verdict's and one a detector"
    assert "if it is in a class" in inspector.locator(".cf-bar").first.inner_text()
    assert "= chance" in inspector.locator(".cf-bar").last.inner_text()
    track = inspector.locator(".cf-track").first
    parts = [part.bounding_box() for part in track.locator("i").all()]
    assert len({round(part["y"]) for part in parts}) == 1, "side by side"
    assert sum(part["width"] for part in parts) == pytest.approx(track.bounding_box()["width"], abs=2)
    assert inspector.locator(".chf-tile").count() == 10
    assert page.locator(".chf-focus").is_visible()
    assert "sample=fw-" in page.url
    page.wait_for_timeout(800)
    picture(page, "inspector-light")
    inspector.locator(".chf-tile").first.click()
    page.wait_for_function(
        "old => document.querySelector('.st-key-inspector .cf-facts')?.innerText !== old", arg=first, timeout=WAIT
    )
    settle(page)
    inspector.get_by_role("button", name="Close").click()
    page.wait_for_selector(".st-key-inspector", state="detached")
    assert "sample=" not in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(visit: Any, scheme: str) -> None:
    page = visit(width=420, height=900, scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    assert page.locator(".chf-map").bounding_box()["width"] <= 420
    picture(page, f"narrow-{scheme}")
    colour = page.evaluate("() => getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    bright = sum(int(v) for v in re.findall(r"\d+", colour)[:3]) > 382
    assert bright == (scheme == "light")
    wide = visit(scheme=scheme)
    picture(wide, f"explore-{scheme}")


def test_another_draw_keeps_what_was_chosen(visit: Any) -> None:
    page = visit("/?dataset=fashion-web:n=500&detectors=lsa,knn-label&colour=knn-label")
    page.get_by_text("Noise: ").click()
    page.get_by_label("Seed of the draw").fill("5")
    page.get_by_role("button", name="Draw again").click()
    page.wait_for_selector("text=have to be embedded first")
    page.wait_for_selector(".chf-map[data-paint]")
    page.wait_for_selector("text=How far to trust this UMAP")
    settle(page)
    assert "seed" in page.url
    switches = {s.get_attribute("aria-label"): s.is_checked() for s in page.get_by_role("switch").all()}
    assert [name for name, on in switches.items() if on] == ["Neighbour labels", "Linear separation (LSA)"]
    assert page.locator(".chf-legend").inner_text().startswith("Suspicion rank")


def test_names_in_a_link_are_never_markup(open_tab: Any, server: str) -> None:
    link = "/?encoder=![x](//evil.example/p.png)&label=![x](//evil.example/q.png)"  # a colon would end the name
    page = open_tab(server + link)  # a tab that asks another host fails the test
    page.wait_for_selector("text=there is no encoder called")
    page.wait_for_timeout(500)


def test_bad_input_is_a_message(visit: Any, browser: Any, server: str) -> None:
    page = browser.new_page()
    page.goto(f"{server}/?dataset=arrays:/nowhere/none.npz")
    page.wait_for_selector("text=cannot be read")
    assert not page.get_by_text("Traceback").count()
    page.close()
