"""Neighbours against brute force, and where exact search goes wrong: duplicates, zero rows, few samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import Neighbors, nearest, nearest_in, unit_rows


def brute_force(X, k):
    """Cosines in double precision, the sample itself left out by position."""
    indices, similarity = [], []
    for i in range(len(X)):
        cosines = sorted(
            ((X[i] @ X[j] / np.linalg.norm(X[i]) / np.linalg.norm(X[j]), j) for j in range(len(X)) if j != i),
            reverse=True,
        )[:k]
        indices.append([j for _, j in cosines])
        similarity.append([c for c, _ in cosines])
    return np.array(indices), np.array(similarity)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 8), st.integers(1, 12))
def test_agrees_with_brute_force(seed, n, dim, k):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, dim)) * rng.uniform(0.01, 100, (n, 1))
    found = nearest(X, k)
    indices, similarity = brute_force(X, min(k, n - 1))
    assert found.k == min(k, n - 1)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)
    if dim > 2:  # in one dimension all are ties
        np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distance, np.sqrt(np.maximum(2 - 2 * similarity, 0)), atol=3e-3)


def test_worked_by_hand():
    angle = np.deg2rad([0, 10, 25, 90])
    found = nearest(np.column_stack([np.cos(angle), np.sin(angle)]) * [[1], [7], [0.2], [3]], 2)
    np.testing.assert_array_equal(found.indices, [[1, 2], [0, 2], [1, 0], [2, 1]])
    expected = np.cos(np.deg2rad([[10, 25], [10, 15], [15, 25], [65, 80]]))
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    np.testing.assert_allclose(
        found.distance, 2 * np.sin(np.deg2rad([[5, 12.5], [5, 7.5], [7.5, 12.5], [32.5, 40]])), atol=1e-6
    )


@pytest.mark.parametrize("copies", [3, 5, 40])
def test_a_sample_is_never_its_own_neighbour_among_duplicates(copies):
    X = np.vstack([np.tile([1.0, 2.0, 3.0], (copies, 1)), np.eye(3), -np.eye(3)])
    found = nearest(X, 4)
    assert not (found.indices == np.arange(len(X))[:, None]).any()
    assert all(len(set(row)) == 4 for row in found.indices.tolist())
    among = min(4, copies - 1)
    np.testing.assert_allclose(found.similarity[:copies, :among], 1, atol=1e-6)
    assert (found.indices[:copies, :among] < copies).all()
    assert (np.diff(found.similarity, axis=1) <= 0).all()


def test_distance_is_never_the_root_of_a_negative():
    X = np.random.default_rng(0).normal(size=(5, 100)).repeat(4, axis=0)
    found = nearest(X, 3)
    assert np.isfinite(found.distance).all()
    assert found.distance.dtype == np.float64
    np.testing.assert_allclose(found.distance, 0, atol=2e-3)


def test_zero_rows_are_similar_to_nothing():
    found = nearest(np.vstack([np.zeros((2, 3)), np.eye(3)]), 4)
    np.testing.assert_array_equal(found.similarity[:2], 0)
    assert not (found.indices == np.arange(5)[:, None]).any()
    np.testing.assert_array_equal(unit_rows(np.zeros((2, 3))), 0)


def test_k_is_cut_to_the_other_samples():
    found = nearest(np.eye(4), 10)
    assert found.indices.shape == (4, 3)
    np.testing.assert_array_equal(np.sort(found.indices, axis=1), [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def test_first():
    found = nearest(np.random.default_rng(0).normal(size=(20, 4)), 6)
    fewer = found.first(2, "the test")
    np.testing.assert_array_equal(fewer.indices, found.indices[:, :2])
    np.testing.assert_array_equal(fewer.similarity, found.similarity[:, :2])
    np.testing.assert_array_equal(found.first(6, "the test").indices, found.indices)


@pytest.mark.parametrize("k", [0, 7])
def test_first_of_too_many(k):
    found = Neighbors(np.zeros((20, 6), np.int64), np.zeros((20, 6), np.float32))
    with pytest.raises(InputError, match=rf"the test needs {k} neighbours of each sample, there are 6 .*20 samples"):
        found.first(k, "the test")


def test_types_and_input_untouched():
    X = np.asfortranarray(np.random.default_rng(0).normal(size=(10, 3)))
    before = X.copy()
    found = nearest(X, 2)
    assert found.indices.dtype == np.int64
    assert found.similarity.dtype == np.float32
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(np.linalg.norm(unit_rows(X), axis=1), 1, atol=1e-6)


def test_one_sample():
    with pytest.raises(InputError, match="at least two samples, got 1"):
        nearest(np.ones((1, 3)), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    X = np.ones((6, 2))
    X[[2, 4], 1] = value
    with pytest.raises(InputError, match=r"row 2 holds NaN or infinity \(2 rows do\)"):
        nearest(X, 2)


def test_shape():
    with pytest.raises(InputError, match=r"features must be \(N, D\), got \(4,\)"):
        nearest(np.ones(4), 1)


class TestNearestIn:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))
    def test_agrees_with_brute_force(self, seed, m, n, k):
        rng = np.random.default_rng(seed)
        bank, queries = rng.normal(size=(m, 5)) * rng.uniform(0.01, 100, (m, 1)), rng.normal(size=(n, 5))
        found = nearest_in(bank, queries, k)
        assert found.indices.shape == found.similarity.shape == (n, min(k, m))
        for i in range(n):
            cosines = [queries[i] @ row / np.linalg.norm(queries[i]) / np.linalg.norm(row) for row in bank]
            order = sorted(range(m), key=lambda j: -cosines[j])[:k]
            np.testing.assert_array_equal(found.indices[i], order)
            np.testing.assert_allclose(found.similarity[i], [cosines[j] for j in order], atol=1e-5)

    def test_a_query_in_the_bank_finds_itself(self):
        X = np.random.default_rng(0).normal(size=(20, 4))
        found = nearest_in(X, X[5:9], 1)
        np.testing.assert_array_equal(found.indices[:, 0], [5, 6, 7, 8])
        np.testing.assert_allclose(found.similarity, 1, atol=1e-6)

    def test_types_and_input_untouched(self):
        bank, queries = np.ones((3, 2)), np.array([[1.0, 0], [0, 0]])
        found = nearest_in(bank, queries, 2)
        assert (found.indices.dtype, found.similarity.dtype) == (np.int64, np.float32)
        np.testing.assert_allclose(found.similarity, [[0.5**0.5] * 2, [0, 0]], atol=1e-6)
        np.testing.assert_array_equal(bank, 1)

    def test_nobody_asks(self):
        assert nearest_in(np.ones((3, 2)), np.ones((0, 2)), 2).indices.shape == (0, 2)

    @pytest.mark.parametrize(
        ("bank", "queries", "message"),
        [
            (np.ones((0, 2)), np.ones((3, 2)), "at least one sample to search among"),
            (np.ones((3, 2)), np.ones((3, 4)), "equally wide, got 2 and 4"),
            (np.ones((3, 2)) * np.nan, np.ones((3, 2)), "row 0 holds NaN"),
            (np.ones((3, 2)), np.array([[1.0, 1], [np.inf, 1]]), "row 1 holds NaN or infinity"),
        ],
    )
    def test_bad_input(self, bank, queries, message):
        with pytest.raises(InputError, match=message):
            nearest_in(bank, queries, 1)
