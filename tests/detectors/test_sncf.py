"""SNCF: the sheet's checks and traps, all steps in loops, scikit-learn's OPTICS, planted groups, subsets, bad input."""

import math

import numpy as np
import pytest
from contaminated_digits import contaminated
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import OPTICS
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import Neighbors, nearest, unit_rows
from chaffinch.detectors import sncf
from chaffinch.detectors.sncf import (
    Sncf,
    affinity,
    best_clusters,
    draw,
    fellows,
    name_ood,
    optics,
    outer_clusters,
    place,
    spectral,
)


def two_groups():
    """The sheet's 250 unit vectors: 150 compact around one axis, 100 diffuse around another."""
    rng = np.random.default_rng(0)
    axes = np.eye(16)
    X = np.vstack([axes[0] + 0.25 * rng.normal(size=(150, 16)), axes[1] + 0.45 * rng.normal(size=(100, 16))])
    return X / np.linalg.norm(X, axis=1, keepdims=True), np.arange(250) >= 150


def unit(X):
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-300)


def bare(model, y):
    """Scores without what is added for OOD clusters."""
    scores = model.scores_.copy()
    for found in model.info_["classes"]:
        if found["ood"] is not None:
            rows = (y == found["label"]) & (model.groups_ == 2)
            scores[rows] -= 1 - min(found["distances"]) / max(found["distances"])
    return scores


class TestSheet:
    def test_1_spectrum(self):
        X, diffuse = two_groups()
        W = affinity(nearest(X, 20))
        values, vectors = spectral(W, 3)
        np.testing.assert_allclose(values, [0.0613, 0.3605, 0.4071], atol=5e-5)
        side = vectors[:, 0] > 0
        assert max(np.mean(side == diffuse), np.mean(side != diffuse)) == pytest.approx(0.984, abs=1e-9)

    def test_2_the_diffuse_group_is_ood(self):
        X, diffuse = two_groups()
        loose = [fellows(X[rows], 76).mean() for rows in (~diffuse, diffuse)]
        np.testing.assert_allclose(loose, [0.3871, 0.6779], atol=5e-5)
        assert name_ood(loose, [150, 100], "sparser", 0.8) == 1
        assert name_ood(loose, [150, 100], "denser", 1.0) == 0, "the sense of the dataset rule"
        model = Sncf(k=20).fit(X, np.zeros(250, int))
        assert model.flags_[diffuse].mean() > 0.95
        assert model.flags_[~diffuse].mean() < 0.05

    def test_3_two_cliques(self):
        """Eigenvalue 0 is there twice; what is left after one is taken out is constant on each clique, and not 0."""
        order = np.random.default_rng(0).permutation(30)
        clique = (np.arange(30) < 12)[order]
        indices = np.array([[j for j in range(30) if clique[j] == clique[i] and j != i][:11] for i in range(30)])
        values, vectors = spectral(affinity(Neighbors(indices, np.ones((30, 11), np.float32))), 2)
        assert values[0] == pytest.approx(0, abs=1e-12)
        assert values[1] > 0.05
        first, second = vectors[clique, 0], vectors[~clique, 0]
        # 12 mutual neighbours; the larger one is no complete graph, so degrees weigh its entries
        assert np.ptp(first) < 1e-12
        assert first[0] * second.sum() < 0
        assert np.abs(first).min() > 0.1
        assert np.abs(second).min() > 0.01
        assert (np.sign(second) == np.sign(second[0])).all()

    def test_5_cubes_keep_the_sign_and_nobody_is_its_own_neighbour(self):
        X = np.random.default_rng(0).normal(size=(12, 3))
        near = nearest(X, 11)
        W = affinity(near).toarray()
        cosine = unit(X) @ unit(X).T
        assert cosine.min() < -0.5
        np.fill_diagonal(cosine, 0)
        np.testing.assert_allclose(W, 2 * cosine**3, atol=1e-6)
        values, vectors = spectral(affinity(near), 4)
        assert np.isfinite(vectors).all(), "degrees of mixed signs"
        assert (values > -1e-9).all()


def laplacian_in_loops(near):
    """The normalised Laplacian, entry by entry."""
    n, k = near.indices.shape
    W = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j, cosine in zip(near.indices[i].tolist(), near.similarity[i].tolist(), strict=True):
            W[i][j] += cosine**3
            W[j][i] += cosine**3
    for _ in range(2):
        degrees = [sum(map(abs, row)) for row in W]
        W = [[W[i][j] / math.sqrt(degrees[i] * degrees[j]) for j in range(n)] for i in range(n)]
    return np.eye(n) - np.array(W)


def fellows_in_loops(rows, m):
    """Sorted cosine distances to the m - 1 nearest others."""
    return [
        sorted(1 - sum(a * b for a, b in zip(row, other, strict=True)) for j, other in enumerate(rows) if j != i)[
            : m - 1
        ]
        for i, row in enumerate(rows)
    ]


def test_agrees_with_loops(blobs):
    """Graph, eigenvectors (the trivial one dropped by position: the graph is connected) and distances."""
    X, y = blobs.X[:120], blobs.y[:120]
    near = nearest(X, 30)
    values, vectors = np.linalg.eigh(laplacian_in_loops(near))
    assert values[0] == pytest.approx(0, abs=1e-7)
    assert values[1] > 0.001
    E, Z = unit(vectors[:, 1:7]), unit(X.astype(float))
    expected = np.empty(120)
    for label in range(4):
        rows = np.flatnonzero(y == label)
        m = round(0.15 * len(rows))
        spectrum, features = fellows_in_loops(E[rows].tolist(), m), fellows_in_loops(Z[rows].tolist(), m)
        expected[rows] = [s[-1] + sum(f) / len(f) for s, f in zip(spectrum, features, strict=True)]
    model = Sncf(k=30, dims=6).fit(X, y, neighbors=near)
    np.testing.assert_allclose(model.info_["eigenvalues"], values[1:7], atol=1e-9)
    np.testing.assert_allclose(bare(model, y), expected, atol=1e-5)
    np.testing.assert_array_equal(model.flags_, model.groups_ > 0)


def test_sparse_and_dense_solver_agree(blobs, monkeypatch):
    W = affinity(nearest(blobs.X, 30))
    values, vectors = spectral(W, 5)
    monkeypatch.setattr(sncf, "DENSE", 10)
    found, sparse = spectral(W, 5)
    np.testing.assert_allclose(found, values, atol=1e-9)
    np.testing.assert_allclose(np.abs(sparse), np.abs(vectors), atol=1e-6)
    np.testing.assert_array_equal(spectral(W, 5)[1], sparse)


def test_sparse_solver_finds_every_part_of_a_graph_in_pieces(monkeypatch):
    monkeypatch.setattr(sncf, "DENSE", 10)
    rng = np.random.default_rng(0)
    X = np.repeat(8 * np.eye(6), 60, axis=0) + 0.3 * rng.normal(size=(360, 6))
    values, vectors = spectral(affinity(nearest(X, 20)), 7)
    np.testing.assert_allclose(values[:5], 0, atol=1e-8)
    assert values[5] > 0.01
    E = unit(vectors[:, :5])
    same = np.repeat(np.arange(6), 60)[:, None] == np.repeat(np.arange(6), 60)
    cosine = E @ E.T
    assert cosine[same].min() > 0.999
    assert cosine[~same].max() < 0.5


@pytest.mark.parametrize(("m", "least", "seed"), [(15, 15, 0), (8, 12, 1), (2, 5, 3)])
def test_optics_is_that_of_scikit_learn(m, least, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, 5))[rng.integers(0, 3, 120)]
    X = unit(X + rng.choice([0.1, 0.3, 0.8], (120, 1)) * rng.normal(size=(120, 5)))
    theirs = OPTICS(min_samples=m, min_cluster_size=least, xi=0.02, metric="cosine").fit(X)
    np.testing.assert_allclose(fellows(X, m)[:, -1], theirs.core_distances_, atol=1e-12)
    ours = optics(X, fellows(X, m)[:, -1], m, least, 0.02, None)
    np.testing.assert_array_equal(ours, theirs.labels_)
    assert len(set(ours)) > 2


@pytest.mark.parametrize(
    ("nested", "expected"),
    [
        ([(0, 40), (5, 20), (22, 38), (50, 90)], [(0, 40), (50, 90)]),
        ([(0, 100), (0, 40), (5, 20), (50, 90)], [(0, 40), (50, 90)]),  # all rows are no cluster
        ([(0, 90), (0, 40), (50, 90)], [(0, 40), (50, 90)]),  # too large, and its parts hold most of it
        ([(0, 90), (10, 30), (50, 70)], [(0, 90)]),  # they hold less than half
        ([(0, 90), (1, 85), (2, 84), (10, 20)], [(0, 90)]),
        ([(0, 90), (1, 75), (10, 20)], [(1, 75)]),
        ([(0, 100)], []),
        ([], []),
    ],
)
def test_which_of_nested_clusters(nested, expected):
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert outer_clusters([nested[i] for i in rng.permutation(len(nested))], 100, 0.8) == expected


def test_outer_clusters_are_those_of_the_reachability_plot():
    X, _ = two_groups()
    X = X[np.argsort(fellows(X, 20)[:, -1])]
    theirs = OPTICS(min_samples=20, min_cluster_size=20, xi=0.02, metric="cosine").fit(X)
    ours = optics(X, fellows(X, 20)[:, -1], 20, 20, 0.02, 0.8)
    spans = outer_clusters([(int(a), int(b) + 1) for a, b in theirs.cluster_hierarchy_], 250, 0.8)
    assert ours.max() == len(spans) - 1
    for i, (first, stop) in enumerate(spans):
        assert set(theirs.ordering_[first:stop]) == set(np.flatnonzero(ours == i))
    assert (ours >= 0).sum() > (theirs.labels_ >= 0).sum() > 0


def test_neighbourhood_size_is_chosen_as_in_the_paper(monkeypatch):
    """A later size takes over with fewer strays in more than one cluster, or if there was at most one so far."""

    def choose(*results):
        left = iter([np.array(r) for r in results])
        monkeypatch.setattr(sncf, "optics", lambda *a: next(left))
        return best_clusters(np.eye(6), [4, 3, 2][: len(results)], 2, 0.02, None).tolist()

    two, fewer, one, none = [0, 0, 1, 1, -1, -1], [0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0], [-1] * 6
    assert choose(two, fewer) == fewer
    assert choose(fewer, two) == fewer
    assert choose(two, one) == two, "fewer strays, but a single cluster"
    assert choose(one, two) == two, "more strays, but so far a single cluster"
    assert choose(none, one, two) == two
    assert choose(two, none, fewer) == fewer


@pytest.mark.parametrize(
    ("loose", "sizes", "sense", "guard", "expected"),
    [
        ([0.1, 0.4, 0.2], [50, 20, 30], "sparser", 0.8, 1),
        ([0.1, 0.4, 0.2], [20, 20, 30], "denser", 0.8, 0),
        ([0.35, 0.4], [50, 20], "sparser", 0.8, None),  # alike
        ([0.35, 0.4], [50, 20], "sparser", 0.9, 1),
        ([0.1, 0.4], [20, 50], "sparser", 0.8, None),  # outnumbers
        ([0.35, 0.4], [20, 50], "sparser", 1.0, 1),  # nobody asks
        ([0.4], [50], "sparser", 0.8, None),
        ([0.4], [50], "sparser", 1.0, 0),
        ([], [], "sparser", 1.0, None),
    ],
)
def test_naming_and_its_guards(loose, sizes, sense, guard, expected):
    assert name_ood(loose, sizes, sense, guard) == expected


def grouped(n=150, seed=0):
    """Two labels: a class, a tenth of the other class, and a loose foreign group of a third each; the second is wider.

    Class 1 (spread .5) is looser than the foreign group of label 0 (spread .35).
    """
    rng = np.random.default_rng(seed)
    axes, parts, y, kind = np.eye(14), [], [], []
    for label, (own, foreign) in enumerate([((0, 0.1), (2, 0.35)), ((1, 0.5), (3, 0.9))]):
        wrong = (1, 0.5) if label == 0 else (0, 0.1)
        for code, (axis, spread), count in ((0, own, n), (1, wrong, n // 10), (2, foreign, n // 2)):
            parts.append(3 * axes[axis] + spread * rng.normal(size=(count, 14)))
            y += [label] * count
            kind += [code] * count
    order = rng.permutation(len(y))
    return np.vstack(parts)[order].astype(np.float32), np.array(y)[order], np.array(kind)[order]


def test_names_are_given_within_a_label():
    """The clusters of different labels are never compared: the loose class of one is not foreign."""
    X, y, kind = grouped()
    model = Sncf().fit(X, y)
    for label in (0, 1):
        rows = y == label
        assert (kind[rows & (model.groups_ == 2)] == 2).mean() > 0.8
        assert (kind[rows & (model.groups_ == 2)] > 0).mean() > 0.9
        assert (model.groups_[rows & (kind == 0)] == 0).mean() > 0.9
    assert (model.groups_[(y == 0) & (kind == 2)] == 2).mean() > 0.95
    looseness = {c["label"]: c["distances"] for c in model.info_["classes"]}
    assert min(looseness[1]) > sorted(looseness[0])[0]
    assert roc_auc_score(kind == 2, model.scores_) > 0.9
    inside = kind < 2
    assert roc_auc_score(kind[inside] == 1, model.scores_[inside]) > 0.9


def test_ood_is_lifted_by_as_much_as_it_stands_out():
    X, y, _ = grouped()
    model = Sncf().fit(X, y)
    plain = Sncf(guard=1e-9).fit(X, y)
    assert not (plain.groups_ == 2).any(), "no two clusters are that different"
    np.testing.assert_array_equal(plain.groups_ == 1, model.groups_ == 1)
    lifted = model.scores_ - plain.scores_
    for found in model.info_["classes"]:
        rows = (y == found["label"]) & (model.groups_ == 2)
        np.testing.assert_allclose(lifted[rows], 1 - min(found["distances"]) / max(found["distances"]))
    np.testing.assert_array_equal(lifted[model.groups_ != 2], 0)
    assert lifted.max() > 0.4


def test_sense_can_be_turned():
    X, y, kind = grouped()
    model = Sncf(sense="denser", guard=1).fit(X, y)
    assert (kind[(model.groups_ == 2) & (y == 0)] == 0).mean() > 0.9


def test_finds_both_kinds_in_planted_data(blobs):
    model = Sncf().fit(blobs.X, blobs.y)
    assert roc_auc_score(blobs.ood, model.scores_) > 0.95
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.98
    assert blobs.ood[model.groups_ == 2].mean() > 0.95
    assert blobs.wrong[model.groups_ == 1].mean() > 0.8
    assert (~model.flags_)[blobs.clean].mean() > 0.95
    assert sum(model.info_["groups"].values()) == 400
    assert model.info_["groups"]["ood"] == (model.groups_ == 2).sum()


@pytest.mark.parametrize(("kind", "share", "least"), [("diffuse", 0.3, 0.8), ("clustered", 0.5, 0.8)])
def test_finds_foreign_digits(kind, share, least):
    X, y, ood, _ = contaminated(kind, share, 0)
    model = Sncf().fit(X, y)
    assert roc_auc_score(ood, model.scores_) > least
    assert ood[model.groups_ == 2].mean() > 0.9


def test_swapped_digits_without_any_foreign_ones(digits):
    data = digits(0.2)
    rows = np.arange(600)
    model = Sncf().fit(data.X[rows], data.y[rows])
    assert roc_auc_score(data.wrong[rows], bare(model, data.y[rows])) > 0.98
    assert data.wrong[rows][model.groups_ == 1].mean() > 0.6


def test_the_innermost_clusters_leave_a_class_in_pieces():
    rng = np.random.default_rng(0)
    X = 4 * np.eye(12)[rng.integers(0, 2, 500)] + rng.normal(size=(500, 12))
    y = np.where(rng.random(500) < 0.25, 1 - X[:, :2].argmax(axis=1), X[:, :2].argmax(axis=1))
    wrong = y != X[:, :2].argmax(axis=1)
    outer, inner = Sncf().fit(X, y), Sncf(largest=None).fit(X, y)
    assert outer.flags_[~wrong].mean() < 0.15
    assert inner.flags_[~wrong].mean() > outer.flags_[~wrong].mean() + 0.1
    np.testing.assert_array_equal(bare(inner, y), bare(outer, y))


def test_small_classes_are_clustered_too():
    """75 would be more than there are; 15 % of the class is taken instead."""
    X, y, kind = grouped(40)
    model = Sncf(k=15).fit(X, y)
    assert kind[model.groups_ == 2].min() == 2
    assert (model.groups_ == 2).sum() > 20
    assert "note" not in model.info_


def test_dataset_rule():
    X, diffuse = two_groups()
    y = np.arange(250) % 2
    model = Sncf(k=20, dims=3, rule="dataset", sense="sparser").fit(X, y)
    assert roc_auc_score(diffuse, model.scores_) > 0.95
    np.testing.assert_array_equal(model.flags_, model.scores_ > 0)
    assert set(model.groups_) == {0, 2}
    denser = Sncf(k=20, dims=3, rule="dataset").fit(X, y)
    np.testing.assert_allclose(denser.scores_, -model.scores_)
    again = Sncf(k=20, dims=3, rule="dataset").fit(X, 1 - y)
    np.testing.assert_array_equal(again.scores_, denser.scores_, err_msg="labels play no part")


class TestSubset:
    def test_scores_as_well_and_says_so(self, blobs):
        model = Sncf(limit=200).fit(blobs.X, blobs.y)
        assert roc_auc_score(blobs.ood, model.scores_) > 0.93
        inside = ~blobs.ood
        assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.97
        assert "sought among 200 samples" in model.info_["note"]
        assert "the other 200" in model.info_["note"]
        assert model.info_["clustered"] == 200
        drawn = draw(blobs.y, 200, 0)
        rest = np.setdiff1d(np.arange(400), drawn)
        alone = Sncf().fit(blobs.X[drawn], blobs.y[drawn])
        np.testing.assert_allclose(model.scores_[drawn], alone.scores_, atol=1e-5)
        assert set(model.groups_[rest]) == {0, 1, 2}
        np.testing.assert_array_equal(Sncf(limit=200).fit(blobs.X, blobs.y).scores_, model.scores_)
        assert not np.array_equal(Sncf(limit=200, seed=1).fit(blobs.X, blobs.y).scores_, model.scores_)

    def test_dataset_rule_places_the_rest_too(self):
        X, diffuse = two_groups()
        model = Sncf(k=10, dims=2, rule="dataset", sense="sparser", limit=120).fit(X, np.zeros(250, int))
        assert roc_auc_score(diffuse, model.scores_) > 0.9

    def test_draw_keeps_shares_and_rare_labels(self):
        y = np.random.default_rng(0).permutation(np.repeat([0, 2, 3, 4], [7000, 2900, 60, 1]))
        drawn = draw(y, 2000, 0)
        assert len(set(drawn)) == 2000
        assert (np.diff(drawn) > 0).all()
        counts = np.bincount(y[drawn])
        assert counts[0] / counts[2] == pytest.approx(7000 / 2900, rel=0.01)
        assert counts[3] == 50
        assert counts[4] == 1
        assert not np.array_equal(drawn, draw(y, 2000, 1))

    def test_labels_that_were_not_drawn_have_no_opinion(self):
        rng = np.random.default_rng(0)
        model = Sncf(limit=100, k=10).fit(rng.normal(size=(400, 6)), np.arange(400) % 150)
        assert np.isfinite(model.scores_).all()
        assert "no cluster was found under" in model.info_["note"]

    def test_place_agrees_with_loops(self, monkeypatch):
        rng = np.random.default_rng(0)
        Z, drawn, vectors = unit_rows(rng.normal(size=(40, 4))), np.arange(0, 40, 2), rng.normal(size=(20, 3))
        expected = np.empty((40, 3))
        expected[drawn] = vectors
        for i in range(1, 40, 2):
            cosines = [float(Z[i] @ Z[j]) for j in drawn]
            best = sorted(range(20), key=lambda j: -cosines[j])[:5]
            weights = [max(cosines[j], 1e-6) ** 3 for j in best]
            expected[i] = sum(w * vectors[j] for w, j in zip(weights, best, strict=True)) / sum(weights)
        np.testing.assert_allclose(place(Z, drawn, vectors, 5), expected, atol=1e-5)
        monkeypatch.setattr(sncf, "BLOCK", 60)
        np.testing.assert_allclose(place(Z, drawn, vectors, 5), expected, atol=1e-5)


@pytest.mark.parametrize("m", [2, 5, 30, 99])
def test_fellows_agree_with_loops_and_blocks_do_not_matter(m, monkeypatch):
    X = unit(np.random.default_rng(0).normal(size=(30, 4)))
    found = fellows(X, m)
    assert found.shape == (30, min(m, 30) - 1)
    np.testing.assert_allclose(found, fellows_in_loops(X.tolist(), m), atol=1e-12)
    monkeypatch.setattr(sncf, "BLOCK", 100)
    np.testing.assert_allclose(fellows(X, m), found, atol=1e-14)
    others = fellows(X[:4], m, X[4:])
    distance = np.sort(1 - X[:4] @ X[4:].T, axis=1)
    np.testing.assert_allclose(others, distance[:, : m - 1], atol=1e-12)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_row_order_rotation_and_scale_do_not_matter(seed, scale):
    """But for the decision which clusters there are, which rounding may tip."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, 6))[rng.integers(0, 3, 150)] + 0.4 * rng.normal(size=(150, 6))
    y = rng.integers(0, 3, 150)
    near = nearest(X, 20)
    model = Sncf(k=20, dims=4).fit(X, y, neighbors=near)
    order = rng.permutation(150)
    moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
    there = Sncf(k=20, dims=4).fit(X[order], y[order], neighbors=moved)
    np.testing.assert_allclose(bare(there, y[order]), bare(model, y)[order], atol=1e-6)
    assert (there.groups_ != model.groups_[order]).mean() < 0.05
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    lengths = scale * rng.uniform(0.1, 10, (150, 1))
    turned = Sncf(k=20, dims=4).fit(lengths * X @ rotation, y, neighbors=near)
    np.testing.assert_allclose(bare(turned, y), bare(model, y), atol=1e-5)


def test_shared_neighbours_and_too_few(blobs):
    alone = Sncf().fit(blobs.X, blobs.y).scores_
    shared = Sncf().fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 60)).scores_
    np.testing.assert_allclose(shared, alone, atol=1e-5)
    with pytest.raises(InputError, match=r"sncf needs 50 neighbours.*there are 30"):
        Sncf().fit(blobs.X, blobs.y, neighbors=nearest(blobs.X, 30))


def test_fewer_samples_than_neighbours():
    model = Sncf().fit(np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 2)
    assert model.info_["k"] == 29
    assert "k was cut from 50 to 29" in model.info_["note"]


def test_two_samples_and_three():
    X = np.random.default_rng(0).normal(size=(3, 4))
    for n, y in ((2, [0, 0]), (3, [0, 0, 1])):
        model = Sncf().fit(X[:n], np.array(y))
        assert np.isfinite(model.scores_).all()
        assert not model.flags_.any()


def test_missing_and_single_classes_zero_rows_and_duplicates(blobs):
    X, y = blobs.X.copy(), np.where(blobs.y == 1, 0, blobs.y)
    y[0] = 5
    X[10:20] = 0
    X[50:130] = X[50]
    model = Sncf().fit(X, y)
    assert np.isfinite(model.scores_).all()
    assert model.groups_[0] == 0
    assert model.scores_[0] == np.median(np.delete(bare(model, y), 0)), "no fellows: no opinion"
    assert "under 1 of 6 labels" in model.info_["note"]


def test_more_duplicates_than_neighbours():
    X = np.repeat(np.random.default_rng(0).normal(size=(8, 5)), 60, axis=0)
    model = Sncf().fit(X, np.arange(480) % 3)
    assert np.isfinite(model.scores_).all()
    assert not model.flags_.all()


def test_wide_and_narrow_features():
    rng = np.random.default_rng(0)
    for dim in (1, 300):
        model = Sncf().fit(rng.normal(size=(80, dim)), np.arange(80) % 2)
        assert np.isfinite(model.scores_).all()


@pytest.mark.parametrize("X", [np.ones((40, 3)), np.zeros((40, 3)), np.outer(np.arange(1, 41), [1, 2])])
def test_features_that_are_all_alike(X):
    with pytest.raises(InputError, match="all rows point the same way"):
        Sncf().fit(X, np.arange(40) % 2)


def test_no_label_twice():
    with pytest.raises(InputError, match="no label has two samples"):
        Sncf().fit(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20))


def test_mixture_of_too_few_samples():
    with pytest.raises(InputError, match="one component only"):
        Sncf(rule="dataset").fit(np.random.default_rng(0).normal(size=(3, 3)), np.zeros(3, int))


def test_features_not_finite(blobs):
    blobs.X[3, 0] = np.inf
    with pytest.raises(InputError, match="row 3"):
        Sncf().fit(blobs.X, blobs.y)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"dims": 0}, "dims must be at least 1"),
        ({"m": 1}, "m must be at least 2"),
        ({"min_cluster_size": 1}, "min_cluster_size must be at least 2"),
        ({"limit": 5}, "limit must be at least 100"),
        ({"xi": 0}, "xi must be above 0"),
        ({"guard": 1.5}, "guard must be above 0"),
        ({"largest": 0}, "largest must be above 0"),
        ({"rule": "both"}, "rule must be one of class, dataset"),
        ({"sense": "loose"}, "sense must be sparser, denser or None"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, match):
    with pytest.raises(InputError, match=match):
        Sncf(**parameters).fit(blobs.X, blobs.y)
