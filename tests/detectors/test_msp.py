"""MSP: the sheet's numbers and traps, the formula in loops, contaminated digits, invariances, bad input."""

import numpy as np
import pytest
from contaminated_digits import contaminated, mean_auroc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors.msp import MaxSoftmax

LOGITS = np.array([(2, 1, 0.1), (5, 4, 3.1), (0.2, 0.1, 0), (20, 0, 0)])
"""The sheet's rows; the second is the first, shifted."""


def scores_of(p, y=None):
    return MaxSoftmax().fit(None, np.zeros(len(p), int) if y is None else y, pred_probs=p).scores_


def in_loops(p):
    return [sum(row) - max(row) for row in p.tolist()]


def test_known_answer():
    p = softmax(LOGITS, axis=1)
    np.testing.assert_allclose(p[0], [0.659001, 0.242433, 0.098566], atol=1e-6)
    scores = scores_of(p)
    np.testing.assert_allclose(scores[:3], [0.340999, 0.340999, 0.632835], atol=1e-6)
    assert scores[3] == pytest.approx(4.1e-9, rel=0.01)
    assert -np.log1p(-scores[0]) == pytest.approx(0.417030, abs=1e-6), "-log MSP is the same ranking"


def test_saturated_probabilities_keep_their_order():
    """In single precision the largest is 1 for all of them: 1 - max would tie."""
    p = softmax(np.array([(20, 0, 0), (25, 0, 0), (30, 1, 0)], np.float32), axis=1)
    assert (p.max(axis=1) == 1).all(), "the trap is set"
    scores = scores_of(p)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([20, 25, 30]) / [2, 2, 1 + np.e]), rtol=1e-5)
    assert (np.diff(scores) < 0).all()


def test_agrees_with_loops():
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.5), 200)
    np.testing.assert_allclose(scores_of(p), in_loops(p), atol=1e-12)


def test_the_given_label_plays_no_part():
    """It is not the mislabel score 1 - p[y]."""
    p = softmax(LOGITS, axis=1)
    np.testing.assert_array_equal(scores_of(p, np.array([2, 2, 2, 2])), scores_of(p))
    assert np.abs(scores_of(p)[0] - (1 - p[0, 2])) > 0.5


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("clustered", 0.1, 0.94),
        ("clustered", 0.3, 0.95),
        ("clustered", 0.6, 0.94),
        ("diffuse", 0.1, 0.88),
        ("diffuse", 0.3, 0.91),
        ("diffuse", 0.6, 0.89),
        ("consistent", 0.1, 0.72),
        ("consistent", 0.3, 0.44),
        ("consistent", 0.6, 0.24),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, share, expected):
    """Foreigners filed consistently under one label become that class: below chance."""
    found = mean_auroc(kind, share, lambda y, logits, p: scores_of(p, y))
    assert found == pytest.approx(expected, abs=0.05 if kind == "consistent" else 0.03)


def test_shift_of_the_logits_does_not_matter():
    _, y, _, logits = contaminated("diffuse", 0.3, 0)
    shifted = logits + np.random.default_rng(0).normal(0, 5, (len(logits), 1))
    np.testing.assert_allclose(scores_of(softmax(shifted, axis=1), y), scores_of(softmax(logits, axis=1), y), atol=1e-9)


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    scores = scores_of(blobs.p, blobs.y)
    assert roc_auc_score(blobs.ood, scores) > 0.97
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.65


def test_alone_uses_the_probe(blobs):
    alone = MaxSoftmax().fit(blobs.X, blobs.y).scores_
    np.testing.assert_array_equal(alone, scores_of(linear_probe(blobs.X, blobs.y, 4).pred_probs, blobs.y))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_row_and_class_order_do_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, scale, (80, 5)), axis=1)
    scores = scores_of(p)
    rows, columns = rng.permutation(80), rng.permutation(5)
    np.testing.assert_array_equal(scores_of(p[rows]), scores[rows])
    np.testing.assert_allclose(scores_of(p[:, columns]), scores, rtol=1e-12)
    np.testing.assert_array_equal(np.argsort(-log_softmax(np.log(p), axis=1).max(axis=1)), np.argsort(scores))
    assert (scores >= 0).all()
    assert (scores <= 0.8 + 1e-12).all(), "at most 1 - 1/C"


def test_budget_decides_how_many(blobs):
    model = MaxSoftmax(budget=0.2).fit(None, blobs.y, pred_probs=blobs.p)
    assert model.flags_.sum() == 80
    assert model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    assert blobs.ood[model.flags_].mean() > 0.85
    assert not MaxSoftmax(budget=0.0).fit(None, blobs.y, pred_probs=blobs.p).flags_.any()


@pytest.mark.parametrize(
    ("budget", "match"), [(-0.1, "between 0 and 1"), (np.nan, "between 0 and 1"), (1.0, "all 400")]
)
def test_budget_out_of_range(blobs, budget, match):
    with pytest.raises(InputError, match=match):
        MaxSoftmax(budget=budget).fit(None, blobs.y, pred_probs=blobs.p)


def test_sure_and_impossible_classes_stay_finite():
    np.testing.assert_array_equal(scores_of(np.array([(1.0, 0, 0), (0.5, 0.5, 0)])), [0, 0.5])


def test_a_class_nobody_carries_and_one_with_a_single_sample(blobs):
    y = np.where(blobs.y == 1, 0, blobs.y)
    y[0] = 4
    assert np.isfinite(MaxSoftmax().fit(blobs.X, y).scores_).all()


@pytest.mark.parametrize("p", [[[0.2], [0.9]], [(0.5, 0.5), (3, -4.0)], [(0.5, 0.5), (0, 0)]])
def test_what_is_no_distribution(p):
    """A sigmoid's single column must become two; logits and empty rows are refused."""
    with pytest.raises(InputError, match="no distribution"):
        scores_of(np.array(p))


def test_probabilities_not_finite(blobs):
    blobs.p[5] = np.nan
    with pytest.raises(InputError, match="pred_probs: row 5"):
        scores_of(blobs.p, blobs.y)


def test_all_samples_alike():
    with pytest.raises(InputError, match="all 20 samples have the same score"):
        scores_of(np.full((20, 3), 1 / 3))


def test_one_class_alone():
    with pytest.raises(InputError, match="only one class"):
        MaxSoftmax().fit(np.eye(6), np.zeros(6, int))
