"""HOC: the sheet's numbers, sums in plain loops, the gradient, recovery from drawn triples, symmetry, bad input."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base import hoc
from chaffinch.base.errors import InputError
from chaffinch.base.hoc import _minimise, _objective, posterior_of_label, statistics, transition

T2, P2 = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.6, 0.4])


def exact(T, p):
    """The shares of single labels, pairs and triples that T and p imply."""
    return p @ T, np.einsum("k,ki,kj->ij", p, T, T), np.einsum("k,ki,kj,kl->ijl", p, T, T, T)


def random_noise(c, rng, least=0.6):
    T = least * np.eye(c) + (1 - least) * rng.dirichlet(np.full(c, 0.3), c)
    return T, rng.dirichlet(np.full(c, 8.0))


def draw(T, p, n, rng):
    """Labels (n, 3) of samples that share their true class with two neighbours."""
    truth = rng.choice(len(p), n, p=p)
    edges = T.cumsum(axis=1)[truth]
    return np.column_stack([(rng.random((n, 1)) > edges).sum(axis=1).clip(max=len(p) - 1) for _ in range(3)])


def in_loops(logits, counted):
    """The sum of the three norms, sum by sum."""
    both = [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in logits.tolist()]
    T, p, classes = both[:-1], both[-1], range(len(both) - 1)
    value = 0.0
    for order, counts in enumerate(counted, start=1):
        total = 0.0
        for labels in product(classes, repeat=order):
            modelled = sum(p[k] * math.prod(T[k][i] for i in labels) for k in classes)
            total += (modelled - counts[labels]) ** 2
        value += math.sqrt(total)
    return value


class TestSheet:
    def test_statistics_of_triples(self):
        """Check 4: the shares of a dataset in which every triple occurs exactly as often as T and p say."""
        c1, c2, c3 = exact(T2, P2)
        times = np.rint(c3 * 1000).astype(int)
        labels = np.repeat(list(np.ndindex(2, 2, 2)), times.ravel(), axis=0)
        got = statistics(labels, 2)
        np.testing.assert_allclose(got[0], [0.6, 0.4], atol=1e-12)
        np.testing.assert_allclose(got[1], [[0.42, 0.18], [0.18, 0.22]], atol=1e-12)
        np.testing.assert_allclose(got[2][0], [[0.318, 0.102], [0.102, 0.078]], atol=1e-12)
        T, p = transition(labels, 2)
        np.testing.assert_allclose(T, T2, atol=0.005)
        np.testing.assert_allclose(p, P2, atol=0.005)

    def test_posterior_of_label(self):
        np.testing.assert_allclose(posterior_of_label(T2, P2), [0.8, 0.7], atol=1e-12)

    def test_400_steps_recover_the_matrix(self):
        T, p = _minimise(exact(T2, P2), 400, 0.1)
        np.testing.assert_allclose(T, T2, atol=1e-4)
        np.testing.assert_allclose(p, P2, atol=1e-4)


@pytest.mark.parametrize("c", [2, 3])
def test_objective_agrees_with_loops_and_its_gradient_with_differences(c):
    rng = np.random.default_rng(c)
    counted = statistics(rng.integers(0, c, (50, 3)), c)
    at = rng.normal(size=(c + 1, c))
    value, gradient = _objective(at, counted)
    assert value == pytest.approx(in_loops(at, counted), abs=1e-12)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        slope = (in_loops(at + step, counted) - in_loops(at - step, counted)) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=1e-8)


def test_counts_do_not_depend_on_the_order_within_a_triple():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (200, 3))
    _, c2, c3 = statistics(labels, 4)
    np.testing.assert_array_equal(c2, c2.T)
    for axes in [(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)]:
        np.testing.assert_allclose(c3.transpose(axes), c3, atol=1e-15)
    np.testing.assert_allclose(c3.sum(), 1)
    raw = np.zeros((4, 4, 4))
    for i, j, k in labels:
        raw[i, j, k] += 1 / 200
    np.testing.assert_allclose(c3[0, 1, 2] * 6, sum(raw[order] for order in permutations((0, 1, 2))))


def test_recovers_asymmetric_noise_from_triples():
    """Classes 0 -> 1 and 2 -> 3 go wrong one way, class 4 everywhere; rows are true classes, columns given ones."""
    T = np.eye(5)
    T[0, :2], T[2, 2:4], T[4] = [0.6, 0.4], [0.7, 0.3], [0.1, 0.1, 0.1, 0.1, 0.6]
    p = np.array([0.3, 0.1, 0.25, 0.15, 0.2])
    labels = draw(T, p, 50_000, np.random.default_rng(0))
    got, shares = transition(labels, 5)
    np.testing.assert_allclose(got, T, atol=0.02)
    np.testing.assert_allclose(shares, p, atol=0.01)
    np.testing.assert_allclose(posterior_of_label(got, shares), posterior_of_label(T, p), atol=0.03)


@pytest.mark.parametrize("c", [3, 10, 20])
def test_recovers_random_noise(c):
    T, p = random_noise(c, np.random.default_rng(c))
    got, shares = _minimise(exact(T, p), 1000, 0.1)
    np.testing.assert_allclose(got, T, atol=0.02)
    np.testing.assert_allclose(shares, p, atol=0.015)


def test_clean_labels_give_the_identity():
    labels = np.repeat(np.arange(6), [10, 20, 30, 40, 50, 60])[:, None] * np.ones(3, int)
    T, p = transition(labels, 6)
    np.testing.assert_allclose(T, np.eye(6), atol=5e-3)
    np.testing.assert_allclose(p, np.arange(1, 7) / 21, atol=5e-3)


def test_more_steps_come_closer():
    T, p = random_noise(6, np.random.default_rng(1))
    errors = [np.abs(_minimise(exact(T, p), steps, 0.1)[0] - T).max() for steps in (20, 100, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6))
def test_renumbering_classes_renumbers_the_matrix(seed):
    rng = np.random.default_rng(seed)
    labels = draw(*random_noise(4, rng), 1000, rng)
    order = rng.permutation(4)
    T, p = transition(labels, 4)
    np.testing.assert_allclose(T.sum(axis=1), 1)
    np.testing.assert_allclose(p.sum(), 1)
    moved, shares = transition(order[labels], 4)
    np.testing.assert_allclose(moved[np.ix_(order, order)], T, atol=5e-3)
    np.testing.assert_allclose(shares[order], p, atol=5e-3)  # the optimiser stops near by
    again = transition(labels[rng.permutation(1000)], 4)
    np.testing.assert_array_equal(again[0], T)


def test_a_class_nobody_carries():
    labels = draw(T2, P2, 5000, np.random.default_rng(0))
    T, p = transition(labels * 2, 4)  # labels 0 and 2 of 0 to 3
    assert np.isfinite(T).all()
    assert (p @ T)[[1, 3]].max() < 0.005
    np.testing.assert_allclose(posterior_of_label(T, p)[[0, 2]], [0.8, 0.7], atol=0.05)
    assert posterior_of_label(np.eye(2), np.array([1.0, 0.0]))[1] == 1.0, (
        "nothing is wrong about a label without samples"
    )


def test_one_class_and_one_triple():
    T, p = transition(np.zeros((1, 3), int), 1)
    np.testing.assert_array_equal(T, [[1]])
    np.testing.assert_array_equal(p, [1])


def test_many_classes_do_without_triples(monkeypatch):
    """Pairs alone leave T open; from a start near the identity the noise of each class is still about right."""
    monkeypatch.setattr(hoc, "TRIPLES_UP_TO", 5)
    T, p = np.full((6, 6), 0.06) + 0.64 * np.eye(6), np.full(6, 1 / 6)
    labels = draw(T, p, 50_000, np.random.default_rng(0))
    assert statistics(labels, 6)[2] is None
    assert statistics(labels.clip(max=4), 5)[2] is not None
    got, _ = transition(labels, 6)
    np.testing.assert_allclose(got.diagonal(), 0.7, atol=0.1)
    np.testing.assert_allclose(got.diagonal().mean(), 0.7, atol=0.02)


def test_labels_may_be_of_any_whole_type():
    labels = draw(T2, P2, 500, np.random.default_rng(0))
    np.testing.assert_array_equal(
        transition(labels.astype(np.uint8), 50, steps=5)[0], transition(labels, 50, steps=5)[0]
    )


@pytest.mark.parametrize(
    ("labels", "n_classes", "message"),
    [
        (np.zeros((4, 2), int), 2, r"must be \(N, 3\) whole numbers, got \(4, 2\)"),
        (np.zeros((0, 3), int), 2, r"got \(0, 3\)"),
        (np.zeros((4, 3)), 2, "float64"),
        (np.full((4, 3), 2), 2, "must be 0 to 1, got 2 to 2; raise n_classes"),
        (np.full((4, 3), -1), 2, "must be 0 to 1, got -1"),
    ],
)
def test_bad_input(labels, n_classes, message):
    with pytest.raises(InputError, match=message):
        transition(labels, n_classes)
