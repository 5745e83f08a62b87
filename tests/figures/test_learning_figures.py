import numpy as np

from chaffinch.figures import learning
from chaffinch.figures.palette import KIND_COLOURS


def test_course_marks_the_epochs_in_which_the_sample_was_flagged():
    loss, usual = np.array([2.0, 1.0, 0.5]), np.array([[1, 2, 3], [0.5, 1, 2], [0.1, 0.2, 0.3]])
    figure = learning.course(loss, usual, np.array([True, False, True]), ("", "lsa", "small-loss"))
    high, low, middle, own, crosses = figure.data
    assert [list(t.y) for t in (low, middle, high)] == usual.T.tolist()
    assert (list(own.x), list(own.y)) == ([1, 2, 3], [2.0, 1.0, 0.5])
    assert (list(crosses.x), list(crosses.y)) == ([1, 3], [2.0, 0.5])
    assert list(crosses.text) == ["from the start", "small-loss"]
    assert crosses.marker.color == KIND_COLOURS["flag"]
    assert low.fill == "tonexty"


def test_nothing_is_marked_where_nothing_was_flagged():
    figure = learning.course(np.ones(2), np.ones((2, 3)), np.zeros(2, bool), ("", "lsa"))
    assert [t.name for t in figure.data if t.name] == ["median of all", "this picture"]
