"""RCAL: the sheet's outliers and borrowed means, leave-one-out in plain code, rare classes, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import unit_rows
from chaffinch.detectors.rcal import (
    Gaussians,
    RepresentationCalibration,
    borrow,
    class_gaussians,
    lenders,
    outlier_factors,
    principal_axes,
)


def contaminated(seed, clustered):
    """200 clean points in 8 dimensions, and 50 around nine other centres, or all around one, at distance 6."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(9, 8))
    centres *= 6 / np.linalg.norm(centres, axis=1, keepdims=True)
    which = np.zeros(50, int) if clustered else rng.integers(0, 9, 50)
    Z = np.vstack([rng.normal(size=(200, 8)), centres[which] + rng.normal(size=(50, 8))])
    return Z, np.arange(250) >= 200


def error(Z):
    return np.linalg.norm(Z.mean(axis=0))


def largest(factors, number):
    flags = np.zeros(len(factors), bool)
    flags[np.argsort(-factors)[:number]] = True
    return flags


class TestSheet:
    def test_1_scattered_contamination(self):
        found = []
        for seed in range(10):
            Z, bad = contaminated(seed, clustered=False)
            out = outlier_factors(Z, 20, np.arange(250)) > 1.5
            spread = [np.linalg.norm(np.cov(A.T) - np.eye(8)) for A in (Z, Z[~out])]
            found.append([out[bad].mean(), out[~bad].mean(), error(Z), error(Z[~out]), *spread])
        # one draw, as the sheet's, differs by .12, .004, .12, .08, .25 and .56 (sd)
        expected = [0.74, 0.005, 0.537, 0.279, 3.293, 1.294]
        assert (np.abs(np.mean(found, axis=0) - expected) < [0.1, 0.005, 0.1, 0.1, 0.4, 0.4]).all()

    @pytest.mark.parametrize(
        ("k", "caught", "lost", "after"), [(20, 12, 22, 1.347), (60, 66, 8.5, 0.549), (100, 92, 2, 0.216)]
    )
    def test_2_clustered_contamination_needs_a_wide_neighbourhood(self, k, caught, lost, after):
        found = []
        for seed in range(8):
            Z, bad = contaminated(seed, clustered=True)
            factors = outlier_factors(Z, k, np.arange(250))
            out = largest(factors, 50)
            found.append([100 * out[bad].mean(), 100 * out[~bad].mean(), error(Z[~out]), error(Z)])
            if k == 20:
                assert (factors[bad] > 1.5).mean() < 0.05, "its own rule sees nothing"
        mean = np.mean(found, axis=0)
        assert mean[:2] == pytest.approx([caught, lost], abs=8)
        assert mean[2:] == pytest.approx([after, 1.222], abs=0.06)

    def test_2_the_detector_uses_a_wide_neighbourhood(self):
        """Asymmetric noise: a fifth of class 0 comes from class 1. Twenty neighbours would drop clean samples."""
        rng = np.random.default_rng(0)
        X = np.vstack([c + 0.25 * rng.normal(size=(250, 8)) for c in 2 * np.eye(8)[:2]])
        wrong = (np.arange(500) >= 250) & (np.arange(500) < 300)
        y = np.where(np.arange(500) < 300, 0, 1)
        flags = RepresentationCalibration().fit(X, y).flags_
        assert flags[wrong].mean() > 0.9
        assert flags[~wrong].mean() < 0.05

    def test_3_weights_and_mean(self):
        means, counts = np.array([[1.0, 0], [0, 2], [10, 10]]), np.array([100, 200, 500])
        heads, weights = lenders(np.zeros(2), means, counts, 2)
        np.testing.assert_array_equal(heads, [0, 1])
        np.testing.assert_allclose(weights, [2 / 3, 1 / 3])
        np.testing.assert_allclose(weights @ means[heads], [2 / 3, 2 / 3])
        for spread, expected in ((50.0, 1 / 3), (1e-9, 0)):  # a mean known exactly borrows nothing
            g = hand_made(np.vstack([means, np.zeros(2)]), np.append(counts, 5), spread)
            mixed = borrow(g, np.append(counts, 5), np.arange(4) == 3, 0.5, 2)
            np.testing.assert_allclose(mixed.centres[3], [expected, expected], atol=1e-6)
            np.testing.assert_array_equal(mixed.centres[:3], means)
            np.testing.assert_allclose(mixed.covariances[3], spread * np.eye(2))

    def test_4_shrinkage_gain(self):
        rng = np.random.default_rng(0)
        squared = []
        for _ in range(400):
            tail = rng.normal(size=(5, 16)).mean(axis=0)
            head = 0.1 * rng.normal(size=16)
            mixed = borrow(
                hand_made(np.vstack([head, tail]), [500, 5], 1), np.array([500, 5]), np.array([0, 1]) > 0, 0.5, 3
            )
            squared.append([np.sum(mixed.centres[1] ** 2), np.sum(tail**2)])
        assert np.mean(squared, axis=0) == pytest.approx([0.833, 3.154], rel=0.1)

    def test_5_without_gamma_nothing_is_borrowed(self):
        g = hand_made(np.eye(3)[:, :2], [100, 100, 4], 1)
        same = borrow(g, np.array([100, 100, 4]), np.array([0, 0, 1]) > 0, 0.0, 3)
        np.testing.assert_array_equal(same.centres, g.centres)
        np.testing.assert_array_equal(same.covariances, g.covariances)

    def test_6_fewer_samples_than_dimensions_stay_positive_definite(self):
        rng = np.random.default_rng(0)
        Z, y = rng.normal(size=(60, 40)), np.repeat(np.arange(6), 10)
        covariances = class_gaussians(Z, y, np.ones(60, bool)).covariances
        assert (np.linalg.eigvalsh(covariances) > 0).all()


def hand_made(means, counts, spread):
    n, m = means.shape
    covariances = np.tile(spread * np.eye(m), (n, 1, 1))
    return Gaussians(np.asarray(counts), means, means, covariances, np.ones(n), np.ones(n))


@pytest.mark.parametrize(("n", "k"), [(60, 5), (300, 120), (25, 24)])
def test_outlier_factor_agrees_with_scikit_learn(n, k):
    Z = np.random.default_rng(n).normal(size=(n, 5))
    expected = -LocalOutlierFactor(n_neighbors=k).fit(Z).negative_outlier_factor_
    np.testing.assert_allclose(outlier_factors(Z, k, np.arange(n)), expected, rtol=1e-6)


def test_outlier_factor_against_a_part_agrees_with_scikit_learn():
    Z = np.random.default_rng(0).normal(size=(1500, 4))
    part = np.arange(0, 1500, 3)
    model = LocalOutlierFactor(n_neighbors=30, novelty=True).fit(Z[part])
    found = outlier_factors(Z, 30, part)
    np.testing.assert_allclose(found[part], -model.negative_outlier_factor_, rtol=1e-6)
    rest = np.setdiff1d(np.arange(1500), part)
    np.testing.assert_allclose(found[rest], -model.score_samples(Z[rest]), rtol=1e-6)


def test_outlier_factor_among_duplicates():
    Z = np.vstack([np.zeros((30, 3)), np.ones((30, 3)), [[9.0, 9, 9]]])
    factors = outlier_factors(Z, 20, np.arange(61))
    assert np.isfinite(factors).all()
    np.testing.assert_allclose(factors[:60], 1, rtol=1e-6)
    assert factors[60] > 1000


def in_loops(Z, y, kept, counts, rare, gamma, q):
    """Every sample scored by Gaussians that were estimated anew without it (the weights of the shrinkage kept)."""
    whole = borrow(class_gaussians(Z, y, kept), counts, rare, gamma, q)
    m = Z.shape[1]
    scores = []
    for i in range(len(Z)):
        g = []
        for c in range(len(counts)):
            centre, covariance = whole.centres[c], whole.covariances[c]
            if y[i] == c and kept[i]:
                members = [j for j in range(len(Z)) if y[j] == c and kept[j]]
                rest = [j for j in members if j != i]
                n = len(members)
                centre = centre + whole.mean_share[c] * (Z[rest].mean(axis=0) - Z[members].mean(axis=0))
                with_i, without_i = ((len(r) - 1) * np.cov(Z[r].T) / (n - 1) for r in (members, rest))
                covariance = covariance + whole.covariance_share[c] * (without_i - with_i)
            d = Z[i] - centre
            distance = d @ np.linalg.solve(covariance, d)
            g.append((m + 1) / 2 * np.log1p(distance) + np.linalg.slogdet(whole.covariances[c])[1] / 2)
        scores.append(g[y[i]] - min(v for c, v in enumerate(g) if c != y[i]))
    return scores


def test_agrees_with_loops(blobs):
    keep = (blobs.y != 3) | (np.cumsum(blobs.y == 3) <= 12)  # class 3 is rare
    X, y = blobs.X[keep][:150], blobs.y[keep][:150]
    model = RepresentationCalibration(dims=6).fit(X, y)
    assert model.info_["rare"] == [3]
    assert 0 < model.flags_[y == 3].sum() < (y == 3).sum()
    Z = principal_axes(unit_rows(X), 6)
    expected = in_loops(Z, y, ~model.flags_, np.bincount(y), np.arange(4) == 3, 0.5, 3)
    np.testing.assert_allclose(model.scores_, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(model.suggestions_ != y, model.scores_ > 0)


def test_principal_axes_keep_distances():
    X = np.random.default_rng(0).normal(size=(50, 6))
    Z = principal_axes(X.astype(np.float32), 64)
    assert Z.shape == (50, 6)
    np.testing.assert_allclose(np.linalg.norm(Z[:1] - Z, axis=1), np.linalg.norm(X[:1] - X, axis=1), rtol=1e-5)
    assert (np.diff(Z.var(axis=0)) <= 0).all()
    assert principal_axes(np.hstack([X, X]).astype(np.float32), 64).shape == (50, 6), "axes without variance go"


def test_finds_planted_noise(blobs):
    model = RepresentationCalibration().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    assert model.flags_[blobs.wrong].mean() > 0.75
    assert model.flags_[blobs.ood].mean() > 0.6
    assert model.flags_[blobs.clean].mean() < 0.02
    shares = np.bincount(blobs.y[model.flags_], minlength=4) / np.bincount(blobs.y)
    assert model.info_["contamination"] == pytest.approx(shares.tolist())


@pytest.mark.parametrize(("rate", "ranking"), [(0.2, 0.995), (0.4, 0.985)])
def test_digits(digits, rate, ranking):
    data = digits(rate)
    model = RepresentationCalibration().fit(data.X, data.y)
    assert roc_auc_score(data.wrong, model.scores_) > ranking
    assert model.flags_.mean() == pytest.approx(rate, abs=0.06), "the contamination is estimated"
    assert model.flags_[data.wrong].mean() > 0.8


def test_clean_labels_give_few_outliers(digits):
    data = digits(0.0)
    assert 0 < RepresentationCalibration().fit(data.X, data.y).flags_.mean() < 0.03


def test_rare_classes():
    """Digits, 20 to 1, a fifth mislabelled: wrong labels among the rare ones are found as well."""
    X, truth = load_digits(return_X_y=True)
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(10)
        rows = [rng.permutation(np.flatnonzero(truth == c))[: int(170 * 20 ** (-i / 9))] for i, c in enumerate(order)]
        keep = np.concatenate(rows)
        y = np.where(rng.random(len(keep)) < 0.2, rng.choice(truth[keep], len(keep)), truth[keep])
        wrong, rare = y != truth[keep], np.isin(y, order[6:])
        model = RepresentationCalibration().fit(X[keep], y)
        assert set(model.info_["rare"]) & set(order[6:].tolist())
        found.append([roc_auc_score(wrong[rare], model.scores_[rare]), roc_auc_score(wrong, model.scores_)])
    assert (np.mean(found, axis=0) > [0.97, 0.985]).all()


def test_a_given_share_of_each_class_is_dropped_by_the_factor_within_it(blobs):
    model = RepresentationCalibration(contamination=0.1).fit(blobs.X, blobs.y)
    Z = principal_axes(unit_rows(blobs.X), 64)
    for c in range(4):
        rows = np.flatnonzero(blobs.y == c)
        k = max(20, int(0.4 * len(rows)))
        factors = -LocalOutlierFactor(n_neighbors=k).fit(Z[rows]).negative_outlier_factor_
        np.testing.assert_array_equal(model.flags_[rows], largest(factors, len(rows) // 10))
    assert not RepresentationCalibration(contamination=0.0).fit(blobs.X, blobs.y).flags_.any()


def test_large_classes_are_subsampled_and_say_so(blobs):
    model = RepresentationCalibration(largest=60).fit(blobs.X, blobs.y)
    assert model.info_["note"].startswith("the outliers of 4 large classes were found against 60 samples")
    assert "note" not in RepresentationCalibration().fit(blobs.X, blobs.y).info_
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    again = RepresentationCalibration(largest=60).fit(blobs.X, blobs.y)
    np.testing.assert_array_equal(again.scores_, model.scores_)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_rotation_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = np.eye(5)[y] + 0.4 * rng.normal(size=(90, 5))
    model = RepresentationCalibration().fit(X, y)
    order = rng.permutation(90)
    moved = RepresentationCalibration().fit(X[order], y[order])
    np.testing.assert_allclose(moved.scores_, model.scores_[order], atol=1e-6)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    turned = RepresentationCalibration().fit(7 * X @ rotation, y)
    np.testing.assert_allclose(turned.scores_, model.scores_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y: (X * (np.arange(len(X)) != 5)[:, None], y),
        lambda X, y: (X[np.arange(len(X)) // 7], y),
        lambda X, y: (X, np.where(np.arange(len(y)) == 3, 7, y)),
        lambda X, y: (X, np.where(y == 1, 2, y)),
        lambda X, y: (X, np.arange(len(y))),
        lambda X, y: (np.eye(5)[y], y),
        lambda X, y: (np.hstack([X, np.ones((len(X), 100))]), y),
        lambda X, y: (X[:, :1], y),
        lambda X, y: (X[:4], np.arange(4) % 2),
        lambda X, y: (np.random.default_rng(0).normal(size=(len(X), 200)), y),
    ],
    ids=["zero row", "duplicates", "single", "missing", "all single", "points", "constant", "narrow", "few", "wide"],
)
def test_degenerate_input_stays_finite(change):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    X, y = change(np.eye(5)[y] + 0.3 * rng.normal(size=(60, 5)), y)
    model = RepresentationCalibration().fit(X, y)
    assert np.isfinite(model.scores_).all()
    assert not model.flags_.all()
    assert set(model.suggestions_) <= set(y)


def test_the_only_sample_of_a_class_is_undecided(blobs):
    y = np.where(np.arange(400) == 7, 9, blobs.y)
    model = RepresentationCalibration().fit(blobs.X, y)
    assert model.scores_[7] == 0
    assert model.suggestions_[7] == 9
    assert not model.flags_[7]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"contamination": 0.6}, r"contamination must be between 0 and 0\.5, got 0\.6"),
        ({"gamma": -1}, "gamma must be between 0 and 1, got -1"),
        ({"tail": 2}, "tail must be between 0 and 1, got 2"),
        ({"dims": 0}, "dims must be at least 1, got 0"),
        ({"borrowed": 0}, "borrowed must be at least 1"),
        ({"largest": 10}, "largest must be at least 50"),
    ],
)
def test_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=f"rcal: {message}"):
        RepresentationCalibration(**parameters).fit(blobs.X, blobs.y)


def test_one_class():
    with pytest.raises(InputError, match="only one class"):
        RepresentationCalibration().fit(np.eye(6), np.zeros(6, int))


def test_equal_features():
    with pytest.raises(InputError, match="all features are equal"):
        RepresentationCalibration().fit(np.ones((20, 3)), np.arange(20) % 2)
