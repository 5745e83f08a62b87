"""Largest logit: the sheet's numbers and traps, loops, contaminated digits, pooled folds, bad input."""

import numpy as np
import pytest
from contaminated_digits import mean_auroc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors import max_logit
from chaffinch.detectors.max_logit import MaxLogit, log_sum_exp

LOGITS = np.array([(2, 1, 0.1), (5, 4, 3.1), (0.2, 0.1, 0), (20, 0, 0)])


def scores_of(z, y=None):
    return MaxLogit().fit(None, np.zeros(len(z), int) if y is None else y, logits=z).scores_


def test_known_answer():
    np.testing.assert_array_equal(scores_of(LOGITS), [-2, -5, -0.2, -20])


def test_overlapping_classes_are_its_case():
    """The softmax suspects the first, whose probability is split; the logit suspects the second."""
    z = np.array([(6, 5.5, 5, 0), (3, 0, 0, -1.0)])
    np.testing.assert_allclose(softmax(z, axis=1).max(axis=1), [0.505845, 0.894543], atol=1e-6)
    np.testing.assert_array_equal(scores_of(z), [-6, -3])


def test_agrees_with_loops():
    z = np.random.default_rng(0).normal(0, 3, (100, 7))
    np.testing.assert_array_equal(scores_of(z), [-max(row) for row in z.tolist()])


def test_log_probabilities_are_refused():
    """They would silently give the ranking of MSP."""
    for dtype in (np.float64, np.float32):
        with pytest.raises(InputError, match="logarithms of probabilities"):
            scores_of(log_softmax(LOGITS, axis=1).astype(dtype))


def test_a_constant_added_to_a_row_counts():
    shifted = LOGITS + np.array([[0], [1], [0], [-3]])
    np.testing.assert_allclose(scores_of(shifted) - scores_of(LOGITS), [0, -1, 0, 3])


def test_folds_of_the_probe_are_on_one_scale(blobs):
    """Pooling needs no standardising within the fold: no fold stands out, and rows sum to zero."""
    fold = np.arange(400) % 5
    logits = linear_probe(blobs.X, blobs.y, 4, folds=fold).logits
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-3)
    pooled = scores_of(logits, blobs.y)
    within = np.empty(400)
    for k in range(5):
        rows = fold == k
        within[rows] = (pooled[rows] - pooled[rows].mean()) / pooled[rows].std()
    assert abs(roc_auc_score(blobs.ood, pooled) - roc_auc_score(blobs.ood, within)) < 0.02


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("clustered", 0.1, 0.95),
        ("clustered", 0.3, 0.96),
        ("clustered", 0.6, 0.95),
        ("diffuse", 0.1, 0.86),
        ("diffuse", 0.3, 0.91),
        ("diffuse", 0.6, 0.90),
        ("consistent", 0.1, 0.70),
        ("consistent", 0.3, 0.41),
        ("consistent", 0.6, 0.22),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, share, expected):
    """Foreigners filed consistently under one label become that class: below chance."""
    found = mean_auroc(kind, share, lambda y, logits, p: scores_of(logits, y))
    assert found == pytest.approx(expected, abs=0.03 if kind == "clustered" else 0.05)


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    scores = MaxLogit().fit(blobs.X, blobs.y).scores_
    assert roc_auc_score(blobs.ood, scores) > 0.85
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.65


def test_alone_uses_the_probe(blobs):
    alone = MaxLogit().fit(blobs.X, blobs.y).scores_
    np.testing.assert_array_equal(alone, scores_of(linear_probe(blobs.X, blobs.y, 4).logits, blobs.y))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-5, 5))
def test_row_and_class_order_scale_and_common_shift(seed, scale, shift):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (60, 5))
    scores = scores_of(z)
    rows, columns = rng.permutation(60), rng.permutation(5)
    np.testing.assert_array_equal(scores_of(z[rows]), scores[rows])
    np.testing.assert_array_equal(scores_of(z[:, columns], rng.integers(0, 5, 60)), scores)
    np.testing.assert_allclose(scores_of(scale * z + shift), scale * scores - shift, atol=1e-9)


def test_budget_decides_how_many(blobs):
    model = MaxLogit(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    with pytest.raises(InputError, match="budget must be a share"):
        MaxLogit(budget=2).fit(blobs.X, blobs.y)


def test_log_sum_exp_is_safe_and_blocks_do_not_matter(monkeypatch):
    z = np.array([(1000, 999, 0), (-1000, -1001, -1002), (0, 0, 0.0)])
    np.testing.assert_allclose(log_sum_exp(z), logsumexp(z, axis=1))
    np.testing.assert_allclose(log_sum_exp(z, 0.1), 0.1 * logsumexp(z / 0.1, axis=1))
    z = np.random.default_rng(0).normal(size=(50, 4))
    whole = log_sum_exp(z, 2.0)
    monkeypatch.setattr(max_logit, "BLOCK", 7)
    np.testing.assert_array_equal(log_sum_exp(z, 2.0), whole)


@pytest.mark.parametrize(("shape", "said"), [((3, 2), "numbers of rows"), ((4, 1), "must be"), ((4,), "must be")])
def test_logits_of_another_shape(shape, said):
    with pytest.raises(InputError, match=said):
        MaxLogit().fit(None, np.array([0, 1, 0, 1]), logits=np.ones(shape))


def test_logits_not_finite():
    z = LOGITS.copy()
    z[2, 1] = -np.inf
    with pytest.raises(InputError, match="max-logit: logits: row 2"):
        scores_of(z)


def test_all_samples_alike():
    with pytest.raises(InputError, match="all 20 samples have the same score"):
        scores_of(np.ones((20, 3)))


def test_a_class_nobody_carries_and_one_with_a_single_sample(blobs):
    y = np.where(blobs.y == 1, 0, blobs.y)
    y[0] = 4
    assert np.isfinite(MaxLogit().fit(blobs.X, y).scores_).all()


def test_one_class_alone():
    with pytest.raises(InputError, match="only one class"):
        MaxLogit().fit(np.eye(6), np.zeros(6, int))
