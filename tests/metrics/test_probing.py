"""What neighbours, a linear head and one straight cut get out of features: by hand, and on data with a known answer."""

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.metrics.probing import knn_accuracy, linear_accuracy, linear_separability


def test_neighbours_vote_with_their_similarity():
    angle = np.deg2rad([0.0, 60.0, 70.0])
    bank, labels = np.stack([np.cos(angle), np.sin(angle)], 1), np.array([0, 1, 1])
    queries = np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    # at 0 degrees: 1 for class 0, cos 60 + cos 70 = 0.842 for class 1, though two of three name it
    assert knn_accuracy(bank, labels, queries, np.array([0, 0, 1]), k=3) == 1
    assert knn_accuracy(bank, labels, queries, np.array([1, 0, 0]), k=3) == pytest.approx(1 / 3)
    assert knn_accuracy(bank, labels, queries, np.array([0, 2, 1]), k=99) == pytest.approx(2 / 3)


def test_neighbours_under_wrong_labels_are_outvoted():
    rng = np.random.default_rng(0)
    true = np.arange(300) % 3
    X = 4 * np.eye(3)[true] + rng.normal(size=(300, 3))
    given = np.where(rng.random(300) < 0.3, (true + 1) % 3, true)
    assert knn_accuracy(X, given, X, true, k=1) == pytest.approx((given == true).mean())  # everybody finds himself
    assert knn_accuracy(X, given, X, true) > 0.97


def test_no_bank():
    with pytest.raises(InputError, match="at least one sample"):
        knn_accuracy(np.empty((0, 2)), np.empty(0, np.int64), np.ones((1, 2)), np.zeros(1, np.int64))


def test_a_linear_head():
    W, b = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.5])
    queries = np.array([[2.0, 1.0], [1.0, 0.7], [0.0, 0.0], [-1.0, -2.0]])
    assert linear_accuracy(W, b, queries, np.array([0, 1, 1, 0])) == 1
    assert linear_accuracy(W, b, queries, np.array([0, 0, 1, 1])) == 0.5


def test_separability_lies_between_chance_and_one():
    rng = np.random.default_rng(0)
    positive = rng.random(1_000) < 0.3
    X = rng.normal(size=(1_000, 5))
    assert linear_separability(X, positive) == pytest.approx(0.5, abs=0.06)
    X[:, 2] += 2 * positive  # two unit normals, 2 apart: the area is Phi(2 / sqrt 2) = 0.921
    assert linear_separability(X, positive) == pytest.approx(0.921, abs=0.025)
    X[:, 2] += 20 * positive
    assert linear_separability(X, positive) == 1
    rings = X.copy()
    rings[:, 2] = np.where(positive, rng.choice([-6, 6], 1_000), 0) + rng.normal(size=1_000)
    assert linear_separability(rings, positive) < 0.62, "on both sides of the rest: no line separates them"


@pytest.mark.parametrize("share", [0, 1])
def test_nothing_to_separate(share):
    assert linear_separability(np.eye(4), np.full(4, bool(share))) is None
