"""The record of a training: what it accepts, what it says, and the quick head that makes one."""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.runs import History, log_softmax, recorded, train_quick_head


def make_logits(epochs=4, n=30, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(epochs, n, n_classes)), rng.integers(0, n_classes, n)


def make_blobs(n=300, dim=6, seed=0):
    """Three separable classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return 4 * np.eye(dim)[y] + 0.3 * rng.normal(size=(n, dim)), y


@cache
def flipped_digits(rate):
    X, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(truth)) < rate
    y = np.where(wrong, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
    return SimpleNamespace(X=X, y=y, wrong=wrong, truth=truth)


class TestHistory:
    @pytest.mark.parametrize(
        ("seen", "after"),
        [((3, 4), (3, 4)), ((2, 3, 4), (2, 3, 5)), ((2, 3, 4), (1, 3, 4)), ((0, 3, 4), (0, 3, 4)), ((2, 3, 0),) * 2],
    )
    def test_shapes_that_do_not_fit(self, seen, after):
        with pytest.raises(InputError, match=r"two \(E, N, C\) arrays of one shape"):
            History(np.zeros(seen) - 1, np.zeros(after) - 1)

    @pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
    @pytest.mark.parametrize("name", ["seen", "after"])
    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_values_that_are_no_numbers_are_named(self, name, bad, dtype):
        arrays = {"seen": np.full((3, 8, 2), -0.7, dtype), "after": np.full((3, 8, 2), -0.7, dtype)}
        arrays[name][2, 5:7, 1] = bad
        with pytest.raises(InputError, match=rf"{name}, epoch 2: row 5 holds NaN or infinity \(2 rows do\)"):
            History(**arrays)

    def test_logits_in_place_of_log_probabilities(self):
        logits, _ = make_logits()
        with pytest.raises(InputError, match=r"seen, epoch 0 holds .*History\.of_logits"):
            History(logits, logits)

    def test_rounding_above_zero_is_no_fault(self):
        record = np.full((1, 3, 2), np.float16(1e-3))
        assert History(record, record).epochs == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_logits_that_are_no_numbers(self, bad):
        logits, _ = make_logits()
        logits[1, 3, 0] = bad
        with pytest.raises(InputError, match="epoch 1: row 3 holds NaN or infinity"):
            History.of_logits(logits)

    def test_of_logits_agrees_with_loops(self):
        seen, _ = make_logits()
        after, _ = make_logits(seed=1)
        history = History.of_logits(seen, after)
        for ours, logits in ((history.seen, seen), (history.after, after)):
            for e, n in np.ndindex(logits.shape[:2]):
                total = sum(math.exp(z) for z in logits[e, n])
                np.testing.assert_allclose(ours[e, n], [math.log(math.exp(z) / total) for z in logits[e, n]])

    def test_of_logits_without_a_second_record(self):
        seen, _ = make_logits()
        history = History.of_logits(seen)
        assert history.after is history.seen
        assert history.epochs == 4

    def test_log_softmax_does_not_overflow(self):
        np.testing.assert_allclose(log_softmax(np.array([1e4, 0.0, -1e4])), [0, -1e4, -2e4])
        np.testing.assert_allclose(log_softmax(np.full((2, 4), 1e300)), -math.log(4))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_losses_and_margins_agree_with_loops(self, dtype):
        seen, y = make_logits()
        after, _ = make_logits(seed=1)
        history = History(log_softmax(seen).astype(dtype), log_softmax(after).astype(dtype))
        losses, margins = history.losses(y), history.margins(y)
        assert losses.dtype == margins.dtype == np.float64
        assert losses.shape == margins.shape == (4, 30)
        tolerance = {np.float16: 0.02, np.float32: 1e-5, np.float64: 1e-12}[dtype]
        for e, n in np.ndindex(4, 30):
            total = sum(math.exp(z) for z in after[e, n])
            assert losses[e, n] == pytest.approx(-math.log(math.exp(after[e, n, y[n]]) / total), abs=tolerance)
            best_other = max(z for c, z in enumerate(seen[e, n]) if c != y[n])
            assert margins[e, n] == pytest.approx(seen[e, n, y[n]] - best_other, abs=tolerance)

    def test_margins_leave_the_record_as_it_was(self):
        seen, y = make_logits()
        history = History.of_logits(seen)
        before = history.seen.copy()
        history.margins(y)
        np.testing.assert_array_equal(history.seen, before)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.floats(-50, 50))
    def test_a_shift_of_a_samples_logits_says_nothing(self, seed, shift):
        logits, y = make_logits(seed=seed)
        moved = logits + shift * np.random.default_rng(seed).normal(size=(4, 30, 1))
        one, other = History.of_logits(logits), History.of_logits(moved)
        np.testing.assert_allclose(one.losses(y), other.losses(y), atol=1e-10)
        np.testing.assert_allclose(one.margins(y), other.margins(y), atol=1e-10)

    def test_first_epochs(self):
        seen, _ = make_logits()
        history = History.of_logits(seen)
        assert history.first(None, "aum") is history
        assert history.first(4, "aum") is history
        short = history.first(2, "aum")
        np.testing.assert_array_equal(short.seen, history.seen[:2])
        np.testing.assert_array_equal(short.after, history.after[:2])
        for stop in (0, -1, 5):
            with pytest.raises(InputError, match=f"aum: stop must be one of the 4 recorded epochs, got {stop}"):
                history.first(stop, "aum")

    def test_what_a_detector_is_given(self):
        seen, _ = make_logits()
        history = History.of_logits(seen)
        assert recorded(history, "aum") is history
        assert recorded(history, "aum", stop=3).epochs == 3
        with pytest.raises(MissingEvidence, match=r"aum needs history, which is not there; .*train_quick_head"):
            recorded(None, "aum")
        with pytest.raises(InputError, match="aum: the history has one class only"):
            recorded(History.of_logits(seen[..., :1]), "aum")


class TestQuickHead:
    def test_learns_separable_classes(self):
        X, y = make_blobs()
        history = train_quick_head(X, y, 3)
        assert (history.after[-1].argmax(axis=1) == y).mean() > 0.99
        losses = history.losses(y).mean(axis=1)
        assert losses[-1] < 0.05 < 0.3 < -history.seen[0, np.arange(300), y].mean()

    def test_every_full_step_of_plain_descent_lowers_the_loss(self):
        """A wrong gradient would not."""
        X, y = flipped_digits(0.4).X[:200], flipped_digits(0.4).y[:200]
        history = train_quick_head(X, y, 10, batch=200, epochs=30, dropout=0, momentum=0, learning_rate=0.05)
        losses = history.losses(y).mean(axis=1)
        assert (np.diff(losses) < 0).all()
        assert losses[-1] < losses[0] - 0.3

    def test_two_steps_agree_with_finite_differences(self):
        X, y = make_blobs(60, dim=3)
        Z = (X - X.mean(axis=0)) / X.std(axis=0)
        rng = np.random.default_rng(5)
        shapes = [(3, 4), (4,), (4, 3), (3,)]
        drawn = [rng.normal(size=(3, 4)) * math.sqrt(2 / 3), np.zeros(4), rng.normal(size=(4, 3)) / 2, np.zeros(3)]
        flat = np.concatenate([part.ravel() for part in drawn])

        def log_probs(weights):
            W1, b1, W2, b2 = (
                part.reshape(shape) for part, shape in zip(np.split(weights, [12, 16, 28]), shapes, strict=True)
            )
            return log_softmax(np.maximum(Z @ W1 + b1, 0) @ W2 + b2)

        def loss(weights):
            return -log_probs(weights)[np.arange(60), y].mean()

        history = train_quick_head(
            X, y, 3, hidden=4, batch=60, epochs=2, dropout=0, momentum=0.9, learning_rate=0.2, seed=5
        )
        np.testing.assert_allclose(history.seen[0], log_probs(flat), atol=2e-3)
        speed = np.zeros(31)
        for step, rate in enumerate((0.2, 0.1)):  # half a cosine over two steps
            slope = [(loss(flat + 1e-6 * e) - loss(flat - 1e-6 * e)) / 2e-6 for e in np.eye(31)]
            speed = 0.9 * speed + slope
            flat = flat - rate * speed
            np.testing.assert_allclose(history.after[step], log_probs(flat), atol=2e-3)

    def test_seen_is_before_the_step_and_after_is_after_it(self):
        """With one step an epoch and nothing silenced, what is seen is what was said after the last epoch."""
        X, y = make_blobs()
        history = train_quick_head(X, y, 3, batch=300, epochs=5, dropout=0)
        np.testing.assert_allclose(history.seen[1:], history.after[:-1], atol=2e-3)
        assert np.abs(history.seen[1:].astype(float) - history.after[1:]).max() > 0.05

    def test_dropout_is_on_in_training_only(self):
        X, y = make_blobs()
        history = train_quick_head(X, y, 3, batch=300, epochs=3, dropout=0.5, learning_rate=0)
        np.testing.assert_array_equal(history.after[0], history.after[2])
        assert np.abs(history.seen[0].astype(float) - history.seen[1]).mean() > 0.1
        # the units that stay are scaled up, so that the mean stays
        many = train_quick_head(X, y, 3, batch=300, epochs=60, dropout=0.2, learning_rate=0)
        centred = [
            half.astype(float) - half.astype(float).mean(axis=-1, keepdims=True) for half in (many.seen, many.after)
        ]
        slope = np.polyfit(centred[1][0].ravel(), centred[0].mean(axis=0).ravel(), 1)[0]
        assert slope == pytest.approx(1, abs=0.1)

    def test_same_seed_same_bits(self):
        X, y = make_blobs()
        one, same, other = (train_quick_head(X, y, 3, epochs=3, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.seen, same.seen)
        np.testing.assert_array_equal(one.after, same.after)
        assert not np.array_equal(one.seen, other.seen)
        assert not np.array_equal(one.after, other.after)

    def test_precision_of_the_features_does_not_matter_and_they_stay(self):
        X, y = make_blobs()
        single = X.astype(np.float32)
        before = single.copy()
        one = train_quick_head(single, y, 3, epochs=2)
        np.testing.assert_array_equal(single, before)
        np.testing.assert_array_equal(one.after, train_quick_head(single.astype(float), y, 3, epochs=2).after)

    @pytest.mark.parametrize(("n", "batch"), [(300, 128), (50, 128), (129, 128), (2, 1)])
    def test_shape_of_the_record(self, n, batch):
        X, y = make_blobs(n)
        y[:2] = 0, 1
        history = train_quick_head(X, y, 4, epochs=3, batch=batch)
        for record in (history.seen, history.after):
            assert record.shape == (3, n, 4)
            assert record.dtype == np.float16
            np.testing.assert_allclose(np.exp(record.astype(float)).sum(axis=2), 1, atol=4e-3)

    def test_a_class_nobody_carries_is_given_up(self):
        X, y = make_blobs()
        history = train_quick_head(X, 2 * y, 5)
        assert history.after[-1][:, [1, 3]].max() < -4

    def test_progress(self):
        X, y = make_blobs()
        shares = []
        train_quick_head(X, y, 3, epochs=4, progress=shares.append)
        assert shares == [0.25, 0.5, 0.75, 1.0]

    def test_scale_and_place_of_the_features_do_not_matter(self):
        X, y = make_blobs()
        one, other = train_quick_head(X, y, 3, epochs=3), train_quick_head(1e4 * X - 3e5, y, 3, epochs=3)
        np.testing.assert_allclose(one.after, other.after, atol=0.02)

    def test_constant_features_teach_the_shares_of_the_classes(self):
        y = np.repeat([0, 1, 2], [200, 60, 40])
        X = np.full((300, 5), 1e6) / 3
        p = np.exp(train_quick_head(X, y, 3).after[-1].astype(float))
        np.testing.assert_allclose(p, np.tile([2 / 3, 0.2, 2 / 15], (300, 1)), atol=0.06)

    @pytest.mark.parametrize("kind", ["wide", "sparse"])
    def test_wide_rows_and_rare_large_values_do_not_make_it_overshoot(self, kind):
        """Otherwise losses pass 50, and wrong labels are found with an AUROC of .81."""
        data = flipped_digits(0.4)
        rng = np.random.default_rng(1)
        X, y, wrong = data.X[:600], data.y[:600], data.wrong[:600]
        if kind == "wide":
            X = np.maximum(X / 16 @ rng.normal(size=(64, 600)), 0)
        else:
            X = np.hstack([X, 300.0 * (rng.random((600, 100)) < 0.003)])
        history = train_quick_head(X, y, 10, epochs=10, batch=16)
        losses = history.losses(y)
        assert losses[2:].max() < 12
        assert (np.diff(losses.mean(axis=1)) < 0.05).all()
        assert roc_auc_score(wrong, losses[-1]) > 0.92

    @pytest.mark.parametrize(("rate", "sheet"), [(0.2, 0.997), (0.4, 0.994)])
    def test_flipped_digits_have_the_larger_losses(self, rate, sheet):
        """The sheet's .997 and .994 are of epoch 10, before the network memorises; the quick head never gets there."""
        data = flipped_digits(rate)
        history = train_quick_head(data.X, data.y, 10)
        losses = history.losses(data.y)
        assert roc_auc_score(data.wrong, losses[-1]) == pytest.approx(sheet, abs=0.01)
        assert losses[-1].mean() < losses[4].mean() < losses[0].mean()
        assert losses[-1][~data.wrong].mean() < 1 < 2 < losses[-1][data.wrong].mean()
        assert (history.after[-1].argmax(axis=1) == data.truth).mean() > 0.93, "it learns the truth, not the labels"

    def test_one_class_alone(self):
        with pytest.raises(InputError, match="only one class"):
            train_quick_head(np.eye(6), np.ones(6, int), 3)

    @pytest.mark.parametrize("y", [[0, 1, 3], [0, -1, 1], [0, 1]])
    def test_labels_that_do_not_fit(self, y):
        with pytest.raises(InputError, match=r"labels must be \(3,\) whole numbers from 0 to 2"):
            train_quick_head(np.eye(3), np.array(y), 3)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_features_not_finite(self, bad):
        X, y = make_blobs()
        X[17:19, 2] = bad
        with pytest.raises(InputError, match=r"row 17 holds NaN or infinity \(2 rows do\)"):
            train_quick_head(X, y, 3)

    def test_features_too_large(self):
        X, y = make_blobs()
        with pytest.raises(InputError, match="too large to square"):
            train_quick_head(X * 1e300, y, 3)

    def test_a_training_that_diverges_says_so(self):
        X, y = make_blobs()
        with np.errstate(all="ignore"), pytest.raises(InputError, match="diverged: lower its learning rate"):
            train_quick_head(X, y, 3, learning_rate=1e6)
