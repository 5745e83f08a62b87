"""MAPSS: the sheet's digits, diffusion distances and leave-one-out in plain code, the extension, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import unit_rows
from chaffinch.detectors.mapss import ManifoldSeparation, cluster_distances, diffusion_map, draw_landmarks


def markov(U):
    """Kernel, density normalisation and Markov matrix in loops; also the degrees."""
    n = len(U)
    squared = [[sum((a - b) ** 2 for a, b in zip(U[i], U[j], strict=True)) for j in range(n)] for i in range(n)]
    bandwidth = np.median([squared[i][j] for i in range(n) for j in range(i)])
    K = [[np.exp(-squared[i][j] / (2 * bandwidth)) for j in range(n)] for i in range(n)]
    d = [sum(row) for row in K]
    K = [[K[i][j] / (d[i] * d[j]) for j in range(n)] for i in range(n)]
    degree = np.array([sum(row) for row in K])
    return np.array([[K[i][j] / degree[i] for j in range(n)] for i in range(n)]), degree, bandwidth


class TestSheet:
    def test_1_equal_distances_and_none(self):
        cloud = np.array([[0.0, 0], [1, 0], [-1, 0], [0, 2], [0, -2]])
        aside, y = np.array([5, 0]), np.repeat([0, 1, 0], [5, 5, 1])

        def separation(point):
            A, B, other = cluster_distances(np.vstack([cloud - aside, cloud + aside, point]), y, 1e-9)
            assert other[10] == 1
            return 1 - A[10] / (A[10] + B[10] + 1e-6)

        assert separation([0, 0]) == pytest.approx(0.5, abs=1e-6)
        assert separation([0, 9]) == pytest.approx(0.5, abs=1e-6)
        assert separation([-5, 0]) == pytest.approx(1, abs=1e-3)
        assert separation([5, 0]) == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize(
        ("dims", "expected", "tolerance"), [(10, 0.992, 4e-3), (20, 0.997, 2e-3), (40, 0.998, 1e-3)]
    )
    def test_5_digits(self, dims, expected, tolerance):
        X, truth = load_digits(return_X_y=True)
        found, means = [], []
        for seed in range(2):
            rng = np.random.default_rng(seed)
            rows = rng.permutation(len(X))[:800]
            wrong = rng.random(800) < 0.3
            y = np.where(wrong, (truth[rows] + rng.integers(1, 10, 800)) % 10, truth[rows])
            model = ManifoldSeparation(dims=dims).fit(X[rows], y)
            found.append(roc_auc_score(wrong, model.scores_))
            means.append([1 - model.scores_[~wrong].mean(), 1 - model.scores_[wrong].mean()])
        assert np.mean(found) == pytest.approx(expected, abs=tolerance)
        if dims == 20:
            clean, flipped = np.mean(means, axis=0)
            assert clean == pytest.approx(0.602, abs=0.02)
            assert 0.33 < flipped < 0.394, "the sheet's .394 counts each sample into its own cluster"


def test_coordinates_are_eigenvectors_of_the_markov_matrix():
    """Of P itself, not of the symmetric matrix: the released code leaves out the division by the root of the degree."""
    U = unit_rows(np.random.default_rng(0).normal(size=(40, 3)))
    found = diffusion_map(U, np.arange(40), 6)
    P, degree, bandwidth = markov(U.astype(float).tolist())
    assert found.bandwidth == pytest.approx(bandwidth)
    np.testing.assert_allclose(P @ found.coordinates, found.coordinates * found.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(degree @ found.coordinates, 0, atol=1e-10)  # the trivial one is left out
    np.testing.assert_allclose(degree @ found.coordinates**2, found.eigenvalues**2)
    every = np.sort(np.linalg.eigvals(P).real)[::-1][1:]
    np.testing.assert_allclose(found.eigenvalues, every[: len(found.eigenvalues)], atol=1e-12)
    assert found.kept == pytest.approx(found.eigenvalues.sum() / every.sum())


def test_all_coordinates_together_give_the_diffusion_distance():
    U = np.eye(9) + 0.1 * np.random.default_rng(0).normal(size=(9, 9))
    psi = diffusion_map(U, np.arange(9), 40).coordinates
    P, degree, _ = markov(U.tolist())
    assert psi.shape == (9, 8)
    for i in range(9):
        for j in range(9):
            expected = np.sum((P[i] - P[j]) ** 2 / degree)
            assert np.sum((psi[i] - psi[j]) ** 2) == pytest.approx(expected, abs=1e-12)


def test_dims_stop_at_99_percent_of_the_spectrum():
    angle = np.linspace(0, 3, 80)
    found = diffusion_map(np.column_stack([np.cos(angle), np.sin(angle)]), np.arange(80), 40)
    assert len(found.eigenvalues) < 10
    assert found.kept >= 0.99
    assert found.eigenvalues[:-1].sum() / found.eigenvalues.sum() * found.kept < 0.99


def test_extension_gives_copies_the_coordinates_of_their_landmark():
    U = np.random.default_rng(0).normal(size=(30, 4))
    whole = diffusion_map(U, np.arange(30), 5).coordinates
    extended = diffusion_map(np.vstack([U, U[::-1]]), np.arange(30), 5).coordinates
    np.testing.assert_allclose(extended, np.vstack([whole, whole[::-1]]), atol=1e-12)


def test_far_from_all_landmarks_stays_finite():
    U = np.vstack([np.random.default_rng(0).normal(size=(30, 2)), [[1e6, 1e6]]])
    assert np.isfinite(diffusion_map(U, np.arange(30), 5).coordinates).all()


def test_landmarks_are_balanced():
    y = np.repeat([0, 1, 2], [1000, 100, 20])
    rows = draw_landmarks(y, 90, 0)
    assert sorted(np.bincount(y[rows])) == [20, 35, 35]
    assert len(set(rows)) == 90
    assert not np.array_equal(rows, draw_landmarks(y, 90, 1))
    np.testing.assert_array_equal(draw_landmarks(y, 1120, 0), np.arange(1120))


def in_loops(psi, y, shrinkage):
    """Each sample against clusters estimated without it."""
    L = psi.shape[1]
    classes = sorted(set(y))
    within = sum((sum(y == c) - 1) * np.atleast_2d(np.cov(psi[y == c].T)) for c in classes if sum(y == c) > 1)
    pooled = within / (len(y) - len(classes))
    result = []
    for i in range(len(psi)):
        distance = {}
        for c in classes:
            members = [j for j in range(len(psi)) if y[j] == c]
            n = len(members)
            own = min(1, (n - 1) / L) if n > 2 else 0
            base = (own * np.atleast_2d(np.cov(psi[members].T)) if own else 0) + (1 - own) * pooled
            ridge = shrinkage * np.trace(base) / L * np.eye(L)
            mean, covariance = psi[members].mean(axis=0), base + ridge
            if i in members and n > 1:
                rest = [j for j in members if j != i]
                mean, grown = psi[rest].mean(axis=0), (n - 1) / (n - 2) if n > 2 else 1
                covariance = (own * np.cov(psi[rest].T) if own else 0) + grown * ((1 - own) * pooled + ridge)
            d = psi[i] - mean
            distance[c] = np.sqrt(d @ np.linalg.solve(covariance, d) + 1e-6)
        A = distance.pop(y[i])
        other = min(distance, key=distance.get)
        result.append((A, distance[other], other))
    return tuple(np.array(column) for column in zip(*result, strict=True))


def test_leave_one_out_agrees_with_loops():
    """Clusters with many points, with fewer than dimensions, with two and with one."""
    y = np.repeat([0, 1, 2, 3, 5], [20, 12, 4, 2, 1])
    psi = np.random.default_rng(0).normal(size=(39, 5)) + 2 * np.eye(6)[y][:, :5]
    for found, expected in zip(cluster_distances(psi, y, 0.1), in_loops(psi, y, 0.1), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_finds_planted_noise(blobs):
    model = ManifoldSeparation().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    assert model.flags_[blobs.wrong].mean() > 0.95
    assert model.flags_[blobs.clean].mean() < 0.02
    np.testing.assert_array_equal(model.suggestions_ != blobs.y, model.flags_)
    np.testing.assert_array_equal(model.flags_, model.scores_ > 0.5)
    assert 0 <= model.scores_.min() <= model.scores_.max() <= 1
    expected = [1 - model.scores_[blobs.y == c].mean() for c in range(4)]
    assert model.info_["class_separation"] == pytest.approx(expected)


def test_a_subsample_is_nearly_as_good_and_says_so(blobs):
    model = ManifoldSeparation(landmarks=100).fit(blobs.X, blobs.y)
    assert "computed from 100 samples drawn at random" in model.info_["note"]
    assert model.info_["landmarks"] == 100
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    assert "note" not in ManifoldSeparation().fit(blobs.X, blobs.y).info_


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_rotation_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 90)
    X = np.eye(5)[y] + 0.4 * rng.normal(size=(90, 5))
    scores = ManifoldSeparation(dims=3).fit(X, y).scores_
    order = rng.permutation(90)
    np.testing.assert_allclose(ManifoldSeparation(dims=3).fit(X[order], y[order]).scores_, scores[order], atol=1e-6)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    lengths = rng.uniform(0.1, 10, (90, 1))
    turned = ManifoldSeparation(dims=3).fit(lengths * X @ rotation, y).scores_
    np.testing.assert_allclose(turned, scores, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y: (X * (np.arange(len(X)) != 5)[:, None], y),
        lambda X, y: (X[np.arange(len(X)) // 7], y),
        lambda X, y: (X[np.arange(len(X)) // 50], y),
        lambda X, y: (X, np.where(y == 1, 2, y)),
        lambda X, y: (X, np.arange(len(y))),
        lambda X, y: (np.eye(5)[y], y),
        lambda X, y: (X[:, :1], y),
        lambda X, y: (X[:2], np.arange(2)),
        lambda X, y: (np.random.default_rng(0).normal(size=(len(X), 200)), y),
    ],
    ids=["zero row", "duplicates", "two points", "missing", "all single", "points", "narrow", "few", "wide"],
)
def test_degenerate_input_stays_finite(change):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    X, y = change(np.eye(5)[y] + 0.3 * rng.normal(size=(60, 5)), y)
    model = ManifoldSeparation().fit(X, y)
    assert np.isfinite(model.scores_).all()
    assert not model.flags_.all()
    assert set(model.suggestions_) <= set(y)


def test_the_only_sample_of_a_class_is_undecided(blobs):
    y = blobs.y.copy()
    y[7] = 9
    model = ManifoldSeparation().fit(blobs.X, y)
    assert model.scores_[7] == 0.5
    assert not model.flags_[7]
    assert model.info_["class_separation"][8] is None
    assert model.info_["class_separation"][9] == 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dims": 0}, "dims must be at least 1, got 0"),
        ({"landmarks": 5}, "landmarks must be at least 10, got 5"),
        ({"shrinkage": 0.0}, r"shrinkage must be above 0, got 0\.0"),
    ],
)
def test_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=f"mapss: {message}"):
        ManifoldSeparation(**parameters).fit(blobs.X, blobs.y)


def test_one_class():
    with pytest.raises(InputError, match="only one class"):
        ManifoldSeparation().fit(np.eye(6), np.zeros(6, int))


def test_features_that_point_the_same_way():
    with pytest.raises(InputError, match="point the same way"):
        ManifoldSeparation().fit(np.arange(1, 21)[:, None] * np.ones((1, 3)), np.arange(20) % 2)
