import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.card import KINDS
from chaffinch.figures import palette
from chaffinch.figures.methods import score_outlines, steps, suspicion_map

CLEAN, WRONG, FOREIGN = range(3)


def outline(trace) -> dict[float, float]:
    """Left edge of each step -> its height, read back from the corners of an outline."""
    x, y = np.asarray(trace.x), np.asarray(trace.y)
    assert y[0] == y[-1] == 0
    return dict(zip(x[1:-1:2].tolist(), y[1:-1:2].tolist(), strict=True))


def test_every_point_of_the_map_has_the_colour_of_its_rank():
    xy = np.array([[0, 5], [1, 6], [2, 7]], np.float32)
    figure = suspicion_map(xy, np.array([0.0, 0.5, 1.0]))
    (trace,) = figure.data
    assert trace.x.tolist() == [0, 1, 2]
    assert trace.y.tolist() == [5, 6, 7]
    assert trace.marker.color.tolist() == [0.0, 0.5, 1.0]
    assert (trace.marker.cmin, trace.marker.cmax) == (0, 1)  # one scale for all detectors
    assert [colour for _, colour in trace.marker.colorscale] == list(palette.SUSPICION)
    assert figure.layout.yaxis.scaleanchor == "x"
    assert list(trace.marker.colorbar.ticktext) == ["least suspicious", "most suspicious"]


def test_outlines_are_shares_of_each_kind_in_its_colour():
    scores = np.array([0, 0, 0, 1, 2, 2, 2, 2, 1, 2.0])
    kind = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], np.int8)
    clean, wrong, foreign, line = score_outlines(scores, kind, cut=1.0).data
    assert outline(clean) == {-0.5: 0.75, 0.5: 0.25, 1.5: 0.0}
    assert outline(wrong) == {-0.5: 0.0, 0.5: 0.0, 1.5: 1.0}
    assert outline(foreign) == {-0.5: 0.0, 0.5: 0.5, 1.5: 0.5}
    assert [t.line.color for t in (clean, wrong, foreign)] == [palette.KIND_COLOURS[k] for k in KINDS]
    assert [t.name for t in (clean, wrong, foreign)] == ["clean (4)", "wrong labels (4)", "foreign pictures (2)"]
    assert list(line.x) == [1.0, 1.0]
    assert line.y[1] > 1.0  # it rises above the highest step


def test_a_kind_that_does_not_occur_has_no_outline():
    figure = score_outlines(np.arange(4.0), np.array([CLEAN, CLEAN, FOREIGN, FOREIGN], np.int8), cut=1.5)
    assert [t.name for t in figure.data] == ["clean (2)", "foreign pictures (2)", "its own cut"]


def test_few_values_get_a_step_each_however_far_apart():
    assert steps(np.array([3.0, 0, 1, 1, 3]), cut=0).tolist() == [-0.5, 0.5, 2.0, 4.0]


def test_one_value_is_one_step():
    assert steps(np.full(5, 2.0), cut=2.0).tolist() == [1.5, 2.5]
    assert outline(score_outlines(np.full(5, 2.0), np.zeros(5, np.int8), cut=2.0).data[0]) == {1.5: 1.0}


def test_far_outliers_do_not_flatten_the_rest():
    scores = np.concatenate([np.linspace(0, 1, 999), [1e6]])
    edges = steps(scores, cut=0.5)
    assert edges[-1] < 2
    heights = outline(score_outlines(scores, np.zeros(1000, np.int8), cut=0.5).data[0])
    assert sum(heights.values()) == pytest.approx(1)  # they are counted in the last step
    assert len(heights) == len(edges) - 1


def test_a_cut_beyond_the_scores_is_still_shown():
    scores = np.linspace(0, 1, 500)
    assert steps(scores, cut=3.0)[-1] == 3.0
    assert list(score_outlines(scores, np.zeros(500, np.int8), cut=-2.0).data[-1].x) == [-2.0, -2.0]


def test_scores_that_nearly_all_tie_still_span_their_values():
    scores = np.concatenate([np.zeros(10_000), np.linspace(1, 2, 31)])
    assert steps(scores, cut=0.0)[[0, -1]].tolist() == [0.0, 2.0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=80), st.floats(-1e9, 1e9))
def test_nothing_is_lost_and_steps_rise(values, cut):
    scores = np.array(values)
    edges = steps(scores, cut)
    assert (np.diff(edges) >= 0).all()
    kind = np.arange(len(scores)).astype(np.int8) % 3
    for trace in score_outlines(scores, kind, cut).data[:-1]:
        assert sum(np.asarray(trace.y)[1:-1:2]) == pytest.approx(1)
