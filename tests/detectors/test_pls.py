"""Pseudo-loss: sheet numbers and traps, both stages in loops, what comes first, invariances, bad input."""

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
from chaffinch.detectors.pls import PseudoLoss, sharpen


def one_epoch(seen, after):
    """A record of one epoch from probabilities (N, C)."""
    return History(np.log(np.asarray(seen, float))[None], np.log(np.asarray(after, float))[None])


def random_record(seed=0, epochs=3, n=150, n_classes=4):
    """Two thirds of the labels are believed, the rest are not."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    bonus = np.eye(n_classes)[y] * np.where(rng.random(n) < 0.67, 5, -2)[:, None]
    seen, after = 1.5 * rng.normal(size=(2, epochs, n, n_classes)) + bonus
    return History.of_logits(seen, after), y


def with_pseudo_losses(values, clean=1000):
    """Noisy samples (label 2) whose pseudo-losses are these, after as many clean ones (label 0)."""
    p = np.exp(-np.clip(values, 1e-4, None))
    noisy = np.column_stack([p, 1 - p, np.full(len(p), 1e-9)])
    sure = np.tile([0.98, 0.015, 0.005], (clean, 1))
    guess = np.tile([1 - 2e-12, 1e-12, 1e-12], (clean + len(p), 1))
    y = np.repeat([0, 2], [clean, len(p)])
    return one_epoch(guess, np.vstack([sure, noisy])), y


@cache
def learnt(make, rate):
    data = make(rate)
    return data, make(0.0).y, train_quick_head(data.X, data.y, 10)


class TestSheet:
    def test_4_sharpen_and_pseudo_loss(self):
        p = np.array([(0.6, 0.3, 0.1), (0.9, 0.05, 0.05), (0.02, 0.9, 0.08)])
        np.testing.assert_allclose(sharpen(np.log(p), 2)[0], [0.7826, 0.1957, 0.0217], atol=5e-5)
        model = PseudoLoss().fit(None, np.array([0, 0, 0]), history=one_epoch(p, p))
        assert model.pseudo_loss_[0] == pytest.approx(0.68539, abs=5e-6)

    def test_7_weights_of_the_guesses(self):
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(0.25, 0.08, 700), rng.normal(0.75, 0.08, 300)]).clip(0, 1)
        history, y = with_pseudo_losses(values)
        model = PseudoLoss().fit(None, y, history=history)
        noisy = model.flags_
        np.testing.assert_array_equal(noisy, y == 2)
        np.testing.assert_allclose(model.pseudo_loss_[noisy], values.clip(1e-4), atol=1e-6)
        np.testing.assert_allclose(fit_mixture(model.pseudo_loss_[noisy]).means, [0.2623, 0.7809], atol=0.01)
        weight = model.guess_weight_[noisy]
        assert weight[:700].mean() == pytest.approx(0.9996, abs=0.003)
        assert weight[700:].mean() == pytest.approx(0.0026, abs=0.003)
        assert (model.guess_weight_[~noisy] == 1).all()
        assert model.info_["trusted_guesses"] == np.sum(weight > 0.5)

    def test_8_it_knows_good_guesses_better_than_confidence_does(self, digits):
        data, truth, history = learnt(digits, 0.4)
        model = PseudoLoss().fit(None, data.y, history=history)
        noisy = model.flags_
        right = history.seen[-1].argmax(axis=1) == truth
        confidence = history.after[-1].max(axis=1)
        by_loss, by_confidence = (roc_auc_score(right[noisy], v[noisy]) for v in (-model.pseudo_loss_, confidence))
        assert by_loss > 0.9
        assert by_loss > by_confidence + 0.05
        trusted = noisy & (model.guess_weight_ > 0.5)
        assert right[trusted].mean() > 0.97


class TestTraps:
    def test_the_second_mixture_is_fitted_on_noisy_samples_only(self):
        """A thousand sure clean samples more would make every guess look bad."""
        rng = np.random.default_rng(1)
        values = np.concatenate([rng.normal(0.4, 0.05, 60), rng.normal(0.8, 0.05, 40)])
        weights = []
        for clean in (100, 2000):
            history, y = with_pseudo_losses(values, clean)
            model = PseudoLoss().fit(None, y, history=history)
            np.testing.assert_array_equal(model.flags_, y == 2)
            weights.append(model.guess_weight_[clean:])
        np.testing.assert_array_equal(*weights)
        assert (weights[0] > 0.5).sum() == 60

    def test_guess_and_prediction_are_different_passes(self):
        history, y = random_record()
        model = PseudoLoss().fit(None, y, history=history)
        swapped = PseudoLoss().fit(None, y, history=History(history.after, history.seen))
        assert not np.allclose(model.pseudo_loss_, swapped.pseudo_loss_)
        same = PseudoLoss().fit(None, y, history=History(history.after, history.after))
        np.testing.assert_array_equal(same.flags_, model.flags_)
        assert same.pseudo_loss_.mean() < 0.7 * model.pseudo_loss_.mean(), "two passes agree less than one with itself"

    def test_confident_disagreement_has_a_large_pseudo_loss(self):
        p, q = [(0.98, 0.01, 0.01)] * 2, [(0.01, 0.98, 0.01), (0.98, 0.01, 0.01)]
        model = PseudoLoss().fit(None, np.array([2, 0]), history=one_epoch(q, p))
        assert model.pseudo_loss_[0] > 4 > 0.1 > model.pseudo_loss_[1]

    def test_only_the_last_epoch_counts(self):
        history, y = random_record()
        model = PseudoLoss().fit(None, y, history=history)
        last = History(history.seen[-1:], history.after[-1:])
        np.testing.assert_array_equal(PseudoLoss().fit(None, y, history=last).scores_, model.scores_)
        earlier = PseudoLoss(stop=2).fit(None, y, history=history).scores_
        other = History(history.seen[1:2], history.after[1:2])
        np.testing.assert_array_equal(PseudoLoss().fit(None, y, history=other).scores_, earlier)
        assert not np.allclose(earlier, model.scores_)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_agrees_with_loops(gamma):
    history, y = random_record()
    model = PseudoLoss(gamma=gamma).fit(None, y, history=history)
    losses = np.array([-history.after[-1, n, label] for n, label in enumerate(y)])
    posterior = fit_mixture(losses).monotone_posterior(losses)
    least = min(losses[n] for n in range(len(y)) if posterior[n] > 0.95)
    pseudo = []
    for n in range(len(y)):
        raw = [math.exp(z) ** gamma for z in history.seen[-1, n]]
        q = [v / sum(raw) for v in raw]
        pseudo.append(-sum(a * b for a, b in zip(q, history.after[-1, n], strict=True)))
    np.testing.assert_allclose(model.pseudo_loss_, pseudo)
    noisy = np.array([v for n, v in enumerate(pseudo) if posterior[n] > 0.95])
    doubt = iter(fit_mixture(noisy).monotone_posterior(noisy))
    for n, label in enumerate(y):
        flagged = posterior[n] > 0.95
        trust = 1 - next(doubt) if flagged else 1.0
        assert model.flags_[n] == flagged
        assert model.scores_[n] == pytest.approx(1 + pseudo[n] if flagged else losses[n] / least)
        assert model.guess_weight_[n] == pytest.approx(trust)
        assert model.suggestions_[n] == (history.seen[-1, n].argmax() if flagged and trust > 0.5 else label)
    assert model.info_["loss_threshold"] == pytest.approx(least)
    assert 0 < model.flags_.sum() < len(y)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_finds_flipped_digits(digits, rate):
    data, truth, history = learnt(digits, rate)
    model = PseudoLoss().fit(None, data.y, history=history)
    assert balanced_accuracy_score(data.wrong, model.flags_) > 0.94
    assert roc_auc_score(data.wrong, model.scores_) > 0.95
    changed = model.suggestions_ != data.y
    assert changed.sum() > 0.3 * data.wrong.sum()
    assert (model.suggestions_ == truth)[changed].mean() > 0.97


def test_foreigners_before_wrong_labels_before_clean(blobs):
    """Logits of a trained network: sure of the class of clean and wrongly labelled samples, lost on foreigners."""
    rng = np.random.default_rng(1)
    logits = np.where(blobs.ood[:, None], 0.0, 2.5 * np.eye(4)[blobs.truth])
    seen, after = logits + 0.5 * rng.normal(size=(2, 1, 400, 4))
    model = PseudoLoss().fit(None, blobs.y, history=History.of_logits(seen, after))
    assert roc_auc_score(blobs.ood[~blobs.clean], model.scores_[~blobs.clean]) > 0.95
    assert roc_auc_score(blobs.wrong[~blobs.ood], model.scores_[~blobs.ood]) > 0.98
    assert roc_auc_score(~blobs.clean, model.scores_) > 0.98
    assert model.flags_[~blobs.clean].mean() > 0.95
    assert model.flags_[blobs.clean].mean() < 0.05
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.9
    assert (model.suggestions_ == blobs.y)[blobs.ood].mean() > 0.9, "no better label is known for a foreigner"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_names_of_classes_and_the_cut(seed):
    history, y = random_record(seed)
    rng = np.random.default_rng(seed)
    model = PseudoLoss().fit(None, y, history=history)
    np.testing.assert_array_equal(model.flags_, model.scores_ >= model.info_["threshold"])
    assert (model.scores_ >= 0).all()
    order, names = rng.permutation(len(y)), rng.permutation(4)
    moved = PseudoLoss().fit(None, y[order], history=History(history.seen[:, order], history.after[:, order]))
    np.testing.assert_allclose(moved.scores_, model.scores_[order], rtol=1e-12)
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    columns = np.argsort(names)
    renamed = PseudoLoss().fit(None, names[y], history=History(history.seen[..., columns], history.after[..., columns]))
    np.testing.assert_allclose(renamed.scores_, model.scores_, rtol=1e-9)
    stricter = PseudoLoss(threshold=0.999).fit(None, y, history=history).flags_
    assert not (stricter & ~model.flags_).any()


def test_half_precision_a_missing_class_and_a_class_of_one():
    history, y = random_record(n_classes=6)
    y = np.where(y == 2, 3, np.where(y == 5, 4, y))
    y[0] = 5
    exact = PseudoLoss().fit(None, y, history=history)
    half = History(history.seen.astype(np.float16), history.after.astype(np.float16))
    found = PseudoLoss().fit(None, y, history=half)
    np.testing.assert_allclose(found.pseudo_loss_, exact.pseudo_loss_, atol=0.02)
    assert (found.flags_ == exact.flags_).mean() > 0.97


def test_rounding_above_zero_makes_no_negative_score():
    history, y = random_record()
    sure = np.full((1, 150, 4), -9.0)
    sure[0, np.arange(150), 0] = 1e-3
    sure[0, :75] = history.after[-1, :75]
    scores = PseudoLoss().fit(None, y, history=History(sure, sure)).scores_
    assert scores.min() >= 0


def test_nobody_flagged():
    history, y = random_record()
    model = PseudoLoss(threshold=1.0).fit(None, y, history=history)
    assert not model.flags_.any()
    losses = history.losses(y)[-1]
    np.testing.assert_allclose(model.scores_, losses / losses.max())
    assert "too few samples were flagged" in model.info_["note"]
    assert model.info_["loss_threshold"] is None
    np.testing.assert_array_equal(model.suggestions_, y)


def test_everybody_flagged():
    history, y = random_record()
    model = PseudoLoss(threshold=-1.0).fit(None, y, history=history)
    assert model.flags_.all()
    np.testing.assert_allclose(model.scores_, 1 + model.pseudo_loss_)
    with pytest.raises(InputError, match="flags all 150"):
        model.flag()


def test_equal_pseudo_losses_trust_every_guess():
    history, y = with_pseudo_losses(np.full(50, 0.3), clean=100)
    model = PseudoLoss().fit(None, y, history=history)
    np.testing.assert_array_equal(model.flags_, y == 2)
    assert (model.guess_weight_ == 1).all()
    assert "too few" in model.info_["note"]


def test_equal_losses():
    with pytest.raises(InputError, match=r"all 20 losses are equal \(0\.6931\)"):
        PseudoLoss().fit(None, np.arange(20) % 2, history=History(*(log_softmax(np.zeros((2, 20, 2))),) * 2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": 0}, "gamma must be positive, got 0"),
        ({"gamma": -1.0}, "gamma must be positive"),
        ({"gamma": np.nan}, "gamma must be positive"),
        ({"stop": 4}, "stop must be one of the 3 recorded epochs, got 4"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    history, y = random_record()
    with pytest.raises(InputError, match=message):
        PseudoLoss(**parameters).fit(None, y, history=history)


def test_a_record_of_other_data(blobs):
    history, y = random_record()
    with pytest.raises(InputError, match="history"):
        PseudoLoss().fit(None, np.where(y == 3, 5, y), history=history)
    with pytest.raises(InputError, match="labels 149, history 150"):
        PseudoLoss().fit(None, y[1:], history=history)
    with pytest.raises(MissingEvidence, match="pls needs history"):
        PseudoLoss().fit(blobs.X, blobs.y)
