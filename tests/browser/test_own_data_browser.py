"""Somebody's own pictures in a real browser: a zip is dropped, embedded and judged, decided by keyboard, taken home."""

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from acts import picture, press, settle
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
    page.get_by_text("Export the cleaned dataset").click()
    page.locator(".st-key-export-csv button").wait_for()
    settle(page)
    with page.expect_download() as waiting:
        page.locator(".st-key-export-csv button").click()
    waiting.value.save_as(tmp_path / "cleaned.csv")
    table = pd.read_csv(tmp_path / "cleaned.csv", keep_default_na=False).set_index("id")
    assert len(table) == count
    assert table.loc[list(made), "action"].to_dict() == made
    assert set(table.loc[list(made), "action_by"]) == {"decision"}
