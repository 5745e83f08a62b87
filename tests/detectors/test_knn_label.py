"""Neighbour labels: sheet numbers, hand-worked votes, invariances and bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.detectors.knn_label import KnnLabel


def ring(degrees):
    angle = np.deg2rad(degrees)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def in_loops(X, y, k):
    """Cosines one by one, self left out by position, votes counted by hand."""
    scores, suggestions = [], []
    for i in range(len(X)):
        cosines = []
        for j in range(len(X)):
            if j != i:
                cosines.append((X[i] @ X[j] / np.linalg.norm(X[i]) / np.linalg.norm(X[j]), j))
        near = [j for _, j in sorted(cosines, reverse=True)[:k]]
        scores.append(sum(y[j] != y[i] for j in near) / k)
        votes = [sum(y[j] == c for j in near) for c in range(max(y) + 1)]
        suggestions.append(votes.index(max(votes)))
    return scores, suggestions


@pytest.mark.parametrize(("rate", "expected"), [(0.2, 0.9987), (0.4, 0.9954)])
def test_digits_of_the_sheet(digits, rate, expected):
    data = digits(rate)
    found = KnnLabel(k=10).fit(data.X, data.y).scores_
    assert roc_auc_score(data.wrong, found) == pytest.approx(expected, abs=5e-4)


def test_worked_by_hand():
    X, y = ring([0, 10, 21, 33, 90, 101, 113]), np.array([0, 0, 1, 0, 1, 1, 1])
    model = KnnLabel(k=3, threshold=0.5).fit(X, y)
    np.testing.assert_allclose(model.scores_, [1 / 3, 1 / 3, 1, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(model.flags_, [0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(model.suggestions_, [0, 0, 0, 0, 1, 1, 1])


def test_itself_does_not_vote():
    """With k = 1 a sample that counted itself would never disagree."""
    np.testing.assert_array_equal(KnnLabel(k=1).fit(ring([0, 5, 90, 95]), np.array([0, 1, 0, 1])).scores_, [1, 1, 1, 1])


@pytest.mark.parametrize("k", [1, 4, 9])
def test_agrees_with_loops(blobs, k):
    X, y = blobs.X[:80].astype(float), blobs.y[:80]
    scores, suggestions = in_loops(X, y.tolist(), k)
    model = KnnLabel(k=k).fit(X, y)
    np.testing.assert_allclose(model.scores_, scores)
    np.testing.assert_array_equal(model.suggestions_, suggestions)


def test_finds_planted_noise(blobs):
    model = KnnLabel().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    assert roc_auc_score(blobs.wrong | blobs.ood, model.scores_) > 0.97
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    assert model.flags_[blobs.clean].mean() < 0.02


def test_cut_is_above_not_at_the_threshold():
    y = np.array([0, 1, 0, 1])
    near = Neighbors(np.array([[1, 2], [0, 3], [0, 3], [1, 2]]), np.ones((4, 2), np.float32))
    model = KnnLabel(k=2, threshold=0.5).fit(None, y, neighbors=near)
    np.testing.assert_array_equal(model.scores_, 0.5)
    assert not model.flags_.any()
    assert KnnLabel(k=2, threshold=0.49).fit(None, y, neighbors=near).flags_.all()


def test_one_class_disagrees_nowhere(blobs):
    model = KnnLabel().fit(blobs.X, np.zeros(len(blobs.y), int))
    assert not model.scores_.any()
    assert not model.flags_.any()


def test_shared_neighbours_give_the_same_answer(blobs):
    alone = KnnLabel(k=7).fit(blobs.X, blobs.y)
    shared = KnnLabel(k=7).fit(None, blobs.y, neighbors=nearest(blobs.X, 30))
    np.testing.assert_array_equal(alone.scores_, shared.scores_)
    np.testing.assert_array_equal(alone.suggestions_, shared.suggestions_)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_row_order_rotation_and_scale_do_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    scores = KnnLabel(k=5).fit(X, y).scores_
    order = rng.permutation(60)
    np.testing.assert_array_equal(KnnLabel(k=5).fit(X[order], y[order]).scores_, scores[order])
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    np.testing.assert_allclose(KnnLabel(k=5).fit(scale * X @ rotation, y).scores_, scores)
    lengths = rng.uniform(0.1, 10, (60, 1))
    np.testing.assert_allclose(KnnLabel(k=5).fit(X * lengths, y).scores_, scores)
    renamed = np.array([2, 0, 1])[y]
    np.testing.assert_array_equal(KnnLabel(k=5).fit(X, renamed).scores_, scores)


def test_permuted_neighbours_permute_the_scores(blobs):
    near = nearest(blobs.X, 10)
    order = np.random.default_rng(1).permutation(len(blobs.y))
    place = np.argsort(order)
    moved = Neighbors(place[near.indices[order]], near.similarity[order])
    np.testing.assert_array_equal(
        KnnLabel().fit(None, blobs.y[order], neighbors=moved).scores_,
        KnnLabel().fit(None, blobs.y, neighbors=near).scores_[order],
    )


def test_too_few_samples():
    with pytest.raises(InputError, match=r"knn-label needs 10 neighbours.*there are 4 .*5 samples"):
        KnnLabel(k=10).fit(np.eye(5), np.zeros(5, int))


def test_too_few_neighbours(blobs):
    with pytest.raises(InputError, match="knn-label needs 10"):
        KnnLabel().fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 9))


@pytest.mark.parametrize("k", [0, -3])
def test_no_neighbours_at_all(blobs, k):
    with pytest.raises(InputError, match=f"knn-label: k must be at least 1, got {k}"):
        KnnLabel(k=k).fit(blobs.X, blobs.y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_not_finite(blobs, value):
    blobs.X[17, 2] = value
    with pytest.raises(InputError, match="row 17"):
        KnnLabel().fit(blobs.X, blobs.y)
