"""Seeds against loops; ties, small classes and the purity that the sheet measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.gaussian import fit_gaussians
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.seeds import lowest, seeds


def in_loops(y, near, h):
    """One class at a time, sorted by votes, then by the distance of the tenth neighbour."""
    found = []
    for c in set(y.tolist()):
        members = [i for i in range(len(y)) if y[i] == c]
        keys = {
            i: (-sum(y[j] == c for j in near.indices[i, :10]), -np.round(float(near.similarity[i, :10][-1]), 6))
            for i in members
        }
        if len(members) > 1:
            last = sorted(keys.values())[max(2, round(h * len(members))) - 1]
            found += [i for i in members if keys[i] <= last]
    return sorted(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 80), st.floats(0.05, 1))
def test_agrees_with_loops_whatever_the_row_order(seed, n, h):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 4)), rng.choice([0, 1, 4], n)
    near = nearest(X, 12)
    found = seeds(y, near, h)
    np.testing.assert_array_equal(found, in_loops(y, near, h))
    order = rng.permutation(n)
    moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
    np.testing.assert_array_equal(np.sort(order[seeds(y[order], moved, h)]), found)


def given_votes(votes, similarity):
    """Ten neighbours of each sample, so many of them from the sample's own class (rows 0-9) and the rest from 10-19."""
    y = np.repeat([0, 1], 10)
    indices = np.array([[10 + j if j >= v else j for j in range(10)] for v in votes] + [[0] * 10] * 10)
    return y, Neighbors(indices, np.tile(np.array([*similarity, *[0.1] * 10], np.float32)[:, None], 10))


def test_votes_come_first_then_the_tenth_neighbour():
    y, near = given_votes([10, 9, 10, 3, 9, 9, 1, 0, 8, 9], [0.2, 0.5, 0.1, 0.99, 0.9, 0.7, 0.9, 0.9, 0.9, 0.5])
    np.testing.assert_array_equal(seeds(y, near, 0.3)[:3], [0, 2, 4])
    np.testing.assert_array_equal(seeds(y, near, 0.4)[:4], [0, 2, 4, 5])


def test_ties_at_the_cut_all_come_in():
    """The sheet's trap: ties by row order. Rows 1, 4, 5, 9 are equal up to the last bits of single precision."""
    y, near = given_votes([10, 9, 10, 3, 9, 9, 1, 0, 8, 9], [0.2, 0.5, 0.1, 0.9, 0.5 + 6e-8, 0.5, 0.9, 0.9, 0.9, 0.5])
    own = seeds(y, near, 0.3)
    np.testing.assert_array_equal(own[own < 10], [0, 1, 2, 4, 5, 9])


def test_small_classes():
    near = nearest(np.random.default_rng(0).normal(size=(30, 3)), 10)
    y = np.repeat([0, 2, 3, 5], [24, 1, 2, 3])
    np.testing.assert_array_equal(np.bincount(y[seeds(y, near)]), [7, 0, 0, 2, 0, 2])
    np.testing.assert_array_equal(np.bincount(y[seeds(y, near, 1.0)]), [24, 0, 0, 2, 0, 3])
    with pytest.raises(InputError, match="no class has two samples, so there are no seeds"):
        seeds(np.arange(30), near)


def test_fewer_than_eleven_samples():
    """All the others vote, so votes are equal; the farthest of them is nearest to rows 2 and 5."""
    X = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1.0]])
    np.testing.assert_array_equal(seeds(np.array([0, 0, 1, 1, 1, 1]), nearest(X, 10), 0.5), [0, 1, 2, 5])


def test_too_few_neighbours():
    near = nearest(np.random.default_rng(0).normal(size=(30, 3)), 4)
    with pytest.raises(InputError, match=r"the choice of seeds needs 10 neighbours .* there are 4"):
        seeds(np.zeros(30, int), near)


@pytest.mark.parametrize("h", [0.0, -0.1, 1.01, np.nan])
def test_share_out_of_range(h):
    with pytest.raises(InputError, match="h must be a share above 0 and up to 1, got"):
        lowest(np.zeros(4), np.zeros(4, int), h)


def digits_among_foreigners(share, seed):
    """Features, given labels, and whose are wrong or foreign: digits 0-4, 20 % swapped, among digits 5-9."""
    X, truth = load_digits(return_X_y=True)
    rng, n = np.random.default_rng(seed), round(share * 900)
    inside = rng.choice(np.flatnonzero(truth < 5), 900 - n, replace=False)
    outside = rng.choice(np.flatnonzero(truth > 4), n, replace=False)
    wrong = rng.random(900 - n) < 0.2
    y = np.where(wrong, (truth[inside] + rng.integers(1, 5, 900 - n)) % 5, truth[inside])
    features = PCA(32, random_state=0).fit_transform(X[np.append(inside, outside)])
    return features, np.append(y, rng.integers(0, 5, n)), np.append(wrong, np.zeros(n, bool)), np.arange(900) >= 900 - n


@pytest.mark.parametrize(
    ("share", "h", "purity"), [(0.1, 0.3, 1.0), (0.3, 0.3, 1.0), (0.6, 0.3, 0.95), (0.6, 0.5, 0.62)]
)
def test_purity_of_the_sheet(share, h, purity):
    """More than the clean share cannot all be clean."""
    found = []
    for seed in range(3):
        X, y, wrong, ood = digits_among_foreigners(share, seed)
        found.append((~wrong & ~ood)[seeds(y, nearest(X, 10), h)].mean())
    assert np.mean(found) == pytest.approx(purity, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_distance_to_the_own_class_finds_swaps_when_fitted_on_seeds(share):
    """The sheet: .64 to .82 plainly, .97 and more on seeds."""
    X, y, wrong, ood = digits_among_foreigners(share, 0)
    fits = fit_gaussians(X, y), fit_gaussians(X, y, seeds(y, nearest(X, 10)))
    plain, seeded = (roc_auc_score(wrong[~ood], fit.own(X, y)[~ood]) for fit in fits)
    assert 0.60 < plain < 0.86
    assert seeded == pytest.approx(0.97, abs=0.02)
