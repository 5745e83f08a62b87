"""Mahalanobis distance: the sheet's numbers and contaminated digits, loops, traps, invariances, bad input."""

import numpy as np
import pytest
from contaminated_digits import contaminated
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.gaussian import fit_gaussians, fitted_rows
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.seeds import seeds
from chaffinch.detectors.mahalanobis import Mahalanobis

PLAIN = {"fit_on": "plain", "normalise": False, "ridge": 0.0}


def in_loops(X, y, rows, *, ridge=0.0):
    """The smallest of all squared distances, and its class, one sample at a time."""
    members = {c: [X[i] for i in rows if y[i] == c] for c in sorted(set(y[rows].tolist()))}
    means = {c: sum(m) / len(m) for c, m in members.items() if len(m) > 1}
    residuals = [X[i] - means[y[i]] for i in rows if y[i] in means]
    covariance = sum(np.outer(r, r) for r in residuals) / len(residuals)
    inverse = np.linalg.inv(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    return np.array([min(((x - m) @ inverse @ (x - m), c) for c, m in means.items()) for x in X]).T


def mean_auroc(kind, share, **parameters):
    found = []
    for seed in range(2):
        X, y, ood, _ = contaminated(kind, share, seed)
        found.append(roc_auc_score(ood, Mahalanobis(**parameters).fit(X, y).scores_))
    return np.mean(found)


def test_known_answer():
    X = np.array([(0, 0), (2, 0), (0, 2), (2, 2), (6, 0), (8, 0), (6, 2), (8, 4)], float)
    model = Mahalanobis(**PLAIN).fit(X, np.repeat([0, 1], 4))
    expected = [1.310345, 1.862069, 1.862069, 1.310345, 1.862069, 2.689655, 1.310345, 3.793103]
    np.testing.assert_allclose(model.scores_, expected, atol=1e-6)
    np.testing.assert_array_equal(model.suggestions_, [0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("fit_on", ["seeds", "trimmed", "plain"])
@pytest.mark.parametrize("normalise", [True, False])
def test_agrees_with_loops(blobs, fit_on, normalise):
    X = blobs.X.astype(float)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True) if normalise else X
    model = Mahalanobis(fit_on=fit_on, normalise=normalise, ridge=0.2).fit(X, blobs.y)
    rows = fitted_rows(X, blobs.y, fit_on, None, None, unit=normalise)
    distance, suggested = in_loops(unit, blobs.y, rows, ridge=0.2)
    np.testing.assert_allclose(model.scores_, distance, rtol=1e-7)
    np.testing.assert_array_equal(model.suggestions_, suggested)


@pytest.mark.parametrize(
    ("kind", "fit_on", "expected"),
    [
        ("clustered", "plain", (0.92, 0.79, 0.56)),
        ("clustered", "seeds", (0.95, 0.96, 0.97)),
        ("clustered", "trimmed", (0.92, 0.93, 0.54)),
        ("diffuse", "plain", (1.0, 1.0, 0.99)),
        ("diffuse", "seeds", (1.0, 1.0, 1.0)),
        ("diffuse", "trimmed", (1.0, 1.0, 1.0)),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, fit_on, expected):
    found = [mean_auroc(kind, share, fit_on=fit_on, normalise=False) for share in (0.1, 0.3, 0.6)]
    np.testing.assert_allclose(found, expected, atol=0.04)


@pytest.mark.parametrize(("fit_on", "expected"), [("plain", (0.96, 0.85, 0.64)), ("seeds", (0.98, 0.98, 0.98))])
def test_length_one_helps(fit_on, expected):
    found = [mean_auroc("clustered", share, fit_on=fit_on) for share in (0.1, 0.3, 0.6)]
    np.testing.assert_allclose(found, expected, atol=0.03)
    raw = [mean_auroc("clustered", share, fit_on=fit_on, normalise=False) for share in (0.1, 0.3, 0.6)]
    assert (np.array(found) > raw).all()


def test_foreigners_always_filed_under_one_label_turn_the_seeds_round():
    """The sheet's warning: .31 and .08; labels then say that they belong."""
    assert mean_auroc("consistent", 0.3, normalise=False) == pytest.approx(0.31, abs=0.1)
    assert mean_auroc("consistent", 0.6, normalise=False) == pytest.approx(0.08, abs=0.1)


def test_own_label_distance_finds_swaps_and_the_score_does_not(blobs):
    inside = ~blobs.ood
    own = fit_gaussians(blobs.X, blobs.y, seeds(blobs.y, nearest(blobs.X, 10))).own(blobs.X, blobs.y)
    score = Mahalanobis().fit(blobs.X, blobs.y).scores_
    assert roc_auc_score(blobs.wrong[inside], own[inside]) > 0.97
    assert 0.35 < roc_auc_score(blobs.wrong[inside], score[inside]) < 0.65


def test_finds_planted_foreigners_and_the_right_class(blobs):
    model = Mahalanobis().fit(blobs.X, blobs.y)
    assert roc_auc_score(blobs.ood, model.scores_) > 0.99
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    assert blobs.ood[model.flags_].all()


def test_an_outlier_masks_itself_in_a_plain_fit_only():
    """One point at 10^6 is at squared distance 19 of 20 samples that include it."""
    X = np.append(np.random.default_rng(0).normal(size=19), 1e6)[:, None]
    y = np.zeros(20, int)
    assert Mahalanobis(**PLAIN).fit(X, y).scores_[-1] == pytest.approx(19, rel=1e-6)
    assert Mahalanobis(fit_on="trimmed", normalise=False).fit(X, y).scores_[-1] > 1e9


def test_one_covariance_for_all_classes_not_one_each():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 200)
    X = np.where(y == 0, 0.1, 3.0)[:, None] * rng.normal(size=(400, 2)) + 20 * y[:, None]
    scores = Mahalanobis(**PLAIN).fit(X, y).scores_
    assert scores[y == 0].mean() < 0.01 * scores[y == 1].mean()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["seeds", "trimmed", "plain"]))
def test_row_order_and_affine_maps_do_not_matter(seed, fit_on):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(90, 4))
    near = nearest(X, 10)
    model = Mahalanobis(fit_on=fit_on, normalise=False, ridge=0.0).fit(X, y, neighbors=near)
    order = rng.permutation(90)
    moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
    again = Mahalanobis(fit_on=fit_on, normalise=False, ridge=0.0).fit(X[order], y[order], neighbors=moved)
    np.testing.assert_allclose(again.scores_, model.scores_[order], rtol=1e-7)
    np.testing.assert_array_equal(again.suggestions_, model.suggestions_[order])
    if fit_on != "trimmed":  # it starts with plain distances
        A = np.linalg.qr(rng.normal(size=(4, 4)))[0] * rng.uniform(0.2, 5, 4)
        mapped = Mahalanobis(fit_on=fit_on, normalise=False, ridge=0.0).fit(X @ A + 5, y, neighbors=near)
        np.testing.assert_allclose(mapped.scores_, model.scores_, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_lengths_and_rotation_do_not_matter_when_normalised(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(90, 4))
    near = nearest(X, 10)
    scores = Mahalanobis().fit(X, y, neighbors=near).scores_
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = Mahalanobis().fit(rng.uniform(0.01, 100, (90, 1)) * X @ rotation, y, neighbors=near)
    np.testing.assert_allclose(turned.scores_, scores, rtol=1e-7)


def test_what_it_tells(blobs):
    info = Mahalanobis().fit(blobs.X, blobs.y).info_
    np.testing.assert_array_equal(info["fitted"], np.rint(0.3 * np.bincount(blobs.y)))
    assert info["fit_on"] == "seeds"
    assert "note" not in info
    assert Mahalanobis(ridge=0.5).fit(blobs.X, blobs.y).info_["ridge"] == pytest.approx(0.5)


def test_budget_decides_how_many(blobs):
    model = Mahalanobis(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.info_["threshold"] == model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    assert Mahalanobis(budget=0.0).fit(blobs.X, blobs.y).info_["threshold"] is None


def test_more_features_than_samples_still_rank_and_say_so():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 40)
    X = rng.normal(size=(80, 200)) + 0.6 * rng.normal(size=(2, 200))[y]
    X[:10] += 1.2 * rng.normal(size=200)
    model = Mahalanobis().fit(X, y)
    assert roc_auc_score(np.arange(80) < 10, model.scores_) > 0.9
    assert "24 samples are too few for the covariance of 200 features" in model.info_["note"]


def test_a_class_of_one_sample_is_judged_by_the_others_and_the_user_told(blobs):
    blobs.y[5] = 5
    model = Mahalanobis().fit(blobs.X, blobs.y)
    assert model.suggestions_[5] in (0, 1, 2, 3)
    assert "1 of the classes have one sample only" in model.info_["note"]
    assert model.info_["fitted"][4:] == [0, 0]
    with pytest.raises(InputError, match="no class has two samples"):
        Mahalanobis().fit(blobs.X, np.arange(400))


@pytest.mark.parametrize("fit_on", ["seeds", "trimmed", "plain"])
def test_odd_rows_stay_finite(blobs, fit_on):
    X = np.hstack([blobs.X, np.zeros((400, 2)), blobs.X[:, :2]])  # dead channels, and copies
    X[:20], X[20:40] = X[20], 0
    scores = Mahalanobis(fit_on=fit_on).fit(X, blobs.y).scores_
    assert np.isfinite(scores).all()
    assert np.ptp(scores[20:40]) < 1e-9 * scores[20]


def test_seeds_that_are_copies_leave_plain_distances():
    X, y = np.repeat([[1.0, 0], [0, 1], [1, 1]], [40, 40, 4], axis=0), np.repeat([0, 1, 0, 1], [40, 40, 2, 2])
    model = Mahalanobis().fit(X, y)
    np.testing.assert_allclose(model.scores_, np.repeat([0, 2 - 2**0.5], [80, 4]), atol=1e-12)
    assert model.info_["ridge"] is None
    assert "distances are plain ones" in model.info_["note"]


def test_fewer_samples_than_neighbours_and_one_feature():
    rng = np.random.default_rng(0)
    for X, y in ((rng.normal(size=(6, 3)), [0, 0, 0, 1, 1, 1]), (rng.normal(size=(40, 1)), np.arange(40) % 2)):
        assert np.isfinite(Mahalanobis(normalise=False).fit(X, np.array(y)).scores_).all()


@pytest.mark.parametrize("X", [np.ones((30, 4)), np.zeros((30, 4)), np.linspace(1, 9, 30)[:, None]])
def test_samples_that_are_all_the_same(X):
    """One positive feature is the same everywhere once it has length 1."""
    with pytest.raises(InputError, match="all samples are equally far"):
        Mahalanobis().fit(X, np.arange(30) % 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fit_on": "mcd"}, "fit_on must be one of seeds, trimmed, plain"),
        ({"h": 0.0}, "h must be a share above 0"),
        ({"ridge": -1.0}, "ridge must be 0 or more"),
        ({"budget": 1.5}, "budget must be a share between 0 and 1"),
        ({"budget": 1.0}, "flags all 400 samples"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        Mahalanobis(**parameters).fit(blobs.X, blobs.y)


def test_a_singular_covariance_without_a_ridge(blobs):
    X = np.hstack([blobs.X, blobs.X])
    with pytest.raises(InputError, match=r"covariance is singular .* give it a ridge above 0"):
        Mahalanobis(ridge=0.0).fit(X, blobs.y)


def test_without_features(blobs):
    with pytest.raises(MissingEvidence, match="mahalanobis needs features"):
        Mahalanobis().fit(None, blobs.y, neighbors=nearest(blobs.X, 10))


def test_too_few_neighbours(blobs):
    with pytest.raises(InputError, match=r"the choice of seeds needs 10 neighbours.*there are 4"):
        Mahalanobis().fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 4))
