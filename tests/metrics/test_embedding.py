"""Trust in a map: against scikit-learn and loops, at its limits."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from chaffinch.metrics.embedding import map_quality


def features(n=150, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim))


def on_the_sphere(n=200, seed=0):
    """Unit rows near the north pole: there cosine order and the order on the plane agree."""
    xy = np.random.default_rng(seed).uniform(-0.01, 0.01, (n, 2))
    return np.column_stack([xy, np.ones(n)]).astype(np.float64), xy


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (5, 1), (10, 2), (30, 3)])
def test_trustworthiness_agrees_with_scikit_learn(k, seed):
    X = features(seed=seed)
    xy = X[:, :2] + 0.3 * features(dim=2, seed=seed + 10)
    found = map_quality(X, xy, k=k, queries=150)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(X, xy, n_neighbors=k, metric="cosine"), abs=1e-5)
    more = map_quality(X, xy, k=k, queries=10_000)
    assert more == found


def test_continuity_is_trustworthiness_with_the_spaces_exchanged():
    """On unit circles cosine and Euclid order alike, so scikit-learn can be asked for both directions."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0, 2 * np.pi, 120) for _ in range(2))
    b = a + 0.3 * b
    X, xy = (np.column_stack([np.cos(t), np.sin(t)]) for t in (a, b))
    found = map_quality(X, xy, k=7)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(X, xy, n_neighbors=7), abs=1e-4)
    assert found["continuity"] == pytest.approx(trustworthiness(xy, X, n_neighbors=7), abs=1e-4)
    assert found["continuity"] != pytest.approx(found["trustworthiness"], abs=1e-3)


def test_preservation_in_loops():
    X = features(60)
    xy = X[:, :2]
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    shared = 0
    for i in range(60):
        others = [j for j in range(60) if j != i]
        high = sorted(others, key=lambda j: -(unit[i] @ unit[j]))[:6]
        low = sorted(others, key=lambda j: np.hypot(*(xy[i] - xy[j])))[:6]
        shared += len(set(high) & set(low))
    assert map_quality(X, xy, k=6)["preservation"] == pytest.approx(shared / 360)


def test_a_faithful_map():
    X, xy = on_the_sphere()
    found = map_quality(X * 100, xy, k=10)
    assert found["trustworthiness"] > 0.999
    assert found["continuity"] > 0.999
    assert found["preservation"] > 0.97
    circle = np.column_stack([np.cos(t := np.linspace(0, 5, 80) ** 1.1), np.sin(t)])
    assert map_quality(circle, circle, k=5) == pytest.approx(
        {"trustworthiness": 1, "continuity": 1, "preservation": 1}, abs=1e-3
    )


def test_a_random_map():
    found = map_quality(features(600), features(600, 2, seed=9), k=10)
    assert found["trustworthiness"] == pytest.approx(0.5, abs=0.03)
    assert found["continuity"] == pytest.approx(0.5, abs=0.03)
    assert found["preservation"] == pytest.approx(10 / 599, abs=0.01)


def test_queries_are_a_fair_sample():
    X = features(800)
    xy = X[:, :2]
    every = map_quality(X, xy, queries=800)
    some = map_quality(X, xy, queries=300, seed=1)
    assert some == map_quality(X, xy, queries=300, seed=1)
    assert some != map_quality(X, xy, queries=300, seed=2)
    for name, value in every.items():
        assert some[name] == pytest.approx(value, abs=0.02)


def test_scale_and_rotation_do_not_matter():
    X = features()
    xy = X[:, :2]
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    lengths = np.random.default_rng(1).uniform(0.1, 10, (150, 1))
    assert map_quality(X * lengths, 50 * xy @ turn + 3) == pytest.approx(map_quality(X, xy), abs=1e-3)


def test_duplicates_and_zero_rows_stay_finite():
    X = np.vstack([np.zeros((3, 4)), np.ones((20, 4))])
    found = map_quality(X, np.zeros((23, 2)), k=4)
    assert all(0 <= value <= 1 for value in found.values())


def test_smallest_map():
    assert map_quality(np.eye(3), np.array([(0, 0), (1, 0), (0, 1.5)]), k=1)["trustworthiness"] <= 1


@pytest.mark.parametrize("k", [0, 10, 15])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k must lie between 1 and N/2 = 10.0, got {k}"):
        map_quality(features(20), features(20, 2), k=k)
