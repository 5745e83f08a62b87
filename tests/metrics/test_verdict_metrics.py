"""Three-way F1 against scikit-learn, reliability and calibration error against loops and figures worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from chaffinch.data import CLEAN, MISLABELLED, OOD
from chaffinch.metrics.verdict import calibration_error, claims, reliability, three_way

KINDS = (CLEAN, MISLABELLED, OOD)
PAIRS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)), min_size=1, max_size=40)
CLAIMED = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.integers(0, 20).map(lambda k: k / 20)), st.booleans()),
    min_size=1,
    max_size=40,
)


def sure_of(called):
    return 0.1 + 0.7 * np.eye(3)[list(called)]


def bins_in_loops(probability, hit, bins):
    """Mean probability, share of hits and count of every bin that holds any, sample by sample."""
    found = []
    for k in range(bins):
        last = k == bins - 1
        rows = [i for i, p in enumerate(probability) if k / bins <= p and (p < (k + 1) / bins or last)]
        if rows:
            said, came = sum(probability[i] for i in rows), sum(hit[i] for i in rows)
            found.append((said / len(rows), came / len(rows), len(rows)))
    return found


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_three_way_agrees_with_scikit_learn(pairs):
    called, kind = zip(*pairs, strict=True)
    found = three_way(sure_of(called), np.array(kind, np.int8))
    for name, code in zip(("clean", "mislabelled", "ood"), KINDS, strict=True):
        if code in kind:
            expected = f1_score(np.array(kind) == code, np.array(called) == code, zero_division=0)
            assert found["f1"][name] == pytest.approx(expected)
        else:
            assert found["f1"][name] is None
    expected = f1_score(kind, called, labels=sorted(set(kind)), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected)


def test_three_way_worked_by_hand():
    called = [CLEAN, CLEAN, MISLABELLED, OOD, MISLABELLED, OOD, CLEAN]
    kind = np.array([CLEAN, CLEAN, CLEAN, MISLABELLED, MISLABELLED, MISLABELLED, MISLABELLED], np.int8)
    f1 = {"clean": 2 * 2 / (3 + 3), "mislabelled": 2 * 1 / (2 + 4), "ood": None}
    found = three_way(sure_of(called), kind)
    assert found["f1"] == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_three_way_of_the_truth_and_of_its_opposite():
    kind = np.array([CLEAN, MISLABELLED, OOD, OOD], np.int8)
    assert three_way(np.eye(3)[kind], kind) == {"macro_f1": 1.0, "f1": {"clean": 1.0, "mislabelled": 1.0, "ood": 1.0}}
    assert three_way(np.eye(3)[(kind + 1) % 3], kind)["macro_f1"] == 0.0
    tie = three_way(np.full((4, 3), 1 / 3), kind)
    assert tie["f1"] == pytest.approx({"clean": 2 / 5, "mislabelled": 0.0, "ood": 0.0})


def test_three_way_without_samples():
    nothing = three_way(np.empty((0, 3)), np.empty(0, np.int8))
    assert nothing == {"macro_f1": None, "f1": {"clean": None, "mislabelled": None, "ood": None}}


def test_claims_of_the_verdict_and_of_one_kind():
    proba = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2]])
    kind = np.array([CLEAN, MISLABELLED, MISLABELLED], np.int8)
    said, so = claims(proba, kind)
    assert said.tolist() == [0.6, 0.6, 0.7]
    assert so.tolist() == [True, False, True]
    said, so = claims(proba, kind, "ood")
    assert said.tolist() == [0.1, 0.6, 0.2]
    assert not so.any()
    said, so = claims(proba, kind, "mislabelled")
    assert said.tolist() == [0.3, 0.2, 0.7]
    assert so.tolist() == [False, True, True]
    with pytest.raises(KeyError):
        claims(proba, kind, "any")


@settings(max_examples=150, deadline=None)
@given(CLAIMED, st.integers(1, 20))
def test_reliability_agrees_with_loops(pairs, bins):
    probability, hit = zip(*pairs, strict=True)
    expected = bins_in_loops(probability, hit, bins)
    said, came, count = reliability(np.array(probability), np.array(hit), bins)
    np.testing.assert_allclose(np.column_stack([said, came, count]), expected, rtol=1e-9, atol=1e-12)
    assert count.sum() == len(hit)
    error = sum(n * abs(p - share) for p, share, n in expected) / len(hit)
    assert calibration_error(np.array(probability), np.array(hit), bins) == pytest.approx(error, abs=1e-12)


def test_calibration_worked_by_hand():
    probability = np.array([0.05, 0.15, 0.9, 0.95, 1.0])
    hit = np.array([False, True, True, True, False])
    said, came, count = reliability(probability, hit)
    assert said == pytest.approx([0.05, 0.15, 0.95])
    assert came == pytest.approx([0, 1, 2 / 3])
    assert count.tolist() == [1, 1, 3]
    assert calibration_error(probability, hit) == pytest.approx((0.05 + 0.85 + 3 * (0.95 - 2 / 3)) / 5)
    assert calibration_error(probability, hit, bins=1) == pytest.approx(abs(probability.mean() - 0.6))


def test_calibration_error_tells_honest_from_boasting():
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    honest = rng.random(20_000) < probability
    assert calibration_error(probability, honest) < 0.02
    assert calibration_error(probability, rng.random(20_000) < 0.5) == pytest.approx(0.25, abs=0.02)
    assert calibration_error(np.ones(5), np.zeros(5, bool)) == 1.0
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0.0
    assert calibration_error(np.empty(0), np.empty(0, bool)) is None
