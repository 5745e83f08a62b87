"""What is drawn of too many samples: which are points, and the density picture of the rest, cell by cell."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chaffinch.figures import palette
from chaffinch.figures.map import scatter
from chaffinch.figures.thinning import DENSEST, FAINTEST, density, thin, told

RED, BLUE = "#FF0000", "#0000FF"


class TestThin:
    def test_all_are_drawn_up_to_the_limit(self):
        assert thin(np.zeros(10, bool), most=10) is None
        assert len(thin(np.zeros(11, bool), most=10, points=4)) == 4

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60), st.data())
    def test_flagged_first_then_the_most_suspicious(self, samples, data):
        flagged, score = (np.array(column) for column in zip(*samples, strict=True))
        points = data.draw(st.integers(1, len(flagged) - 1))
        kept = thin(flagged, score.astype(float), most=1, points=points)
        assert len(kept) == points
        assert (np.diff(kept) > 0).all()
        chosen = np.isin(np.arange(len(flagged)), kept)
        keys = sorted(zip(flagged.tolist(), score.tolist(), strict=True), reverse=True)
        assert sorted(zip(flagged[chosen].tolist(), score[chosen].tolist(), strict=True), reverse=True) == keys[:points]

    def test_without_suspicion_the_rest_is_a_seeded_draw(self):
        flagged = np.arange(1000) < 100
        one, again = (thin(flagged, most=1, points=300) for _ in range(2))
        other = thin(flagged, most=1, points=300, seed=1)
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()
        assert one[:100].tolist() == list(range(100))
        assert 450 < one[100:].mean() < 650, "from all over the dataset"


class TestTold:
    def test_how_many_which_and_what_an_outline_selects(self):
        flagged = np.arange(100) < 30
        words = told(100, np.arange(20), flagged)
        assert words.startswith(
            "Showing 20 of 100 points: the most suspicious (20 of 30 flagged ones); the rest as dens"
        )
        assert "An outline selects all samples inside it, drawn or not" in words
        assert "(all 30 flagged ones)" in told(100, np.arange(40), flagged)
        assert "the most suspicious; the rest" in told(100, np.arange(40), np.zeros(100, bool))
        assert "a random draw; the rest" in told(100, np.arange(40), np.zeros(100, bool), ranked=False)

    def test_nothing_where_all_are_drawn(self):
        assert told(100, None, np.zeros(100, bool)) == ""


class TestDensity:
    def test_worked_by_hand(self):
        """Two cells a side: two below left (one of them grey), three of both colours above right."""
        xy = np.array([(0, 0), (0.1, 0), (1, 1), (1, 1), (1, 1)], np.float32)
        seen = density(xy, np.array([0, 1, 1, 1, 0]), (RED, BLUE), np.array([1, 0, 1, 1, 1], bool), finest=2)
        assert seen.colour.shape == (3, 3, 4)
        assert seen.bounds == pytest.approx((0, -0.5, 1.5, 1))
        full = np.log(4)  # log1p of the fullest count
        opacity = FAINTEST + (DENSEST - FAINTEST) * (np.log(3) - np.log(2)) / (full - np.log(2))
        assert seen.grey[2, 0] == pytest.approx(opacity / 2, abs=1)
        assert seen.colour[2, 0].tolist() == pytest.approx([255, 0, 0, opacity / 2], abs=1)
        # light adds up: two thirds of blue's light, one third of red's
        shade = [255 * (1 / 3) ** 0.5, 0, 255 * (2 / 3) ** 0.5, DENSEST]
        assert seen.colour[0, 2].tolist() == pytest.approx(shade, abs=1)
        assert seen.colour[..., 3].sum() + seen.grey.sum() == pytest.approx(opacity + DENSEST, abs=2), "nothing else"

    @pytest.mark.parametrize("n", [1, 50, 3000])
    def test_every_sample_is_in_the_cell_where_it_lies(self, n):
        rng = np.random.default_rng(n)
        xy = rng.normal(size=(n, 2)) * [3, 1]
        seen = density(xy, np.zeros(n, int), (RED,))
        left, low, right, high = seen.bounds
        height, width = seen.grey.shape
        column = ((xy[:, 0] - left) / (right - left) * width + 1e-9).clip(0).astype(int)
        row = ((high - xy[:, 1]) / (high - low) * height + 1e-9).clip(0).astype(int)
        filled = np.zeros((height, width), bool)
        filled[row, column] = True
        np.testing.assert_array_equal(seen.colour[..., 3] > 0, filled)
        assert seen.colour[filled][:, 3].min() >= FAINTEST
        assert (right - left) / width == pytest.approx((high - low) / height), "square cells"

    def test_finer_for_more_samples_up_to_a_limit(self):
        rng = np.random.default_rng(0)
        sides = [density(rng.random((n, 2)), np.zeros(n, int), (RED,)).grey.shape[1] for n in (100, 90_000, 10**6 * 2)]
        assert sides[0] == pytest.approx(64, abs=2)
        assert sides[1] == pytest.approx(150, abs=2)
        assert sides[2] == pytest.approx(512, abs=2)

    def test_places_that_are_not_finite_are_left_out(self):
        xy = np.array([(0, 0), (1, 1), (np.nan, 2), (np.inf, 0)])
        args = np.array([0, 1, 1, 1]), (RED, BLUE), np.array([1, 0, 1, 1], bool)
        one, other = density(xy, *args), density(xy[:2], args[0][:2], args[1], args[2][:2])
        np.testing.assert_array_equal(one.colour, other.colour)
        np.testing.assert_array_equal(one.grey, other.grey)

    def test_no_samples(self):
        seen = density(np.empty((0, 2)), np.empty(0, int), (RED,))
        assert not seen.colour.any()
        assert not seen.grey.any()

    def test_pictures(self):
        xy = np.array([(0, 0), (1, 1)])
        seen = density(xy, np.array([0, 0]), (RED,), np.array([True, False]))
        parts = np.asarray(Image.open(io.BytesIO(seen.parts())))
        h = len(seen.grey)
        np.testing.assert_array_equal(parts[:h], seen.colour)
        np.testing.assert_array_equal(parts[h:, :, 3], seen.grey)
        whole = np.asarray(Image.open(io.BytesIO(seen.picture("#808080"))))
        assert whole[-1, 0].tolist() == [255, 0, 0, seen.colour[-1, 0, 3]]
        assert whole[0, -1].tolist() == [128, 128, 128, seen.grey[0, -1]]


class TestFigure:
    """The map of notebooks and reports."""

    xy = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)

    @pytest.mark.parametrize("named", [True, False])
    def test_of_too_many_samples(self, named):
        score = np.arange(400.0)
        values, names = (np.arange(400) % 3, ("a", "b", "c")) if named else (score / 400, ())
        figure = scatter(self.xy, values, names, suspicion=score, most=300, hover=[f"s{i}" for i in range(400)])
        shown = np.sort(np.concatenate([trace.customdata for trace in figure.data]))
        assert shown.tolist() == list(range(100, 400)), "the most suspicious"
        for trace in figure.data:
            np.testing.assert_array_equal(trace.x, self.xy[trace.customdata, 0])
            assert list(trace.text) == [f"s{i}" for i in trace.customdata]
        if not named:
            np.testing.assert_array_equal(figure.data[0].marker.color, values[shown])
        (image,) = figure.layout.images
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.source.partition(",")[2]))))
        assert (drawn[..., 3] > 0).any()
        assert (image.xref, image.yref, image.layer) == ("x", "y", "below")
        assert image.sizex / image.sizey == pytest.approx(drawn.shape[1] / drawn.shape[0])
        assert image.x == pytest.approx(self.xy[:100, 0].min())
        assert image.y == pytest.approx(self.xy[:100, 1].max())
        (words,) = figure.layout.annotations
        assert words.text.startswith("Showing 300 of 400 points: the most suspicious; the rest as density")

    def test_of_few_there_is_neither_picture_nor_words(self):
        figure = scatter(self.xy, np.zeros(400, int), ("a",), most=400)
        assert len(figure.data[0].x) == 400
        assert not figure.layout.images
        assert not figure.layout.annotations


def test_numbers_on_a_scale():
    code, there, ends = palette.on_scale(np.array([2.0, np.nan, 4, 3, np.inf]))
    assert code.tolist() == [0, 0, 255, 128, 0]
    assert there.tolist() == [True, False, True, True, False]
    assert ends == (2, 4)
    assert palette.on_scale(np.array([2.0, 0.5, -3]), (0, 1))[0].tolist() == [255, 128, 0]
    assert palette.on_scale(np.array([np.nan]))[2] == (0, 1)
    assert palette.on_scale(np.full(3, 7.0))[0].tolist() == [0, 0, 0]
    steps = palette.steps(("#000000", "#FF0080", "#FFFFFF"))
    assert len(steps) == 256
    assert (steps[0], steps[-1], steps[51]) == ("#000000", "#FFFFFF", "#660033")
