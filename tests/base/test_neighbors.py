"""Neighbours against brute force, and where search goes wrong: duplicates, zero rows, few samples, very many."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base import neighbors
from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import Neighbors, near_duplicates, nearest, nearest_in, unit_rows
from chaffinch.workspace import Workspace


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


@pytest.fixture(scope="module")
def surface():
    """Points on a bent sheet in 16 dimensions, as features of pictures are."""
    rng = np.random.default_rng(0)
    X = np.sin(rng.uniform(-2, 2, (6000, 2)) @ rng.normal(size=(2, 16)) + rng.uniform(0, 6, 16))
    return X + 0.01 * rng.normal(size=X.shape)


class TestInCells:
    """Above ``LARGE`` rows the search is approximate; here it is made to be so for few rows already."""

    @pytest.fixture(autouse=True)
    def large(self, monkeypatch):
        monkeypatch.setattr(neighbors, "LARGE", 1000)

    def test_finds_what_it_says(self, surface, monkeypatch):
        found = nearest(surface, 12)
        monkeypatch.setattr(neighbors, "LARGE", 10**9)
        exact = nearest(surface, 12)
        assert exact.recall == 1.0
        hits = (found.similarity[:, :10] >= exact.similarity[:, 9:10] - 1e-6).mean()
        assert 0.95 <= hits < 1
        assert found.recall == pytest.approx(hits, abs=0.015)
        assert (found.similarity <= exact.similarity + 1e-6).all()

    def test_is_well_formed(self, surface):
        found = nearest(surface, 12)
        assert found.indices.shape == found.similarity.shape == (6000, 12)
        assert (found.indices.dtype, found.similarity.dtype) == (np.int64, np.float32)
        assert not (found.indices == np.arange(6000)[:, None]).any()
        assert (np.diff(np.sort(found.indices, axis=1), axis=1) > 0).all()
        assert (np.diff(found.similarity, axis=1) <= 0).all()
        unit = unit_rows(surface)
        cosines = np.einsum("nd,nkd->nk", unit, unit[found.indices])
        np.testing.assert_allclose(found.similarity, cosines, atol=1e-5)

    def test_is_deterministic(self, surface):
        one, other = nearest(surface, 5), nearest(surface, 5)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.similarity, other.similarity)
        assert one.recall == other.recall < 1

    def test_is_exact_where_cells_hold_no_neighbours(self, monkeypatch):
        X = np.random.default_rng(0).normal(size=(1500, 60))  # no structure at all
        found = nearest(X, 5)
        monkeypatch.setattr(neighbors, "LARGE", 10**9)
        assert found.recall == 1.0
        np.testing.assert_array_equal(found.indices, nearest(X, 5).indices)

    def test_few_rows_many_times(self):
        X = np.random.default_rng(0).normal(size=(40, 8)).repeat(50, axis=0)
        found = nearest(np.vstack([X, np.zeros((3, 8))]), 60)  # more neighbours than a cell holds
        assert not (found.indices == np.arange(2003)[:, None]).any()
        assert (found.indices >= 0).all()
        np.testing.assert_allclose(found.similarity[:2000, :49], 1, atol=1e-5)
        assert (found.indices[:2000, :49] // 50 == np.arange(2000)[:, None] // 50).all()
        np.testing.assert_array_equal(found.similarity[2000:], 0)

    def test_recall_is_kept(self, surface, tmp_path):
        found = nearest(surface, 5)
        assert found.first(2, "the test").recall == found.recall
        workspace = Workspace(tmp_path)
        workspace.store("neighbors", "1", vars(found))
        again = Neighbors(**workspace.find("neighbors", "1"))
        assert (again.recall, type(again.recall)) == (found.recall, float)
        np.testing.assert_array_equal(again.indices, found.indices)


def test_the_library_uses_the_processor_as_numpy_does():
    """In a process of its own: the choice is made once, when the library is loaded."""
    code = """
import os
from chaffinch.base.neighbors import KERNELS, load_faiss
from threadpoolctl import threadpool_info
before = {pool["filepath"]: pool.get("architecture") for pool in threadpool_info()}
assert load_faiss() is load_faiss()
assert "OPENBLAS_CORETYPE" not in os.environ
new = {p["architecture"] for p in threadpool_info() if p["filepath"] not in before and p["internal_api"] == "openblas"}
known = {theirs for theirs, ours in KERNELS.items() if ours & set(before.values())}
print("same" if not new or not known else new <= known)
"""
    clean = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "same":
        pytest.skip("the two share one BLAS here, or the processor is not one of those that need it")
    assert done.stdout.strip() == "True"


def test_a_choice_of_the_users_is_respected():
    code = "import os; from chaffinch.base.neighbors import load_faiss; load_faiss(); "
    code += "print(os.environ['OPENBLAS_CORETYPE'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_CORETYPE": "Prescott"},
        check=True,
    )
    assert done.stdout.strip() == "Prescott"


class TestNearDuplicates:
    def test_worked_by_hand(self):
        found = Neighbors(
            np.array([[1, 2], [0, 2], [0, 1], [2, 0]]),
            np.array([[0.99, 0.8], [0.99, 0.7], [0.8, 0.7], [0.9, 0.6]], np.float32),
        )
        # distances to the nearest 0.01, 0.01, 0.2, 0.1: median 0.055
        np.testing.assert_array_equal(near_duplicates(found, 0.5), [[0, 1]])
        np.testing.assert_array_equal(near_duplicates(found, 0.1), np.empty((0, 2)))
        np.testing.assert_array_equal(near_duplicates(found, 2), [[0, 1], [2, 3]])

    def test_copies_are_found_at_any_threshold(self):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(200, 5))
        X[[7, 150]] = X[20] * [[3.0], [0.1]]
        found = near_duplicates(nearest(X, 4), 0)
        np.testing.assert_array_equal(found, [[7, 20], [7, 150], [20, 150]])
        assert found.dtype == np.int64

    def test_one_way_is_enough(self):
        """2 is among the neighbours of 0, but so crowded that 0 is not among its own."""
        found = Neighbors(np.array([[2], [2], [1]]), np.array([[0.99], [0.999], [0.999]], np.float32))
        np.testing.assert_array_equal(near_duplicates(found, 20), [[0, 2], [1, 2]])

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.floats(0, 1.5))
    def test_agrees_with_a_loop(self, seed, threshold):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(30, 3)).repeat(2, axis=0) + 1e-2 * rng.normal(size=(60, 3))
        found = nearest(X, 5)
        distance = 1 - found.similarity.astype(float)
        radius = threshold * np.median(distance[:, 0])
        pairs = {
            (min(i, int(j)), max(i, int(j)))
            for i in range(60)
            for j, d in zip(found.indices[i], distance[i], strict=True)
            if d < radius or d < 1e-6
        }
        assert near_duplicates(found, threshold).tolist() == [list(pair) for pair in sorted(pairs)]

    @pytest.mark.parametrize("threshold", [-0.1, np.nan])
    def test_bad_threshold(self, threshold):
        with pytest.raises(InputError, match="threshold must be a share from 0"):
            near_duplicates(Neighbors(np.array([[1], [0]]), np.ones((2, 1), np.float32)), threshold)
