"""Early learning: sheet numbers and traps, the memorisation toy, loops, invariances, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.runs import History, log_softmax, train_quick_head
from chaffinch.detectors.elr import EarlyLearning, running_target


def random_record(seed=0, epochs=6, n=40, n_classes=4):
    rng = np.random.default_rng(seed)
    seen, after = 2 * rng.normal(size=(2, epochs, n, n_classes))
    return seen, after, rng.integers(0, n_classes, n)


def visits(*predictions):
    """Two samples that were predicted like this, visit after visit."""
    record = np.log(np.repeat(np.array(predictions, float)[:, None], 2, axis=1))
    return History(record, record)


def score(history, label):
    """Of either sample."""
    scores = EarlyLearning().fit(None, np.full(2, label), history=history).scores_
    assert scores[0] == scores[1]
    return scores[0]


def toys(strength):
    return [toy(strength, seed) for seed in (1, 2, 3)]


def toy(strength, seed, steps=300):
    """The sheet's toy: 200 samples in 400 dimensions, two classes on axis 0, 40 % flips, a linear softmax trained in
    full batches with learning rate .5. ``strength`` is the weight of early-learning regularisation, 0 = plain."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 200)
    X = 0.35 * rng.normal(size=(200, 400))
    X[:, 0] += 3 * (truth - 0.5)
    wrong = rng.random(200) < 0.4
    y = np.where(wrong, 1 - truth, truth)
    W, target, seen = np.zeros((400, 2)), np.zeros((200, 2)), []
    for _ in range(steps):
        seen.append(log_softmax(X @ W))
        p = np.exp(seen[-1])
        clamped = np.clip(p, 1e-4, 1 - 1e-4)
        target = 0.7 * target + 0.3 * clamped / clamped.sum(axis=1, keepdims=True)
        agreement = (p * target).sum(axis=1, keepdims=True)
        W -= 0.5 * X.T @ (p - np.eye(2)[y] + strength * p * (agreement - target) / (1 - agreement)) / 200
    return History(np.array(seen), np.array(seen)), y, wrong


class TestSheet:
    def test_2_three_visits(self):
        target = running_target(visits(*[(0.2, 0.5, 0.3)] * 3).seen, 0.7)
        np.testing.assert_allclose(target.sum(axis=1), 0.657)
        np.testing.assert_allclose(target, [[0.2 * 0.657, 0.5 * 0.657, 0.3 * 0.657]] * 2)

    def test_3_clamp(self):
        """Logits (12, 0, 0): the prediction is cut to [1e-4, 1 - 1e-4] first, then normalised."""
        history = History.of_logits(np.array([[[12.0, 0, 0]] * 2]))
        total = 1 - 1e-4 + 2e-4
        assert score(history, 0) == pytest.approx(2e-4 / total, rel=1e-9)
        assert score(history, 2) == pytest.approx(1 - 1e-4 / total, rel=1e-12)

    def test_5_regularised_training_keeps_the_truth(self):
        found = [EarlyLearning().fit(None, y, history=history).flags_ == wrong for history, y, wrong in toys(3)]
        assert np.mean(found) == pytest.approx(1.0, abs=0.01)

    def test_5_plain_training_forgets_it(self):
        """What is left of the detection is the share of right labels; stopping early brings it back."""
        whole, stopped, early = [], [], []
        for history, y, wrong in toys(0):
            predicts_truth = history.seen.argmax(axis=2)[:, wrong] != y[wrong]
            early.append(predicts_truth[3].mean())
            assert not predicts_truth[100:].any()
            whole.append(np.mean(EarlyLearning().fit(None, y, history=history).flags_ == wrong))
            stopped.append(np.mean(EarlyLearning(stop=3).fit(None, y, history=history).flags_ == wrong))
        assert np.mean(early) == pytest.approx(0.62, abs=0.15)
        assert np.mean(whole) == pytest.approx(0.695, abs=0.05)
        assert np.mean(stopped) > 0.95


class TestTraps:
    def test_normalised_by_its_sum(self):
        """Without it, samples visited less often would look worse."""
        few, many = (visits(*[(0.6, 0.3, 0.1)] * epochs) for epochs in (1, 9))
        for history in (few, many):
            assert score(history, 0) == pytest.approx(0.4)

    def test_recent_visits_weigh_most(self):
        history = visits((0.8, 0.2), (0.2, 0.8))
        weights = np.array([0.7 * 0.3, 0.3]) / 0.51
        assert score(history, 0) == pytest.approx(1 - weights @ [0.8, 0.2])
        assert score(history, 0) > 0.5

    def test_seen_in_training_not_after_it(self):
        seen, after, y = random_record()
        scores = EarlyLearning().fit(None, y, history=History.of_logits(seen, after)).scores_
        np.testing.assert_array_equal(scores, EarlyLearning().fit(None, y, history=History.of_logits(seen)).scores_)

    def test_a_tie_does_not_contradict_the_label(self):
        history = History.of_logits(np.zeros((3, 4, 4)))
        model = EarlyLearning().fit(None, np.arange(4), history=history)
        np.testing.assert_allclose(model.scores_, 0.75)
        assert not model.flags_.any()
        np.testing.assert_array_equal(model.suggestions_, np.arange(4))


@pytest.mark.parametrize(("beta", "stop"), [(0.7, None), (0.9, None), (0, None), (0.7, 3)])
def test_agrees_with_loops(beta, stop):
    seen, _, y = random_record()
    model = EarlyLearning(beta=beta, stop=stop).fit(None, y, history=History.of_logits(seen))
    for n, label in enumerate(y):
        target = [0.0] * 4
        for epoch in range(stop or 6):
            total = sum(math.exp(z) for z in seen[epoch, n])
            p = [min(max(math.exp(z) / total, 1e-4), 1 - 1e-4) for z in seen[epoch, n]]
            target = [beta * t + (1 - beta) * q / sum(p) for t, q in zip(target, p, strict=True)]
        best = target.index(max(target))
        assert model.scores_[n] == pytest.approx(1 - target[label] / sum(target))
        assert model.flags_[n] == (best != label)
        assert model.suggestions_[n] == best


def test_no_past_is_the_last_visit():
    seen, _, y = random_record()
    p = np.clip(np.exp(log_softmax(seen[-1])), 1e-4, 1 - 1e-4)
    scores = EarlyLearning(beta=0).fit(None, y, history=History.of_logits(seen)).scores_
    np.testing.assert_allclose(scores, 1 - p[np.arange(40), y] / p.sum(axis=1))


@pytest.mark.parametrize(("rate", "ranking"), [(0.2, 0.995), (0.4, 0.99)])
def test_finds_flipped_digits(digits, rate, ranking):
    data = digits(rate)
    truth = digits(0.0).y
    model = EarlyLearning().fit(None, data.y, history=train_quick_head(data.X, data.y, 10))
    assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(ranking, abs=0.01)
    assert balanced_accuracy_score(data.wrong, model.flags_) > 0.94
    assert (model.suggestions_ == truth)[model.flags_ & data.wrong].mean() > 0.9
    np.testing.assert_array_equal(model.flags_, model.suggestions_ != data.y)


def test_finds_planted_noise(blobs):
    model = EarlyLearning().fit(None, blobs.y, history=train_quick_head(blobs.X, blobs.y, 4))
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.97
    assert model.flags_[blobs.wrong].mean() > 0.9
    assert model.flags_[blobs.clean].mean() < 0.05
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_and_names_of_classes_do_not_matter(seed):
    seen, _, y = random_record(seed)
    rng = np.random.default_rng(seed)
    model = EarlyLearning().fit(None, y, history=History.of_logits(seen))
    assert ((model.scores_ > 0) & (model.scores_ < 1)).all()
    assert (model.flags_ == (model.suggestions_ != y)).all()
    order, names = rng.permutation(len(y)), rng.permutation(4)
    moved = EarlyLearning().fit(None, y[order], history=History.of_logits(seen[:, order]))
    np.testing.assert_array_equal(moved.scores_, model.scores_[order])
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    renamed = EarlyLearning().fit(None, names[y], history=History.of_logits(seen[..., np.argsort(names)]))
    np.testing.assert_allclose(renamed.scores_, model.scores_, atol=1e-12)
    np.testing.assert_array_equal(renamed.suggestions_, names[model.suggestions_])


def test_half_precision_a_missing_class_and_a_class_of_one():
    seen, _, y = random_record(n_classes=6)
    y = np.where(y == 2, 3, y)
    y[:2] = 5, 0
    exact = History.of_logits(seen)
    half = History(exact.seen.astype(np.float16), exact.after.astype(np.float16))
    scores = EarlyLearning().fit(None, y, history=exact).scores_
    np.testing.assert_allclose(EarlyLearning().fit(None, y, history=half).scores_, scores, atol=2e-3)


def test_certain_predictions_stay_finite():
    history = History(*(np.array([[[0.0, -800, -900], [-800, 0, -900]]]),) * 2)
    scores = EarlyLearning().fit(None, np.array([0, 2]), history=history).scores_
    np.testing.assert_allclose(scores, [2e-4, 1 - 1e-4], atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta": 1.0}, "beta must be from 0 to below 1, got 1.0"),
        ({"beta": -0.1}, "beta must be from 0"),
        ({"beta": np.nan}, "beta must be from 0"),
        ({"stop": 7}, "stop must be one of the 6 recorded epochs, got 7"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    seen, _, y = random_record()
    with pytest.raises(InputError, match=message):
        EarlyLearning(**parameters).fit(None, y, history=History.of_logits(seen))


def test_a_record_of_other_data(blobs):
    seen, _, y = random_record()
    with pytest.raises(InputError, match="the history has 4 classes, the labels need 6"):
        EarlyLearning().fit(None, np.where(y == 3, 5, y), history=History.of_logits(seen))
    with pytest.raises(InputError, match="labels 39, history 40"):
        EarlyLearning().fit(None, y[1:], history=History.of_logits(seen))
    with pytest.raises(MissingEvidence, match="elr needs history"):
        EarlyLearning().fit(blobs.X, blobs.y)
