"""RRL: the sheet's numbers, the rounds in loops, synchronous updates, small classes, invariances, bad input."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.detectors import rrl
from chaffinch.detectors.base import own_label_loss
from chaffinch.detectors.rrl import RobustRepresentation, listen, settle


class TestSheet:
    """Check 1: four samples, two neighbours each."""

    v = np.array([[1, 0], [0.96, 0.28], [0, 1], [0.28, 0.96]])
    s = np.array([[1, 0], [1, 0], [0, 1], [0.4, 0.6]])
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7]])
    y = np.array([0, 0, 1, 0])
    near = nearest(v, 2)

    def test_neighbours_and_weights(self):
        np.testing.assert_array_equal(self.near.indices, [[1, 3], [0, 3], [3, 1], [2, 1]])
        weights = [[24.5325, 2.5430], [24.5325, 6.0014], [24.5325, 2.5430], [24.5325, 6.0014]]
        np.testing.assert_allclose(np.exp(self.near.similarity / 0.3), weights, rtol=2e-5)

    def test_one_round(self):
        mean = listen(self.s, self.near, np.full(4, 2), 0.3)
        expected = [[0.9436, 0.0564], [0.8821, 0.1179], [0.4564, 0.5436], [0.1965, 0.8035]]
        np.testing.assert_allclose(mean, expected, atol=1e-4)
        q = (self.p + mean) / 2
        expected = [[0.9218, 0.0782], [0.7910, 0.2090], [0.3282, 0.6718], [0.2483, 0.7517]]
        np.testing.assert_allclose(q, expected, atol=1e-4)
        sure = q.max(axis=1)
        kept = settle(q, self.y, 0.4)
        np.testing.assert_array_equal(kept, [True, True, True, False])
        np.testing.assert_array_equal(q[:3], [[1, 0], [1, 0], [0, 1]])
        assert q[3].argmax() == 1
        assert sure[3] < 0.9

    def test_the_detector_on_it(self):
        """Its start (p, kept where above .4) is the sheet's s, but for sample 3 at (.3, .7)."""
        model = RobustRepresentation(k=2, eta_low=0.4).fit(None, self.y, neighbors=self.near, pred_probs=self.p)
        w1, w2 = 24.5325, 2.5430
        assert model.scores_[0] == pytest.approx(1 - (0.9 + (w1 + 0.3 * w2) / (w1 + w2)) / 2, abs=1e-5)
        assert model.scores_[3] == pytest.approx(1 - 0.2483, abs=1e-4)
        np.testing.assert_array_equal(model.flags_, [False, False, False, True])
        assert model.suggestions_[3] == 1
        assert {key: model.info_[key] for key in ("kept", "replaced", "open")} == {"kept": 3, "replaced": 0, "open": 1}
        relaxed = RobustRepresentation(k=2, eta_low=0.4, eta_high=0.75)
        assert relaxed.fit(None, self.y, neighbors=self.near, pred_probs=self.p).info_["replaced"] == 1

    def test_fixed_point(self):
        """Check 4: equal soft labels that the classifier shares stay as they are."""
        p = np.tile([0.2, 0.3, 0.5], (30, 1))
        near = nearest(np.random.default_rng(0).normal(size=(30, 3)), 10)
        np.testing.assert_allclose((p + listen(p, near, np.full(30, 10), 0.3)) / 2, p, atol=1e-12)
        y = np.zeros(30, int)
        model = RobustRepresentation(rounds=5, eta_low=0.3).fit(None, y, neighbors=near, pred_probs=p)
        np.testing.assert_allclose(model.scores_, 0.8, atol=1e-12)


def in_loops(X, y, p, k, tau, rounds, low):
    """Neighbours, weights and rounds, sample by sample; scores, flags and suggestions."""
    n, classes = len(X), len(p[0])
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in X.tolist()]
    size = [max(10, sum(int(label == c) for label in y) // 2) for c in range(classes)]
    around = []
    for i in range(n):
        cosines = sorted((sum(a * b for a, b in zip(unit[i], unit[j], strict=True)), j) for j in range(n) if j != i)
        around.append(cosines[::-1][: min(k, size[y[i]])])

    def hard(row, label):
        return [float(c == label) for c in range(classes)] if row[label] > low else row

    s = [hard(list(row), label) for row, label in zip(p, y, strict=True)]
    for _ in range(rounds):
        soft = []
        for i in range(n):
            total = sum(math.exp(c / tau) for c, _ in around[i])
            mean = [sum(math.exp(v / tau) * s[j][c] for v, j in around[i]) / total for c in range(classes)]
            soft.append([(a + b) / 2 for a, b in zip(p[i], mean, strict=True)])
        s = [hard(row, label) for row, label in zip(soft, y, strict=True)]
    own = [row[label] for row, label in zip(soft, y, strict=True)]
    return [1 - v for v in own], [v <= low for v in own], [row.index(max(row)) for row in soft]


@pytest.mark.parametrize(("rounds", "k", "tau"), [(1, 200, 0.3), (3, 15, 0.1)])
def test_agrees_with_loops(blobs, monkeypatch, rounds, k, tau):
    monkeypatch.setattr(rrl, "BLOCK", 37)  # blocks that do not divide the number of samples
    X, y = blobs.X[:100], blobs.y[:100]
    p = linear_probe(X, y, 4).pred_probs
    model = RobustRepresentation(k=k, tau=tau, rounds=rounds).fit(X, y, pred_probs=p)
    scores, flags, suggestions = in_loops(X.astype(float), y, p.tolist(), k, tau, rounds, 0.4)
    np.testing.assert_allclose(model.scores_, scores, atol=1e-5)
    np.testing.assert_array_equal(model.flags_, flags)
    np.testing.assert_array_equal(model.suggestions_, suggestions)


def test_finds_planted_noise(blobs):
    model = RobustRepresentation().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
    assert roc_auc_score(blobs.ood, model.scores_) > 0.75
    assert model.flags_[~blobs.clean].mean() > 0.9
    assert model.flags_[blobs.clean].mean() < 0.02
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95
    assert model.info_["kept"] + model.info_["replaced"] + model.info_["open"] == 400
    assert model.info_["kept"] == (~model.flags_).sum()


def test_foreigners_stay_open_wrong_labels_are_replaced(blobs):
    """Soft labels of foreigners stay flat, so none of their labels is replaced with confidence."""
    model = RobustRepresentation(eta_high=0.7).fit(blobs.X, blobs.y, pred_probs=blobs.p)
    assert model.info_["replaced"] == pytest.approx(blobs.wrong.sum(), abs=5)
    assert model.info_["open"] > 0.7 * (model.flags_ & blobs.ood).sum()


@pytest.mark.parametrize(("rate", "least"), [(0.2, 0.995), (0.4, 0.99)])
def test_digits(digits, rate, least):
    data = digits(rate)
    model = RobustRepresentation().fit(data.X, data.y)
    assert roc_auc_score(data.wrong, model.scores_) > least
    assert model.info_["threshold"] == 0.8
    assert model.flags_[data.wrong].mean() > 0.95
    assert model.flags_[~data.wrong].mean() < 0.06


def test_neighbours_improve_on_the_classifier_alone(digits):
    data = digits(0.4)
    p = linear_probe(data.X, data.y, 10).pred_probs
    scores = RobustRepresentation().fit(data.X, data.y, pred_probs=p).scores_
    assert roc_auc_score(data.wrong, scores) > roc_auc_score(data.wrong, own_label_loss(p, data.y)) + 0.001


def test_threshold_is_above_not_at():
    q = np.array([[0.4, 0.6], [0.4 + 1e-12, 0.6]])
    np.testing.assert_array_equal(settle(q, np.zeros(2, int), 0.4), [False, True])


def test_scores_are_of_before_the_reset(blobs):
    """Kept labels must not all score 0."""
    model = RobustRepresentation().fit(blobs.X, blobs.y)
    kept = model.scores_[~model.flags_]
    assert len(np.unique(kept)) > 0.9 * len(kept)
    assert (kept < model.info_["threshold"]).all()
    assert (model.scores_[model.flags_] >= model.info_["threshold"]).all()


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, [0.75, 0.75, 0.5, 0.5]), (2, [0.875, 0.625, 0.625, 0.5]), (3, [0.8125, 0.6875, 0.5625, 0.5625])],
)
def test_all_change_at_once(rounds, expected):
    """A chain in which each listens to the one before: news travels one sample a round."""
    near = Neighbors(np.array([[1], [0], [1], [2]]), np.ones((4, 1), np.float32))
    p = np.array([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    model = RobustRepresentation(rounds=rounds, eta_low=0.99).fit(None, np.ones(4, int), neighbors=near, pred_probs=p)
    np.testing.assert_allclose(1 - model.scores_, expected)


def test_eta_low_by_default_falls_with_the_number_of_classes():
    y = np.arange(400) % 2
    X = np.random.default_rng(0).normal(size=(400, 4))
    for classes, eta in ((2, 0.4), (5, 0.4), (10, 0.2), (100, 0.02)):
        p = np.full((400, classes), 1 / classes)
        assert RobustRepresentation().fit(X, y, pred_probs=p).info_["threshold"] == pytest.approx(1 - eta)


class TestSmallClasses:
    def rare(self, n):
        rng = np.random.default_rng(0)
        y = np.repeat([0, 1], [600, n])
        X = 4 * np.eye(8)[y] + rng.normal(size=(600 + n, 8))
        return SimpleNamespace(X=X, y=y)

    def test_are_not_outvoted(self):
        data = self.rare(30)
        model = RobustRepresentation().fit(data.X, data.y)
        assert model.flags_[data.y == 1].mean() < 0.1
        assert "5% of the samples listened to fewer than 200 neighbours, the fewest to 15" in model.info_["note"]

    def test_listen_to_a_share_of_their_class(self):
        data = self.rare(30)
        seen = []
        original = rrl.listen

        def spy(q, near, asked, tau):
            seen.append(asked)
            return original(q, near, asked, tau)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rrl, "listen", spy)
            RobustRepresentation(k=100).fit(data.X, data.y)
        np.testing.assert_array_equal(seen[0], np.repeat([100, 15], [600, 30]))

    def test_a_class_of_one_and_a_missing_class(self, blobs):
        y = np.where(blobs.y == 2, 3, blobs.y)
        y[0] = 5
        model = RobustRepresentation().fit(blobs.X, y)
        assert np.isfinite(model.scores_).all()
        assert model.flags_[0], "no neighbour and no fold supports it"

    def test_no_note_where_all_are_asked(self, blobs):
        assert "note" not in RobustRepresentation(k=30).fit(blobs.X, blobs.y).info_


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_scale_and_rotation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, y, p = rng.normal(size=(80, 5)), rng.integers(0, 3, 80), rng.dirichlet(np.ones(3), 80)
    scores = RobustRepresentation(rounds=2).fit(X, y, pred_probs=p).scores_
    order = rng.permutation(80)
    moved = RobustRepresentation(rounds=2).fit(X[order], y[order], pred_probs=p[order]).scores_
    np.testing.assert_allclose(moved, scores[order], atol=1e-5)
    turned = X @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * rng.uniform(0.1, 10, (80, 1))
    np.testing.assert_allclose(RobustRepresentation(rounds=2).fit(turned, y, pred_probs=p).scores_, scores, atol=1e-5)


def test_inputs_are_not_changed(blobs):
    p, near = blobs.p.copy(), nearest(blobs.X, 60)
    RobustRepresentation(rounds=2).fit(None, blobs.y, neighbors=near, pred_probs=p)
    np.testing.assert_array_equal(p, blobs.p)


def test_a_small_tau_follows_the_nearest_alone(blobs):
    near = nearest(blobs.X, 20)
    mean = listen(blobs.p, near, np.full(400, 20), 1e-6)
    np.testing.assert_allclose(mean, blobs.p[near.indices[:, 0]], atol=1e-3)
    far = listen(blobs.p, near, np.full(400, 20), 1e6)
    np.testing.assert_allclose(far, blobs.p[near.indices].mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("X", [np.zeros((40, 3)), np.ones((40, 3)), np.arange(1.0, 41)[:, None]])
def test_features_that_say_nothing(X):
    p = np.random.default_rng(0).dirichlet(np.ones(2), 40)
    model = RobustRepresentation().fit(X, np.arange(40) % 2, pred_probs=p)
    assert np.isfinite(model.scores_).all()
    assert 0 < model.flags_.sum() < 40


@pytest.mark.parametrize("n", [2, 5])
def test_few_samples(n):
    p = np.tile([0.9, 0.1], (n, 1))
    model = RobustRepresentation().fit(np.eye(n), np.arange(n) % 2, pred_probs=p)
    assert model.scores_[1] > model.scores_[0]


def test_fewer_neighbours_than_wanted_are_noted(blobs):
    near = nearest(blobs.X, 30)
    model = RobustRepresentation().fit(None, blobs.y, neighbors=near, pred_probs=blobs.p)
    assert "100% of the samples listened to fewer than 200 neighbours, the fewest to 30" in model.info_["note"]
    told = RobustRepresentation(k=30).fit(None, blobs.y, neighbors=nearest(blobs.X, 90), pred_probs=blobs.p)
    np.testing.assert_array_equal(model.scores_, told.scores_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k and rounds must be at least 1, got k 0"),
        ({"rounds": 0}, "rounds 0"),
        ({"tau": 0.0}, "tau must be positive, got 0.0"),
        ({"eta_low": 1.0}, "below 1, got 1.0"),
        ({"eta_low": -0.1}, "got -0.1"),
        ({"eta_high": 1.5}, "and 1.5"),
    ],
)
def test_bad_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        RobustRepresentation(**parameters).fit(blobs.X, blobs.y, pred_probs=blobs.p)
