"""Linear separation: the sheet's checks, Newton's method in loops, collapse, fallbacks, bad input."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.mixture import fit_mixture
from chaffinch.detectors.base import own_label_loss
from chaffinch.detectors.lsa import LinearSeparation, plane_on_device, separate


def gaussians(n=4000, seed=0):
    """The sheet's set-up: ID and OOD 4 sd apart along axis 0 of 32, 40 % OOD."""
    rng = np.random.default_rng(seed)
    ood = rng.random(n) < 0.4
    X = rng.normal(size=(n, 32))
    X[:, 0] += np.where(ood, 2, -2)
    return X, ood, rng


def with_losses(losses):
    p = np.exp(-np.asarray(losses, float))
    return np.zeros(len(p), int), np.column_stack([p, 1 - p])


def foreign_digits():
    """Digits 5 to 9 under random labels 0 to 4."""
    X, truth = load_digits(return_X_y=True)
    ood = truth > 4
    y = np.where(ood, np.random.default_rng(0).integers(0, 5, len(truth)), truth)
    return X.astype(np.float32), y, ood


def newton_in_loops(X, seeds, steps=40):
    """Balanced, unpenalised logistic regression on standardised unit rows, solved sample by sample."""
    n, dim = X.shape
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in X.tolist()]
    mean = [sum(row[d] for row in unit) / n for d in range(dim)]
    sd = [math.sqrt(sum((row[d] - mean[d]) ** 2 for row in unit) / n) for d in range(dim)]
    Z = [[(row[d] - mean[d]) / sd[d] for d in range(dim)] + [1.0] for row in unit]
    weight = {True: n / (2 * sum(seeds)), False: n / (2 * (n - sum(seeds)))}
    w = [0.0] * (dim + 1)
    for _ in range(steps):
        gradient, hessian = [0.0] * (dim + 1), [[0.0] * (dim + 1) for _ in range(dim + 1)]
        for z, s in zip(Z, seeds, strict=True):
            p = 1 / (1 + math.exp(-sum(a * b for a, b in zip(w, z, strict=True))))
            for a in range(dim + 1):
                gradient[a] += weight[s] * (p - s) * z[a]
                for b in range(dim + 1):
                    hessian[a][b] += weight[s] * p * (1 - p) * z[a] * z[b]
        w = [a - b for a, b in zip(w, np.linalg.solve(hessian, gradient), strict=True)]
    return [sum(a * b for a, b in zip(w, z, strict=True)) for z in Z]


class TestSheet:
    def test_2_affine_invariance(self):
        """Without a penalty the scaler changes nothing: the plane on raw unit rows gives the same scores."""
        X, ood, rng = gaussians(500)
        X, seeds = X[:, :3], ood ^ (rng.random(500) < 0.2)
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=5000, tol=1e-8).fit(unit, seeds)
        ours, theirs = (1 / (1 + np.exp(-s)) for s in (separate(X, seeds), model.decision_function(unit)))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

    def test_2_constant_feature(self):
        """Balanced: p = .5; unbalanced it would be the share of seeds, .1."""
        scores = separate(np.ones((100, 3)), np.arange(100) < 10)
        np.testing.assert_allclose(1 / (1 + np.exp(-scores)), 0.5, atol=1e-4)

    @pytest.mark.parametrize(
        ("wrongly", "missed", "before", "after", "ranking"),
        [(0.05, 0.3, 0.825, 0.970, 0.996), (0.1, 0.5, 0.704, 0.961, 0.993), (0.3, 0.3, 0.704, 0.961, 0.995)],
    )
    def test_3_seeds_are_denoised(self, wrongly, missed, before, after, ranking):
        found = []
        for seed in range(5):  # one draw differs by .006 (sd)
            X, ood, rng = gaussians(seed=seed)
            luck = rng.random(len(X))
            seeds = np.where(ood, luck > missed, luck < wrongly)
            scores = separate(X, seeds)
            balanced = [balanced_accuracy_score(ood, flags) for flags in (seeds, scores > 0)]
            found.append([*balanced, roc_auc_score(ood, scores)])
        mean = np.mean(found, axis=0)
        assert mean[:2] == pytest.approx([before, after], abs=0.015)
        assert mean[2] == pytest.approx(ranking, abs=0.005)

    def test_4_blind_spot(self):
        """Simple clean samples on the foreign side: the small loss keeps them, the plane throws them away."""
        rng = np.random.default_rng(0)
        ood = rng.random(4000) < 0.4
        simple = ~ood & (rng.random(4000) < 0.1)
        X = rng.normal(size=(4000, 32))
        X[:, 0] += np.where(ood | simple, 4, 0)
        losses = np.abs(np.where(ood, rng.normal(2, 0.5, 4000), rng.normal(0.6, 0.35, 4000)))
        losses[simple] = 0.05
        y, p = with_losses(losses)
        Z = fit_mixture(losses).monotone_posterior(losses) > 0.95
        W = LinearSeparation().fit(X, y, pred_probs=p).flags_
        assert not Z[simple].any()
        assert (~W)[simple].mean() == pytest.approx(0.05, abs=0.03)
        assert balanced_accuracy_score(ood, W) > balanced_accuracy_score(ood, Z)
        assert np.corrcoef(Z, W)[0, 1] == pytest.approx(0.705, abs=0.06)

    def test_9_pixels_do_not_collapse(self):
        X, y, ood = foreign_digits()
        model = LinearSeparation().fit(X, y)
        assert balanced_accuracy_score(ood, model.flags_) == pytest.approx(0.902, abs=0.02)
        assert model.info_["seed_agreement"] == pytest.approx(0.91, abs=0.03)
        assert not model.info_["cross_fitted"]
        assert "note" not in model.info_
        assert roc_auc_score(ood, model.scores_) > 0.94

    def test_9_wide_features_collapse_and_are_cross_fitted(self):
        """In 400 dimensions the plane repeats its seeds; the sheet's remedy has balanced accuracy .959, AUROC .992."""
        X, y, ood = foreign_digits()
        wide = np.maximum(X / 16 @ np.random.default_rng(1).normal(size=(64, 400)), 0)
        p = linear_probe(X, y, 5).pred_probs
        losses = own_label_loss(p, y)
        seeds = fit_mixture(losses).monotone_posterior(losses) > 0.95
        np.testing.assert_array_equal(separate(wide, seeds) > 0, seeds)
        model = LinearSeparation().fit(wide, y, pred_probs=p)
        assert model.info_["cross_fitted"]
        assert "agreed with its seeds on 100.0%" in model.info_["note"]
        assert model.info_["seed_agreement"] < 0.96
        assert balanced_accuracy_score(ood, model.flags_) == pytest.approx(0.959, abs=0.015)
        assert roc_auc_score(ood, model.scores_) == pytest.approx(0.992, abs=0.01)
        np.testing.assert_array_equal(model.flags_, model.scores_ > 0)


def test_agrees_with_loops():
    X, ood, rng = gaussians(150)
    X, seeds = X[:, :2] + 3, ood ^ (rng.random(150) < 0.2)
    np.testing.assert_allclose(separate(X, seeds), newton_in_loops(X, seeds.tolist()), atol=5e-3)


def planted(n=1200):
    """Foreigners behind a plane; their losses are larger, but the two overlap."""
    X, ood, rng = gaussians(n)
    losses = np.abs(np.where(ood, rng.normal(2, 0.8, n), rng.normal(0.5, 0.3, n)))
    y, p = with_losses(losses)
    return X, y, p, ood, losses


def test_finds_planted_foreigners():
    X, y, p, ood, losses = planted()
    model = LinearSeparation().fit(X, y, pred_probs=p)
    assert roc_auc_score(ood, model.scores_) > 0.99
    assert roc_auc_score(ood, model.scores_) > roc_auc_score(ood, losses) + 0.01, "it must beat its seeds"
    assert balanced_accuracy_score(ood, model.flags_) > 0.95
    assert 0.7 < model.info_["seed_agreement"] < 0.95
    assert model.info_["seeds"] == (fit_mixture(losses).monotone_posterior(losses) > 0.95).sum()


def test_finds_planted_foreigners_without_evidence(blobs):
    """Labels of the foreigners are random, so the probe's losses seed the right side."""
    X = blobs.X.copy()
    X[:, 11] += 3.0 * blobs.ood
    assert roc_auc_score(blobs.ood, LinearSeparation().fit(X, blobs.y).scores_) > 0.95


def test_wrong_labels_inside_the_classes_are_not_its_business(blobs):
    scores = LinearSeparation().fit(blobs.X, blobs.y, pred_probs=blobs.p).scores_
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.75


def test_row_order_rotation_and_scale_do_not_matter():
    X, y, p, _, _ = planted()
    rng = np.random.default_rng(1)
    scores = LinearSeparation().fit(X, y, pred_probs=p).scores_
    order = rng.permutation(len(X))
    moved = LinearSeparation().fit(X[order], y[order], pred_probs=p[order]).scores_
    np.testing.assert_allclose(moved, scores[order], atol=2e-2)
    lengths = rng.uniform(0.1, 10, (len(X), 1))
    np.testing.assert_allclose(LinearSeparation().fit(X * lengths, y, pred_probs=p).scores_, scores, atol=2e-2)
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    np.testing.assert_allclose(LinearSeparation().fit(X @ rotation, y, pred_probs=p).scores_, scores, atol=5e-2)


def test_separable_seeds_are_cross_fitted_with_the_same_bits():
    X, ood, _ = gaussians(200)
    X[:, 0] *= 10
    y, p = with_losses(np.where(ood, 3.0, 0.2) + np.linspace(0, 0.1, 200))
    first, second = (LinearSeparation(seed=3).fit(X, y, pred_probs=p) for _ in range(2))
    assert first.info_["cross_fitted"]
    assert "cross-fitted" in first.info_["note"]
    np.testing.assert_array_equal(first.scores_, second.scores_)
    assert not np.array_equal(first.scores_, LinearSeparation(seed=4).fit(X, y, pred_probs=p).scores_)
    assert roc_auc_score(ood, first.scores_) > 0.96
    assert not LinearSeparation(collapse=1.1).fit(X, y, pred_probs=p).info_["cross_fitted"]


@pytest.mark.parametrize(("threshold", "flagged"), [(1.0, 0), (-0.1, 1200)])
def test_seeds_on_one_side_only_fall_back(threshold, flagged):
    X, y, p, _, losses = planted()
    model = LinearSeparation(seed_threshold=threshold).fit(X, y, pred_probs=p)
    np.testing.assert_allclose(model.scores_, losses)
    assert model.flags_.sum() == model.info_["seeds"] == flagged
    assert "no seeds on one side" in model.info_["note"]
    assert model.info_["seed_agreement"] == 1.0
    assert not model.info_["cross_fitted"]


def test_a_single_seed_still_gives_a_plane():
    X, _, _ = gaussians(60)
    scores = separate(X, np.arange(60) == 7, folds=5, C=0.01)
    assert scores.argmax() == 7
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("seeds", [np.zeros(10, bool), np.ones(10, bool)])
def test_a_plane_needs_two_sides(seeds):
    with pytest.raises(InputError, match="seeds on both sides"):
        separate(np.ones((10, 2)), seeds)


def test_constant_losses():
    with pytest.raises(InputError, match="all 30 losses are equal"):
        LinearSeparation().fit(np.eye(30), np.zeros(30, int), pred_probs=np.full((30, 2), 0.5))


def test_features_not_finite():
    X, y, p, _, _ = planted()
    X[19, 4] = np.nan
    with pytest.raises(InputError, match="row 19"):
        LinearSeparation().fit(X, y, pred_probs=p)
    with pytest.raises(InputError, match="row 19"):
        LinearSeparation().fit(X, np.arange(len(X)) % 2)


def test_one_class_alone():
    with pytest.raises(InputError, match="only one class"):
        LinearSeparation().fit(np.eye(6), np.zeros(6, int))


def test_budget(blobs):
    model = LinearSeparation().fit(blobs.X, blobs.y, pred_probs=blobs.p)
    assert model.flag(budget=0.25).sum() == 100
    np.testing.assert_array_equal(model.flag(threshold=0.0), model.flags_)
    with pytest.raises(InputError, match="budget"):
        model.flag(budget=1.5)
    with pytest.raises(InputError, match="flags all"):
        model.flag(budget=1.0)


@pytest.mark.parametrize("C", [np.inf, 0.01])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_torch_finds_the_same_plane(case, C, monkeypatch):
    """Against scikit-learn at a tight tolerance: the same flags; at its usual one, all but a few next to the plane."""
    rng = np.random.default_rng(case)
    n, d, share, wrong = [(600, 5, 0.5, 0.3), (3000, 64, 0.1, 0.2), (1500, 20, 0.8, 0.05)][case]
    foreign = rng.random(n) < share
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + np.outer(foreign, 4 * rng.normal(size=d))
    seeds = np.where(rng.random(n) < wrong, ~foreign, foreign)
    H = X / np.linalg.norm(X, axis=1, keepdims=True)
    H = (H - H.mean(0)) / H.std(0)
    model = LogisticRegression(C=C, tol=1e-9, max_iter=10_000, class_weight="balanced").fit(H, seeds)
    w, b = plane_on_device(H, seeds, C)
    expected = model.decision_function(H)
    np.testing.assert_allclose(H @ w + b, expected, atol=5e-3 * np.abs(expected).max())
    close = np.abs(expected) < 1e-3 * np.abs(expected).max()
    np.testing.assert_array_equal((H @ w + b > 0)[~close], (expected > 0)[~close])
    usual = separate(X, seeds, C=C)
    monkeypatch.setattr("chaffinch.detectors.lsa.LARGE", 0)
    assert ((separate(X, seeds, C=C) > 0) != (usual > 0)).mean() < 0.02


def test_torch_stops_where_the_seeds_are_separable():
    X = np.random.default_rng(0).normal(size=(40, 60))
    seeds = np.arange(40) < 15
    w, b = plane_on_device(X, seeds, np.inf)
    assert np.isfinite(w).all()
    np.testing.assert_array_equal(X @ w + b > 0, seeds)
