"""Somebody's own pictures in a real browser: a zip is dropped, embedded and judged, decided by keyboard, taken home."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from acts import picture, press, settle, take_home
from planted import plant


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_from_a_dropped_archive_to_a_cleaned_table(server: str, open_tab: Any, tmp_path: Path, count: int) -> None:
    plant(tmp_path / "birds", count)
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        for path in sorted((tmp_path / "birds").rglob("*.png")):
            archive.write(path, str(path.relative_to(tmp_path)))

    page = open_tab(server, wait=180_000)
    page.wait_for_selector(".chf-map[data-paint]")
    page.locator(".st-key-source input").click()
    page.get_by_role("option", name="Data of your own").click()
    page.locator(".st-key-archive input[type=file]").set_input_files(tmp_path / "birds.zip")
    page.get_by_text(f"{count:,} pictures; 28 × 28 pixels, grey").wait_for()
    page.wait_for_selector(".chf-map[data-paint]")
    page.wait_for_selector(".chf-tile")
    settle(page)
    picture(page, "own-data")

    page.get_by_role("link", name="Review").click()
    page.wait_for_selector(".st-key-decide")
    settle(page)
    page.keyboard.press("Escape")
    made = {press(page, key): action for key, action in (("d", "drop"), ("k", "keep"), ("l", "relabel"))}
    table = take_home(page, tmp_path / "cleaned.csv")
    assert len(table) == count
    assert table.loc[list(made), "action"].to_dict() == made
    assert set(table.loc[list(made), "action_by"]) == {"decision"}
