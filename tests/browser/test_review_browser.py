"""The Review page in a real browser: decide with the keyboard only, undo, reload; two tabs; what it looks like."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from acts import picture, press, sample, settle, take_home
from scenes import planted, put

from chaffinch.data import open_dataset
from chaffinch.reviews import Reviews

WAIT = 90_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def served(start_app: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    home = tmp_path_factory.mktemp("review") / "home"
    return start_app(CHAFFINCH_HOME=str(home)), home / "reviews.sqlite"


@pytest.fixture
def kept(served: tuple[str, Path]) -> Any:
    """A function that gives the decisions in force, by id, in words; there are none at first."""
    digest = open_dataset("fashion-web").digest
    for suffix in ("", "-wal", "-shm"):
        served[1].with_name(served[1].name + suffix).unlink(missing_ok=True)
    store = Reviews(served[1])
    return lambda: {k: str(s.decision) for k, s in store.states(digest).items() if s.decision}


@pytest.fixture
def visit(open_tab: Any, served: tuple[str, Path], kept: Any) -> Any:
    """A function that opens the page in a fresh session and waits until it has a sample to decide about."""

    def go(path: str = "/review", width: int = 1400, height: int = 900, scheme: str = "light") -> Any:
        page = open_tab(served[0] + path, width, height, scheme)
        page.wait_for_selector(".st-key-decide")
        page.wait_for_selector(".chf-tile")
        settle(page)
        return page

    return go


def test_with_the_keyboard_only(visit: Any, kept: Any) -> None:
    page = visit()
    keys = ("k", "d", "l", "u", "s", "1")
    rather = {}
    ids = []
    for key in keys:
        rather[key] = page.locator(".cf-title b").last.inner_text()
        ids.append(press(page, key))
    first = open_dataset("fashion-web").observed.classes[0]
    expected = {ids[0]: "keep", ids[1]: "drop", ids[2]: f"relabel → {rather['l']}", ids[3]: "unsure"}
    assert kept() == {**expected, ids[5]: f"relabel → {first}"}
    press(page, "z")
    assert sample(page) == ids[5], "undo shows the sample again"
    assert kept() == expected
    page.reload()
    page.wait_for_selector(".st-key-decide")
    settle(page)
    assert kept() == expected
    assert "4 of 4," in page.locator("[data-testid=stProgress]").inner_text()
    for name in ("unsure", "relabel", "drop", "keep"):
        assert page.locator("[class*=st-key-recent]").filter(has_text=name).count() == 1
    undone = len(expected)
    while undone:
        page.keyboard.press("z")
        undone -= 1
        page.wait_for_function(
            "n => document.querySelectorAll('[class*=st-key-recent]').length === n", arg=undone, timeout=WAIT
        )
        settle(page)
        assert len(kept()) == undone


def test_a_key_pressed_twice_in_haste_decides_nothing_unseen(visit: Any, kept: Any) -> None:
    page = visit()
    first = sample(page)
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.wait_for_function(
        "old => [...document.querySelectorAll('.cf-facts b')].at(-1)?.innerText !== old", arg=first, timeout=WAIT
    )
    settle(page)
    assert kept() == {first: "keep"}
    assert not page.get_by_text("Nothing of yours was kept yet").count()


def test_two_people_on_one_workspace(visit: Any, kept: Any) -> None:
    ann, bob = visit(), visit()
    for page, name in ((ann, "ann"), (bob, "bob")):
        page.locator(".st-key-who input").fill(name)
        page.locator(".st-key-who input").press("Enter")
        settle(page)
        page.mouse.click(700, 20)  # out of the field: letters are keys again
    first = sample(ann)
    assert sample(bob) == first
    press(ann, "d")
    bob.keyboard.press("k")
    bob.wait_for_selector("text=Nothing of yours was kept yet")
    settle(bob)
    assert kept() == {first: "drop"}
    assert "ann decided drop" in bob.locator(".st-key-conflict").inner_text()
    picture(bob, "review-conflict")
    bob.get_by_role("button", name="Put mine in its place").click()
    bob.wait_for_selector(".st-key-conflict", state="detached")
    settle(bob)
    assert kept() == {first: "keep"}


def test_many_together(visit: Any, kept: Any) -> None:
    page = visit("/review?queue=ood")
    page.get_by_text("24 together").click()
    page.wait_for_function("() => document.querySelectorAll('.chf-tile').length === 24", timeout=WAIT)
    settle(page)
    page.locator(".chf-tile").nth(3).click()
    page.wait_for_selector("text=left out")
    settle(page)
    page.get_by_role("button", name=re.compile("Drop 23")).wait_for()
    picture(page, "review-many")
    page.mouse.click(700, 20)
    page.keyboard.press("d")
    page.wait_for_selector("text=and 22 more")
    settle(page)
    assert len(kept()) == 23
    assert set(kept().values()) == {"drop"}
    page.keyboard.press("z")
    page.wait_for_selector("text=and 22 more", state="detached")
    settle(page)
    assert kept() == {}


def test_the_cleaned_table_can_be_downloaded(visit: Any, tmp_path: Path) -> None:
    page = visit()
    gone = press(page, "d")
    table = take_home(page, tmp_path / "cleaned.csv")
    assert len(table) == 12_000
    assert table.loc[gone, ["action", "action_by", "final_label"]].tolist() == ["drop", "decision", ""]
    assert (table["action"] == "drop").sum() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(visit: Any, scheme: str) -> None:
    page = visit(width=420, scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    buttons = page.locator(".st-key-decide button:visible, .st-key-classes button:visible")
    boxes = [button.bounding_box() for button in buttons.all()]
    assert len(boxes) >= 13
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 420 for box in boxes)
    assert boxes[0]["y"] < 900, "the first buttons are on the first screen"
    picture(page, f"review-narrow-{scheme}")
    picture(visit(scheme=scheme), f"review-{scheme}")


def test_copies_are_looked_for_when_their_queue_is_chosen(
    browser: Any, served: tuple[str, Path], tmp_path: Path
) -> None:
    query = {"dataset": put(tmp_path / "planted", planted()), "map": "pca", "queue": "leaks"}
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"{served[0]}/review?{urlencode(query)}")
    page.wait_for_selector(".cf-copies img")  # after two jobs: embedding, and the checks
    settle(page)
    assert page.locator(".cf-why").inner_text() == "also in the test set: test/a/leak.png, identical"
    for width in (1400, 420):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        boxes = [figure.bounding_box() for figure in page.locator(".cf-copies figure").all()]
        assert len(boxes) == 2
        assert boxes[0]["y"] == boxes[1]["y"], "side by side"
        assert boxes[1]["x"] + boxes[1]["width"] <= width
        for name in ("Copies", "In test set", "Odd", "Unsure"):
            box = page.locator(".st-key-queue").get_by_text(name, exact=True).bounding_box()
            assert box["x"] + box["width"] <= width, f"{name} is in sight"
        picture(page, f"review-leaks-{width}")
    page.context.close()
