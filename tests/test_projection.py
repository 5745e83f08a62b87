"""Maps: PCA against its definition, UMAP for the same bits, progress and silence."""

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.metrics.embedding import map_quality
from chaffinch.projection import SMALLEST, _place, pca, umap


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


@pytest.fixture(scope="module")
def thinned():
    """Clusters of which a third is laid out, the samples that are, and the shares it reported."""
    X, y = clusters(1500, seed=3)
    near, shares = nearest(X, 20), []
    return X, y, near, umap(X, near, epochs=60, most=500, progress=shares.append), shares


class TestOfManySamples:
    """Above ``most`` samples some are laid out, and the others placed by them."""

    def test_is_about_as_good_as_a_layout_of_all(self, thinned):
        X, y, near, xy, _ = thinned
        some, every = map_quality(X, xy), map_quality(X, umap(X, near, epochs=60))
        for name in ("trustworthiness", "continuity"):
            assert some[name] > every[name] - 0.02
        assert some["preservation"] > every["preservation"] - 0.1
        assert (xy.dtype, xy.shape) == (np.float32, (1500, 2))
        assert np.ptp(xy, axis=0).max() == pytest.approx(20, rel=1e-5)
        around = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1)[:, 1:6]
        assert (y[around] == y[:, None]).mean() > 0.95

    def test_progress_covers_all_of_it(self, thinned):
        shares = thinned[4]
        assert shares == sorted(shares)
        assert shares[0] <= 0.1
        assert 0.3 < np.median(shares) < 0.8
        assert shares[-1] == 1.0

    def test_same_seed_same_bits(self, thinned):
        X, _, near, xy, _ = thinned
        np.testing.assert_array_equal(umap(X, near, epochs=60, most=500), xy)
        assert not np.array_equal(umap(X, near, epochs=60, most=500, seed=1), xy)

    def test_the_limit_itself_is_laid_out_whole(self, drawn):
        X, _, near, xy, _, _ = drawn
        np.testing.assert_array_equal(umap(X, near, epochs=60, seed=1, most=300), xy)

    def test_too_few_to_lay_out(self, drawn):
        with pytest.raises(InputError, match="at least 50 samples to lay out, got 20"):
            umap(drawn[0], drawn[2], most=20)


class TestPlace:
    """Where a sample goes that was not laid out."""

    def near(self, indices, similarity):
        return Neighbors(np.array(indices), np.array(similarity, np.float32))

    def place(self, near, xy, seed=0):
        xy = np.array(xy, np.float32)
        _place(np.eye(len(xy), dtype=np.float32), near, xy, seed)
        return xy

    def test_between_its_nearest_that_have_a_place_by_the_square_of_their_distance(self):
        near = self.near([[1, 3, 2, 4, 5]] + [[0, 1, 2, 3, 4]] * 5, [[0.9, 0.9, 0.8, 0.7, 0.6]] * 6)
        nan = [np.nan] * 2
        xy = self.place(near, [nan, [0, 0], [30, 0], nan, [0, 60], [500, 500]])
        # its three: 1 at distance 0.1, 2 at 0.2, 4 at 0.3; 5 is the fourth, 3 has no place itself
        weights = np.array([1, 1 / 4, 1 / 9])
        expected = weights @ [[0, 0], [30, 0], [0, 60]] / weights.sum()
        np.testing.assert_allclose(xy[0], expected, atol=4)  # the noise is a thousandth of 500
        assert (xy[[1, 2, 4, 5]] == [[0, 0], [30, 0], [0, 60], [500, 500]]).all()

    def test_those_that_wait_are_placed_by_those_placed_before(self):
        nan = [np.nan] * 2
        near = self.near([[1], [0], [1], [2], [3]], [[0.9]] * 5)
        xy = self.place(near, [[0, 0], [10, 10], nan, nan, nan])
        np.testing.assert_allclose(xy[2:], [[10, 10]] * 3, atol=0.15)
        assert len(np.unique(xy, axis=0)) == 5, "nobody stacks"
        np.testing.assert_array_equal(xy, self.place(near, [[0, 0], [10, 10], nan, nan, nan]))
        assert (self.place(near, [[0, 0], [10, 10], nan, nan, nan], seed=1)[2:] != xy[2:]).any()

    def test_a_group_that_knows_only_itself_goes_to_the_nearest_of_all(self):
        X = np.array([[1, 0], [0, 1], [0.1, 1], [0.1, 1.01]], np.float32)
        xy = np.array([[0, 0], [10, 10], [np.nan] * 2, [np.nan] * 2], np.float32)
        _place(X, self.near([[1], [0], [3], [2]], [[0.9]] * 4), xy, 0)
        np.testing.assert_allclose(xy[2:], [[10, 10]] * 2, atol=0.1)
