"""Area under the margin: sheet numbers and traps, loops, invariances, bad input."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.runs import History, train_quick_head
from chaffinch.detectors.aum import AreaUnderMargin

FAKE = np.linspace(-3, 0, 101)
"""The sheet's AUMs of threshold samples; their 99th percentile is -.03."""


def random_record(seed=0, epochs=6, n=40, n_classes=4):
    rng = np.random.default_rng(seed)
    seen, after = 2 * rng.normal(size=(2, epochs, n, n_classes))
    return seen, after, rng.integers(0, n_classes, n)


def with_margins(margins):
    """One epoch of two-class logits whose margins of label 0 are these."""
    margins = np.asarray(margins, float)
    logits = np.stack([margins, np.zeros_like(margins)], axis=-1)
    return History.of_logits(logits[None]), np.zeros(len(margins), int)


@cache
def learnt(make, rate):
    data = make(rate)
    return data, train_quick_head(data.X, data.y, 10)


class TestSheet:
    def test_1_area(self):
        logits = np.array([[(2.0, 1, 0), (1, 2, 0)], [(3, 1, 0), (0, 3, 1)]])  # (epoch, sample, class)
        model = AreaUnderMargin(skip=0).fit(None, np.zeros(2, int), history=History.of_logits(logits))
        np.testing.assert_allclose(model.scores_, [-1.5, 2.0])
        np.testing.assert_array_equal(model.flags_, [False, True])

    def test_1_threshold_samples(self):
        history, y = with_margins([-1, -0.02, 0.5])
        model = AreaUnderMargin(skip=0, threshold_aums=FAKE).fit(None, y, history=history)
        np.testing.assert_array_equal(model.flags_, [True, False, False])
        assert model.info_["threshold"] == pytest.approx(0.03)
        without = AreaUnderMargin(skip=0).fit(None, y, history=history)
        np.testing.assert_array_equal(without.flags_, [True, True, False])
        assert without.info_["threshold"] == 0

    def test_1_more_than_a_hundredth_of_the_threshold_samples_is_larger(self):
        values = np.random.default_rng(0).uniform(-0.2, 0.1, 60)
        history, y = with_margins(values)
        flags = AreaUnderMargin(skip=0, threshold_aums=FAKE.tolist()).fit(None, y, history=history).flags_
        np.testing.assert_array_equal(flags, [sum(fake > v for fake in FAKE) > 0.01 * len(FAKE) for v in values])
        assert 0 < flags.sum() < 60

    @pytest.mark.parametrize(("rate", "ranking"), [(0.2, 0.9995), (0.4, 0.9983)])
    def test_6_digits(self, digits, rate, ranking):
        data, history = learnt(digits, rate)
        model = AreaUnderMargin().fit(None, data.y, history=history)
        assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(ranking, abs=0.005)
        assert balanced_accuracy_score(data.wrong, model.flags_) > 0.95


class TestTraps:
    def test_margins_are_of_logits_not_of_probabilities(self):
        """Far above 0 and far below, margins of probabilities are all alike."""
        history, y = with_margins([-20, -10, 10, 20])
        np.testing.assert_allclose(AreaUnderMargin(skip=0).fit(None, y, history=history).scores_, [20, 10, -10, -20])

    def test_seen_in_training_not_after_it(self):
        seen, after, y = random_record()
        scores = AreaUnderMargin().fit(None, y, history=History.of_logits(seen, after)).scores_
        np.testing.assert_array_equal(scores, AreaUnderMargin().fit(None, y, history=History.of_logits(seen)).scores_)
        assert not np.allclose(scores, AreaUnderMargin().fit(None, y, history=History.of_logits(after)).scores_)

    def test_the_first_epoch_is_skipped(self):
        seen, _, y = random_record()
        scores = AreaUnderMargin().fit(None, y, history=History.of_logits(seen)).scores_
        seen[0] *= -5
        np.testing.assert_array_equal(AreaUnderMargin().fit(None, y, history=History.of_logits(seen)).scores_, scores)
        seen[1] *= -5
        assert not np.allclose(AreaUnderMargin().fit(None, y, history=History.of_logits(seen)).scores_, scores)

    def test_late_margins_of_memorised_labels_spoil_it(self):
        """The truth leads for five epochs, then the given label for twenty, as after a drop of the learning rate."""
        rng = np.random.default_rng(0)
        truth, y = rng.integers(0, 4, (2, 300))
        early, late = np.eye(4)[truth], np.eye(4)[y]
        seen = 3 * np.stack([early] * 5 + [late] * 20) + rng.normal(size=(25, 300, 4))
        history, wrong = History.of_logits(seen), y != truth
        whole, stopped = (AreaUnderMargin(stop=stop).fit(None, y, history=history) for stop in (None, 5))
        assert not whole.flags_.any()
        np.testing.assert_array_equal(stopped.flags_, wrong)
        assert roc_auc_score(wrong, stopped.scores_) > roc_auc_score(wrong, whole.scores_)
        assert stopped.info_["epochs"] == [1, 5]


@pytest.mark.parametrize(("skip", "stop"), [(0, None), (1, None), (2, 5), (5, 6)])
def test_agrees_with_loops(skip, stop):
    seen, after, y = random_record()
    model = AreaUnderMargin(skip=skip, stop=stop).fit(None, y, history=History.of_logits(seen, after))
    for n, label in enumerate(y):
        margins = []
        for epoch in range(skip, stop or 6):
            z = seen[epoch, n].tolist()
            own = z.pop(label)
            margins.append(own - max(z))
        assert model.scores_[n] == pytest.approx(-sum(margins) / len(margins))
        assert model.flags_[n] == (sum(margins) < 0)


def test_figures_of_the_decision():
    seen, _, y = random_record()
    model = AreaUnderMargin().fit(None, y, history=History.of_logits(seen))
    margins = History.of_logits(seen).margins(y)
    np.testing.assert_allclose(model.info_["margins"]["flagged"], margins[:, model.flags_].mean(axis=1))
    np.testing.assert_allclose(model.info_["margins"]["kept"], margins[:, ~model.flags_].mean(axis=1))
    history, y = with_margins([1, 2])
    assert AreaUnderMargin(skip=0).fit(None, y, history=history).info_["margins"]["flagged"] is None


def test_finds_planted_noise(blobs):
    model = AreaUnderMargin().fit(None, blobs.y, history=train_quick_head(blobs.X, blobs.y, 4))
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.97
    assert model.flags_[blobs.wrong].mean() > 0.9
    assert model.flags_[blobs.clean].mean() < 0.05
    assert not hasattr(model, "suggestions_")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20))
def test_row_order_shifts_and_scale(seed, scale):
    seen, _, y = random_record(seed)
    rng = np.random.default_rng(seed)
    model = AreaUnderMargin().fit(None, y, history=History.of_logits(seen))
    order = rng.permutation(len(y))
    moved = AreaUnderMargin().fit(None, y[order], history=History.of_logits(seen[:, order]))
    np.testing.assert_array_equal(moved.scores_, model.scores_[order])
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    shifted = scale * seen + rng.normal(size=(6, 40, 1))
    scaled = AreaUnderMargin().fit(None, y, history=History.of_logits(shifted)).scores_
    np.testing.assert_allclose(scaled, scale * model.scores_, atol=1e-9 * scale)
    names = rng.permutation(4)
    renamed = AreaUnderMargin().fit(None, names[y], history=History.of_logits(seen[..., np.argsort(names)]))
    np.testing.assert_allclose(renamed.scores_, model.scores_, atol=1e-12)


def test_logits_that_are_all_equal_accuse_nobody():
    model = AreaUnderMargin().fit(None, np.array([0, 1, 1]), history=History.of_logits(np.ones((3, 3, 2))))
    np.testing.assert_array_equal(model.scores_, 0)
    assert not model.flags_.any()


def test_half_precision_a_missing_class_and_a_class_of_one():
    seen, _, y = random_record(n_classes=6)
    y = np.where(y == 2, 3, y)
    y[:2] = 5, 0
    exact = History.of_logits(seen)
    half = History(exact.seen.astype(np.float16), exact.after.astype(np.float16))
    scores = AreaUnderMargin().fit(None, y, history=exact).scores_
    np.testing.assert_allclose(AreaUnderMargin().fit(None, y, history=half).scores_, scores, atol=0.01)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"skip": 6}, "skip must leave one of 6 epochs or more, got 6"),
        ({"skip": -1}, "skip must leave one"),
        ({"skip": 3, "stop": 3}, "skip must leave one of 3 epochs"),
        ({"stop": 7}, "stop must be one of the 6 recorded epochs, got 7"),
        ({"stop": 0}, "stop must be one"),
        ({"threshold_aums": []}, "threshold_aums must be finite numbers, at least one"),
        ({"threshold_aums": [0.1, np.nan]}, "threshold_aums must be finite"),
        ({"threshold_aums": 0.1}, "threshold_aums must be finite"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    seen, _, y = random_record()
    with pytest.raises(InputError, match=message):
        AreaUnderMargin(**parameters).fit(None, y, history=History.of_logits(seen))


def test_a_record_of_other_data(blobs):
    seen, _, y = random_record()
    history = History.of_logits(seen)
    with pytest.raises(InputError, match="the history has 4 classes, the labels need 5"):
        AreaUnderMargin().fit(None, np.where(y == 3, 4, y), history=history)
    with pytest.raises(InputError, match="labels 39, history 40"):
        AreaUnderMargin().fit(None, y[1:], history=history)
    with pytest.raises(MissingEvidence, match="aum needs history"):
        AreaUnderMargin().fit(blobs.X, blobs.y)
