"""Energy: the sheet's numbers, limits and traps, loops, contaminated digits, invariances, bad input."""

import math

import numpy as np
import pytest
from contaminated_digits import contaminated, mean_auroc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors.energy import Energy
from chaffinch.detectors.max_logit import MaxLogit

LOGITS = np.array([(2, 1, 0.1), (5, 4, 3.1), (0.2, 0.1, 0), (-1, -2, -3)])


def scores_of(z, y=None, temperature=1.0):
    y = np.zeros(len(z), int) if y is None else y
    return Energy(temperature=temperature).fit(None, y, logits=z).scores_


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.5, -2.073220), (1, -2.417030), (2, -3.379555), (10, -12.049595)]
)
def test_known_answer_by_temperature(temperature, expected):
    assert scores_of(LOGITS, temperature=temperature)[0] == pytest.approx(expected, abs=1e-6)


def test_known_answer():
    np.testing.assert_allclose(scores_of(LOGITS), [-2.417030, -5.417030, -1.201943, 0.592394], atol=1e-6)


def test_sign():
    """The energy itself is larger where nothing responds; benchmark codes return its negative."""
    scores = scores_of(np.array([(9, 0, 0), (0.1, 0, 0.0)]))
    assert scores[1] > scores[0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_agrees_with_loops(temperature):
    z = np.random.default_rng(0).normal(0, 3, (100, 6))
    loops = [-temperature * math.log(sum(math.exp(v / temperature) for v in row)) for row in z.tolist()]
    np.testing.assert_allclose(scores_of(z, temperature=temperature), loops, rtol=1e-12)


def test_limits():
    z = np.random.default_rng(0).normal(0, 3, (50, 6))
    top = z.max(axis=1)
    np.testing.assert_allclose(scores_of(z, temperature=1e-3), -top, atol=1e-2)
    hot = scores_of(z, temperature=1e6)
    np.testing.assert_allclose(hot, -1e6 * np.log(6) - z.mean(axis=1), atol=1e-4)
    for temperature in (0.5, 1.0, 3.0):
        scores = scores_of(z, temperature=temperature)
        assert (scores <= -top).all()
        assert (scores >= -top - temperature * np.log(6)).all()
    np.testing.assert_allclose(log_softmax(z, axis=1).max(axis=1), top + scores_of(z), err_msg="log MSP = max z + E")


def test_huge_logits_do_not_overflow():
    np.testing.assert_allclose(scores_of(np.array([(1e4, 0), (-1e4, -2e4)]), temperature=0.1), [-1e4, 1e4])


def test_log_probabilities_are_refused():
    """Their energy is 0 for every sample."""
    with pytest.raises(InputError, match="logarithms of probabilities"):
        scores_of(log_softmax(LOGITS, axis=1))


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("clustered", 0.1, 0.94),
        ("clustered", 0.3, 0.96),
        ("clustered", 0.6, 0.95),
        ("diffuse", 0.1, 0.81),
        ("diffuse", 0.3, 0.89),
        ("diffuse", 0.6, 0.90),
        ("consistent", 0.1, 0.68),
        ("consistent", 0.3, 0.40),
        ("consistent", 0.6, 0.22),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, share, expected):
    """Foreigners filed consistently under one label become that class: below chance."""
    found = mean_auroc(kind, share, lambda y, logits, p: scores_of(logits, y))
    assert found == pytest.approx(expected, abs=0.05 if kind == "consistent" else 0.03)


def test_is_not_max_logit():
    """Scattered foreigners tell the two apart."""
    _, y, ood, logits = contaminated("diffuse", 0.1, 0)
    other = MaxLogit().fit(None, y, logits=logits).scores_
    assert roc_auc_score(ood, other) - roc_auc_score(ood, scores_of(logits, y)) > 0.02


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    scores = Energy().fit(blobs.X, blobs.y).scores_
    assert roc_auc_score(blobs.ood, scores) > 0.8
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], scores[inside]) < 0.65


def test_alone_uses_the_probe(blobs):
    alone = Energy().fit(blobs.X, blobs.y).scores_
    np.testing.assert_array_equal(alone, scores_of(linear_probe(blobs.X, blobs.y, 4).logits, blobs.y))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-50, 50))
def test_row_and_class_order_shift_and_scale(seed, scale, shift):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (60, 5))
    scores = scores_of(z)
    rows, columns = rng.permutation(60), rng.permutation(5)
    np.testing.assert_allclose(scores_of(z[rows]), scores[rows], rtol=1e-12)
    np.testing.assert_allclose(scores_of(z[:, columns], rng.integers(0, 5, 60)), scores, rtol=1e-12)
    np.testing.assert_allclose(scores_of(z + shift), scores - shift, atol=1e-9)
    np.testing.assert_allclose(scores_of(scale * z, temperature=scale), scale * scores, atol=1e-9)


def test_budget_decides_how_many(blobs):
    model = Energy(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()
    with pytest.raises(InputError, match="budget must be a share"):
        Energy(budget=2).fit(blobs.X, blobs.y)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_temperature_out_of_range(temperature):
    with pytest.raises(InputError, match="temperature must be above 0"):
        scores_of(LOGITS, temperature=temperature)


def test_logits_not_finite():
    z = LOGITS.copy()
    z[2, 1] = np.nan
    with pytest.raises(InputError, match="energy: logits: row 2"):
        scores_of(z)


def test_all_samples_alike():
    with pytest.raises(InputError, match="energy: all 20 samples have the same score"):
        scores_of(np.ones((20, 3)))
