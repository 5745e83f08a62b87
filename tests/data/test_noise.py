"""Noise models: the rates are exact and the wrong labels go where the model says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from chaffinch.base.errors import InputError
from chaffinch.data import noise

C = 5


def labels_of(n=6_000, seed=0):
    return np.random.default_rng(seed).integers(0, C, n)


def models(labels, rate, rng):
    X = np.random.default_rng(1).standard_normal((len(labels), 4))
    return {
        "symmetric": lambda: noise.symmetric(labels, rate, C, rng),
        "asymmetric": lambda: noise.asymmetric(labels, rate, C, rng),
        "instance": lambda: noise.instance_dependent(X, labels, rate, C, rng),
        "transition": lambda: noise.transition_flips(labels, np.roll(np.eye(C), 2, axis=1), rate, rng),
    }


MODELS = ("symmetric", "asymmetric", "instance", "transition")


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300), rate=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_rate_is_exact(model, n, rate, seed):
    labels = labels_of(n, seed)
    before = labels.copy()
    noisy = models(labels, rate, np.random.default_rng(seed))[model]()
    assert (noisy != labels).sum() == round(rate * n)
    assert ((noisy >= 0) & (noisy < C)).all()
    assert noisy.dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)  # the given array is left alone


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_noise(model):
    labels = labels_of(500)
    once, again, other = (models(labels, 0.3, np.random.default_rng(s))[model]() for s in (7, 7, 8))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan")])
def test_rate_out_of_range(model, rate):
    with pytest.raises(InputError, match="rate must lie between 0 and 1"):
        models(labels_of(10), rate, np.random.default_rng(0))[model]()


def test_symmetric_is_uniform_over_the_others():
    labels = labels_of(20_000)
    noisy = noise.symmetric(labels, 0.5, C, np.random.default_rng(3))
    for c in range(C):
        counts = np.bincount(noisy[(labels == c) & (noisy != c)], minlength=C)
        assert counts[c] == 0
        assert chisquare(np.delete(counts, c)).pvalue > 0.01
    # which samples flip does not depend on their class
    share = np.bincount(labels[noisy != labels], minlength=C)
    assert chisquare(share, np.bincount(labels) * 0.5).pvalue > 0.01


def test_asymmetric_mapping_is_exact():
    labels = labels_of()
    default = noise.asymmetric(labels, 0.4, C, np.random.default_rng(0))
    flipped = default != labels
    np.testing.assert_array_equal(default[flipped], (labels[flipped] + 1) % C)
    becomes = [3, 0, 4, 2, 1]
    named = noise.asymmetric(labels, 0.4, C, np.random.default_rng(0), becomes)
    flipped = named != labels
    np.testing.assert_array_equal(named[flipped], np.array(becomes)[labels[flipped]])


def test_asymmetric_class_cannot_become_itself():
    with pytest.raises(InputError, match="cannot become itself"):
        noise.asymmetric(labels_of(10), 0.4, C, np.random.default_rng(0), [1, 1, 3, 4, 0])


def test_transition_follows_the_matrix():
    T = np.array([[0, 0.7, 0.3], [0.5, 0, 0.5], [1, 0, 0]])
    labels = np.random.default_rng(0).integers(0, 3, 30_000)
    noisy = noise.transition_flips(labels, T, 0.5, np.random.default_rng(1))
    for c in range(3):
        counts = np.bincount(noisy[(labels == c) & (noisy != c)], minlength=3)
        np.testing.assert_allclose(counts / counts.sum(), T[c], atol=0.02)


def predictable(noisy, labels, X):
    """How well the wrong label of class 0 is predicted from the picture (chance for C classes: 1/(C-1))."""
    rows = (labels == 0) & (noisy != labels)
    X = (X[rows] - X.mean(axis=0)) / X.std(axis=0)
    return cross_val_score(LogisticRegression(), X, noisy[rows], cv=3).mean()


def test_instance_dependent_flips_follow_the_instance():
    labels = labels_of(5_000)
    X = np.random.default_rng(1).standard_normal((5_000, 4)) * 50 + 100  # standardised inside
    instance = noise.instance_dependent(X, labels, 0.6, C, np.random.default_rng(2))
    symmetric = noise.symmetric(labels, 0.6, C, np.random.default_rng(2))
    assert (instance != labels).sum() == (symmetric != labels).sum() == 3_000
    assert predictable(instance, labels, X) > 0.5
    assert predictable(symmetric, labels, X) < 0.35
    assert predictable(instance, labels, np.random.default_rng(3).permutation(X)) < 0.5


def test_instance_dependent_has_a_rule_per_class():
    X = np.random.default_rng(1).standard_normal((8_000, 4))
    labels = labels_of(8_000)
    noisy = noise.instance_dependent(X, labels, 1.0, C, np.random.default_rng(2))
    side = X[:, 0] > 0
    tables = [np.bincount(noisy[(labels == c) & side], minlength=C) / ((labels == c) & side).sum() for c in range(C)]
    assert not np.allclose(tables[0][2:], tables[1][2:], atol=0.03)


def test_pictures_are_flattened():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    labels = labels_of(60)
    cube = noise.instance_dependent(images, labels, 0.5, C, np.random.default_rng(1))
    flat = noise.instance_dependent(images.reshape(60, -1), labels, 0.5, C, np.random.default_rng(1))
    np.testing.assert_array_equal(cube, flat)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 200), rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_ood_picks_are_unique(n, rate, seed):
    places, picks = noise.ood_replacement(n, rate, 200, np.random.default_rng(seed))
    assert len(places) == len(picks) == round(rate * n)
    assert len(set(places.tolist())) == len(places)
    assert len(set(picks.tolist())) == len(picks)
    assert ((places >= 0) & (places < n)).all()
    assert ((picks >= 0) & (picks < 200)).all()


def test_ood_pool_too_small():
    noise.ood_replacement(100, 0.5, 50, np.random.default_rng(0))
    with pytest.raises(InputError, match="51 out-of-distribution pictures are wanted, the pool has 50; lower n"):
        noise.ood_replacement(100, 0.51, 50, np.random.default_rng(0))


@pytest.mark.parametrize(
    "flip",
    [
        lambda one, rng: noise.symmetric(one, 0.5, 1, rng),
        lambda one, rng: noise.instance_dependent(np.ones((10, 2)), one, 0.5, 1, rng),
    ],
)
def test_one_class_cannot_be_mislabelled(flip):
    with pytest.raises(InputError, match="wrong labels need at least two classes, there is 1"):
        flip(np.zeros(10, int), np.random.default_rng(0))
