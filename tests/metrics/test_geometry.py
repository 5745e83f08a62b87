"""Alignment, uniformity, effective rank and isotropy: closed forms, limits and invariances."""

import numpy as np
import pytest

from chaffinch.metrics.geometry import alignment, effective_rank, isotropy, uniformity


def sphere(n, d, seed=0):
    X = np.random.default_rng(seed).standard_normal((n, d))
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def test_alignment_by_hand():
    one, other = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 5.0], [0.0, -3.0]])
    assert alignment(one, other) == pytest.approx((2 + 4) / 2)
    assert alignment(one, 7 * one) == pytest.approx(0)


def test_uniformity_by_hand():
    X = np.array([[1.0, 0], [0, 2.0], [-3.0, 0]])
    expected = np.log((2 * np.exp(-4) + np.exp(-8)) / 3)  # two right angles, one opposite pair
    assert uniformity(X) == pytest.approx(expected)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0)


def test_uniformity_of_an_even_sphere_and_of_a_cap():
    even, cap = sphere(2_000, 64), sphere(2_000, 64)
    cap[:, 0] += 3
    assert uniformity(even) == pytest.approx(-4 + 8 / 64, abs=0.03)
    assert uniformity(cap) > uniformity(even) + 1
    assert uniformity(even, samples=500) == pytest.approx(uniformity(even), abs=0.03)
    assert uniformity(even, samples=500, seed=1) != uniformity(even, samples=500)


def test_effective_rank():
    assert effective_rank(np.outer(np.arange(1.0, 9), [1.0, 2, 3])) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.zeros((4, 3))) == 0
    values = np.array([3.0, 1.0])
    share = values / values.sum()
    assert effective_rank(np.diag(values)) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    X = sphere(300, 10)
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((10, 10)))[0]
    assert effective_rank(X @ Q * 4) == pytest.approx(effective_rank(X))


def test_isotropy():
    even = sphere(5_000, 16)
    assert isotropy(even) > 0.98
    assert isotropy(even * 9 + 2) == pytest.approx(isotropy(even), abs=1e-9), "neither scale nor place matters"
    long = even * np.array([6.0] + [1] * 15)
    assert isotropy(long) < 0.8
    assert isotropy(long) < isotropy(even * np.array([2.0] + [1] * 15)) < isotropy(even)
    assert isotropy(np.ones((6, 3))) == pytest.approx(1)
