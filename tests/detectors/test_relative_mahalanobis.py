"""Relative Mahalanobis distance: the sheet's numbers and contaminated digits, loops, equal treatment, bad input."""

from dataclasses import replace

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
from chaffinch.detectors.relative_mahalanobis import RelativeMahalanobis

PLAIN = {"fit_on": "plain", "normalise": False, "ridge": 0.0}


def in_loops(X, y, rows, ridge):
    """Both distances with explicit inverses, one sample at a time; the same absolute ridge in both."""
    members = {c: [X[i] for i in rows if y[i] == c] for c in sorted(set(y[rows].tolist()))}
    means = {c: sum(m) / len(m) for c, m in members.items()}
    within = sum(np.outer(X[i] - means[y[i]], X[i] - means[y[i]]) for i in rows) / len(rows)
    centre = sum(X) / len(X)
    total = sum(np.outer(x - centre, x - centre) for x in X) / len(X)
    added = ridge * np.trace(within) / len(within) * np.eye(len(within))
    A, B = np.linalg.inv(within + added), np.linalg.inv(total + added)
    return [min((x - m) @ A @ (x - m) for m in means.values()) - (x - centre) @ B @ (x - centre) for x in X]


def mean_auroc(kind, share, **parameters):
    found = []
    for seed in range(2):
        X, y, ood, _ = contaminated(kind, share, seed)
        found.append(roc_auc_score(ood, RelativeMahalanobis(**parameters).fit(X, y).scores_))
    return np.mean(found)


def test_known_answer():
    X = np.array([(0, 0), (2, 0), (0, 2), (2, 2), (6, 0), (8, 0), (6, 2), (8, 4)], float)
    model = RelativeMahalanobis(**PLAIN).fit(X, np.repeat([0, 1], 4))
    expected = [-0.682852, 0.862069, -0.457659, 0.419188, 0.317851, -0.391977, 0.745719, -0.812339]
    np.testing.assert_allclose(model.scores_, expected, atol=2e-6)
    np.testing.assert_array_equal(model.suggestions_, [0, 0, 0, 0, 1, 1, 1, 1])
    assert model.scores_.min() < 0, "neither halved nor cut at zero"


@pytest.mark.parametrize("fit_on", ["seeds", "trimmed", "plain"])
@pytest.mark.parametrize("normalise", [True, False])
def test_agrees_with_loops(blobs, fit_on, normalise):
    X = blobs.X.astype(float)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True) if normalise else X
    model = RelativeMahalanobis(fit_on=fit_on, normalise=normalise).fit(X, blobs.y)
    rows = fitted_rows(X, blobs.y, fit_on, None, None, unit=normalise)
    np.testing.assert_allclose(model.scores_, in_loops(unit, blobs.y, rows, 0.1), rtol=1e-6, atol=1e-8)
    assert model.info_["ridge"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "fit_on", "expected"),
    [
        ("clustered", "plain", (0.95, 0.95, 0.94)),
        ("clustered", "seeds", (0.95, 0.97, 0.98)),
        ("diffuse", "plain", (0.92, 0.91, 0.89)),
        ("diffuse", "seeds", (1.0, 1.0, 1.0)),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, fit_on, expected):
    found = [mean_auroc(kind, share, fit_on=fit_on, normalise=False, ridge=1e-6) for share in (0.1, 0.3, 0.6)]
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_foreigners_always_filed_under_one_label_turn_it_round():
    found = [mean_auroc("consistent", share, normalise=False, ridge=1e-6) for share in (0.1, 0.3, 0.6)]
    np.testing.assert_allclose(found, (0.60, 0.17, 0.04), atol=0.13)  # of the sheet; sd .06


class TestEqualTreatment:
    """The trap that bites, on the sheet's diffuse foreigners (10 %): whatever is done to one part only."""

    def parts(self, kind="diffuse", background_rows=None):
        X, y, ood, _ = contaminated(kind, 0.1, 0)
        rows = background_rows and background_rows(y, nearest(X, 10))

        def auroc(classes, background, ridge=0.0):
            return roc_auc_score(ood, classes.nearest(X, ridge=ridge)[0] - background.nearest(X, ridge=ridge)[0])

        return fit_gaussians(X, y), fit_gaussians(X, np.zeros_like(y), rows), auroc

    def shrunk(self, g):
        mean = np.trace(g.covariance) / len(g.covariance)
        return replace(g, covariance=(1 - g.intensity) * g.covariance + g.intensity * mean * np.eye(len(g.covariance)))

    def test_shrinking_the_class_part_only(self):
        classes, background, auroc = self.parts()
        assert auroc(classes, background) == pytest.approx(0.919, abs=0.03)
        assert auroc(self.shrunk(classes), background) < 0.2  # the sheet: .087
        assert auroc(self.shrunk(classes), self.shrunk(background)) == pytest.approx(0.677, abs=0.06)

    @pytest.mark.parametrize(("kind", "limit"), [("diffuse", 0.01), ("clustered", 0.1)])
    def test_background_on_seeds(self, kind, limit):
        classes, background, auroc = self.parts(kind, seeds)
        assert auroc(classes, background) < limit

    def test_ours_treats_both_alike(self):
        classes, background, auroc = self.parts()
        X, y, ood, _ = contaminated("diffuse", 0.1, 0)
        for ridge, expected in ((0.01, 0.92), (1.0, 0.96)):
            model = RelativeMahalanobis(fit_on="plain", normalise=False, ridge=ridge).fit(X, y)
            found = roc_auc_score(ood, model.scores_)
            assert found == pytest.approx(auroc(classes, background, classes.ridge(ridge)), abs=1e-9)
            assert found == pytest.approx(expected, abs=0.03)
        shrunk = RelativeMahalanobis(fit_on="plain", normalise=False, ridge=None).fit(X, y)
        assert roc_auc_score(ood, shrunk.scores_) > 0.89

    def test_background_sees_all_samples(self):
        """Among 60 % clustered foreigners even the plain fit holds, where the distance alone fails."""
        X, y, ood, _ = contaminated("clustered", 0.6, 0)
        assert roc_auc_score(ood, RelativeMahalanobis(fit_on="plain").fit(X, y).scores_) > 0.92
        assert roc_auc_score(ood, Mahalanobis(fit_on="plain").fit(X, y).scores_) < 0.7


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    model = RelativeMahalanobis().fit(blobs.X, blobs.y)
    assert roc_auc_score(blobs.ood, model.scores_) > 0.98
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], model.scores_[inside]) < 0.65


def test_suggests_what_mahalanobis_suggests(blobs):
    one = RelativeMahalanobis(ridge=0.3).fit(blobs.X, blobs.y)
    np.testing.assert_array_equal(one.suggestions_, Mahalanobis(ridge=0.3).fit(blobs.X, blobs.y).suggestions_)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["seeds", "plain"]))
def test_row_order_and_affine_maps_do_not_matter(seed, fit_on):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(90, 4))
    near, model = nearest(X, 10), RelativeMahalanobis(fit_on=fit_on, normalise=False, ridge=0.0)
    scores = model.fit(X, y, neighbors=near).scores_
    order = rng.permutation(90)
    moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
    again = model.fit(X[order], y[order], neighbors=moved).scores_
    np.testing.assert_allclose(again, scores[order], rtol=1e-6, atol=1e-8)
    A = np.linalg.qr(rng.normal(size=(4, 4)))[0] * rng.uniform(0.2, 5, 4)
    np.testing.assert_allclose(model.fit(X @ A + 5, y, neighbors=near).scores_, scores, rtol=1e-6, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_lengths_and_rotation_do_not_matter_when_normalised(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(90, 4))
    near, model = nearest(X, 10), RelativeMahalanobis()
    scores = model.fit(X, y, neighbors=near).scores_
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = model.fit(rng.uniform(0.01, 100, (90, 1)) * X @ rotation, y, neighbors=near).scores_
    np.testing.assert_allclose(turned, scores, rtol=1e-7, atol=1e-9)


def test_one_class_is_told_apart_by_seeds_only(blobs):
    y = np.zeros(400, int)
    with pytest.raises(InputError, match="there is one class only and it is the background"):
        RelativeMahalanobis(fit_on="plain").fit(blobs.X, y)
    assert np.ptp(RelativeMahalanobis().fit(blobs.X, y).scores_) > 1


def test_budget_decides_how_many(blobs):
    model = RelativeMahalanobis(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.info_["threshold"] == model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()


def test_odd_rows_stay_finite(blobs):
    X, y = np.hstack([blobs.X, np.zeros((400, 2)), blobs.X[:, :2]]), blobs.y
    X[:20], X[20:40], y[7] = X[20], 0, 6
    model = RelativeMahalanobis().fit(X, y)
    assert np.isfinite(model.scores_).all()
    assert "1 of the classes have one sample only" in model.info_["note"]
    rng = np.random.default_rng(0)
    for X, y in ((rng.normal(size=(30, 80)), np.arange(30) % 3), (rng.normal(size=(40, 1)), np.arange(40) % 2)):
        assert np.isfinite(RelativeMahalanobis(normalise=False).fit(X, y).scores_).all()


def test_samples_that_are_all_the_same():
    with pytest.raises(InputError, match="all scores are equal"):
        RelativeMahalanobis().fit(np.ones((30, 4)), np.arange(30) % 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fit_on": "mcd"}, "fit_on must be one of seeds, trimmed, plain"),
        ({"h": 1.2}, "h must be a share above 0"),
        ({"ridge": -1.0}, "ridge must be 0 or more"),
        ({"budget": -0.5}, "budget must be a share between 0 and 1"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        RelativeMahalanobis(**parameters).fit(blobs.X, blobs.y)


def test_without_features(blobs):
    with pytest.raises(MissingEvidence, match="relative-mahalanobis needs features"):
        RelativeMahalanobis().fit(None, blobs.y, neighbors=nearest(blobs.X, 10))
