"""Small loss: the sheet's digits and its trap, the rule in loops, invariances, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.mixture import fit_mixture
from chaffinch.detectors.base import cut
from chaffinch.detectors.small_loss import SmallLoss


def with_losses(losses):
    """Two-class probabilities and labels that have these losses."""
    p = np.exp(-np.asarray(losses, float))
    return np.zeros(len(p), int), np.column_stack([p, 1 - p])


def two_humps(n=600, seed=0):
    rng = np.random.default_rng(seed)
    high = rng.random(n) < 0.3
    return np.abs(np.where(high, rng.normal(2.5, 0.4, n), rng.normal(0.3, 0.1, n))), high


# The sheet's .974 / .964 are of a network's losses at epoch 10; ours are of the linear probe.
@pytest.mark.parametrize(("rate", "ranking", "balanced"), [(0.2, 0.9978, 0.974), (0.4, 0.9937, 0.964)])
def test_digits_of_the_sheet(digits, rate, ranking, balanced):
    data = digits(rate)
    model = SmallLoss().fit(data.X, data.y)
    assert roc_auc_score(data.wrong, model.scores_) == pytest.approx(ranking, abs=0.01)
    assert balanced_accuracy_score(data.wrong, model.flags_) == pytest.approx(balanced, abs=0.01)


def test_agrees_with_loops():
    losses, _ = two_humps()
    y, p = with_losses(losses)
    model = SmallLoss().fit(None, y, pred_probs=p)
    np.testing.assert_allclose(model.scores_, [-math.log(row[label]) for row, label in zip(p, y, strict=True)])
    mixture = fit_mixture(model.scores_)
    (m0, m1), (s0, s1), (w0, w1) = mixture.means, mixture.sds, mixture.weights
    flags = []
    for loss in model.scores_:
        x = min(max((loss - mixture.low) / (mixture.high - mixture.low), 0), 1)
        low = w0 / s0 * math.exp(-(((x - m0) / s0) ** 2) / 2)
        high = w1 / s1 * math.exp(-(((x - m1) / s1) ** 2) / 2)
        flags.append(x > m0 and high > low)
    np.testing.assert_array_equal(model.flags_, flags)


def test_finds_the_higher_hump():
    losses, high = two_humps()
    y, p = with_losses(losses)
    model = SmallLoss().fit(None, y, pred_probs=p)
    np.testing.assert_array_equal(model.flags_, high)
    assert model.info_["means"] == pytest.approx([losses[~high].mean(), losses[high].mean()], rel=0.03)
    assert model.info_["weights"] == pytest.approx([1 - high.mean(), high.mean()], abs=0.02)
    assert model.info_["threshold"] == pytest.approx(losses[high].min())


def test_the_smallest_losses_are_never_flagged():
    """The sheet's trap: with a wide high component the posterior rises again below the lower mean."""
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(3, 0.1, 1500), rng.normal(4.5, 1, 300).clip(0.5), [0.01, 0.02]])
    y, p = with_losses(losses)
    model = SmallLoss().fit(None, y, pred_probs=p)
    assert fit_mixture(losses).posterior(losses)[-2:].min() > 0.9, "the trap is set"
    assert model.flags_.any()
    assert not model.flags_[-2:].any()
    assert losses[model.flags_].min() > losses[~model.flags_].max()


def test_the_largest_losses_of_an_overlapping_mixture_are_flagged():
    """Where the high component is wide its mean may itself be undecided; its tail is not."""
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(1, 0.15, 1900), rng.normal(1.3, 0.8, 100).clip(0.01), [5.0]])
    y, p = with_losses(losses)
    assert SmallLoss(threshold=0.99).fit(None, y, pred_probs=p).flags_[-1]


def test_finds_planted_noise(blobs):
    model = SmallLoss().fit(None, blobs.y, pred_probs=blobs.p)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.98
    assert model.flags_[blobs.wrong].mean() > 0.9
    assert model.flags_[blobs.clean].mean() < 0.1
    assert (model.suggestions_ == blobs.truth)[blobs.wrong].mean() > 0.9


def test_alone_uses_the_probe(blobs):
    alone = SmallLoss().fit(blobs.X, blobs.y)
    p = linear_probe(blobs.X, blobs.y, 4).pred_probs
    np.testing.assert_array_equal(alone.scores_, SmallLoss().fit(None, blobs.y, pred_probs=p).scores_)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_does_not_matter_and_flags_follow_the_loss(seed):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 3, 150), rng.dirichlet(np.full(3, 0.4), 150)
    model = SmallLoss().fit(None, y, pred_probs=p)
    again = SmallLoss().fit(None, y, pred_probs=p)
    np.testing.assert_array_equal(again.scores_, model.scores_)
    np.testing.assert_array_equal(again.flags_, model.flags_)
    order = rng.permutation(150)
    moved = SmallLoss().fit(None, y[order], pred_probs=p[order])
    np.testing.assert_array_equal(moved.scores_, model.scores_[order])
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    if model.flags_.any() and not model.flags_.all():
        assert model.scores_[model.flags_].min() > model.scores_[~model.flags_].max()
    stricter = SmallLoss(threshold=0.9).fit(None, y, pred_probs=p).flags_
    assert not (stricter & ~model.flags_).any()


def test_certain_and_impossible_labels_stay_finite():
    y = np.array([0, 0, 1, 1, 0])
    p = np.array([(1, 0), (0, 1), (0.5, 0.5), (0.0, 1.0), (0.9, 0.1)], float)
    scores = SmallLoss().fit(None, y, pred_probs=p).scores_
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[[0, 1, 2]], [0, -math.log(1e-12), math.log(2)], atol=1e-12)


def test_single_precision_probabilities_are_scored_in_double(blobs):
    assert SmallLoss().fit(None, blobs.y, pred_probs=blobs.p.astype(np.float32)).scores_.dtype == np.float64


def test_constant_losses():
    with pytest.raises(InputError, match=r"all 20 losses are equal \(0\.6931\)"):
        SmallLoss().fit(None, np.zeros(20, int), pred_probs=np.full((20, 2), 0.5))


def test_one_class_alone():
    with pytest.raises(InputError, match="only one class"):
        SmallLoss().fit(np.eye(6), np.zeros(6, int))


def test_features_not_finite(blobs):
    blobs.X[11, 0] = np.inf
    with pytest.raises(InputError, match="row 11"):
        SmallLoss().fit(blobs.X, blobs.y)


def test_probabilities_not_finite(blobs):
    blobs.p[5] = np.nan
    with pytest.raises(InputError, match=r"pred_probs: row 5 .*\(1 rows do\)"):
        SmallLoss().fit(None, blobs.y, pred_probs=blobs.p)


class TestCut:
    scores = np.array([0.3, 0.9, 0.1, 0.9, 0.5])
    own = np.array([False, True, False, True, False])

    def test_own_rule_is_the_default(self):
        np.testing.assert_array_equal(cut(self.scores, self.own), self.own)

    @pytest.mark.parametrize(("budget", "flagged"), [(0.0, []), (0.2, [1]), (0.4, [1, 3]), (0.6, [1, 3, 4])])
    def test_budget_takes_the_most_suspicious_ties_by_position(self, budget, flagged):
        np.testing.assert_array_equal(np.flatnonzero(cut(self.scores, self.own, budget=budget)), flagged)

    @pytest.mark.parametrize(("threshold", "flagged"), [(0.9, []), (0.5, [1, 3]), (0.2, [0, 1, 3, 4])])
    def test_threshold_is_exclusive(self, threshold, flagged):
        np.testing.assert_array_equal(np.flatnonzero(cut(self.scores, self.own, threshold=threshold)), flagged)

    @pytest.mark.parametrize("budget", [-0.01, 1.01, np.nan])
    def test_budget_out_of_range(self, budget):
        with pytest.raises(InputError, match="budget must be a share between 0 and 1, got"):
            cut(self.scores, self.own, budget=budget)

    @pytest.mark.parametrize("how", [{"budget": 1.0}, {"budget": 0.95}, {"threshold": 0.0}])
    def test_nothing_left(self, how):
        with pytest.raises(InputError, match="flags all 5 samples"):
            cut(self.scores, self.own, **how)

    def test_own_rule_that_flags_all(self):
        with pytest.raises(InputError, match="flags all 5 samples"):
            cut(self.scores, np.ones(5, bool))

    def test_method_of_a_fitted_detector(self, blobs):
        model = SmallLoss().fit(None, blobs.y, pred_probs=blobs.p)
        np.testing.assert_array_equal(model.flag(), model.flags_)
        assert model.flag(budget=0.1).sum() == 40
        np.testing.assert_array_equal(model.flag(threshold=1.0), model.scores_ > 1)
        with pytest.raises(InputError, match="flags all 400"):
            model.flag(threshold=-1.0)
