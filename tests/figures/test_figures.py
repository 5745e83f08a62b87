import numpy as np
import pytest

from chaffinch.card import KINDS
from chaffinch.figures import palette
from chaffinch.figures.map import scatter
from chaffinch.figures.pictures import grid


def test_categories_become_traces_with_their_points_and_colours():
    xy = np.array([[0, 0], [1, 1], [2, 2], [3, 3]], np.float32)
    figure = scatter(xy, np.array([0, 2, 0, 2]), ("a", "b", "c"), ("#111111", "#222222", "#333333"))
    assert [trace.name for trace in figure.data] == ["a", "c"]
    assert figure.data[1].customdata.tolist() == [1, 3]
    assert figure.data[1].marker.color == "#333333"
    assert figure.data[0].x.tolist() == [0, 2]
    assert figure.layout.yaxis.scaleanchor == "x"


def test_numbers_become_one_trace_on_a_scale():
    xy = np.zeros((3, 2), np.float32)
    figure = scatter(xy, np.array([0.1, 0.5, 0.9]), hover=["x", "y", "z"])
    assert len(figure.data) == 1
    assert figure.data[0].marker.color.tolist() == [0.1, 0.5, 0.9]
    assert figure.data[0].marker.colorscale[0][1] == palette.SUSPICION[0]
    assert list(figure.data[0].text) == ["x", "y", "z"]


def test_grid_shows_every_picture_with_its_title():
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    figure = grid(images, ["one", "two", "three"], columns=2)
    assert len(figure.data) == 3
    assert np.array_equal(np.asarray(figure.data[1].z)[..., 0], images[1])
    assert [a.text for a in figure.layout.annotations] == ["one", "two", "three"]
    with pytest.raises(ValueError, match="as many titles"):
        grid(images, ["one"])


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_palette_names_all_kinds_and_is_distinct():
    assert set(KINDS) < set(palette.KIND_COLOURS)
    assert len(set(palette.KIND_COLOURS.values())) == len(palette.KIND_COLOURS)
    assert len(set(palette.CLASS_COLOURS)) == len(palette.CLASS_COLOURS)
    assert palette.class_colours(12)[10] == palette.CLASS_COLOURS[0]
    # votes get darker with their number, so they can be told apart without colour vision
    light = [_luminance(colour) for colour in palette.VOTES[1:]]
    assert light == sorted(light, reverse=True)
