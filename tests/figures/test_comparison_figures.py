import numpy as np
import plotly.io as pio
import pytest

from chaffinch.figures import comparison as figures
from chaffinch.figures.palette import KIND_COLOURS

BARS = [(("a", "b"), 50, (5, 40, 5)), (("b",), 20, (20, 0, 0)), (("c",), 1, (0, 0, 1))]
SIZES = {"a": 50, "b": 70, "c": 1}


def bars(figure):
    return [trace for trace in figure.data if trace.type == "bar"]


def test_curves_show_each_line_with_its_cut():
    x, y = np.array([0, 0.5, 1]), np.array([0, 0.9, 1])
    figure = figures.curves(
        [("one <b>", x, y, (0.2, 0.6)), ("two", x, y, (0.0, None))], x="across", y="up", chance=(x, x)
    )
    lines = [t for t in figure.data if t.mode == "lines"]
    assert [t.name for t in lines] == [None, "one <b>", "two"]
    assert lines[1].y.tolist() == y.tolist()
    assert len({(t.line.color, t.line.dash) for t in lines[1:]}) == 2
    (mark,) = [t for t in figure.data if t.mode == "markers"]  # the second flags nothing that takes part
    assert (list(mark.x), list(mark.y), mark.marker.color) == ([0.2], [0.6], lines[1].line.color)
    assert "<b>" not in mark.hovertemplate
    assert figure.layout.xaxis.title.text == "across"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_many_lines_are_told_apart():
    x = np.array([0.0, 1.0])
    figure = figures.curves([(str(i), x, x, (0.5, 0.5)) for i in range(25)], x="", y="", chance=(x, x))
    looks = [(t.line.color, t.line.dash) for t in figure.data if t.mode == "lines" and t.showlegend is None]
    assert len(set(looks)) == 25


def test_agreement_shows_numbers_and_leaves_gaps():
    matrix = np.array([[1, 0.25], [0.25, np.nan]])
    figure = figures.agreement(matrix, ["a", "b & c"])
    heat = figure.data[0]
    np.testing.assert_array_equal(heat.z, matrix)
    assert (heat.zmin, heat.zmax, heat.hoverongaps) == (-1, 1, False)
    assert list(heat.x) == ["a", "b &amp; c"]
    assert "%{z" in heat.texttemplate
    assert figure.layout.yaxis.autorange == "reversed"
    assert figures.agreement(matrix, ["a", "b"], low=0).data[0].zmin == 0


def test_upset_stacks_kinds_and_every_column_can_be_picked():
    figure = figures.upset(BARS, SIZES, {"a": "Detector A"})
    *kinds, column, totals = bars(figure)
    assert [(t.name, t.marker.color) for t in kinds] == [
        ("clean", KIND_COLOURS["clean"]),
        ("wrong label", KIND_COLOURS["mislabelled"]),
        ("foreign", KIND_COLOURS["ood"]),
    ]
    assert np.sum([t.y for t in kinds], axis=0).tolist() == [50, 20, 1]
    assert {t.customdata for t in kinds} == {None}
    assert list(column.customdata) == ["a:b", "b", "c"]
    assert min(column.y) > 50
    assert column.marker.opacity == column.unselected.marker.opacity == 0
    assert column.text[0] == "Detector A + b<br>5 clean<br>40 wrong label<br>5 foreign"
    assert list(totals.text) == ["50", "70", "1"]
    assert [a.text for a in figure.layout.annotations] == ["50", "20", "1"]
    assert list(figure.layout.yaxis4.ticktext) == ["Detector A", "b", "c"]


def test_upset_dots_are_the_members():
    figure = figures.upset(BARS, SIZES)
    faint, lit = [t for t in figure.data if t.type == "scatter" and t.mode == "markers"]
    assert set(zip(lit.x, lit.y, lit.customdata, strict=True)) == {
        (0, 0, "a:b"), (0, 1, "a:b"), (1, 1, "b"), (2, 2, "c"),
    }  # fmt: skip
    assert len(faint.x) + len(lit.x) == 9
    links = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    assert [list(t.y) for t in links] == [[0, 1], [1, 1], [2, 2]]


def test_upset_without_truth_and_empty():
    figure = figures.upset([(("a",), 3, None)], {"a": 3, "b": 0})
    flagged, *_ = bars(figure)
    assert (list(flagged.y), flagged.marker.color, flagged.showlegend) == ([3], KIND_COLOURS["flag"], False)
    pio.to_json(figures.upset([], {"a": 0}))


def test_noise_is_shared_out_by_row_and_split_in_three_scales():
    counts = np.array([[8, 1, 1], [3, 3, 4], [0, 0, 0]], float)[:2]
    figure = figures.noise(counts, ["x", "y"])
    wrong, none, right = (np.array(t.z, float) for t in figure.data)
    np.testing.assert_allclose(wrong, [[np.nan, 0.1, np.nan], [0.3, np.nan, np.nan]])
    np.testing.assert_allclose(none, [[np.nan, np.nan, 0.1], [np.nan, np.nan, 0.4]])
    np.testing.assert_allclose(right, [[0.8, np.nan, np.nan], [np.nan, 0.3, np.nan]])
    assert [t.zmax for t in figure.data] == [pytest.approx(0.3), pytest.approx(0.4), 1]
    assert all(np.array_equal(t.customdata, counts) for t in figure.data)
    assert list(figure.data[0].x) == ["x", "y", "no class"]
    assert figures.noise(counts, ["x", "y"], top=0.5).data[0].zmax == 0.5
    assert figures.largest(counts) == pytest.approx(0.3)


def test_noise_of_many_or_empty_classes():
    counts = np.zeros((14, 15))
    figure = figures.noise(counts, [str(i) for i in range(14)])
    assert figure.data[0].texttemplate is None
    assert np.isnan(np.array(figure.data[0].z, float)).all()
    assert figures.largest(counts) == 0


def test_reliability_draws_a_line_a_kind_over_the_diagonal():
    line = np.array([0.1, 0.9]), np.array([0.2, 0.8]), np.array([30, 10])
    figure = figures.reliability({"clean": line, "ood": line})
    diagonal, clean, ood = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    assert (clean.name, ood.name) == ("clean", "foreign")
    assert list(clean.x) == [0.1, 0.9]
    assert list(clean.y) == [0.2, 0.8]
    assert list(clean.customdata) == [30, 10]
    assert ood.line.color == KIND_COLOURS["ood"]
