import numpy as np
import pytest
from made_lesson import results

from chaffinch.figures import lesson as figures
from chaffinch.figures.palette import KIND_COLOURS
from chaffinch.lesson import NAMES, turn

KIND = np.array([0] * 30 + [1] * 10 + [2] * 20, np.int8)


@pytest.fixture
def plane():
    return (np.random.default_rng(0).normal(size=(60, 2)) + 3.0 * np.eye(2)[0] * (KIND == 2)[:, None]).astype("f4")


def test_turning_has_a_frame_an_angle_that_moves_what_the_slider_turns(plane):
    seen = turn(plane, KIND, step=30, steps=8)
    figure = figures.turning(plane, KIND, seen.degrees, seen.edges, seen.shares, seen.auroc)
    clouds = [t for t in figure.data if t.type == "scattergl"]
    assert [len(t.x) for t in clouds] == [30, 10, 20]
    assert clouds[2].marker.color == KIND_COLOURS["ood"]
    assert [frame.name for frame in figure.frames] == ["-90", "-60", "-30", "0", "30", "60", "90"]
    slider = figure.layout.sliders[0]
    assert slider.active == 3
    assert [tuple(step.args[0]) for step in slider.steps] == [(frame.name,) for frame in figure.frames]
    for frame, auroc in zip(figure.frames, seen.auroc, strict=True):
        assert frame.traces == tuple(range(3, 9))  # all but the clouds
        assert frame.data[-1].text == (f"<b>AUROC {auroc:.3f}</b>",)
    for drawn, moved in zip(figure.data[3:], figure.frames[3].data, strict=True):
        np.testing.assert_array_equal(drawn.y, moved.y)  # it starts with the best line
    line = figure.frames[6].data[1]
    np.testing.assert_allclose(line.y, [0, 0], atol=1e-9)  # a quarter: it lies
    side = figure.frames[6].data[0]
    assert max(side.y) > 0 >= min(side.y) - 1e-9


def test_turning_without_foreign_pictures_says_so(plane):
    kind = np.zeros(60, np.int8)
    seen = turn(plane, kind, step=90)
    figure = figures.turning(plane, kind, seen.degrees, seen.edges, seen.shares, seen.auroc)
    assert figure.data[-1].text == ("<b>nothing to separate</b>",)
    assert len([t for t in figure.data if t.type == "scattergl"]) == 1


def test_surprise_draws_points_with_deviations_and_a_line_for_no_detection():
    rows = [row for row in results()["table"] if row["noise"] == 0.6]
    figure = figures.surprise(rows, NAMES, "auroc_ood", "AUROC", "accuracy_best")
    points = {t.name: t for t in figure.data}
    assert set(points) == {NAMES[slug] for slug in NAMES} - {"no detection", "PLS-LSA+"}
    plane = next(row for row in rows if row["trainer"] == "lsa")
    assert points["plane only"].x == (plane["auroc_ood"],)
    assert points["plane only"].y == (plane["accuracy_best"],)
    assert points["plane only"].error_y.array == (plane["accuracy_best_sd"],)
    mixup = next(row for row in rows if row["trainer"] == "mixup")
    assert figure.layout.shapes[0].y0 == mixup["accuracy_best"]
    labels = [note.text for note in figure.layout.annotations]
    assert "<b>plane only</b>" in labels
    assert "no detection" in labels


@pytest.mark.parametrize(("x", "inside"), [(0.2, (0.3, 0.75)), (0.8, (0.25, 0.7))])
def test_labels_begin_where_the_deviation_ends_if_there_is_room(x, inside):
    rows = [
        {"trainer": slug, "accuracy_best": 0.5, "accuracy_best_sd": 0.1, "auroc_ood": at, "auroc_ood_sd": sd}
        for slug, at, sd in (("small-loss", 0.0, 0.0), ("oracle", 1.0, 0.0), ("lsa", x, 0.1), ("pls", x, 5.0))
    ]
    figure = figures.surprise(rows, NAMES, "auroc_ood", "AUROC", "accuracy_best")
    tips = {note.text: note.x for note in figure.layout.annotations}
    assert sorted([tips["<b>plane only</b>"], tips["PLS"]]) == pytest.approx(inside)


def test_surprise_stands_one_seed_one_trainer_and_nothing():
    one = {"trainer": "lsa", "accuracy_best": 0.5, "accuracy_best_sd": None, "auroc_ood": 0.9, "auroc_ood_sd": None}
    (point,) = figures.surprise([one], NAMES, "auroc_ood", "AUROC", "accuracy_best").data
    assert point.error_y.array == (0,)
    assert len(figures.surprise([], NAMES, "auroc_ood", "AUROC", "accuracy_best").data) == 0
    line = figures.surprise([one | {"auroc_ood": None}], NAMES, "auroc_ood", "AUROC", "accuracy_best")
    assert len(line.data) == 0
    assert line.layout.shapes[0].y0 == 0.5


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([0, 50, 100], [0, 50, 100]),
        ([0, 0], [-5, 5]),
        ([0, 4, 8], [-6, 4, 14]),
        ([0, 1, 11, 40], [-6, 4, 14, 40]),
        ([], []),
    ],
)
def test_labels_are_moved_apart_as_little_as_need_be(places, moved):
    assert figures._apart(places, 10) == pytest.approx(moved)


def test_detail_and_classes_set_culprits_beside_the_others():
    culprit = np.array([True] * 5 + [False] * 15)
    figure = figures.detail(np.arange(20.0), culprit)
    assert [t.name for t in figure.data] == ["other clean pictures", "culprits"]
    assert [sum(t.y[1:-1:2]) for t in figure.data] == pytest.approx([1, 1])
    assert len(figures.detail(np.arange(20.0), culprit | True).data) == 1
    bars = figures.classes({"a<b>": (0.7, 0.4), "c": (0.3, 0.6)})
    assert bars.data[0].y == ("c", "a&lt;b>")
    assert bars.data[0].x == (0.3, 0.7)
    assert bars.data[1].x == (0.6, 0.4)


def test_course_marks_turns_and_the_epoch():
    flagged = np.array([[0, np.nan, 0], [0.2, np.nan, 0.9], [0.1, np.nan, 0.8]])
    figure = figures.course(("", "lsa", "small-loss"), flagged, np.array([0.5, 0.6, 0.7]), 2)
    names = [t.name for t in figure.data]
    assert names == ["clean, flagged", "foreign, flagged", "accuracy", "the plane's turn", "small loss's turn"]
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(1.5, 2.5), (2.5, 3.5), (3, 3)]
    without = figures.course(("", "lsa", ""), flagged, np.full(3, np.nan), 0)
    assert "accuracy" not in [t.name for t in without.data]
    assert without.layout.height < figure.layout.height


def test_accuracies_have_room_for_the_rest():
    figure = figures.accuracies({"mixup": [0.5, 0.6], "lsa": [0.7]}, NAMES, 8)
    assert [t.name for t in figure.data] == ["no detection", "plane only"]
    assert figure.data[0].line.dash == "dot"
    assert figure.layout.xaxis.range[1] > 8
    assert figure.layout.yaxis.range == pytest.approx((0.45, 0.75))
    assert figures.accuracies({"mixup": [0.99]}, NAMES, 1).layout.yaxis.range[1] == 1
