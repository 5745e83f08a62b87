"""Maps: PCA against its definition, UMAP for the same bits, progress and silence."""

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import nearest
from chaffinch.metrics.embedding import map_quality
from chaffinch.projection import SMALLEST, pca, umap


def clusters(n=300, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (5 * np.eye(3, dim)[y] + rng.normal(size=(n, dim))).astype(np.float32), y


class TestPca:
    def test_agrees_with_scikit_learn(self):
        from sklearn.decomposition import PCA

        X, _ = clusters()
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        theirs = PCA(2, svd_solver="full").fit_transform(unit.astype(np.float64))
        ours = pca(X)
        assert ours.dtype == np.float32
        for axis in (0, 1):
            assert abs(np.corrcoef(ours[:, axis], theirs[:, axis])[0, 1]) == pytest.approx(1, abs=1e-5)
        assert np.ptp(ours[:, 0]) / np.ptp(ours[:, 1]) == pytest.approx(
            np.ptp(theirs[:, 0]) / np.ptp(theirs[:, 1]), rel=1e-4
        )

    def test_sign_is_fixed_and_bits_are_the_same(self):
        X, _ = clusters()
        first = pca(X)
        np.testing.assert_array_equal(first, pca(X.copy()))
        order = np.random.default_rng(1).permutation(len(X))
        np.testing.assert_allclose(pca(X[order]), first[order], atol=1e-3)

    def test_sign_comes_from_the_largest_entry_of_the_axis(self):
        """Most rows lie along +x: whatever the solver returns, +x is drawn to the right."""
        angle = np.deg2rad(np.linspace(-80, 80, 41))
        xy = pca(np.column_stack([np.cos(angle), np.sin(angle)]))
        assert np.corrcoef(xy[:, 0], np.sin(angle))[0, 1] > 0.999
        assert np.corrcoef(xy[:, 1], np.cos(angle))[0, 1] > 0.999

    def test_extent(self):
        xy = pca(clusters()[0])
        assert np.ptp(xy, axis=0).max() == pytest.approx(20, rel=1e-5)
        np.testing.assert_allclose(xy.max(axis=0) + xy.min(axis=0), 0, atol=1e-4)

    def test_one_dimension(self):
        xy = pca(np.array([[2.0], [-1.0], [5.0]]))
        assert xy.shape == (3, 2)
        np.testing.assert_allclose(xy, [(10, 0), (-10, 0), (10, 0)])

    @pytest.mark.parametrize("X", [np.ones((5, 3)), np.zeros((4, 2)), np.ones((1, 3))])
    def test_nothing_to_spread(self, X):
        np.testing.assert_allclose(pca(X), 0, atol=1e-3)

    def test_not_finite(self):
        X, _ = clusters()
        X[4, 2] = np.nan
        with pytest.raises(InputError, match="row 4"):
            pca(X)


@pytest.fixture(scope="module")
def drawn():
    """One map, the shares it reported, and what it printed (checked apart, the fit being slow the first time)."""
    import contextlib
    import io

    X, y = clusters()
    near, shares, printed = nearest(X, 20), [], io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        xy = umap(X, near, epochs=60, seed=1, progress=shares.append)
    return X, y, near, xy, shares, printed.getvalue()


class TestUmap:
    def test_shape_and_extent(self, drawn):
        xy = drawn[3]
        assert xy.shape == (300, 2)
        assert xy.dtype == np.float32
        assert np.ptp(xy, axis=0).max() == pytest.approx(20, rel=1e-5)

    def test_keeps_neighbourhoods_and_clusters(self, drawn):
        X, y, _, xy, _, _ = drawn
        assert map_quality(X, xy)["trustworthiness"] > 0.8
        near = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1)[:, 1:6]
        assert (y[near] == y[:, None]).mean() > 0.95

    def test_progress_reports_every_epoch_and_reaches_one(self, drawn):
        shares = drawn[4]
        assert shares == sorted(shares)
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert set(np.round(np.array(shares) * 60).astype(int)) == set(range(61))

    def test_prints_nothing(self, drawn):
        """Standard output belongs to --json."""
        assert drawn[5] == ""

    def test_same_seed_same_bits_with_or_without_progress(self, drawn):
        X, _, near, xy, _, _ = drawn
        np.testing.assert_array_equal(umap(X, near, epochs=60, seed=1), xy)
        assert not np.array_equal(umap(X, near, epochs=60, seed=2), xy)

    def test_fewer_epochs_than_ten(self, drawn):
        shares = []
        umap(drawn[0], drawn[2], epochs=3, progress=shares.append)
        assert shares[-1] == 1.0

    def test_too_few_neighbours(self, drawn):
        with pytest.raises(InputError, match="the map needs 14 neighbours of each sample, there are 5"):
            umap(drawn[0], drawn[2].first(5, "test"))

    def test_few_samples_are_drawn_by_pca(self):
        X, _ = clusters(SMALLEST - 1)
        np.testing.assert_array_equal(umap(X, nearest(X, 20)), pca(X))

    def test_not_finite(self, drawn):
        X = drawn[0].copy()
        X[9, 0] = np.nan
        with pytest.raises(InputError, match="row 9"):
            umap(X, drawn[2])

    def test_all_in_one_place(self):
        X = np.ones((60, 4), np.float32)
        with pytest.raises(InputError, match="no finite map for these features; use the PCA map"):
            umap(X, nearest(X, 20), epochs=5)
