"""CAPro: the sheet's numbers, the rounds in loops, anchors against the label mean, invariances, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import nearest, unit_rows
from chaffinch.detectors import capro
from chaffinch.detectors.capro import DROPPED, CaPro, class_sums, clean, most_agreed, move, support, unit_length


class TestSheet:
    logits = np.array([[2, 0, 0], [0, 3, 0], [0.2, 0.1, 0], [0, 0, 4]], float)
    cosine = np.array([[0.8, 0.1, 0.1], [0.1, 0.9, 0], [0.33, 0.33, 0.34], [0.2, 0.7, 0.1]])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def test_1_cleaning(self):
        q = support(self.p, self.cosine, 0.5, 0.1)
        np.testing.assert_allclose(q[:, 0], [0.8926, 0.0228, 0.3446, 0.0122], atol=5e-5)
        assert q[3].max() == pytest.approx(0.5043, abs=5e-5)
        np.testing.assert_array_equal(clean(q, np.zeros(4, int), 0.6), [0, 1, 0, DROPPED])

    def test_3_one_step_of_the_prototype(self):
        moved = move(np.array([[1.0, 0]]), np.array([[0.0, 1]]), np.array([1]), 0.999)
        np.testing.assert_allclose(moved, [[0.9999995, 0.0010010]], atol=5e-8)

    def test_4_alpha_at_its_ends(self):
        e = np.exp(self.cosine / 0.1)
        np.testing.assert_allclose(support(self.p, self.cosine, 1.0, 0.1), self.p)
        np.testing.assert_allclose(support(self.p, self.cosine, 0.0, 0.1), e / e.sum(axis=1, keepdims=True))

    @pytest.mark.parametrize("seed", range(3))
    def test_6_anchors_give_a_better_prototype_than_the_label_mean(self, digits, seed):
        """60 % of the samples labelled 3 are eights; agreement of neighbours stands in for the text."""
        data = digits(0.0)
        truth = data.y
        threes, eights = np.flatnonzero(truth == 3), np.flatnonzero(truth == 8)
        rng = np.random.default_rng(seed)
        gone = rng.choice(threes, 133, replace=False)
        rows = np.setdiff1d(np.arange(len(truth)), gone)
        y = truth.copy()
        y[rng.choice(eights, 75, replace=False)] = 3
        X, y, truth = data.X[rows], y[rows], truth[rows]
        assert np.mean(truth[y == 3] == 8) == pytest.approx(0.6, abs=0.05)
        unit = unit_rows(X)
        anchor = most_agreed(nearest(X, 20), y, np.bincount(y), 50) & (y == 3)
        target = unit[truth == 3].mean(axis=0)

        def closeness(chosen):
            return float(unit_length(unit[chosen].mean(axis=0)[None])[0] @ target / np.linalg.norm(target))

        assert closeness(anchor) > closeness(y == 3) + 0.01
        assert np.mean(truth[anchor] == 3) > 0.85


def test_thresholds_are_included():
    """Exactly T relabels, exactly 1/C keeps; correction overrides keeping."""
    q = np.array([[0.25, 0.6, 0.15, 0], [0.25, 0.55, 0.1, 0.1], [0.2499, 0.55, 0.1, 0.1001], [0.39, 0.61, 0, 0]])
    np.testing.assert_array_equal(clean(q, np.zeros(4, int), 0.6), [1, 0, DROPPED, 1])


def test_all_at_once_is_the_moving_average_but_for_its_order():
    rng = np.random.default_rng(0)
    start = unit_length(rng.normal(size=(1, 6)) + 3)
    X = unit_length(rng.normal(size=(500, 6)) + np.array([2, 1, 0, 0, 1, 2]))
    ends = []
    for _ in range(4):
        z = start[0]
        for x in X[rng.permutation(500)]:
            z = 0.999 * z + 0.001 * x
            z = z / np.linalg.norm(z)
        ends.append(z)
    at_once = move(start, X.sum(axis=0, keepdims=True), np.array([500]), 0.999)[0]
    way = np.linalg.norm(at_once - start[0])
    assert way > 0.2
    assert max(np.linalg.norm(z - at_once) for z in ends) < 0.1 * way


def test_a_prototype_without_samples_stays():
    z = unit_length(np.array([[1.0, 2], [3, 4]]))
    moved = move(z, np.array([[0.0, 0], [0, 5]]), np.array([0, 5]), 0.9)
    np.testing.assert_allclose(moved[0], z[0])
    assert moved[1] @ [0, 1] > z[1] @ [0, 1]


def in_loops(X, y, p, model):
    """Anchors, prototypes, rounds, sample by sample; scores and cleaned labels."""
    n, classes, dim = len(X), len(p[0]), len(X[0])

    def normal(v):
        length = math.sqrt(sum(u * u for u in v))
        return [u / length for u in v]

    unit = [normal(row) for row in X.tolist()]
    agreement = []
    for i in range(n):
        cosines = sorted((-sum(a * b for a, b in zip(unit[i], unit[j], strict=True)), j) for j in range(n) if j != i)
        agreement.append(sum(max(-c, 0) for c, j in cosines[: model.k] if y[j] == y[i]))
    anchors, z = set(), []
    for c in range(classes):
        members = sorted((i for i in range(n) if y[i] == c), key=lambda i: -agreement[i])
        core = members[: min(model.anchors, math.ceil(len(members) / 4))]
        anchors |= set(core)
        z.append(normal([sum(unit[i][d] for i in core) for d in range(dim)]))
    labels = None
    for _ in range(model.rounds + 1):
        for c in range(classes if labels else 0):
            mine = [i for i in range(n) if labels[i] == c]
            stay = model.momentum ** len(mine)
            mean = [sum(unit[i][d] for i in mine) / max(len(mine), 1) for d in range(dim)]
            z[c] = normal([stay * a + (1 - stay) * b for a, b in zip(z[c], mean, strict=True)])
        scores, labels = [], []
        for i in range(n):
            e = [math.exp(sum(a * b for a, b in zip(unit[i], z[c], strict=True)) / model.tau) for c in range(classes)]
            q = [model.alpha * p[i][c] + (1 - model.alpha) * e[c] / sum(e) for c in range(classes)]
            scores.append(1 - q[y[i]])
            label = y[i] if q[y[i]] >= 1 / classes else -1
            if max(q) >= model.threshold:
                label = q.index(max(q))
            labels.append(y[i] if i in anchors else label)
    return scores, labels


@pytest.mark.parametrize("parameters", [{}, {"rounds": 0, "alpha": 0.2}, {"momentum": 0.9, "anchors": 5, "tau": 0.3}])
def test_agrees_with_loops(blobs, monkeypatch, parameters):
    monkeypatch.setattr(capro, "BLOCK", 37)  # blocks that do not divide the number of samples
    X, y, p = blobs.X[:120], blobs.y[:120], blobs.p[:120]
    model = CaPro(**parameters).fit(X, y, pred_probs=p)
    scores, labels = in_loops(X.astype(float), y, p.tolist(), model)
    np.testing.assert_allclose(model.scores_, scores, atol=1e-5)
    np.testing.assert_array_equal(model.flags_, np.array(labels) != y)
    assert model.info_["dropped"] == labels.count(-1)
    sure = np.array(labels) >= 0
    np.testing.assert_array_equal(model.suggestions_[sure], np.array(labels)[sure])


class TestPlanted:
    def test_finds_both_kinds(self, blobs):
        model = CaPro().fit(blobs.X, blobs.y)
        inside = ~blobs.ood
        assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.99
        assert roc_auc_score(blobs.ood, model.scores_) > 0.75
        assert model.flags_[blobs.clean].mean() < 0.02
        assert model.flags_[blobs.wrong].mean() > 0.95
        assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.95

    def test_wrong_labels_are_replaced_and_foreigners_dropped(self, blobs):
        model = CaPro().fit(blobs.X, blobs.y)
        replaced = model.flags_ & (model.suggestions_ == blobs.truth) & blobs.wrong
        assert model.info_["relabelled"] == pytest.approx(replaced.sum(), abs=3)
        assert model.info_["dropped"] > 0.5 * blobs.ood.sum()
        assert sum(model.info_[part] for part in ("kept", "relabelled", "dropped")) == 400
        assert model.info_["relabelled"] + model.info_["dropped"] == model.flags_.sum()

    @pytest.mark.parametrize(("rate", "least"), [(0.2, 0.99), (0.4, 0.985)])
    def test_digits(self, digits, rate, least):
        data = digits(rate)
        model = CaPro().fit(data.X, data.y)
        assert roc_auc_score(data.wrong, model.scores_) > least
        assert model.flags_[data.wrong].mean() > 0.8
        assert model.flags_[~data.wrong].mean() < 0.02

    def test_clean_data_are_left_alone(self, digits):
        data = digits(0.0)
        assert CaPro().fit(data.X, data.y).flags_.mean() < 0.02

    def test_rounds_bring_the_prototypes_forward(self, digits):
        data = digits(0.4)
        p = linear_probe(data.X, data.y, 10).pred_probs
        early, late = (CaPro(rounds=r, alpha=0.0).fit(data.X, data.y, pred_probs=p).scores_ for r in (0, 3))
        assert roc_auc_score(data.wrong, late) > roc_auc_score(data.wrong, early) + 0.001


class TestAnchors:
    def test_are_kept_whatever_the_classifier_says(self, blobs):
        against = np.roll(np.eye(4)[blobs.y], 1, axis=1)
        model = CaPro(alpha=1.0).fit(blobs.X, blobs.y, pred_probs=against)
        sizes = np.bincount(blobs.y)
        assert model.info_["anchors"] == np.ceil(sizes / 4).astype(int).tolist()
        assert model.info_["kept"] == sum(model.info_["anchors"])
        np.testing.assert_array_equal(model.suggestions_[~model.flags_], blobs.y[~model.flags_])

    def test_are_clean_and_no_more_than_wanted(self, blobs):
        near, sizes = nearest(blobs.X, 20), np.bincount(blobs.y)
        anchor = most_agreed(near, blobs.y, sizes, 50)
        assert blobs.clean[anchor].mean() > 0.98
        few = most_agreed(near, blobs.y, sizes, 7)
        np.testing.assert_array_equal(np.bincount(blobs.y[few]), [7, 7, 7, 7])
        assert not (few & ~anchor).any()

    def test_ties_are_all_taken(self):
        X, y = np.repeat(np.eye(2), 30, axis=0), np.repeat([0, 1], 30)
        assert most_agreed(nearest(X, 5), y, np.bincount(y), 3).all()

    def test_a_class_without_agreement_has_none(self, blobs):
        y = blobs.y.copy()
        y[:2] = 4
        model = CaPro().fit(blobs.X, y)
        assert model.info_["anchors"][4] == 0
        assert "no sample of 1 of the 5 classes has a neighbour of the same label" in model.info_["note"]
        assert np.isfinite(model.scores_).all()


def test_class_sums_leave_dropped_samples_out():
    unit = np.arange(12, dtype=np.float32).reshape(6, 2)
    sums, counts = class_sums(unit, np.array([0, 2, DROPPED, 0, 2, DROPPED]), 3)
    np.testing.assert_array_equal(sums, [[6, 8], [0, 0], [10, 12]])
    np.testing.assert_array_equal(counts, [2, 0, 2])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_scale_and_rotation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 90)
    X = 3 * np.eye(3, 5)[truth] + rng.normal(size=(90, 5))
    y = np.where(rng.random(90) < 0.2, rng.integers(0, 3, 90), truth)
    p = rng.dirichlet(np.ones(3), 90)
    scores = CaPro(rounds=0).fit(X, y, pred_probs=p).scores_
    order = rng.permutation(90)
    moved = CaPro(rounds=0).fit(X[order], y[order], pred_probs=p[order]).scores_
    np.testing.assert_allclose(moved, scores[order], atol=1e-5)
    turned = X @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * rng.uniform(0.1, 10, (90, 1))
    np.testing.assert_allclose(CaPro(rounds=0).fit(turned, y, pred_probs=p).scores_, scores, atol=1e-5)


class TestDegenerate:
    @pytest.mark.parametrize("X", [np.zeros((40, 3)), np.ones((40, 3)), np.arange(1.0, 41)[:, None] - 20])
    def test_features_that_say_nothing(self, X):
        p = np.random.default_rng(0).dirichlet(np.ones(2), 40)
        model = CaPro().fit(X, np.arange(40) % 2, pred_probs=p)
        assert np.isfinite(model.scores_).all()

    def test_zero_vectors(self, blobs):
        blobs.X[:3] = 0
        model = CaPro().fit(blobs.X, blobs.y, pred_probs=blobs.p)
        expected = 1 - (blobs.p[np.arange(3), blobs.y[:3]] + 0.25) / 2
        np.testing.assert_allclose(model.scores_[:3], expected, atol=1e-6)

    def test_a_missing_class_gets_no_support_from_prototypes(self, blobs):
        y = np.where(blobs.y == 2, 3, blobs.y)
        X = blobs.X - 3 * blobs.X.mean(axis=0)  # cosines below zero: a zero prototype would win
        model = CaPro(alpha=0.0).fit(X, y, pred_probs=blobs.p)
        assert not (model.suggestions_ == 2).any()
        assert np.isfinite(model.scores_).all()

    def test_all_probabilities_equal(self, blobs):
        model = CaPro().fit(blobs.X, blobs.y, pred_probs=np.full((400, 4), 0.25))
        assert roc_auc_score(blobs.wrong[~blobs.ood], model.scores_[~blobs.ood]) > 0.95

    @pytest.mark.parametrize("n", [2, 5])
    def test_few_samples(self, n):
        p = np.tile([0.9, 0.1], (n, 1))
        model = CaPro().fit(np.eye(n), np.arange(n) % 2, pred_probs=p)
        assert np.isfinite(model.scores_).all()
        assert "note" in model.info_

    def test_everything_dropped_leaves_the_prototypes(self, blobs):
        """Nobody is sure, no label has its share, no class an anchor: an empty round must not give NaN."""
        X = np.eye(400, dtype=np.float32)
        p = np.zeros((400, 8))
        p[:, 4:] = 0.25
        model = CaPro(alpha=1.0).fit(X, blobs.y, pred_probs=p)
        assert model.info_["dropped"] == 400
        assert np.isfinite(model.scores_).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"anchors": 0}, "anchors must be at least 1, got 0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"alpha": 1.1}, "alpha must be between 0 and 1, got 1.1"),
        ({"threshold": -0.1}, "threshold must be between 0 and 1"),
        ({"momentum": 2.0}, "momentum must be between 0 and 1"),
        ({"tau": 0.0}, "tau must be positive, got 0.0"),
    ],
)
def test_bad_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        CaPro(**parameters).fit(blobs.X, blobs.y, pred_probs=blobs.p)
