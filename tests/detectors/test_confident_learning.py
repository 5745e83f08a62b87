"""Confident learning: the sheet's ten samples, loops, rules, invariances, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors.confident_learning import RULES, ConfidentLearning, calibrate, confident_joint
from chaffinch.detectors.small_loss import SmallLoss

TEN = np.array(
    [
        (0.9, 0.1, 0),
        (0.8, 0.2, 0),
        (0.2, 0.8, 0),
        (0.1, 0.9, 0),
        (0.3, 0.6, 0.1),
        (0.6, 0.4, 0),
        (0.1, 0.1, 0.8),
        (0.1, 0.2, 0.7),
        (0.7, 0.1, 0.2),
        (0.34, 0.33, 0.33),
    ]
)
GIVEN = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])


def joint_in_loops(p, y):
    """Thresholds, joint and confident disagreements, sample by sample."""
    n, n_classes = len(p), len(p[0])
    thresholds = []
    for j in range(n_classes):
        own = [p[i][j] for i in range(n) if y[i] == j]
        thresholds.append(max(sum(own) / len(own), 2e-6) if own else float("inf"))
    joint, off = [[0] * n_classes for _ in range(n_classes)], []
    for i in range(n):
        sure = [j for j in range(n_classes) if p[i][j] >= thresholds[j] - 1e-6]
        if sure:
            best = max(sure, key=lambda j: p[i][j])
            joint[y[i]][best] += 1
            if best != y[i]:
                off.append(i)
    for j in range(n_classes):
        joint[j][j] = max(joint[j][j], 1)
    return thresholds, joint, off


def flags_in_loops(p, y, counts, rule):
    """What one rule flags, before agreeing predictions are taken out."""
    by_rate, by_class = set(), set()
    for i in range(len(counts)):
        rows = [r for r in range(len(y)) if y[r] == i]
        for j in range(len(counts)):
            if j != i:
                ranked = sorted(rows, key=lambda r: p[r][i] - p[r][j])
                by_rate |= set(ranked[: counts[i][j]])
        by_class |= set(sorted(rows, key=lambda r: p[r][i])[: len(rows) - counts[i][i]])
    flags = {"prune-by-noise-rate": by_rate, "prune-by-class": by_class, "both": by_rate & by_class}[rule]
    return sorted(r for r in flags if max(range(len(p[r])), key=lambda c: p[r][c]) != y[r])


def test_ten_samples_of_the_sheet():
    thresholds, joint, off = confident_joint(TEN, GIVEN)
    np.testing.assert_allclose(thresholds, [0.56, 0.63333, 0.56667], atol=1e-5)
    np.testing.assert_array_equal(joint, [[2, 1, 0], [1, 1, 0], [1, 0, 2]])
    np.testing.assert_array_equal(np.flatnonzero(off), [2, 5, 8])


def test_calibrated_rows_of_the_sheet():
    _, joint, _ = confident_joint(TEN, GIVEN)
    exact = joint / joint.sum(axis=1, keepdims=True) * np.bincount(GIVEN)[:, None]
    np.testing.assert_allclose(exact, [(2.667, 1.333, 0), (1.5, 1.5, 0), (1, 0, 2)], atol=1e-3)
    counts = calibrate(joint, GIVEN)
    np.testing.assert_array_equal(counts, [(3, 1, 0), (2, 1, 0), (1, 0, 2)])
    model = ConfidentLearning().fit(None, GIVEN, pred_probs=TEN)
    np.testing.assert_allclose(model.info_["joint"], counts / 10)
    assert model.info_["estimated_noise"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("rule", "flagged"),
    [
        ("off-diagonal", [2, 5, 8]),
        ("prune-by-noise-rate", [2, 5, 8]),
        ("prune-by-class", [2, 5, 8]),
        ("both", [2, 5, 8]),
    ],
)
def test_flags_of_the_ten(rule, flagged):
    model = ConfidentLearning(rule).fit(None, GIVEN, pred_probs=TEN)
    np.testing.assert_array_equal(np.flatnonzero(model.flags_), flagged)
    np.testing.assert_allclose(model.scores_, [0.1, 0.2, 0.8, 0.1, 0.4, 0.6, 0.2, 0.3, 0.8, 0.66])
    np.testing.assert_array_equal(model.suggestions_, [0, 0, 1, 1, 1, 0, 2, 2, 0, 0])


def test_only_classes_above_their_threshold_are_candidates():
    """The largest probability of sample 5 is class 0, .6, below its threshold; class 1, at .4, passes its own."""
    p = np.array([(0.9, 0.1), (0.9, 0.1), (0.65, 0.35), (0.6, 0.4), (0.6, 0.4), (0.6, 0.4)])
    y = np.array([0, 0, 0, 1, 1, 0])
    thresholds, joint, off = confident_joint(p, y)
    np.testing.assert_allclose(thresholds, [0.7625, 0.4])
    np.testing.assert_array_equal(joint, [[2, 1], [0, 2]])
    np.testing.assert_array_equal(np.flatnonzero(off), [5])


# The sheet's logistic regression is not specified further; our probe's self-confidence is within .003 of it, its
# recall at 20 % within .015.
@pytest.mark.parametrize(
    ("rate", "confidence", "margin", "precision", "recall"),
    [(0.2, 0.9978, 0.9981, 0.964, 0.818), (0.4, 0.9937, 0.9943, 0.939, 0.880)],
)
def test_digits_of_the_sheet(digits, rate, confidence, margin, precision, recall):
    data = digits(rate)
    p = linear_probe(data.X, data.y, 10).pred_probs
    model = ConfidentLearning("off-diagonal").fit(None, data.y, pred_probs=p)
    assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(confidence, abs=0.01)
    others = np.where(np.eye(10, dtype=bool)[data.y], -1, p).max(axis=1)
    assert roc_auc_score(data.wrong, others - (1 - model.scores_)) == pytest.approx(margin, abs=0.01)
    off = confident_joint(p, data.y)[2]
    assert data.wrong[off].mean() == pytest.approx(precision, abs=0.01)
    assert off[data.wrong].mean() == pytest.approx(recall, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_loops(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 120)
    p = rng.dirichlet(np.ones(4), 120) * 0.6 + 0.4 * np.eye(4)[(y + (rng.random(120) < 0.3)) % 4]
    thresholds, joint, off = joint_in_loops(p.tolist(), y.tolist())
    ours = confident_joint(p, y)
    np.testing.assert_allclose(ours[0], thresholds)
    np.testing.assert_array_equal(ours[1], joint)
    np.testing.assert_array_equal(np.flatnonzero(ours[2]), off)
    counts = calibrate(ours[1], y).tolist()
    for rule in RULES[:3]:
        model = ConfidentLearning(rule).fit(None, y, pred_probs=p)
        assert np.flatnonzero(model.flags_).tolist() == flags_in_loops(p.tolist(), y.tolist(), counts, rule)
    both = ConfidentLearning("both").fit(None, y, pred_probs=p).flags_
    assert 0 < both.sum() < len(y)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_joint_keeps_the_label_counts(seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 6))
    y = rng.integers(0, n_classes, 50)
    p = rng.dirichlet(np.full(n_classes, 0.5), 50)
    counts = calibrate(confident_joint(p, y)[1], y)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(y, minlength=n_classes))
    assert (counts >= 0).all()
    for rule in RULES:
        model = ConfidentLearning(rule).fit(None, y, pred_probs=p)
        assert not (model.flags_ & (model.suggestions_ == y)).any()
    order = rng.permutation(50)
    base, moved = (ConfidentLearning().fit(None, y[o], pred_probs=p[o]) for o in (np.arange(50), order))
    np.testing.assert_array_equal(moved.scores_, base.scores_[order])
    np.testing.assert_array_equal(moved.flags_, base.flags_[order])
    assert moved.info_["joint"] == base.info_["joint"]


def test_finds_planted_noise(blobs):
    model = ConfidentLearning().fit(None, blobs.y, pred_probs=blobs.p)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.98
    assert model.flags_[blobs.wrong].mean() > 0.8
    assert model.flags_[blobs.clean].mean() < 0.05
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.9


def test_alone_uses_the_probe(blobs):
    alone = ConfidentLearning().fit(blobs.X, blobs.y)
    given_probe = ConfidentLearning().fit(None, blobs.y, pred_probs=linear_probe(blobs.X, blobs.y, 4).pred_probs)
    np.testing.assert_array_equal(alone.scores_, given_probe.scores_)
    assert roc_auc_score(blobs.wrong[~blobs.ood], alone.scores_[~blobs.ood]) > 0.9


def test_ranks_as_the_loss_does(blobs):
    """1 - p and -log p are one ranking."""
    ours = ConfidentLearning().fit(None, blobs.y, pred_probs=blobs.p).scores_
    loss = SmallLoss().fit(None, blobs.y, pred_probs=blobs.p).scores_
    np.testing.assert_array_equal(np.argsort(ours), np.argsort(loss))


def test_perfect_probabilities_flag_nothing():
    y = np.arange(30) % 3
    model = ConfidentLearning().fit(None, y, pred_probs=np.eye(3)[y])
    assert not model.flags_.any()
    assert not model.scores_.any()
    assert model.info_["estimated_noise"] == 0


def test_a_class_nobody_carries():
    p = np.array([(0.6, 0.1, 0.3), (0.2, 0.1, 0.7), (0.5, 0.1, 0.4), (0.1, 0.1, 0.8)])
    model = ConfidentLearning().fit(None, np.array([0, 2, 0, 2]), pred_probs=p)
    assert model.info_["class_thresholds"][1] is None
    assert not model.flags_.any()


def test_one_class():
    p = np.array([(0.9, 0.1), (0.2, 0.8), (0.6, 0.4)])
    model = ConfidentLearning().fit(None, np.zeros(3, int), pred_probs=p)
    np.testing.assert_allclose(model.scores_, [0.1, 0.8, 0.4])
    assert not model.flags_.any()
    with pytest.raises(InputError, match="only one class"):
        ConfidentLearning().fit(np.eye(3), np.zeros(3, int))


def test_unknown_rule():
    with pytest.raises(InputError, match=r"rule must be one of .*off-diagonal, got 'all'"):
        ConfidentLearning("all").fit(None, GIVEN, pred_probs=TEN)


def test_bad_features(blobs):
    blobs.X[8, 1] = np.nan
    with pytest.raises(InputError, match="row 8"):
        ConfidentLearning().fit(blobs.X, blobs.y)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (TEN[:9], r"labels 10, pred_probs 9"),
        (TEN[:, :2], r"got \(10, 2\)"),
        (TEN[:, 0], r"got \(10,\)"),
        (np.where(np.arange(10)[:, None] == 6, np.nan, TEN), "pred_probs: row 6"),
    ],
)
def test_bad_probabilities(p, message):
    with pytest.raises(InputError, match=message):
        ConfidentLearning().fit(None, GIVEN, pred_probs=p)
