"""Gaussians with one covariance: the sheet's numbers, identities and traps, blocks, shrinkage, trimming."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from chaffinch.base import gaussian
from chaffinch.base.errors import InputError
from chaffinch.base.gaussian import Gaussians, blocks, fit_gaussians, fitted_rows, trimmed
from chaffinch.base.neighbors import nearest

X8 = np.array([(0, 0), (2, 0), (0, 2), (2, 2), (6, 0), (8, 0), (6, 2), (8, 4)], float)
Y8 = np.repeat([0, 1], 4)
QUERIES = np.array([(4, 1), (1, 6), (7, 10), (-10, 1)], float)
OWN = [1.310345, 1.862069, 1.862069, 1.310345, 1.862069, 2.689655, 1.310345, 3.793103]
S = [9.034483, 13.793103, 39.862069, 125.172414]
BACKGROUND = [1.993197, 1, 2.319728, 0.891156, 1.544218, 3.081633, 0.564626, 4.605442]
RELATIVE = [-0.682852, 0.862069, -0.457659, 0.419188, 0.317851, -0.391977, 0.745719, -0.812339]
RELATIVE_QUERIES = [9.000469, -0.985808, 0.103566, 104.852686]


def random_set(seed=0, n=120, d=5, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return 3 * rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), y


def in_loops(X, y, queries, ridge=0.0):
    """Means, pooled covariance and all squared distances (Q, C), one sample at a time."""
    means = {c: sum(x for x, label in zip(X, y, strict=True) if label == c) / sum(y == c) for c in sorted(set(y))}
    covariance = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(X, y, strict=True)) / len(X)
    inverse = np.linalg.inv(covariance + ridge * np.eye(X.shape[1]))
    return np.array([[(x - m) @ inverse @ (x - m) for m in means.values()] for x in queries])


class TestKnownAnswer:
    def test_mahalanobis(self):
        found = fit_gaussians(X8, Y8)
        np.testing.assert_allclose(found.means, [(1, 1), (7, 1.5)])
        np.testing.assert_allclose(found.covariance, [[1, 0.25], [0.25, 1.875]])
        np.testing.assert_allclose(found.own(X8, Y8), OWN, atol=1e-6)
        d2, suggested = found.nearest(QUERIES)
        np.testing.assert_allclose(d2, S, atol=1e-6)
        np.testing.assert_array_equal(suggested, in_loops(X8, Y8, QUERIES).argmin(axis=1))

    def test_relative(self):
        classes, background = fit_gaussians(X8, Y8), fit_gaussians(X8, np.zeros(8, int))
        np.testing.assert_allclose(background.means, [(4, 1.25)])
        np.testing.assert_allclose(background.covariance, [[10, 1], [1, 1.9375]])
        np.testing.assert_allclose(background.nearest(X8)[0], BACKGROUND, atol=1e-6)
        np.testing.assert_allclose(classes.nearest(X8)[0] - background.nearest(X8)[0], RELATIVE, atol=2e-6)
        found = classes.nearest(QUERIES)[0] - background.nearest(QUERIES)[0]
        np.testing.assert_allclose(found, RELATIVE_QUERIES, atol=2e-6)


class TestIdentities:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 0.3]))
    def test_agrees_with_loops(self, seed, d, ridge):
        X, y = random_set(seed, d=d)
        found, expected = fit_gaussians(X, y), in_loops(X, y, X, ridge)
        d2, suggested = found.nearest(X, ridge=ridge)
        np.testing.assert_allclose(d2, expected.min(axis=1), rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(suggested, expected.argmin(axis=1))
        np.testing.assert_allclose(found.own(X, y, ridge=ridge), expected[np.arange(len(y)), y], rtol=1e-6)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6))
    def test_affine_maps_change_nothing(self, seed):
        X, y = random_set(seed)
        rng = np.random.default_rng(seed)
        A = np.linalg.qr(rng.normal(size=(5, 5)))[0] * rng.uniform(0.2, 5, 5)
        moved = X @ A.T + 10 * rng.normal(size=5)
        for labels in (y, np.zeros_like(y)):  # classes, background
            before, after = (fit_gaussians(Z, labels).nearest(Z)[0] for Z in (X, moved))
            np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-9)

    def test_sphere_gives_squared_distance_to_the_nearest_mean(self):
        X, y = random_set()
        found = replace(fit_gaussians(X, y), covariance=np.eye(5))
        expected = ((X[:, None] - found.means) ** 2).sum(axis=2).min(axis=1)
        np.testing.assert_allclose(found.nearest(X)[0], expected, rtol=1e-9)

    @pytest.mark.parametrize("outliers", [0, 40])
    def test_own_distances_have_mean_d_whatever_the_contamination(self, outliers):
        """So no quantile of chi-square on a plain fit ever finds that a set is contaminated."""
        X, y = random_set()
        X[:outliers] *= 100
        assert fit_gaussians(X, y).own(X, y).mean() == pytest.approx(5, rel=1e-9)
        assert fit_gaussians(X, np.zeros_like(y)).nearest(X)[0].mean() == pytest.approx(5, rel=1e-9)

    def test_own_distances_have_the_rank_as_mean(self):
        X, y = random_set()
        X = np.hstack([X, X[:, :2], np.full((len(X), 1), 7.0)])
        found = fit_gaussians(X, y)
        assert found.own(X, y, ridge=found.ridge(1e-9)).mean() == pytest.approx(5, rel=1e-5)

    def test_an_outlier_masks_itself(self):
        X = np.append(np.random.default_rng(0).normal(size=19), 1e6)[:, None]
        y = np.zeros(20, int)
        assert fit_gaussians(X, y).own(X, y)[-1] == pytest.approx(19, rel=1e-6)
        assert fit_gaussians(X, y, np.arange(19)).own(X, y)[-1] > 1e11

    def test_more_features_than_samples_say_nothing_without_shrinkage(self):
        X, y = np.random.default_rng(0).normal(size=(12, 40)), np.repeat([0, 1, 2], 4)
        X[0] *= 5
        found = fit_gaussians(X, y)
        np.testing.assert_allclose(found.own(X, y, ridge=found.ridge(1e-8)), 9, rtol=1e-5)
        shrunk = found.own(X, y, ridge=found.ridge(None))
        assert shrunk[0] > 1.3 * shrunk[1:].max()

    def test_one_class_is_the_background(self):
        X, _ = random_set()
        one, background = fit_gaussians(X, np.full(len(X), 3)), fit_gaussians(X, np.zeros(len(X), int))
        np.testing.assert_array_equal(one.nearest(X)[0], background.nearest(X)[0])
        assert set(one.nearest(X)[1]) == {3}

    def test_background_is_wider_by_the_scatter_of_the_means(self):
        X, y = random_set()
        classes, background = fit_gaussians(X, y), fit_gaussians(X, np.zeros_like(y))
        shift = classes.means - background.means
        between = (np.bincount(y) / len(y) * shift.T) @ shift
        np.testing.assert_allclose(background.covariance, classes.covariance + between, atol=1e-10)
        assert np.linalg.eigvalsh(background.covariance - classes.covariance).min() > -1e-10


class TestTraps:
    def test_single_precision_would_not_do(self):
        """256 features whose spread falls over five decades: a float32 inverse is noise, ours is not."""
        rng = np.random.default_rng(0)
        rotation = np.linalg.qr(rng.normal(size=(256, 256)))[0]
        white = rng.normal(size=(800, 256))
        X, y = white * np.logspace(0, -5, 256) @ rotation, np.zeros(800, int)
        expected = fit_gaussians(white, y).nearest(white)[0]
        found = fit_gaussians(X, y)
        np.testing.assert_allclose(found.nearest(X)[0], expected, rtol=1e-5)
        inverse = np.linalg.inv(found.covariance.astype(np.float32))
        centred = (X - found.means).astype(np.float32)
        single = np.einsum("nd,de,ne->n", centred, inverse, centred)
        assert np.abs(single / expected - 1).max() > 0.1, "the trap is set"

    def test_dead_channels_need_a_ridge_and_then_change_nothing(self):
        X, y = random_set()
        dead = np.hstack([X, np.zeros((len(X), 3))])
        found = fit_gaussians(dead, y)
        with pytest.raises(InputError, match=r"covariance is singular.*give it a ridge above 0"):
            found.nearest(dead)
        expected = fit_gaussians(X, y).nearest(X)[0]
        np.testing.assert_allclose(found.nearest(dead, ridge=found.ridge(1e-8))[0], expected, rtol=1e-4)

    def test_features_that_follow_from_others_are_found_out(self):
        """Cholesky may pass on rounding alone."""
        X, y = random_set()
        twice = np.hstack([X, X @ np.random.default_rng(1).normal(size=(5, 2))])
        with pytest.raises(InputError, match="covariance is singular"):
            fit_gaussians(twice, y).own(twice, y)

    def test_nothing_of_n_by_n_is_built(self):
        X = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
        y = np.arange(30_000) % 5
        fit_gaussians(X[:100], y[:100]).nearest(X[:100])  # imports are not to be counted
        tracemalloc.start()
        fit_gaussians(X, y, unit=True).nearest(X, unit=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100e6

    def test_a_class_of_one_sample_gets_no_mean(self):
        """It would be at distance 0 from itself."""
        X, y = random_set()
        X[7], y[7] = 50, 9
        found = fit_gaussians(X, y)
        np.testing.assert_array_equal(found.classes, [0, 1, 2])
        d2, suggested = found.nearest(X)
        assert d2.argmax() == 7
        assert suggested[7] in (0, 1, 2)
        assert found.own(X, y)[7] == np.inf
        others = np.delete(np.arange(len(y)), 7)
        np.testing.assert_allclose(found.covariance, fit_gaussians(X[others], y[others]).covariance)
        with pytest.raises(InputError, match="no class has two samples"):
            fit_gaussians(X, np.arange(len(X)))

    def test_a_missing_class_has_no_mean_either(self):
        X, y = random_set()
        np.testing.assert_array_equal(fit_gaussians(X, 2 * y).classes, [0, 2, 4])
        np.testing.assert_array_equal(fit_gaussians(X, 2 * y).nearest(X)[1], 2 * fit_gaussians(X, y).nearest(X)[1])

    def test_no_spread_leaves_plain_distances(self):
        X = np.array([[0.1, 0.3]] * 5 + [[0.7, 0.3]] * 5 + [[0.7, 9.3]])
        y = np.repeat([0, 1], [5, 6])
        found = fit_gaussians(X, y, np.arange(10))
        assert not found.covariance.any()
        np.testing.assert_allclose(found.nearest(X, ridge=found.ridge(None))[0], [0] * 10 + [81], atol=1e-20)


class TestBlocks:
    @pytest.mark.parametrize("size", [1, 7, 64, 10**6])
    def test_size_changes_nothing(self, monkeypatch, size):
        X, y = random_set()
        expected = in_loops(X, y, X, 0.1)
        monkeypatch.setattr(gaussian, "BLOCK", size)
        found = fit_gaussians(X, y)
        np.testing.assert_allclose(found.nearest(X, ridge=0.1)[0], expected.min(axis=1), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.own(X, y, ridge=0.1), expected[np.arange(len(y)), y], rtol=1e-9)

    def test_unit_rows_in_double_precision(self):
        X = np.array([[3, 4], [0, 0], [1e-20, 0]], np.float32)
        ((_, block),) = blocks(X, unit=True)
        assert block.dtype == np.float64
        np.testing.assert_allclose(block, [(0.6, 0.8), (0, 0), (1, 0)], rtol=1e-7)
        ((where, block),) = blocks(X, np.array([2, 0]))
        np.testing.assert_array_equal(where, [2, 0])
        np.testing.assert_array_equal(block, X[[2, 0]])


class TestRidge:
    @pytest.mark.parametrize(("n", "d"), [(200, 5), (30, 20), (20, 60)])
    def test_none_shrinks_as_scikit_learn_does(self, n, d):
        X, y = random_set(n=n, d=d, classes=2)
        found = fit_gaussians(X, y)
        covariance, intensity = ledoit_wolf(X - found.means[y], assume_centered=True)
        assert found.intensity == pytest.approx(intensity, rel=1e-9)
        np.testing.assert_allclose(
            (1 - intensity) * (found.covariance + found.ridge(None) * np.eye(d)), covariance, atol=1e-9
        )

    def test_a_number_is_in_units_of_the_mean_variance(self):
        found = Gaussians(np.array([0]), np.zeros((1, 2)), np.diag([1.0, 3.0]), 0.0)
        assert found.ridge(0.1) == pytest.approx(0.2)
        assert found.ridge(0.0) == 0
        assert found.ridge(None) == pytest.approx(2e-6), "never without"

    @pytest.mark.parametrize("ridge", [-0.1, np.inf, np.nan])
    def test_out_of_range(self, ridge):
        with pytest.raises(InputError, match="ridge must be 0 or more, in units of the mean variance"):
            fit_gaussians(X8, Y8).ridge(ridge)

    def test_one_feature_and_one_pair_stay_finite(self):
        X, y = np.array([[0.0], [1.0], [2.0], [4.0]]), np.array([0, 0, 1, 1])
        for rows in (None, np.array([2, 3])):
            found = fit_gaussians(X, y, rows)
            assert 0 <= found.intensity <= 1
            assert np.isfinite(found.nearest(X, ridge=found.ridge(None))[0]).all()


class TestFittedRows:
    def test_trimmed_leaves_scattered_outliers_out(self):
        X, y = random_set(n=300)
        outliers = np.arange(300) % 10 < 3
        X[outliers] = 30 * np.random.default_rng(1).normal(size=(90, 5))
        rows = trimmed(X, y)
        assert not outliers[rows].any()
        np.testing.assert_array_equal(np.bincount(y[rows]), np.rint(np.bincount(y) / 2))
        assert fit_gaussians(X, y, rows).own(X, y)[outliers].min() > fit_gaussians(X, y).own(X, y)[outliers].max()

    def test_trimmed_has_converged(self):
        """Fitted on what it kept, it keeps the same."""
        X, y = random_set(n=300)
        rows = trimmed(X, y, rounds=100)
        found = fit_gaussians(X, y, rows)
        d2 = found.own(X, y, ridge=found.ridge(None))
        for c in range(3):
            kept, left = np.intersect1d(rows, np.flatnonzero(y == c)), np.setdiff1d(np.flatnonzero(y == c), rows)
            assert d2[kept].max() < d2[left].min()

    def test_plain_is_all_and_so_is_everything_kept(self):
        X, y = random_set()
        for fit_on, h in (("plain", None), ("seeds", 1.0), ("trimmed", 1.0)):
            np.testing.assert_array_equal(fitted_rows(X, y, fit_on, h, None), np.arange(len(y)))

    def test_seeds_come_from_the_neighbours_given_or_computed(self):
        X, y = random_set()
        given_ = fitted_rows(X, y, "seeds", None, nearest(X, 30))
        np.testing.assert_array_equal(given_, fitted_rows(X, y, "seeds", None, None))
        assert len(given_) == pytest.approx(0.3 * len(y), abs=2)

    def test_no_such_fit(self):
        with pytest.raises(InputError, match="fit_on must be one of seeds, trimmed, plain, got 'mcd'"):
            fitted_rows(X8, Y8, "mcd", None, None)
