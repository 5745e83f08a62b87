"""The map and the gallery in a real browser: what is drawn, what comes back to Python, what stays over reruns."""

from __future__ import annotations

import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, FLAGS, NO_BROWSER, chromium, free_port, serve
from streamlit.testing.v1 import AppTest

import chaffinch
from chaffinch.base.errors import InputError
from chaffinch.ui.scatter import Colours, inside, scatter_map

WAIT = 60_000  # ms; the machine may be busy
SCRATCH = """
import os, pathlib, time
import numpy as np
import streamlit as st
from chaffinch.thumbnails import make_sheets
from chaffinch.ui.gallery import Tile, gallery
from chaffinch.ui.scatter import Colours, inside, scatter_map

start = time.perf_counter()
st.set_page_config(layout="wide")
N = int(st.query_params.get("n", 12000))

@st.cache_resource
def world(n):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, n)
    turn = label * 2 * np.pi / 10
    xy = np.stack([np.cos(turn), np.sin(turn)], 1) * 8 + rng.normal(0, 1.3, (n, 2))
    images = np.zeros((n, 28, 28, 3), np.uint8)
    images[:, 4:24, 4:24] = rng.integers(0, 255, (n, 1, 1, 3))
    images[np.arange(n), 8 + label, 8:20] = 255
    hover = [f"sample {i}\\n<b>label {c}</b>" for i, c in enumerate(label)]
    return xy.astype(np.float32), label, images, hover, rng.random(n), rng.random(n) < 0.1

xy, label, images, hover, score, flag = world(N)
sheets = make_sheets(images, pathlib.Path(os.environ["SCRATCH_SHEETS"]) / str(N), wait=False)
left, middle, right, other = st.columns(4)
by_score = left.toggle("score")
only_flagged = middle.toggle("emphasis")
second = right.toggle("second")
other.toggle("nothing")
place = st.container()
colours = (Colours(score, title="Suspicion") if by_score
           else Colours(label, names=tuple(f"class {c}" for c in range(10)), title="Given label"))
shown = np.flatnonzero(np.arange(N) % 2 == 0) if st.query_params.get("half") else None
rest = bool(st.query_params.get("rest"))
with place:
    event = scatter_map(xy[:, ::-1] if second else xy, colours, emphasis=flag if only_flagged else None,
                        marked=flag, shown=shown, rest=rest, sheets=sheets, key="map",
                        hover=hover if shown is None else [hover[i] for i in shown],
                        focus=st.session_state.get("open"))
if event.clicked is not None:
    st.session_state["open"] = event.clicked
    st.session_state["clicks"] = st.session_state.get("clicks", 0) + 1
chosen = np.flatnonzero(inside(xy, event.polygon))
tones = ("", "flag", "clean", "mislabelled", "ood")
picked = gallery([Tile(int(i), f"class {label[i]} with a long name", f"score {score[i]:.2f}", tones[k % 5])
                  for k, i in enumerate(chosen[:40])], sheets, key="gallery", selected=st.session_state.get("open"))
if picked is not None:
    st.session_state["open"] = picked
    st.rerun()
gallery([Tile(1, "a title without picture", tone="ood")], None, key="bare")
st.session_state["runs"] = st.session_state.get("runs", 0) + 1
st.text(f"runs={st.session_state['runs']} open={st.session_state.get('open')} clicked={event.clicked} "
        f"clicks={st.session_state.get('clicks', 0)} "
        f"vertices={0 if event.polygon is None else len(event.polygon)} chosen={len(chosen)} "
        f"ms={1000 * (time.perf_counter() - start):.0f}.")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("scratch"), free_port()
    (folder / "app.py").write_text(SCRATCH, encoding="utf-8")
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1", "--browser.gatherUsageStats=false",
                "--server.baseUrlPath=deep/below", "--server.fileWatcherType=none"]  # fmt: skip
    log, sheets = folder / "log.txt", str(folder / "sheets")
    with serve(command, port, log, path="/deep/below", cwd=folder, SCRATCH_SHEETS=sheets) as url:
        yield url
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip(NO_BROWSER)
    with chromium() as chrome:
        yield chrome


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(WAIT)
    tab = context.new_page()
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    yield tab
    errors = tab.errors
    context.close()
    assert errors == []


def visit(page: Any, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(".chf-map[data-paint]")
    page.wait_for_selector("text=/runs=/")


def report(page: Any) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\w+)", page.locator("text=/runs=/").first.inner_text()))


def until(page: Any, true: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    deadline = time.monotonic() + WAIT / 1000
    while not true(now := report(page)):
        assert time.monotonic() < deadline, now
        page.wait_for_timeout(50)
    return now


def camera(page: Any) -> list[float]:
    ranges = page.evaluate(
        "() => { const l = document.querySelector('.chf-plot').layout; return [...l.xaxis.range, ...l.yaxis.range]; }"
    )
    return [float(v) for v in ranges]


def counts(page: Any) -> list[int]:
    """Points in the grey, the coloured and the outlined layer."""
    return page.evaluate(
        "() => document.querySelector('.chf-plot').data.map(t => t.x.filter(v => !Number.isNaN(v)).length)"
    )


def toggle(page: Any, name: str) -> None:
    before = page.locator(".chf-map").get_attribute("data-runs")
    page.get_by_text(name, exact=True).click()
    page.wait_for_function("old => document.querySelector('.chf-map').dataset.runs !== old", arg=before, timeout=WAIT)


def stage(page: Any) -> tuple[float, float, float, float]:
    box = page.locator(".chf-stage").bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def drag(page: Any, points: list[tuple[float, float]]) -> None:
    x, y, w, h = stage(page)
    page.mouse.move(x + points[0][0] * w, y + points[0][1] * h)
    page.mouse.down()
    for fx, fy in points[1:]:
        page.mouse.move(x + fx * w, y + fy * h, steps=4)
    page.mouse.up()


def wheel(page: Any, fx: float, fy: float, amount: int) -> None:
    x, y, w, h = stage(page)
    page.mouse.move(x + fx * w, y + fy * h)
    for _ in range(abs(amount) // 100):  # plotly zooms by at most 10 % a wheel event
        page.mouse.wheel(0, 100 if amount > 0 else -100)
    page.wait_for_timeout(800)


@pytest.mark.browser
def test_zoom_stays_when_colours_and_emphasis_change(page: Any, server: str) -> None:
    visit(page, server)
    home = camera(page)
    aspect = (home[1] - home[0]) / (home[3] - home[2])
    _, _, w, h = stage(page)
    assert aspect == pytest.approx(w / h, rel=0.02)
    wheel(page, 0.7, 0.4, -600)
    near = camera(page)
    assert near[1] - near[0] < 0.8 * (home[1] - home[0])
    assert sum(counts(page)) == 12000
    assert counts(page)[0] == 0
    toggle(page, "score")
    assert camera(page) == near
    toggle(page, "emphasis")
    assert camera(page) == near
    grey, coloured, outlined = counts(page)
    assert (sum([grey, coloured, outlined]), coloured) == (12000, 0)  # nobody vanishes; flagged = emphasised here
    assert 1000 < outlined < 1400
    assert page.locator(".chf-legend").inner_text().startswith("Suspicion")
    for _ in range(8):  # reruns that overtake each other
        page.get_by_text("score", exact=True).click(no_wait_after=True)
    toggle(page, "emphasis")
    page.wait_for_timeout(1500)
    assert camera(page) == near
    toggle(page, "second")  # other positions: a new camera
    assert camera(page) != near


@pytest.mark.browser
def test_a_lasso_comes_back_as_a_polygon_and_stays(page: Any, server: str) -> None:
    visit(page, server)
    page.get_by_label("Select with a lasso").click()
    drag(page, [(0.5, 0.3), (0.9, 0.3), (0.9, 0.9), (0.55, 0.8), (0.5, 0.35)])
    now = until(page, lambda r: r["vertices"] != "0")
    chosen = int(now["chosen"])
    assert 0 < chosen < 12000
    page.wait_for_timeout(1000)
    assert sum(counts(page)[1:]) == pytest.approx(chosen, abs=2)  # browser and numpy agree on who is inside
    toggle(page, "score")
    assert int(until(page, lambda r: True)["chosen"]) == chosen
    assert page.locator(".chf-outline").get_attribute("d")
    assert sum(counts(page)[1:]) == pytest.approx(chosen, abs=2)
    wheel(page, 0.7, 0.5, -300)  # the wheel zooms under the lasso tool as well
    page.keyboard.press("Escape")
    until(page, lambda r: r["vertices"] == "0" and r["chosen"] == "12000")
    assert page.locator(".chf-outline").get_attribute("d") == ""
    page.get_by_label("Select with a box").click()
    drag(page, [(0.3, 0.3), (0.6, 0.7)])
    until(page, lambda r: r["vertices"] == "4")
    toggle(page, "second")
    until(page, lambda r: r["vertices"] == "0")
    assert page.locator(".chf-outline").get_attribute("d") == ""
    toggle(page, "second")  # and back: the old outline does not return
    until(page, lambda r: r["vertices"] == "0")


@pytest.mark.browser
@pytest.mark.parametrize("half", [False, True])
def test_hover_shows_a_card_and_a_click_returns_the_position(page: Any, server: str, half: bool) -> None:
    visit(page, f"{server}/?half=1" if half else server)
    page.get_by_label("Zoom in").click()
    page.wait_for_timeout(500)
    x, y, w, h = stage(page)
    card = page.locator(".chf-card")
    for k in range(400):  # wander until a point is under the pointer
        spot = (x + w * (0.3 + 0.4 * (k % 20) / 20), y + h * (0.2 + 0.6 * (k // 20) / 20))
        page.mouse.move(*spot)
        if card.is_visible():
            break
    page.wait_for_function("() => document.querySelector('.chf-card canvas').width === 28", timeout=WAIT)
    title, label = card.inner_text().split("\n")[:2]
    index = int(title.removeprefix("sample "))
    assert not half or index % 2 == 0
    assert re.fullmatch(r"<b>label \d</b>", label)  # text, never markup
    white = page.evaluate(
        """() => { const c = document.querySelector('.chf-card canvas');
                   const p = c.getContext('2d').getImageData(10, 0, 1, 28).data;
                   return [...Array(28).keys()].filter(r => p[4*r] + p[4*r+1] + p[4*r+2] === 765); }"""
    )
    assert white == [8 + int(re.findall(r"\d", label)[0])]  # the picture is that sample's
    page.mouse.down()
    page.mouse.up()
    now = until(page, lambda r: r["open"] != "None")
    assert (now["open"], now["clicked"]) == (str(index), str(index))
    toggle(page, "nothing")
    now = until(page, lambda r: r["clicked"] == "None")
    assert (now["clicks"], now["open"]) == ("1", str(index))
    assert page.locator(".chf-focus").is_visible()


@pytest.mark.browser
def test_samples_that_are_no_points_are_a_density_picture(page: Any, server: str) -> None:
    """Half of the samples are points; the other half lies beneath them, moves with them, and is selected with them."""
    sent: list[str] = []
    page.on("response", lambda r: sent.append(r.url) if r.url.endswith(".png") else None)
    visit(page, f"{server}/?half=1&rest=1")
    assert sum(counts(page)) == 6000
    drawn = haze(page)
    assert drawn["inked"] > 0.05
    assert drawn["coloured"] > 0.75  # every class has a colour, if one of them a dull one
    wheel(page, 0.5, 0.5, -400)
    near = haze(page)
    assert near["inked"] != drawn["inked"], "it moves with the camera"
    page.get_by_label("Show all points").click()
    page.wait_for_timeout(600)
    assert haze(page) == pytest.approx(drawn, abs=0.01)

    page.get_by_label("Select with a box").click()
    drag(page, [(0.5, 0.05), (0.99, 0.95)])
    now = until(page, lambda r: r["vertices"] == "4")
    inside_points = sum(counts(page)[1:])
    assert int(now["chosen"]) > 1.8 * inside_points > 1000, "those beneath are selected too"
    cut = haze(page)
    assert cut["inked"] == pytest.approx(drawn["inked"], abs=0.01)
    assert cut["left"] < 0.05 < 0.5 < cut["right"], "outside of the outline it is grey"
    page.keyboard.press("Escape")
    until(page, lambda r: r["vertices"] == "0")
    assert haze(page)["left"] > 0.5
    before = len([url for url in sent if "sheet-" not in url])
    toggle(page, "emphasis")
    assert haze(page)["coloured"] < 0.6, "grey where it is not flagged"
    assert len([url for url in sent if "sheet-" not in url]) == before + 1


def haze(page: Any) -> dict[str, float]:
    """Share of the density picture that is inked; of that, the share in colour: of all, and of each half."""
    return page.evaluate(
        """() => { const c = document.querySelector('.chf-haze');
                   const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                   const n = {all: [0, 0], left: [0, 0], right: [0, 0]};
                   for (let i = 0; i < p.length; i += 4) {
                     if (p[i + 3] < 20) continue;
                     const tinted = Math.max(p[i], p[i+1], p[i+2]) - Math.min(p[i], p[i+1], p[i+2]) > 30;
                     const side = (i / 4) % c.width < 0.48 * c.width ? 'left' : 'right';
                     for (const of of [n.all, n[side]]) { of[0]++; of[1] += tinted; }
                   }
                   return {inked: n.all[0] / (c.width * c.height), coloured: n.all[1] / n.all[0],
                           left: n.left[1] / n.left[0], right: n.right[1] / n.right[0]}; }"""
    )


@pytest.mark.browser
def test_a_gallery_tile_is_clicked_and_reached_by_keys(page: Any, server: str) -> None:
    visit(page, server)
    tiles = page.locator(".chf-gallery").first.locator(".chf-tile")
    tiles.nth(3).click()
    until(page, lambda r: r["open"] == tiles.nth(3).get_attribute("data-index"))
    page.wait_for_selector('.chf-tile[data-index="3"][aria-pressed="true"]')
    tiles.nth(3).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    until(page, lambda r: r["open"] == "4")
    assert tiles.nth(1).get_attribute("aria-label").endswith("flagged")
    bare = page.locator(".chf-gallery").nth(1).locator(".chf-tile")
    assert bare.inner_text().startswith("a title without picture")


@pytest.mark.browser
def test_assets_are_fetched_once_and_the_theme_is_followed(page: Any, server: str) -> None:
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    visit(page, server)
    assert sum("plotly.min.js" in url for url in fetched) == 1
    fetched.clear()
    toggle(page, "score")
    toggle(page, "emphasis")
    assert not [url for url in fetched if "sheet-" not in url and not url.startswith("blob:")]
    light = page.evaluate("() => document.querySelector('.chf-plot').data[0].marker.color")
    fetched.clear()
    page.reload()
    page.wait_for_selector(".chf-map[data-paint]")
    assert not [url for url in fetched if "plotly.min.js" in url]  # from the browser's cache storage
    page.emulate_media(color_scheme="dark")  # Streamlit's default theme is the system's
    page.wait_for_function(
        "old => document.querySelector('.chf-plot').data[0].marker.color !== old", arg=light, timeout=WAIT
    )


@pytest.mark.browser
def test_the_points_are_seen_before_plotly_is_there(browser: Any, server: str) -> None:
    tab = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    tab.route("**/plotly.min.js*", lambda route: None)  # never answered
    tab.goto(server)
    tab.wait_for_selector(".chf-map[data-seen]", timeout=WAIT)
    inked = tab.evaluate(
        """() => { const c = document.querySelector('.chf-still');
                   const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                   return p.filter((v, i) => i % 4 === 3 && v > 0).length / (c.width * c.height); }"""
    )
    assert 0.02 < inked < 0.9
    assert tab.locator(".chf-legend").inner_text().startswith("Given label")
    assert tab.locator(".chf-map[data-paint]").count() == 0
    tab.get_by_label("Zoom in").click()  # not there yet, and no error either
    tab.context.close()


@pytest.mark.browser
def test_without_webgl_there_are_words(browser: Any, server: str) -> None:
    with_none = browser.browser_type.launch(executable_path=BROWSER, args=[*FLAGS, "--disable-3d-apis"])
    page = with_none.new_page()
    page.goto(server)
    page.wait_for_selector("text=offers no WebGL", timeout=WAIT)
    with_none.close()


def test_the_manifest_names_the_folder() -> None:
    root = Path(chaffinch.__file__).parent
    manifest = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert manifest["project"]["name"] == "chaffinch"
    for entry in manifest["tool"]["streamlit"]["component"]["components"]:
        assert (root / entry["asset_dir"] / f"{entry['name']}.js").is_file()


def test_inside_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(500, 2)).astype(np.float32)
    polygon = rng.normal(size=(9, 2))  # crosses itself
    expected = []
    for x, y in xy.astype(float):
        odd = False
        for (x1, y1), (x2, y2) in pairwise([*polygon, polygon[0]]):
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                odd = not odd
        expected.append(odd)
    np.testing.assert_array_equal(inside(xy, polygon), expected)
    assert 20 < sum(expected) < 480
    np.testing.assert_array_equal(inside(xy[::-1], polygon[::-1]), expected[::-1])


def test_inside_of_many_is_that_of_its_parts() -> None:
    xy = np.random.default_rng(1).normal(size=(40_000, 2)).astype(np.float32)
    polygon = np.random.default_rng(2).normal(size=(7, 2))
    parts = [inside(part, polygon) for part in np.array_split(xy, 9)]
    np.testing.assert_array_equal(inside(xy, polygon), np.concatenate(parts))


def test_inside_limits() -> None:
    xy = np.array([[0.5, 0.5], [2, 2], [np.nan, 0.5]])
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert inside(xy, square).tolist() == [True, False, False]
    assert inside(xy, None).all()  # no selection
    assert not inside(xy, square[:2]).any()
    assert inside(np.empty((0, 2)), square).shape == (0,)


def test_the_page_runs_without_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_SHEETS", str(tmp_path))
    app = AppTest.from_string(SCRATCH, default_timeout=60)
    app.query_params["n"] = "300"
    app.run()
    app.toggle[0].set_value(True).run()
    assert not app.exception
    assert "chosen=300" in app.text[0].value


def test_wrong_lengths_are_named() -> None:
    xy = np.zeros((3, 2), np.float32)
    with pytest.raises(InputError, match="marked must have 3 entries, got 2"):
        scatter_map(xy, Colours(np.zeros(3)), marked=np.zeros(2, bool), key="m")
    with pytest.raises(InputError, match="hover must have 2 entries, got 3"):
        scatter_map(xy, Colours(np.zeros(3)), shown=np.array([0, 2]), hover=["a", "b", "c"], key="m")
