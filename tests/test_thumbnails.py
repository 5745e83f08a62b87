"""Sprite sheets: every picture is where the plan says, sheets are made once and only when asked for."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.thumbnails import Sheets, make_sheets, picture_png


def tile(sheets: Sheets, i: int) -> np.ndarray:
    """Cut picture ``i`` out of its sheet, by the rule in the module's docstring."""
    sheet = np.asarray(Image.open(sheets.path(i // sheets.per_sheet)))
    row, column = divmod(i % sheets.per_sheet, sheets.columns)
    y, x = row * sheets.height, column * sheets.width
    return sheet[y : y + sheets.height, x : x + sheets.width]


@pytest.mark.parametrize("shape", [(1203, 28, 28), (510, 9, 14, 3), (1, 64, 64, 3), (26, 1, 5)])
def test_each_small_picture_is_found_unchanged(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    sheets = make_sheets(images, tmp_path)
    assert (sheets.height, sheets.width) == shape[1:3]
    for i in {0, shape[0] // 2, shape[0] - 1, min(499, shape[0] - 1), min(500, shape[0] - 1)}:
        np.testing.assert_array_equal(tile(sheets, i), images[i])


def test_large_pictures_shrink_to_64_and_keep_their_shape(tmp_path: Path) -> None:
    images = np.zeros((3, 100, 200, 3), dtype=np.uint8)
    images[1, :, :100] = (255, 0, 0)
    sheets = make_sheets(images, tmp_path)
    assert (sheets.width, sheets.height) == (64, 32)
    assert tile(sheets, 1)[:, :32].reshape(-1, 3).tolist() == [[255, 0, 0]] * 1024
    assert not tile(sheets, 1)[:, 32:].any()


def test_sheets_are_made_only_when_asked_for_and_once(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2100, 8, 8), dtype=np.uint8)
    sheets = make_sheets(images, tmp_path, wait=False)
    assert json.loads((tmp_path / "sheets.json").read_text()) == sheets.plan()
    assert not list(tmp_path.glob("sheet-*.png"))
    sheets.ensure([3, 499, 1600])
    assert [p.name for p in sorted(tmp_path.glob("*.png"))] == ["sheet-0000.png", "sheet-0003.png"]
    before = sheets.path(0).stat().st_mtime_ns
    sheets.fill()
    deadline = time.monotonic() + 30
    while not all(sheets.path(n).exists() for n in range(5)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sheets.path(0).stat().st_mtime_ns == before
    assert make_sheets(images, tmp_path) == sheets


def test_another_size_replaces_the_sheets(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (30, 32, 32), dtype=np.uint8)
    make_sheets(images, tmp_path)
    sheets = make_sheets(images, tmp_path, size=16)
    assert tile(sheets, 29).shape == (16, 16)


def test_no_pictures(tmp_path: Path) -> None:
    sheets = make_sheets(np.zeros((0, 28, 28), dtype=np.uint8), tmp_path)
    assert sheets.total == 0
    sheets.fill()


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 4, 4), (4,)])
def test_other_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="pictures must be"):
        make_sheets(np.zeros(shape, dtype=np.uint8), tmp_path)


def test_an_index_outside_is_refused(tmp_path: Path) -> None:
    sheets = make_sheets(np.zeros((3, 4, 4), dtype=np.uint8), tmp_path, wait=False)
    with pytest.raises(InputError, match="there are 3"):
        sheets.ensure([3])


def test_one_picture_grows_by_whole_pixels_or_shrinks() -> None:
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    large = np.asarray(Image.open(io.BytesIO(picture_png(image, 300))))
    np.testing.assert_array_equal(large, image.repeat(10, axis=0).repeat(10, axis=1))
    small = Image.open(io.BytesIO(picture_png(np.zeros((400, 200, 3), np.uint8), 100)))
    assert small.size == (50, 100)


@pytest.mark.parametrize("shape", [(9, 28, 28), (9, 100, 60, 3)])
def test_a_strip_holds_the_asked_pictures_in_order(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    sheets = make_sheets(images, tmp_path)
    strip = np.asarray(Image.open(io.BytesIO(sheets.strip([7, 0, 7]))))
    assert strip.shape[:2] == (sheets.height, 3 * sheets.width)
    for place, i in enumerate([7, 0, 7]):
        assert np.array_equal(strip[:, place * sheets.width : (place + 1) * sheets.width], tile(sheets, i))


def test_pictures_in_files_are_decoded_once_for_a_page_and_a_sheet_at_a_time(tmp_path: Path) -> None:
    class Store:
        shape, ndim, dtype = (1200, 8, 8), 3, np.dtype(np.uint8)
        whole = np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)
        asked: list[int] = []

        def __getitem__(self, rows):
            found = self.whole[rows]
            self.asked.append(len(found))
            return found

    store = Store()
    sheets = make_sheets(store, tmp_path)
    assert store.asked == [500, 500, 200]
    np.testing.assert_array_equal(tile(sheets, 1100), store.whole[1100])
    strips = {sheets.strip([7, 1100, 3]) for _ in range(3)}
    assert store.asked == [500, 500, 200, 3]
    strip = np.asarray(Image.open(io.BytesIO(strips.pop())))
    np.testing.assert_array_equal(strip, np.concatenate(store.whole[[7, 1100, 3]], axis=1))
