"""Prediction oscillation: sheet numbers and traps, loops, what oscillation adds, invariances, bad input."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.mixture import fit_mixture
from chaffinch.base.runs import History, log_softmax, train_quick_head
from chaffinch.detectors.pc2 import PseudoClassification, divergence, mismatch


def record(bank, last):
    """Two epochs: what was banked, and what was said last; probabilities (N, C)."""
    log_p = np.log(np.array([bank, last], float))
    return History(log_p, log_p)


def random_record(seed=0, epochs=8, n=150, n_classes=4):
    """Two thirds of the labels are believed, the rest are not."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    bonus = np.eye(n_classes)[y] * np.where(rng.random(n) < 0.67, 5, -2)[:, None]
    seen, after = 1.5 * rng.normal(size=(2, epochs, n, n_classes)) + bonus
    return History.of_logits(seen, after), y


def memorised(n=1200, seed=0):
    """A fifth wrong labels; half of these are known by heart at the end, with losses like those of hard clean samples,
    but the prediction after the warm-up was the truth."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    wrong = rng.random(n) < 0.2
    truth = np.where(wrong, (y + 1) % 4, y)
    known = wrong & (rng.random(n) < 0.5)
    hard = ~wrong & (rng.random(n) < 0.3)
    target = np.where(known, y, truth)
    strength = np.where(known | hard, 2.0, 5.0)[:, None]
    last = strength * np.eye(4)[target] + 0.3 * rng.normal(size=(n, 4))
    bank = strength * np.eye(4)[truth] + 0.3 * rng.normal(size=(n, 4))
    return History.of_logits(np.stack([bank, last])), y, wrong, known, hard


@cache
def learnt(make, rate):
    data = make(rate)
    return data, train_quick_head(data.X, data.y, 10)


class TestSheet:
    def test_3_direction_of_the_divergence(self):
        bank, current = np.log([[0.7, 0.2, 0.1]]), np.log([[0.3, 0.3, 0.4]])
        assert divergence(current, bank)[0] == pytest.approx(0.421968, abs=1e-6)
        assert divergence(bank, current)[0] == pytest.approx(0.373386, abs=1e-6)
        rows = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
        model = PseudoClassification(warm_up=1).fit(
            None, np.array([0, 0]), history=record(rows, [[0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
        )
        np.testing.assert_allclose(model.oscillation_, [0.421968, 0], atol=1e-6)

    def test_4_match_score(self):
        w, u = np.array([0.9, 0.6, 0.55]), np.array([0.95, 0.7, 0.1])
        np.testing.assert_allclose(1 - mismatch(1 - w, 1 - u, w > 0.5), [0.995, 0.88, 0.55])


class TestTraps:
    def test_a_steady_contradiction_does_not_clear_a_label(self):
        """A prediction that never moved from another class is stable; only trusted pairs may gain by that."""
        np.testing.assert_array_equal(mismatch(np.array([1.0, 0.7]), np.zeros(2), np.zeros(2, bool)), [1, 0.7])
        n = np.arange(100)
        steady = np.tile(np.column_stack([0.97 - 1e-4 * n, 0.02 + 1e-4 * n, np.full(100, 0.01)]), (2, 1))
        y = np.repeat([0, 1], 100)  # the second half is labelled 1, and the prediction says 0 at all times
        model = PseudoClassification(warm_up=1).fit(None, y, history=record(steady, steady))
        np.testing.assert_array_equal(model.flags_, y == 1)
        assert model.scores_[100:].min() > 0.5 > model.scores_[:100].max()
        np.testing.assert_array_equal(model.suggestions_, 0)
        assert model.info_["stable"] == 1

    def test_the_match_never_exceeds_one(self):
        w, u = np.random.default_rng(0).random((2, 1000))
        found = 1 - mismatch(1 - w, 1 - u, w > 0.5)
        assert (found >= w - 1e-15).all()
        assert found.max() <= 1
        np.testing.assert_allclose(found[u <= 0.5], w[u <= 0.5])
        np.testing.assert_allclose(found, np.where((w > 0.5) & (u > 0.5), w + (1 - w) * u, w))

    def test_certain_posteriors_do_not_tie(self):
        history, y = random_record()
        scores = PseudoClassification().fit(None, y, history=history).scores_
        losses = history.losses(y)[-1]
        flagged = scores > 1 - 1e-12
        assert flagged.sum() > 10
        order = np.argsort(losses[flagged])
        assert (np.diff(scores[flagged][order]) > 0).all()

    def test_the_bank_is_of_the_end_of_the_warm_up(self):
        history, y = random_record()
        p = history.after.astype(float)
        for warm_up in (1, 3, 7):
            model = PseudoClassification(warm_up=warm_up).fit(None, y, history=history)
            np.testing.assert_allclose(model.oscillation_, divergence(p[-1], p[warm_up - 1]))
            assert model.info_["bank_epoch"] == warm_up
        shorter = PseudoClassification(warm_up=2, stop=6).fit(None, y, history=history)
        np.testing.assert_allclose(shorter.oscillation_, divergence(p[5], p[1]))


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_agrees_with_loops(threshold):
    history, y = random_record()
    model = PseudoClassification(threshold=threshold).fit(None, y, history=history)
    losses = np.array([-history.after[-1, n, label] for n, label in enumerate(y)])
    moved = np.array(
        [
            sum(math.exp(p) * (p - b) for p, b in zip(last, bank, strict=True))
            for last, bank in zip(history.after[-1], history.after[4], strict=True)
        ]
    )
    np.testing.assert_allclose(model.oscillation_, moved)
    w, u = (1 - fit_mixture(values).monotone_posterior(values) for values in (losses, moved))
    for n in range(len(y)):
        helped = w[n] > threshold and u[n] > 0.5
        fit = w[n] + (1 - w[n]) * u[n] * helped
        assert model.scores_[n] == pytest.approx(1 - fit, abs=1e-7)
        assert model.flags_[n] == (w[n] <= threshold)
        assert model.suggestions_[n] == history.after[-1, n].argmax()
    assert model.info_["stable"] == np.mean(u > 0.5)
    assert 0 < model.flags_.sum() < len(y)


def test_oscillation_finds_what_the_loss_cannot():
    history, y, wrong, known, hard = memorised()
    model = PseudoClassification(warm_up=1).fit(None, y, history=history)
    losses = history.losses(y)[-1]
    doubtful = known | hard
    assert roc_auc_score(known[doubtful], losses[doubtful]) < 0.6, "the losses are alike"
    assert roc_auc_score(known[doubtful], model.scores_[doubtful]) > 0.9
    assert roc_auc_score(wrong, model.scores_) > roc_auc_score(wrong, losses) + 0.02


@pytest.mark.parametrize(("rate", "ranking"), [(0.2, 0.998), (0.4, 0.994)])
def test_finds_flipped_digits(digits, rate, ranking):
    data, history = learnt(digits, rate)
    model = PseudoClassification().fit(None, data.y, history=history)
    assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(ranking, abs=0.01)
    assert balanced_accuracy_score(data.wrong, model.flags_) == pytest.approx({0.2: 0.974, 0.4: 0.964}[rate], abs=0.015)


def test_finds_planted_noise(blobs):
    model = PseudoClassification().fit(None, blobs.y, history=train_quick_head(blobs.X, blobs.y, 4))
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.97
    assert model.flags_[blobs.wrong].mean() > 0.9
    assert model.flags_[blobs.clean].mean() < 0.1
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.9


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_names_of_classes_and_the_cut(seed):
    history, y = random_record(seed)
    rng = np.random.default_rng(seed)
    model = PseudoClassification().fit(None, y, history=history)
    assert ((model.scores_ >= 0) & (model.scores_ < 1 + 1e-6)).all()
    assert model.scores_[model.flags_].min() > model.scores_[~model.flags_].max()
    order, names = rng.permutation(len(y)), rng.permutation(4)
    moved = PseudoClassification().fit(None, y[order], history=History(history.seen[:, order], history.after[:, order]))
    np.testing.assert_allclose(moved.scores_, model.scores_[order], atol=1e-12)
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    columns = np.argsort(names)
    renamed = PseudoClassification().fit(
        None, names[y], history=History(history.seen[..., columns], history.after[..., columns])
    )
    np.testing.assert_allclose(renamed.scores_, model.scores_, atol=1e-9)
    np.testing.assert_array_equal(renamed.suggestions_, names[model.suggestions_])


def test_where_all_are_believed_the_hundredth_with_the_largest_losses_is_flagged():
    history, y = random_record(n=400)
    model = PseudoClassification(threshold=-0.1).fit(None, y, history=history)
    losses = history.losses(y)[-1]
    np.testing.assert_array_equal(np.flatnonzero(model.flags_), np.sort(np.argsort(-losses, kind="stable")[:4]))
    assert "no label was hard to believe" in model.info_["note"]
    history, y = random_record(n=50)
    assert PseudoClassification(threshold=-0.1).fit(None, y, history=history).flags_.sum() == 1


def test_half_precision_a_missing_class_and_a_class_of_one():
    history, y = random_record(n_classes=6)
    y = np.where(y == 2, 3, np.where(y == 5, 4, y))
    y[0] = 5
    exact = PseudoClassification().fit(None, y, history=history)
    half = History(history.seen.astype(np.float16), history.after.astype(np.float16))
    found = PseudoClassification().fit(None, y, history=half)
    np.testing.assert_allclose(found.oscillation_, exact.oscillation_, atol=0.02)
    assert (found.flags_ == exact.flags_).mean() > 0.97


def test_equal_losses():
    with pytest.raises(InputError, match=r"all 20 losses are equal \(0\.6931\)"):
        PseudoClassification(warm_up=1).fit(
            None, np.arange(20) % 2, history=History(*(log_softmax(np.zeros((2, 20, 2))),) * 2)
        )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warm_up": 8}, "warm_up must be from 1 to 7, less than the 8 epochs, got 8"),
        ({"warm_up": 0}, "warm_up must be from 1"),
        ({"warm_up": 5, "stop": 5}, "warm_up must be from 1 to 4"),
        ({"stop": 9}, "stop must be one of the 8 recorded epochs, got 9"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    history, y = random_record()
    with pytest.raises(InputError, match=message):
        PseudoClassification(**parameters).fit(None, y, history=history)


def test_one_epoch_is_too_few():
    history, y = random_record(epochs=1)
    with pytest.raises(InputError, match="needs two epochs or more"):
        PseudoClassification().fit(None, y, history=history)


def test_a_record_of_other_data(blobs):
    history, y = random_record()
    with pytest.raises(InputError, match="history"):
        PseudoClassification().fit(None, np.where(y == 3, 5, y), history=history)
    with pytest.raises(InputError, match="labels 149, history 150"):
        PseudoClassification().fit(None, y[1:], history=history)
    with pytest.raises(MissingEvidence, match="pc2 needs history"):
        PseudoClassification().fit(blobs.X, blobs.y)
