import numpy as np
import plotly.io as pio
import pytest

from chaffinch.figures import losses as figures
from chaffinch.figures.palette import KIND_COLOURS, SIDES


def lines(figure):
    return [t for t in figure.data if t.type == "scatter" and t.name]


def test_history_has_a_point_an_epoch_and_room_for_the_rest():
    figure = figures.history([3.0, 2.0], SIDES[0], epochs=10)
    (trace,) = figure.data
    assert (trace.x.tolist(), trace.y.tolist()) == ([1, 2], [3.0, 2.0])
    assert trace.line.color == SIDES[0]
    assert figure.layout.xaxis.range[1] >= 10
    assert figure.layout.xaxis.dtick == 2
    assert figures.history([1.0], SIDES[0]).layout.xaxis.range[1] > 1.5  # one epoch is no empty axis
    assert figures.history([1.0] * 400, SIDES[0]).data[0].mode == "lines"


def test_parallel_marks_two_and_writes_the_ends():
    values = np.array([[1, 10.0], [2, 30], [1.5, np.nan]])
    heights = np.array([[0, 1.0], [1, 0], [0.5, np.nan]])
    axes = [("up", 1), ("a < b", -1)]
    figure = figures.parallel(["x", "y<b>", "z"], heights, values, axes, {"y<b>": SIDES[0], "x": SIDES[1]})
    drawn = lines(figure)
    assert [t.name for t in drawn] == ["z", "y&lt;b>", "x"]  # the marked ones on top, the left one first
    assert [t.showlegend for t in drawn] == [False, True, True]
    assert (drawn[1].line.color, drawn[2].line.color) == SIDES
    assert drawn[0].line.width < drawn[1].line.width
    assert list(drawn[2].customdata) == ["1.000", "10.0"]
    assert drawn[0].customdata[1] == "not known"
    ends = {t.y[0]: (t.textposition, list(t.text)) for t in figure.data if t.mode == "text"}
    assert ends == {0: ("bottom center", ["1.000", "30.0"]), 1: ("top center", ["2.000", "10.0"])}
    assert figure.layout.xaxis.ticktext == ("up", "a &lt; b")
    assert figures.parallel(["x"], heights[:1], values[:1], [("n", 0), ("m", 1)], {}).layout.xaxis.ticktext[0] == "n *"


def test_spread_has_a_box_an_epoch_and_kind_on_a_log_scale():
    kinds = {"ood": np.full((2, 5), 4.0), "clean": np.array([[0, 1, 2, 3, 4], [0, 0, 0, 0.5, 1.0]])}
    figure = figures.spread([1, 20], kinds)
    clean, ood = figure.data
    assert (clean.name, ood.name) == ("clean", "foreign")
    assert clean.marker.color == KIND_COLOURS["clean"]
    assert list(clean.x) == ["1", "20"]
    assert list(clean.median) == [2, 0.5]  # nothing is drawn at the smallest that is something
    assert list(clean.q3) == [3, 0.5]
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.ticktext[:3] == ("0.1", "0.2", "0.5")
    assert figures.spread([1], {"clean": np.zeros((1, 5))}).layout.yaxis.type is None


@pytest.mark.parametrize(("low", "high", "first"), [(0.4, 3, [0.1, 0.2, 0.5, 1.0]), (1e-3, 900, [0.001, 0.01, 0.1])])
def test_ticks_are_round(low, high, first):
    found = figures._ticks(low, high)
    np.testing.assert_allclose(found[: len(first)], first)
    assert found[-1] >= high


def test_whereto_draws_two_medians_within_bands():
    given, other = np.array([[0, 0.5, 1], [0.1, 0.6, 0.9]]), np.array([[-1, -0.5, 0], [-0.3, 0.2, 0.3]])
    figure = figures.whereto([1, 5], given, other, ("label", "true"), (-1, 1))
    one, two = lines(figure)
    assert (list(one.y), list(two.y)) == ([0.5, 0.6], [-0.5, 0.2])
    assert (one.line.color, two.line.color) == (KIND_COLOURS["mislabelled"], KIND_COLOURS["clean"])
    assert one.line.dash != two.line.dash
    bands = [t for t in figure.data if t.fill == "tonexty"]
    assert [list(t.y) for t in bands] == [[1, 0.9], [0, 0.3]]
    assert figure.layout.yaxis.range == (-1, 1)


def test_all_are_transparent_and_can_be_sent():
    values = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    for figure in (
        figures.history([1, 2], SIDES[0]),
        figures.parallel(["a"], values, values, [("f", 1)] * 5, {}),
        figures.spread([1], {"clean": values}),
        figures.whereto([1], values[:, :3], values[:, :3], ("a", "b"), (0, 1)),
    ):
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
        pio.from_json(figure.to_json())


def test_history_of_each_kind_lies_where_it_was_noted():
    kinds = {"ood": np.array([5.0, 4.0]), "clean": np.array([3.0, 1.0])}
    mean, clean, foreign = figures.history([3.0, 2.0, 1.0], SIDES[0], kinds=kinds, noted=[1, 3]).data
    assert list(mean.y) == [3.0, 2.0, 1.0]
    assert (clean.name, foreign.name) == ("clean", "foreign")
    assert (list(clean.x), list(clean.y), list(foreign.y)) == ([1, 3], [3.0, 1.0], [5.0, 4.0])
