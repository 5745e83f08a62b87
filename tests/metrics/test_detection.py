"""Ranking and decision figures against scikit-learn and against figures worked by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.metrics import precision_recall_curve as sklearn_precision_recall_curve
from sklearn.metrics import roc_curve as sklearn_roc_curve

from chaffinch.data import CLEAN, MISLABELLED, OOD
from chaffinch.metrics.detection import (
    SIDES,
    auroc,
    average_precision,
    decision,
    precision_recall_curve,
    ranking,
    roc_curve,
    sides,
    thinned,
)

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40)


def split(pairs):
    scores, positive = zip(*pairs, strict=True)
    return np.array(scores, float), np.array(positive)


def pairs_in_loops(scores, positive):
    """P(a positive scores above a negative), ties one half, pair by pair."""
    wins = [
        (a > b) + (a == b) / 2
        for a, pa in zip(scores, positive, strict=True)
        for b, pb in zip(scores, positive, strict=True)
        if pa and not pb
    ]
    return sum(wins) / len(wins)


@settings(max_examples=150, deadline=None)
@given(SCORED)
def test_agrees_with_scikit_learn_ties_included(pairs):
    scores, positive = split(pairs)
    assume(positive.any())
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))
    assume(not positive.all())
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert auroc(scores, positive) == pytest.approx(pairs_in_loops(scores, positive))


@settings(max_examples=60, deadline=None)
@given(SCORED, st.randoms())
def test_properties(pairs, random):
    scores, positive = split(pairs)
    assume(0 < positive.sum() < len(positive))
    area = auroc(scores, positive)
    assert auroc(-scores, positive) == pytest.approx(1 - area)
    assert auroc(scores, ~positive) == pytest.approx(1 - area)
    assert auroc(np.exp(scores), positive) == pytest.approx(area)
    order = random.sample(range(len(scores)), len(scores))
    assert auroc(scores[order], positive[order]) == pytest.approx(area)
    assert average_precision(scores[order], positive[order]) == pytest.approx(average_precision(scores, positive))
    assert auroc(np.zeros(len(scores)), positive) == 0.5
    assert average_precision(np.zeros(len(scores)), positive) == pytest.approx(positive.mean())


def test_worked_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([1, 0, 1, 1, 0], bool)
    # pairs: .9 beats both; .8 ties and beats; .3 loses and beats
    assert auroc(scores, positive) == pytest.approx((2 + 1.5 + 1) / 6)
    # recall 1/3 at precision 1, then the tie: 2/3 at 2/3, then 1 at 3/4
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_infinite_scores_tie():
    scores = np.array([np.inf, np.inf, 0.0, -np.inf])
    positive = np.array([True, False, True, False])
    assert auroc(scores, positive) == pytest.approx(2.5 / 4)
    assert average_precision(scores, positive) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_area_of_hard_flags_is_balanced_accuracy():
    """The linear-separation sheet: an AUC of 0/1 decisions is (TPR + TNR) / 2."""
    noisy = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    flags = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], bool)
    assert auroc(flags.astype(float), noisy) == pytest.approx(0.708333, abs=1e-6)
    assert decision(flags, np.where(noisy, OOD, CLEAN))["balanced_accuracy"] == pytest.approx(0.708333, abs=1e-6)


@pytest.mark.parametrize("n", [0, 3])
def test_one_side_empty(n):
    scores, nothing = np.arange(n, dtype=float), np.zeros(n, bool)
    assert auroc(scores, nothing) is None
    assert auroc(scores, ~nothing) is None
    assert average_precision(scores, nothing) is None
    assert average_precision(np.arange(3.0), np.ones(3, bool)) == 1.0


KIND = np.array([CLEAN, CLEAN, CLEAN, MISLABELLED, MISLABELLED, OOD, OOD, OOD], np.int8)


def test_ranking_by_kind():
    scores = np.array([1.0, 2, 5, 3, 4, 6, 7, 2.5])
    found = ranking(scores, KIND)
    assert found == pytest.approx(
        {
            "auroc_ood": (5 + 5 + 2) / 15,
            "auroc_mislabelled": 4 / 6,
            "auroc_any": (2 + 2 + 3 + 3 + 2) / 15,
            "auroc_ood_vs_mislabelled": 4 / 6,
            "ap_ood": average_precision_score(KIND == OOD, scores),
            "ap_mislabelled": average_precision_score(KIND[:5] == MISLABELLED, scores[:5]),
            "ap_any": average_precision_score(KIND != CLEAN, scores),
        }
    )


def test_ranking_without_a_kind():
    clean = ranking(np.arange(4.0), np.zeros(4, np.int8))
    assert set(clean.values()) == {None}
    no_ood = ranking(np.arange(5.0), KIND[:5])
    assert no_ood["auroc_ood"] is no_ood["ap_ood"] is no_ood["auroc_ood_vs_mislabelled"] is None
    assert no_ood["auroc_any"] == no_ood["auroc_mislabelled"] == 1.0


def test_decision_worked_by_hand():
    flags = np.array([0, 1, 0, 1, 0, 1, 1, 0], bool)  # 3 of 5 noisy, 1 of 3 clean
    assert decision(flags, KIND) == pytest.approx(
        {
            "precision": 3 / 4,
            "recall": 3 / 5,
            "f1": 2 / 3,
            "balanced_accuracy": (3 / 5 + 2 / 3) / 2,
            "clean_kept": 2 / 3,
            "flagged": 4,
        }
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([CLEAN, MISLABELLED, OOD])), min_size=1, max_size=30))
def test_decision_agrees_with_scikit_learn(pairs):
    flags, kind = np.array([f for f, _ in pairs]), np.array([k for _, k in pairs], np.int8)
    found = decision(flags, kind)
    if 0 < (kind != CLEAN).sum() < len(kind):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(kind != CLEAN, flags))
    else:
        assert found["balanced_accuracy"] is None
    if found["precision"] and found["recall"]:
        assert found["f1"] == pytest.approx(2 / (1 / found["precision"] + 1 / found["recall"]))
    assert all(v is None or v == found["flagged"] or 0 <= v <= 1 for v in found.values())


@pytest.mark.parametrize(
    ("flags", "kind", "empty"),
    [
        ([0, 0, 0], [CLEAN, OOD, OOD], {"precision"}),
        ([1, 0, 0], [CLEAN, CLEAN, CLEAN], {"recall", "balanced_accuracy"}),
        ([1, 0, 0], [OOD, OOD, MISLABELLED], {"balanced_accuracy", "clean_kept"}),
        ([0, 0, 0], [CLEAN, CLEAN, CLEAN], {"precision", "recall", "f1", "balanced_accuracy"}),
        ([], [], {"precision", "recall", "f1", "balanced_accuracy", "clean_kept"}),
    ],
)
def test_empty_denominators_are_none(flags, kind, empty):
    found = decision(np.array(flags, bool), np.array(kind, np.int8))
    assert {name for name, value in found.items() if value is None} == empty


@settings(max_examples=100, deadline=None)
@given(SCORED)
def test_curves_agree_with_scikit_learn(pairs):
    scores, positive = split(pairs)
    assume(0 < positive.sum() < len(positive))
    wrong, right = roc_curve(scores, positive)
    expected = sklearn_roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(wrong, expected[0])
    np.testing.assert_allclose(right, expected[1])
    recall, precision = precision_recall_curve(scores, positive)
    expected = sklearn_precision_recall_curve(positive, scores)
    np.testing.assert_allclose(precision, expected[0][-2::-1])
    np.testing.assert_allclose(recall, expected[1][-2::-1])


def test_curves_without_a_side():
    scores = np.arange(3.0)
    assert roc_curve(scores, np.zeros(3, bool)) is roc_curve(scores, np.ones(3, bool)) is None
    assert precision_recall_curve(scores, np.zeros(3, bool)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)), min_size=1, max_size=80), st.integers(2, 30))
def test_thinned_leaves_no_point_far_from_a_kept_one(steps, most):
    x, y = np.cumsum(np.array(steps), axis=0).T
    keep = thinned(x, y, most)
    assert len(keep) <= max(most, 2)
    assert (np.diff(keep) > 0).all()
    assert (x[keep[0]], y[keep[0]]) == (x[0], y[0])
    assert (x[keep[-1]], y[keep[-1]]) == pytest.approx((x[-1], y[-1]))
    length = (x[-1] - x[0]) + (y[-1] - y[0])
    away = np.abs(x[:, None] - x[keep]) + np.abs(y[:, None] - y[keep])
    assert away.min(axis=1).max() <= length / (most - 1) + 1e-9


def test_sides_are_those_of_the_ranking():
    scores = np.array([1.0, 2, 5, 3, 4, 6, 7, 2.5])
    for find in SIDES:
        rows, positive = sides(KIND, find)
        assert ranking(scores, KIND)[f"auroc_{find}"] == auroc(scores[rows], positive[rows])
    assert sides(KIND, "mislabelled")[0].tolist() == [True] * 5 + [False] * 3
