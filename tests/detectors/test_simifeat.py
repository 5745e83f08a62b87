"""SimiFeat: the sheet's vote, the rule in loops, shares of each class, clean data, invariances, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.hoc import posterior_of_label, transition
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.detectors import simifeat
from chaffinch.detectors.knn_label import KnnLabel
from chaffinch.detectors.simifeat import SimiFeat, top_of_each_class, votes


class TestSheet:
    """Check 3: distances (0, .1, .15, .3) including self, labels (0, 1, 1, 0)."""

    distance, theirs, y = np.array([[0.1, 0.15, 0.3]]), np.array([[1, 1, 0]]), np.array([0])

    def test_self_stands_at_twice_the_first_less_the_second_distance(self):
        v = votes(self.distance, self.theirs, self.y, 4, 2)
        np.testing.assert_allclose(v, [[0.95 + 0.7, 0.9 + 0.85]], atol=1e-12)
        np.testing.assert_allclose(v / np.linalg.norm(v), [[0.68601, 0.72759]], atol=5e-6)
        assert v.argmax() == 1

    def test_score(self):
        """The same distances around each of four samples."""
        indices = np.array([[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]])
        near = Neighbors(indices, np.tile(1 - self.distance, (4, 1)).astype(np.float32))
        y = np.array([0, 1, 1, 0])
        model = SimiFeat(rule="vote", k=4).fit(None, y, neighbors=near)
        assert model.scores_[0] == pytest.approx(0.37686, abs=5e-6)
        assert model.suggestions_[0] == 1
        assert model.flags_[0]

    @pytest.mark.parametrize(("rate", "ranking"), [(0.2, 0.9987), (0.4, 0.9954)])
    def test_digits(self, digits, rate, ranking):
        """Check 6 is of the plain share of disagreeing neighbours; weights of the vote change it little."""
        data = digits(rate)
        model = SimiFeat().fit(data.X, data.y)
        assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(ranking, abs=0.01)
        assert balanced_accuracy_score(data.wrong, model.flags_) > 0.95
        assert model.info_["estimated_noise"] == pytest.approx(data.wrong.mean(), abs=0.03)
        assert model.flags_.mean() == pytest.approx(data.wrong.mean(), abs=0.03)


def in_loops(X, y, k, least, most):
    """Neighbours, votes, scores and flags sample by sample; the shares from the estimate."""
    n, classes = len(X), int(max(y)) + 1
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in X.tolist()]
    scores, triples = [], []
    for i in range(n):
        others = [(1 - sum(a * b for a, b in zip(unit[i], unit[j], strict=True)), j) for j in range(n) if j != i]
        others.sort()
        triples.append([y[i], y[others[0][1]], y[others[1][1]]])
        v = [0.0] * classes
        v[y[i]] += 1 - (2 * others[0][0] - others[1][0])
        for d, j in others[: k - 1]:
            v[y[j]] += max(1 - d, 0)
        scores.append(-math.log(v[y[i]] / math.sqrt(sum(w * w for w in v)) + 1e-8))
    right = posterior_of_label(*transition(np.array(triples), classes))
    flags = [False] * n
    for c in range(classes):
        members = sorted((i for i in range(n) if y[i] == c), key=lambda i: -scores[i])
        for i in members[: math.floor(min(max(1 - right[c], least), most) * len(members))]:
            flags[i] = True
    return scores, flags


@pytest.mark.parametrize("k", [2, 3, 10])
def test_agrees_with_loops(blobs, k):
    X, y = blobs.X[:150], blobs.y[:150]
    model = SimiFeat(k=k).fit(X, y)
    scores, flags = in_loops(X.astype(float), y, k, 0.05, 0.95)
    np.testing.assert_allclose(model.scores_, scores, atol=1e-5)
    cut = [np.sort(model.scores_[y == c])[::-1] for c in range(4)]
    if k == 10:  # with few voters scores tie at the cut, and loops break ties by position
        assert all(len(np.unique(s)) > 30 for s in cut)
        np.testing.assert_array_equal(model.flags_, flags)


def test_finds_planted_noise(blobs):
    inside = ~blobs.ood
    for rule in ("rank", "vote"):
        model = SimiFeat(rule=rule).fit(blobs.X[inside], blobs.y[inside])
        wrong = blobs.wrong[inside]
        assert roc_auc_score(wrong, model.scores_) > 0.98
        assert model.flags_[wrong].mean() > 0.8
        assert model.flags_[~wrong].mean() < 0.1
        assert (model.suggestions_ == blobs.truth[inside])[wrong].mean() > 0.95
    assert model.info_["estimated_noise"] == pytest.approx(wrong.mean(), abs=0.05)


def test_vote_flags_what_the_weighted_vote_contradicts(blobs):
    rank, vote = (SimiFeat(rule=rule).fit(blobs.X, blobs.y) for rule in ("rank", "vote"))
    np.testing.assert_array_equal(vote.flags_, vote.suggestions_ != blobs.y)
    np.testing.assert_array_equal(vote.scores_, rank.scores_)
    assert not np.array_equal(vote.flags_, rank.flags_)
    plain = KnnLabel().fit(blobs.X, blobs.y)
    assert (vote.suggestions_ == plain.suggestions_).mean() > 0.85


def test_one_sided_noise_gets_class_wise_shares():
    """40 % of class 0 carry label 1: only label 1 is to be doubted, and by its own share."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [900, 600, 500])
    X = 5 * np.eye(6)[truth] + rng.normal(size=(2000, 6))
    wrong = (truth == 0) & (rng.random(2000) < 0.4)
    y = np.where(wrong, 1, truth)
    model = SimiFeat(least=0.0).fit(X, y)
    share = wrong[y == 1].mean()
    np.testing.assert_allclose(model.info_["wrong_shares"], [0, share, 0], atol=0.04)
    assert model.flags_[y == 1].mean() == pytest.approx(share, abs=0.04)
    assert model.flags_[y != 1].mean() < 0.04
    assert model.info_["transition"][0][1] == pytest.approx(0.4, abs=0.05)
    assert model.info_["transition"][1][0] == pytest.approx(0.0, abs=0.05)
    assert (model.flags_ == wrong).mean() > 0.95


def test_clean_data_lose_up_to_a_twentieth_unless_told_otherwise(digits):
    data = digits(0.0)
    model = SimiFeat().fit(data.X, data.y)
    assert 0.03 < model.flags_.mean() <= 0.05
    assert "72 labels of 10 classes are flagged though only about 14 seem wrong" in model.info_["note"]
    believing = SimiFeat(least=0.0).fit(data.X, data.y)
    assert believing.flags_.mean() < 0.01
    assert "note" not in believing.info_


def test_a_label_that_all_voters_share_is_never_flagged(blobs):
    inside = ~blobs.ood
    X, y = blobs.X[inside], blobs.truth[inside]
    assert not SimiFeat(k=3, least=0.5).fit(X, y).flags_.any()


def test_note_only_where_the_floor_decides(digits):
    data = digits(0.2)
    assert "note" not in SimiFeat().fit(data.X, data.y).info_


def test_many_classes_are_noted(monkeypatch, blobs):
    monkeypatch.setattr(simifeat, "TRIPLES_UP_TO", 3)
    assert "estimated from pairs only" in SimiFeat().fit(blobs.X, blobs.y).info_["note"]


class TestTopOfEachClass:
    y = np.array([0, 0, 0, 0, 1, 1, 1, 3])
    scores = np.array([0.1, 0.4, 0.3, 0.2, 5, 6, 7, 0.0])

    @pytest.mark.parametrize(
        ("shares", "flagged"),
        [
            ([0, 0, 0, 0], []),
            ([0.5, 0.34, 0.5, 0.95], [1, 2, 6]),
            ([0.49, 0.99, 0, 0], [1, 5, 6]),
            ([1, 0, 0, 1], [0, 1, 2, 3, 7]),
        ],
    )
    def test_share_of_each(self, shares, flagged):
        got = np.flatnonzero(top_of_each_class(self.scores, self.y, np.array(shares, float)))
        np.testing.assert_array_equal(got, flagged)

    def test_whole_numbers_are_not_lost_to_rounding(self):
        flags = top_of_each_class(np.arange(100.0), np.zeros(100, int), np.array([0.29]))
        assert flags.sum() == 29  # .29 * 100 = 28.999999999999996

    def test_ties_at_the_cut_stay(self):
        flags = top_of_each_class(np.array([2.0, 1, 1, 1, 0]), np.zeros(5, int), np.array([0.4]))
        np.testing.assert_array_equal(np.flatnonzero(flags), [0])


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_class_numbers_scale_and_rotation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X = 3 * np.eye(3, 5)[rng.integers(0, 3, 60)] + rng.normal(size=(60, 5))
    y = rng.integers(0, 3, 60)
    model = SimiFeat().fit(X, y)
    order = rng.permutation(60)
    moved = SimiFeat().fit(X[order], y[order])
    np.testing.assert_allclose(moved.scores_, model.scores_[order], atol=1e-5)
    turned = SimiFeat().fit(X @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * rng.uniform(0.1, 10, (60, 1)), y)
    np.testing.assert_allclose(turned.scores_, model.scores_, atol=1e-5)
    names = rng.permutation(3)
    np.testing.assert_allclose(SimiFeat().fit(X, names[y]).scores_, model.scores_, atol=1e-12)


def test_given_neighbours_are_used_and_more_do_no_harm(blobs):
    alone = SimiFeat().fit(blobs.X, blobs.y)
    given_ = SimiFeat().fit(None, blobs.y, neighbors=nearest(blobs.X, 30))
    np.testing.assert_array_equal(alone.scores_, given_.scores_)
    np.testing.assert_array_equal(alone.flags_, given_.flags_)


class TestDegenerate:
    def test_zero_vectors(self, blobs):
        blobs.X[:3] = 0
        model = SimiFeat().fit(blobs.X, blobs.y)
        np.testing.assert_allclose(model.scores_[:3], -math.log(1e-8))
        np.testing.assert_array_equal(model.suggestions_[:3], blobs.y[:3])
        assert np.isfinite(model.scores_).all()

    def test_nothing_but_one_point(self):
        model = SimiFeat().fit(np.ones((40, 3)), np.arange(40) % 2)
        assert np.isfinite(model.scores_).all()
        assert not model.flags_.all()

    def test_opposite_neighbours_do_not_vote(self):
        """Two opposite bundles of two: the two far voters have cosine -1, and no say."""
        X = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
        model = SimiFeat(k=4).fit(X, np.array([0, 0, 1, 1]))
        np.testing.assert_allclose(model.scores_, 0, atol=1e-7)

    def test_a_class_of_one_and_a_missing_class(self, blobs):
        y = np.where(blobs.y == 2, 3, blobs.y)
        y[0] = 5
        model = SimiFeat().fit(blobs.X, y)
        assert np.isfinite(model.scores_).all()
        assert not model.flags_[0], "a share below one of a single sample is none"
        assert 2 not in model.suggestions_
        assert len(model.info_["wrong_shares"]) == 6

    def test_one_class(self, blobs):
        model = SimiFeat().fit(blobs.X, np.zeros(400, int))
        np.testing.assert_allclose(model.scores_, 0, atol=1e-7)
        assert not SimiFeat(rule="vote").fit(blobs.X, np.zeros(400, int)).flags_.any()

    @pytest.mark.parametrize("n", [2, 5])
    def test_too_few_samples(self, n):
        with pytest.raises(InputError, match=f"simifeat needs 9 neighbours .* {n} samples"):
            SimiFeat().fit(np.eye(n), np.arange(n) % 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "guess"}, "rule must be one of rank, vote, got 'guess'"),
        ({"k": 1}, "k must be at least 2"),
        ({"least": 0.5, "most": 0.4}, "0 <= least <= most <= 1"),
        ({"least": -0.1}, "least -0.1"),
        ({"most": 1.1}, "most 1.1"),
    ],
)
def test_bad_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        SimiFeat(**parameters).fit(blobs.X, blobs.y)
