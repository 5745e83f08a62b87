"""Symile fit: planted joint scores, the rule in loops, shares put back, invariances, bad input."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.detectors.base import Detector
from chaffinch.detectors.symile_fit import SymileFit

SHARES = np.array([0.5, 0.3, 0.15, 0.05])


def planted(n=2000, strength=4.0, seed=0):
    """Joint scores as Symile's optimum has them: log p(c | x) / share(c) plus a constant of the sample; 20 % wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, n, p=SHARES)
    wrong = rng.random(n) < 0.2
    y = np.where(wrong, (truth + rng.integers(1, 4, n)) % 4, truth)
    joint = strength * np.eye(4)[truth] + rng.normal(size=(n, 4)) + 10 * rng.normal(size=(n, 1))
    return joint, y, truth, wrong


def fit(joint, y, **parameters):
    return SymileFit(**parameters).fit(None, y, joint=joint)


def test_agrees_with_loops():
    joint, y, _, _ = planted(200)
    for odds in (1.0, 4.5):
        model = fit(joint, y, odds=odds)
        share = [(list(y).count(c) + 0.5) / (200 + 2) for c in range(4)]
        scores, flags, suggestions = [], [], []
        for row, label in zip(joint.tolist(), y.tolist(), strict=True):
            a = [score + math.log(p) for score, p in zip(row, share, strict=True)]
            others = [a[c] for c in range(4) if c != label]
            top = max(others)
            scores.append(top + math.log(sum(math.exp(o - top) for o in others)) - a[label])
            flags.append(top - a[label] > math.log(odds))
            suggestions.append(max(range(4), key=a.__getitem__))
        np.testing.assert_allclose(model.scores_, scores, atol=1e-9)
        np.testing.assert_array_equal(model.flags_, flags)
        np.testing.assert_array_equal(model.suggestions_, suggestions)


def test_score_is_the_log_odds_against_the_label():
    joint, y, _, _ = planted()
    model = fit(joint, y)
    a = joint + np.log(model.info_["shares"])
    p = np.exp(a - a.max(axis=1, keepdims=True))
    own = p[np.arange(len(y)), y] / p.sum(axis=1)
    np.testing.assert_allclose(model.scores_, np.log((1 - own) / own), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fit(joint, y, odds=1.0).flags_, model.suggestions_ != y)
    p[np.arange(len(y)), y] *= 2
    np.testing.assert_array_equal(model.flags_, p.argmax(axis=1) != y)


def test_finds_planted_noise():
    joint, y, truth, wrong = planted()
    model = fit(joint, y)
    assert roc_auc_score(wrong, model.scores_) > 0.97
    assert model.flags_[wrong].mean() > 0.9
    assert model.flags_[~wrong].mean() < 0.08
    assert (model.suggestions_ == truth)[wrong].mean() > 0.9
    assert model.info_["agreement"] == pytest.approx((model.suggestions_ == y).mean())
    assert "note" not in model.info_


def test_the_constant_of_a_sample_says_nothing():
    """How well picture and edges fit each other is in every score of a row."""
    joint, y, _, wrong = planted()
    model = fit(joint, y)
    np.testing.assert_allclose(fit(joint + 50 * np.arange(len(y))[:, None], y).scores_, model.scores_, atol=1e-6)
    own = -joint[np.arange(len(y)), y]
    assert roc_auc_score(wrong, model.scores_) > roc_auc_score(wrong, own) + 0.2, "the own score alone is no measure"


def test_shares_are_put_back():
    """Where the scores say nothing, the likeliest label is the most frequent one, not a rare one."""
    rng = np.random.default_rng(0)
    n = 20_000
    truth = rng.choice(2, n, p=[0.9, 0.1])
    x = rng.normal(size=n) + 2 * truth
    ratio = 2 * x - 2  # log p(x | 1) / p(x | 0)
    evidence = np.log(0.9 + 0.1 * np.exp(ratio))
    joint = np.column_stack([-evidence, ratio - evidence])  # log p(c | x) / p(c)
    model = fit(joint, truth)
    best = ratio + math.log(1 / 9) > 0
    assert (model.suggestions_ == best).mean() > 0.998
    assert (model.suggestions_ == truth).mean() > (joint.argmax(axis=1) == truth).mean() + 0.05
    odds = np.where(truth == 1, -model.scores_, model.scores_)  # of class 1
    for low, high in ((-4, -2), (-2, -1), (-1, 0), (0, 1), (1, 3)):
        inside = (odds > low) & (odds < high)
        probability = 1 / (1 + np.exp(-odds[inside]))
        assert truth[inside].mean() == pytest.approx(probability.mean(), abs=0.05), "calibrated"


def test_higher_odds_flag_less():
    joint, y, _, wrong = planted(strength=2.0)
    flags = [fit(joint, y, odds=odds).flags_ for odds in (1.0, 2.0, 20.0, 1e100)]
    for more, fewer in pairwise(flags):
        assert not (fewer & ~more).any()
        assert fewer.sum() < more.sum()
    assert wrong[flags[2]].mean() > wrong[flags[0]].mean() + 0.05
    assert not flags[3].any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_of_samples_and_classes(seed):
    joint, y, _, _ = planted(150, seed=seed)
    model = fit(joint, y)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(150), rng.permutation(4)
    moved = fit(joint[order], y[order])
    np.testing.assert_array_equal(moved.scores_, model.scores_[order])
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    renamed = fit(joint[:, classes], np.argsort(classes)[y])
    np.testing.assert_allclose(renamed.scores_, model.scores_, atol=1e-9)
    np.testing.assert_array_equal(classes[renamed.suggestions_], model.suggestions_)


def test_inputs_are_left_alone_and_bits_are_the_same():
    joint, y, _, _ = planted(300)
    joint.flags.writeable = y.flags.writeable = False
    assert fit(joint, y).scores_.tobytes() == fit(joint, y).scores_.tobytes()
    single = fit(joint.astype(np.float32), y)
    assert single.scores_.dtype == np.float64
    np.testing.assert_allclose(single.scores_, fit(joint, y).scores_, atol=1e-3)
    np.testing.assert_array_equal(fit(joint.tolist(), y.tolist()).scores_, fit(joint, y).scores_)


def test_features_are_not_used():
    joint, y, _, _ = planted(300)
    assert SymileFit.needs() == ("joint",)
    with_features = SymileFit().fit(np.ones((300, 2)), y, joint=joint)
    np.testing.assert_array_equal(with_features.scores_, fit(joint, y).scores_)


def test_learnt_by_heart_is_said():
    joint, y, _, _ = planted()
    model = fit(joint + 30 * np.eye(4)[y], y)
    assert not model.flags_.any()
    assert model.info_["agreement"] == 1
    assert "100.0% of the given labels fit best" in model.info_["note"]


def test_info_is_json():
    joint, y, _, _ = planted(300)
    info = fit(joint, y).info_
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert sum(info["shares"]) == pytest.approx(1)


def test_card():
    assert issubclass(SymileFit, Detector)
    assert SymileFit.card.slug == "symile-fit"
    assert set(SymileFit.card.finds) == {"mislabelled"}
    assert "same" not in SymileFit.card.summary
    assert "trained on these very labels" in SymileFit.card.fails_when


@pytest.mark.parametrize("X", [None, np.ones((3, 2))])
def test_without_joint_scores(X):
    with pytest.raises(
        MissingEvidence,
        match=r"^symile-fit needs joint, which is not there; choose an encoder trained with Symile: "
        r"chaffinch train-encoder DATASET --loss symile$",
    ) as caught:
        SymileFit().fit(X, [0, 1, 1])
    assert caught.value.piece == "joint"


class TestDegenerate:
    def test_a_missing_class_and_a_class_of_one(self):
        joint, y, _, _ = planted(300)
        y[y == 2] = 1
        y[np.flatnonzero(y == 3)[1:]] = 0
        assert (y == 3).sum() == 1
        model = fit(joint, y)
        assert np.isfinite(model.scores_).all()
        assert 0 < model.flags_.sum() < 300

    def test_more_labels_than_are_given(self):
        joint, y, _, _ = planted(300)
        model = fit(np.hstack([joint, joint.min(axis=1, keepdims=True) - np.ones(3)]), y)
        assert set(model.suggestions_) <= {0, 1, 2, 3}

    def test_two_samples(self):
        model = fit(np.array([[3.0, 0.0], [3.0, 0.0]]), np.array([0, 1]))
        assert model.flags_.tolist() == [False, True]
        assert model.suggestions_.tolist() == [0, 0]
        np.testing.assert_allclose(model.scores_, [-3, 3], atol=1e-12)

    def test_huge_scores_stay_finite(self):
        joint, y, _, _ = planted(300)
        assert np.isfinite(fit(1e12 * joint, y).scores_).all()

    def test_many_samples_and_classes_at_once(self):
        """More than one block of rows."""
        rng = np.random.default_rng(0)
        joint, y = rng.normal(size=(70_000, 5)), rng.integers(0, 5, 70_000)
        model = fit(joint, y)
        a = joint + np.log(model.info_["shares"])
        own = a[np.arange(70_000), y]
        everything = np.logaddexp.reduce(a, axis=1)
        np.testing.assert_allclose(np.logaddexp(model.scores_ + own, own), everything, atol=1e-9)

    @pytest.mark.parametrize("joint", [np.zeros((4, 3)), np.arange(4.0)[:, None] * np.ones(3)])
    def test_scores_that_say_nothing(self, joint):
        with pytest.raises(InputError, match="all labels fit every sample equally well; train the encoder longer"):
            fit(joint, np.array([0, 1, 2, 0]))

    def test_one_class(self):
        with pytest.raises(InputError, match="only one class"):
            fit(np.arange(3.0)[:, None], np.zeros(3, int))


@pytest.mark.parametrize("odds", [0.9, -1.0, np.nan, np.inf])
def test_bad_odds(odds):
    joint, y, _, _ = planted(50)
    with pytest.raises(InputError, match="symile-fit: odds must be at least 1 and finite"):
        fit(joint, y, odds=odds)


@pytest.mark.parametrize(
    "joint", [np.zeros((3, 3)), np.zeros((4, 2)), np.zeros(4), np.zeros((4, 3, 1)), np.full((4, 3), "a")]
)
def test_joint_scores_of_another_shape(joint):
    with pytest.raises(InputError, match=r"inconsistent numbers of rows|joint must be numbers \(4, C\) with C > 2"):
        fit(joint, np.array([0, 1, 2, 0]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_joint_scores_that_are_not_finite(value):
    joint, y, _, _ = planted(50)
    joint[[7, 30], 1] = value
    with pytest.raises(InputError, match=re.escape("symile-fit: joint: row 7 holds NaN or infinity (2 rows do)")):
        fit(joint, y)
