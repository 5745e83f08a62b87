"""GEN: the sheet's numbers, limits and traps, the formula in loops, contaminated digits, invariances, bad input."""

import numpy as np
import pytest
from contaminated_digits import mean_auroc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors import gen
from chaffinch.detectors.gen import GeneralisedEntropy, generalised_entropy

LOGITS = np.array([(2, 1, 0.1), (5, 4, 3.1), (0.2, 0.1, 0), (20, 0, 0)])
P = np.array([(0.7, 0.2, 0.06, 0.03, 0.01)])


def scores_of(p, y=None, **parameters):
    return GeneralisedEntropy(**parameters).fit(None, np.zeros(len(p), int) if y is None else y, pred_probs=p).scores_


def in_loops(p, gamma=0.1, top=100):
    """Sorted, sliced and added one by one."""
    out = []
    for row in p.tolist():
        best = row.index(max(row))
        rest = [sum(v for j, v in enumerate(row) if j != i) if i == best else 1 - row[i] for i in range(len(row))]
        order = sorted(range(len(row)), key=lambda i: -row[i])[:top]
        out.append(sum((row[i] * rest[i]) ** gamma for i in order))
    return out


@pytest.mark.parametrize(
    ("gamma", "top", "expected"),
    [
        (0.1, 2, 1.688057),
        (0.1, 3, 2.438172),
        (0.1, 5, 3.770580),
        (0.5, 2, 0.858258),
        (0.5, 3, 1.095744),
        (0.5, 5, 1.365830),
        (1, 5, 0.4654),
    ],
)
def test_known_answer(gamma, top, expected):
    assert generalised_entropy(P, gamma, top)[0] == pytest.approx(expected, abs=1e-6)
    two = np.vstack([P, np.full((1, 5), 0.2)])  # another row, so that there is something to rank
    assert scores_of(two, gamma=gamma, top=top)[0] == pytest.approx(expected, abs=1e-6)


def test_known_answer_of_logits():
    expected = [2.490427, 2.490427, 2.580018, 0.415719]
    np.testing.assert_allclose(scores_of(softmax(LOGITS, axis=1)), expected, atol=1e-6)


def test_saturated_probabilities_keep_the_term_of_the_first_class():
    """In single precision 1 - p is 0 there and .270671 comes out."""
    p = softmax(LOGITS.astype(np.float32), axis=1)
    naive = ((p * (1 - p)) ** np.float32(0.1)).sum(axis=1)
    assert naive[3] == pytest.approx(0.270671, abs=1e-5), "the trap is set"
    assert scores_of(p)[3] == pytest.approx(0.415719, abs=1e-6)


def test_the_tail_is_pruned():
    row = np.append(0.9, np.full(999, 0.1 / 999))[None]
    assert generalised_entropy(row, 0.1, 100)[0] == pytest.approx(40.202, abs=5e-4)
    assert generalised_entropy(row, 0.1, 1000)[0] == pytest.approx(398.531, abs=5e-4)


def test_the_top_classes_are_chosen_by_probability_not_by_term():
    """A first class near 1 can have the smaller p (1-p): only the order of p counts."""
    p = np.array([(0.98, 0.015, 0.005), (0.5, 0.3, 0.2)])
    np.testing.assert_allclose(scores_of(p, top=1, gamma=1), [0.98 * 0.02, 0.25])
    np.testing.assert_allclose(scores_of(p, top=2, gamma=1), [0.98 * 0.02 + 0.015 * 0.985, 0.25 + 0.21])


def test_limits():
    p = np.random.default_rng(0).dirichlet(np.full(4, 0.7), 50)
    np.testing.assert_allclose(scores_of(p, gamma=1), 1 - (p**2).sum(axis=1), err_msg="Gini")
    np.testing.assert_allclose(scores_of(p, gamma=1e-6), 4, atol=1e-3, err_msg="no ranking left")
    np.testing.assert_allclose(scores_of(p, gamma=1e-6, top=2), 2, atol=1e-3)
    uniform = np.vstack([np.full((1, 3), 1 / 3), np.random.default_rng(0).dirichlet(np.ones(3), 50)])
    scores = scores_of(uniform)
    assert scores[0] == pytest.approx(2.581071, abs=1e-6)
    assert scores.argmax() == 0


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 100), (0.1, 3), (0.7, 1), (2, 5)])
def test_agrees_with_loops(gamma, top):
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.3), 150)
    np.testing.assert_allclose(scores_of(p, gamma=gamma, top=top), in_loops(p, gamma, top), rtol=1e-9)


def test_blocks_do_not_matter(monkeypatch):
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.3), 100)
    whole = scores_of(p, top=3)
    monkeypatch.setattr(gen, "BLOCK", 7)
    np.testing.assert_array_equal(scores_of(p, top=3), whole)


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("clustered", 0.1, 0.94),
        ("clustered", 0.3, 0.96),
        ("clustered", 0.6, 0.95),
        ("diffuse", 0.1, 0.83),
        ("diffuse", 0.3, 0.90),
        ("diffuse", 0.6, 0.90),
        ("consistent", 0.1, 0.69),
        ("consistent", 0.3, 0.40),
        ("consistent", 0.6, 0.22),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, share, expected):
    """Foreigners filed consistently under one label become that class: below chance."""
    found = mean_auroc(kind, share, lambda y, logits, p: scores_of(p, y))
    assert found == pytest.approx(expected, abs=0.05 if kind == "consistent" else 0.03)


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    scores = scores_of(blobs.p, blobs.y)
    assert roc_auc_score(blobs.ood, scores) > 0.97
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.65


def test_alone_uses_the_probe(blobs):
    alone = GeneralisedEntropy().fit(blobs.X, blobs.y).scores_
    np.testing.assert_array_equal(alone, scores_of(linear_probe(blobs.X, blobs.y, 4).pred_probs, blobs.y))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 2))
def test_row_and_class_order_do_not_matter(seed, gamma):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(5, 0.5), 80)
    scores = scores_of(p, gamma=gamma)
    rows, columns = rng.permutation(80), rng.permutation(5)
    np.testing.assert_allclose(scores_of(p[rows], gamma=gamma), scores[rows], rtol=1e-12)
    np.testing.assert_allclose(scores_of(p[:, columns], gamma=gamma), scores, rtol=1e-9)
    np.testing.assert_array_equal(scores_of(p, rng.integers(0, 5, 80), gamma=gamma), scores)
    assert (np.diff([scores_of(p, gamma=gamma, top=k) for k in range(1, 6)], axis=0) >= 0).all()


def test_budget_decides_how_many(blobs):
    model = GeneralisedEntropy(budget=0.2).fit(None, blobs.y, pred_probs=blobs.p)
    assert model.flags_.sum() == 80
    assert model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    assert blobs.ood[model.flags_].mean() > 0.85
    assert model.info_["top"] == 4, "all there are"


def test_sure_and_impossible_classes_stay_finite():
    scores = scores_of(np.array([(1.0, 0, 0), (1 - 1e-300, 1e-300, 0), (0.5, 0.5, 0)]))
    np.testing.assert_allclose(scores, [0, 2e-30, 2 * 0.25**0.1], atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"gamma": 0}, "gamma must be above 0"),
        ({"gamma": np.nan}, "gamma must be above 0"),
        ({"top": 0}, "top must be at least 1"),
        ({"budget": 1.1}, "budget must be a share"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, match):
    with pytest.raises(InputError, match=match):
        GeneralisedEntropy(**parameters).fit(None, blobs.y, pred_probs=blobs.p)


def test_all_samples_alike():
    with pytest.raises(InputError, match="gen: all 20 samples have the same score"):
        scores_of(np.full((20, 3), 1 / 3))
