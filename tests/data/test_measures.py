"""What is read off pictures: light, contrast, blur, the size of the original, and marks and sketches of copies."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scenes import scene

from chaffinch.data.measures import BATCH, SIDE, WINDOW, blurriness, measure
from chaffinch.data.pictures import inner, open_pictures


def stack(*pictures: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(p) for p in pictures])


def stored(*pictures: Image.Image):
    sources = []
    for picture in pictures:
        picture.save(stream := io.BytesIO(), "PNG")
        sources.append(stream.getvalue())
    stamps = np.array([[len(s), i] for i, s in enumerate(sources)], np.int64)
    return open_pictures(sources, [f"p{i}" for i in range(len(sources))], stamps).pictures


def slow_blur(picture: np.ndarray) -> float:
    """The formula in plain loops, along both axes."""
    worst = -np.inf
    for F in (picture.astype(float), picture.astype(float).T):
        total = lost = 0.0
        for line in F:
            padded = np.concatenate([[line[0]] * (WINDOW // 2), line, [line[-1]] * (WINDOW // 2)])
            B = [np.mean(padded[i : i + WINDOW]) for i in range(len(line))]
            for i in range(1, len(line)):
                sharp, soft = abs(line[i] - line[i - 1]), abs(B[i] - B[i - 1])
                total += sharp
                lost += max(0.0, sharp - soft)
        worst = max(worst, 1 - lost / total)
    return worst


class TestBlur:
    def test_agrees_with_loops(self):
        pictures = stack(scene(0), scene(1).filter(ImageFilter.GaussianBlur(2)))
        np.testing.assert_allclose(blurriness(pictures.astype(np.float32)), [slow_blur(p) for p in pictures], rtol=1e-5)

    def test_rises_with_blur_and_does_not_see_contrast(self):
        rising = blurriness(
            stack(*(scene(0).filter(ImageFilter.GaussianBlur(r)) for r in (0, 0.7, 1, 2))).astype(np.float32)
        )
        assert (np.diff(rising) > 0.02).all()
        grey = stack(scene(0)).astype(np.float32)
        np.testing.assert_allclose(blurriness(grey / 9 + 30), blurriness(grey), rtol=1e-4)

    def test_known_answers(self):
        step = np.zeros((1, 5, 8), np.float32)
        step[..., 4:] = 9  # an edge becomes three thirds of it
        np.testing.assert_allclose(blurriness(step), 1 - (9 - 3) / 9)
        assert np.isnan(blurriness(np.full((1, 6, 6), 5, np.float32))).all()
        assert np.isnan(blurriness(np.zeros((2, 2, 2), np.float32))).all()


class TestMeasure:
    def test_values_of_plain_arrays(self):
        images = stack(*map(scene, range(3)))
        found = measure(images)
        np.testing.assert_allclose(found.contrast, images.reshape(3, -1).std(axis=1), rtol=1e-5)
        np.testing.assert_allclose(found.dark, np.quantile(images.reshape(3, -1), 0.01, axis=1), atol=3)
        np.testing.assert_allclose(found.light, np.quantile(images.reshape(3, -1), 0.99, axis=1), atol=3)
        assert found.size.tolist() == [[48, 48]] * 3
        assert found.sketch.shape == (3, SIDE * SIDE)
        small = images[1].reshape(16, 3, 16, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(found.sketch[1].reshape(16, 16), small, atol=1)

    def test_marks_are_equal_where_all_pixels_are(self):
        images = stack(scene(0), scene(1), scene(0), scene(0))
        images[3, 0, 0] ^= 1
        mark = measure(images).mark
        assert mark[0] == mark[2]
        assert len(set(mark.tolist())) == 3

    def test_colour_counts_as_it_is_seen(self):
        red = np.zeros((1, 10, 10, 3), np.uint8)
        red[..., 0] = 200
        assert measure(red).light[0] == pytest.approx(0.299 * 200, abs=0.01)

    def test_the_size_is_that_of_the_original_and_the_black_beside_it_does_not_count(self):
        wide = Image.new("L", (300, 30), 200)
        found = measure(stored(wide, scene(1, 60, 90)))
        assert found.size.tolist() == [[30, 300], [60, 90]]
        assert found.dark[0] == found.light[0] == 200
        assert found.contrast[0] == 0

    def test_a_picture_that_cannot_be_decoded_has_no_values(self, monkeypatch):
        pictures = stored(scene(0), scene(1), scene(2))
        pictures.sources[1] = pictures.sources[1][:300]
        found = measure(pictures)
        assert found.seen.tolist() == [True, False, True]
        assert np.isnan([found.dark[1], found.light[1], found.blur[1]]).all()

    def test_progress_and_batches(self):
        images, told = np.random.default_rng(0).integers(0, 256, (BATCH + 3, 8, 8), dtype=np.uint8), []
        whole, part = measure(images, told.append), measure(images[BATCH:])
        assert told == [pytest.approx(BATCH / (BATCH + 3)), 1.0]
        np.testing.assert_array_equal(whole.mark[BATCH:], part.mark)
        np.testing.assert_array_equal(whole.blur[BATCH:], part.blur)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 112))
def test_inner_lies_in_the_tile_and_touches_two_sides(height, width, side):
    rows, columns = inner((height, width), (side, side))
    tall, wide = rows.stop - rows.start, columns.stop - columns.start
    assert 0 <= rows.start < rows.stop <= side
    assert 0 <= columns.start < columns.stop <= side
    assert max(tall, wide) == side
    assert inner((0, 0), (side, side)) == (slice(0, side), slice(0, side))
