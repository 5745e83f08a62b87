"""Neighbour distance: sheet numbers and traps, loops, invariances, bad input."""

import math

import numpy as np
import pytest
from contaminated_digits import contaminated
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.seeds import seeds
from chaffinch.detectors.knn_distance import KnnDistance, distance_to_bank

ANGLES, NORMS = (0, 10, 25, 90, 100, 180), (1, 3, 0.5, 2, 1, 4)
FIRST = [0.174311, 0.174311, 0.261052, 0.174311, 0.174311, 1.285575]
SECOND = [0.432879, 0.261052, 0.432879, 1.074599, 1.217523, 1.414214]
NOT_NORMALISED = [1.532089, 2.520362, 0.995581, 1.845200, 1.029936, 4.458165]


def circle():
    """The sheet's six rows in the plane z = 0, and both poles, so that a quarter of the class allows k = 2."""
    rows = [(r * math.cos(math.radians(a)), r * math.sin(math.radians(a)), 0) for a, r in zip(ANGLES, NORMS, strict=1)]
    return np.array([*rows, (0, 0, 1), (0, 0, -1)])


def in_loops(X, k, *, normalise=True, count_self=False):
    """Pythagoras, one pair at a time."""
    rows = [[v / (math.hypot(*row) + 1e-10) if normalise else v for v in row] for row in X.tolist()]
    return [
        sorted(math.dist(a, b) for j, b in enumerate(rows) if count_self or j != i)[k - 1] for i, a in enumerate(rows)
    ]


@pytest.mark.parametrize(("k", "expected"), [(1, FIRST), (2, SECOND)])
def test_known_answer(k, expected):
    model = KnnDistance(k=k).fit(circle(), np.zeros(8, int))
    assert model.info_["k"] == k
    np.testing.assert_allclose(model.scores_[:6], expected, atol=2e-6)
    np.testing.assert_allclose(in_loops(circle()[:6], k), expected, atol=1e-6)
    np.testing.assert_allclose(nearest(circle()[:6], k).distance[:, -1], expected, atol=2e-6)


def test_traps_are_avoided():
    """Self counted as a neighbour shifts k by one; without normalisation lengths decide."""
    plane = circle()[:6]
    np.testing.assert_allclose(in_loops(plane, 2, count_self=True), FIRST, atol=1e-6)
    np.testing.assert_allclose(in_loops(plane, 2, normalise=False), NOT_NORMALISED, atol=1e-6)
    found = KnnDistance(k=2).fit(circle(), np.zeros(8, int)).scores_[:6]
    assert np.abs(found - FIRST).min() > 0.08
    assert np.abs(found - NOT_NORMALISED).min() > 0.1
    squared = np.square(SECOND)  # what a flat L2 index returns
    assert np.abs(found - squared).min() > 0.05


@pytest.mark.parametrize(
    ("kind", "share", "expected", "tolerance"),
    [
        ("clustered", 0.1, 0.97, 0.03),
        ("clustered", 0.3, 0.81, 0.03),
        ("clustered", 0.6, 0.59, 0.05),  # five other draws: .55, sd .03
        ("diffuse", 0.1, 0.99, 0.03),
        ("diffuse", 0.3, 0.99, 0.03),
        ("diffuse", 0.6, 1.00, 0.03),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, share, expected, tolerance):
    """Foreign digits as dense as a class hide, scattered ones do not."""
    X, truth = load_digits(return_X_y=True)
    n, found = round(share * 900), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        inside = rng.choice(np.flatnonzero(truth < 5), 900 - n, replace=False)
        outside = rng.choice(np.flatnonzero(truth > 4) if kind == "clustered" else len(truth), n, replace=False)
        foreign = X[outside] if kind == "clustered" else rng.permuted(X[outside], axis=1)
        features = PCA(32, random_state=0).fit_transform(np.vstack([X[inside], foreign]))
        y = np.append(truth[inside], rng.integers(0, 5, n))
        found.append(roc_auc_score(np.arange(900) >= 900 - n, KnnDistance().fit(features, y).scores_))
    assert np.mean(found) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_agrees_with_loops(blobs, k):
    X = blobs.X[:90].astype(float)
    model = KnnDistance(k=k).fit(X, np.zeros(90, int))
    np.testing.assert_allclose(model.scores_, in_loops(X, k), atol=1e-5)


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    scores = KnnDistance().fit(blobs.X, blobs.y).scores_
    assert roc_auc_score(blobs.ood, scores) > 0.99
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.65


def test_labels_play_no_part(blobs):
    shuffled = np.random.default_rng(0).permutation(blobs.y)
    np.testing.assert_array_equal(
        KnnDistance().fit(blobs.X, blobs.y).scores_, KnnDistance().fit(blobs.X, shuffled).scores_
    )


def test_duplicates_are_at_distance_zero_and_zero_rows_finite():
    X = np.vstack([np.tile([1.0, 2, 3], (12, 1)), np.zeros((2, 3)), np.eye(3)])
    scores = KnnDistance(k=2).fit(X, np.zeros(len(X), int)).scores_
    np.testing.assert_allclose(scores[:12], 0, atol=1e-3)
    assert np.isfinite(scores).all()
    assert scores[12:].min() > 0.3


def test_budget_decides_how_many(blobs):
    model = KnnDistance(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    assert not KnnDistance(budget=0.0).fit(blobs.X, blobs.y).flags_.any()


def test_k_is_cut_to_a_quarter_of_the_smallest_class_and_says_so(blobs):
    y = np.repeat([0, 2], [388, 12])  # nobody carries class 1: it is not the smallest
    model = KnnDistance(k=10).fit(blobs.X, y)
    assert model.info_["k"] == 3
    assert "cut from 10 to 3" in model.info_["note"]
    np.testing.assert_array_equal(model.scores_, KnnDistance(k=3).fit(blobs.X, np.zeros(400, int)).scores_)
    assert "note" not in KnnDistance(k=10).fit(blobs.X, blobs.y).info_
    assert KnnDistance(k=10).fit(blobs.X, np.repeat([0, 1], [399, 1])).info_["k"] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_row_order_rotation_and_scale_do_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(60, 5)), np.zeros(60, int)
    scores = KnnDistance(k=5).fit(X, y).scores_
    order = rng.permutation(60)
    np.testing.assert_allclose(KnnDistance(k=5).fit(X[order], y).scores_, scores[order], atol=1e-5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    lengths = rng.uniform(0.1, 10, (60, 1))
    np.testing.assert_allclose(KnnDistance(k=5).fit(scale * lengths * X @ rotation, y).scores_, scores, atol=1e-5)
    further = KnnDistance(k=6).fit(X, y).scores_
    assert (further >= scores).all()
    assert scores.max() <= 2 + 1e-6


def test_shared_and_permuted_neighbours(blobs):
    near = nearest(blobs.X, 30)
    alone = KnnDistance().fit(blobs.X, blobs.y).scores_
    np.testing.assert_array_equal(KnnDistance().fit(None, blobs.y, neighbors=near).scores_, alone)
    order = np.random.default_rng(1).permutation(len(blobs.y))
    moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
    np.testing.assert_array_equal(KnnDistance().fit(None, blobs.y[order], neighbors=moved).scores_, alone[order])


def test_too_few_neighbours(blobs):
    with pytest.raises(InputError, match=r"knn-distance needs 10 neighbours.*there are 4"):
        KnnDistance().fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 4))


def test_one_sample():
    with pytest.raises(InputError, match="at least two samples"):
        KnnDistance().fit(np.ones((1, 3)), np.zeros(1, int))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_features_not_finite(blobs, value):
    blobs.X[3, 0] = value
    with pytest.raises(InputError, match="row 3"):
        KnnDistance().fit(blobs.X, blobs.y)


@pytest.mark.parametrize("budget", [-0.1, 1.1, np.nan])
def test_budget_out_of_range(blobs, budget):
    with pytest.raises(InputError, match="budget must be a share between 0 and 1"):
        KnnDistance(budget=budget).fit(blobs.X, blobs.y)


def test_budget_of_everything(blobs):
    with pytest.raises(InputError, match="flags all 400 samples"):
        KnnDistance(budget=1.0).fit(blobs.X, blobs.y)


class TestSeedBank:
    @pytest.mark.parametrize(("kind", "expected"), [("clustered", (0.96, 0.97, 0.98)), ("diffuse", (1.0, 1.0, 1.0))])
    def test_contaminated_digits_of_the_sheet(self, kind, expected):
        found = []
        for share in (0.1, 0.3, 0.6):
            X, y, ood, _ = contaminated(kind, share, 0)
            found.append(roc_auc_score(ood, KnnDistance(bank="seeds").fit(X, y).scores_))
        np.testing.assert_allclose(found, expected, atol=0.03)

    def test_foreigners_always_filed_under_one_label_are_seen_without_labels_only(self):
        """The sheet: .34 from seeds where the whole set gives .81."""
        X, y, ood, _ = contaminated("consistent", 0.3, 0)
        plain, seeded = (roc_auc_score(ood, KnnDistance(bank=b).fit(X, y).scores_) for b in ("all", "seeds"))
        assert plain == pytest.approx(0.81, abs=0.05)
        assert seeded == pytest.approx(0.34, abs=0.1)

    def test_agrees_with_loops(self, blobs):
        X, k = blobs.X.astype(float), 5
        model = KnnDistance(k=k, bank="seeds").fit(X, blobs.y)
        bank = seeds(blobs.y, nearest(X, 10))
        unit = (X / np.linalg.norm(X, axis=1, keepdims=True)).tolist()
        expected = [sorted(math.dist(u, unit[j]) for j in bank if j != i)[k - 1] for i, u in enumerate(unit)]
        np.testing.assert_allclose(model.scores_, expected, atol=1e-5)
        assert model.info_["bank"] == len(bank)

    def test_a_seed_is_not_its_own_neighbour(self):
        """Not even among copies, of which any may come first."""
        X = np.vstack([np.tile([1.0, 2, 3], (12, 1)), np.eye(3), -np.eye(3)])
        for k in (1, 3, 11):
            np.testing.assert_allclose(distance_to_bank(X, np.arange(12), k)[:12], 0, atol=1e-3)
        np.testing.assert_allclose(
            distance_to_bank(X, np.arange(12, 18), 1), [*[0.629629] * 12, *[2**0.5] * 6], atol=1e-4
        )
        np.testing.assert_allclose(distance_to_bank(X, np.arange(12, 15), 2)[12:15], 2**0.5, atol=1e-6)

    def test_the_whole_set_as_bank_is_the_plain_score(self, blobs):
        expected = nearest(blobs.X, 7).distance[:, -1]
        np.testing.assert_allclose(distance_to_bank(blobs.X, np.arange(400), 7), expected, atol=1e-6)

    def test_neighbours_given_choose_the_same_seeds(self, blobs):
        alone = KnnDistance(bank="seeds").fit(blobs.X, blobs.y).scores_
        given_ = KnnDistance(bank="seeds").fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 30)).scores_
        np.testing.assert_array_equal(alone, given_)
        assert roc_auc_score(blobs.ood, alone) > 0.99

    def test_row_order_does_not_matter(self, blobs):
        near, order = nearest(blobs.X, 10), np.random.default_rng(1).permutation(400)
        scores = KnnDistance(bank="seeds").fit(blobs.X, blobs.y, neighbors=near).scores_
        moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
        again = KnnDistance(bank="seeds").fit(blobs.X[order], blobs.y[order], neighbors=moved).scores_
        np.testing.assert_allclose(again, scores[order], atol=1e-5)

    def test_k_is_cut_to_a_quarter_of_the_smallest_class_of_the_bank(self, blobs):
        model = KnnDistance(bank="seeds").fit(blobs.X, np.repeat([0, 2], [360, 40]))
        assert model.info_["k"] == 3  # 12 seeds
        assert "cut from 10 to 3: a quarter of the smallest class of the bank" in model.info_["note"]

    def test_what_it_cannot_do(self, blobs):
        with pytest.raises(InputError, match="bank must be one of all, seeds, got 'clean'"):
            KnnDistance(bank="clean").fit(blobs.X, blobs.y)
        with pytest.raises(MissingEvidence, match="knn-distance needs features"):
            KnnDistance(bank="seeds").fit(None, blobs.y, neighbors=nearest(blobs.X, 10))
        with pytest.raises(InputError, match="there are no seeds"):
            KnnDistance(bank="seeds").fit(blobs.X, np.arange(400))
        with pytest.raises(InputError, match=r"the choice of seeds needs 10 neighbours .* there are 4"):
            KnnDistance(bank="seeds").fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 4))
