"""Data with planted noise for the tests of the detectors."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits


@cache
def make_digits(rate):
    """scikit-learn's digits with symmetric flips, as the method sheets use them."""
    X, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(truth)) < rate
    y = np.where(wrong, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
    return SimpleNamespace(X=X.astype(np.float32), y=y, wrong=wrong)


def make_blobs(n=400, seed=0):
    """Four classes on their axes, 15 % wrong labels, 20 % scattered foreigners on axes of their own, random labels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    ood, wrong = np.zeros(n, bool), np.zeros(n, bool)
    mixed = rng.permutation(n)
    ood[mixed[: n // 5]] = True
    wrong[mixed[n // 5 : n // 5 + 3 * n // 20]] = True
    X = 4 * np.eye(12)[truth] + 0.6 * rng.normal(size=(n, 12))
    X[ood] = np.hstack([0.3 * rng.normal(size=(ood.sum(), 4)), 2 * rng.normal(size=(ood.sum(), 8))])
    y = np.where(wrong, (truth + rng.integers(1, 4, n)) % 4, truth)
    # a trained network's view: sure of the true class, unsure of foreigners
    logits = np.where(ood[:, None], 0.0, 5.0 * np.eye(4)[truth]) + rng.normal(size=(n, 4))
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    return SimpleNamespace(X=X.astype(np.float32), y=y, wrong=wrong, ood=ood, clean=~wrong & ~ood, p=p, truth=truth)


@pytest.fixture(scope="session")
def digits():
    return make_digits


@pytest.fixture
def blobs():
    return make_blobs()


@pytest.fixture(scope="session")
def planted():
    """The same blobs for everyone: read-only."""
    data = make_blobs()
    for array in vars(data).values():
        array.flags.writeable = False
    return data
