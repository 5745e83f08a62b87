"""The division after an epoch: both detectors in loops, the trust in guesses, and what cannot be divided."""

import math

import numpy as np
import pytest
import torch

from chaffinch.base.mixture import fit_mixture
from chaffinch.detectors.lsa import LinearSeparation
from chaffinch.trainers.dividing import DETECTORS, flagged_by, trust


def record(n=300, wrong=0.2, foreign=0.1, seed=0):
    """Logits (N, 3), given labels, features (N, 6), and the kinds: 0 clean, 1 mislabelled, 2 foreign."""
    rng = np.random.default_rng(seed)
    true, kind = rng.integers(0, 3, n), np.zeros(n, int)
    order = rng.permutation(n)
    kind[order[: int(wrong * n)]], kind[order[int(wrong * n) : int((wrong + foreign) * n)]] = 1, 2
    given = np.where(kind == 1, (true + 1) % 3, true)
    logits = rng.normal(0, 0.4, (n, 3)) + 3 * np.eye(3)[true] * (kind != 2)[:, None]
    features = rng.normal(0, 0.3, (n, 6)) + np.eye(6)[true] * 2
    features[kind == 2] = rng.normal(0, 0.3, (np.sum(kind == 2), 6)) + 2 * np.eye(6)[5]
    return torch.tensor(logits).float(), torch.tensor(given), torch.tensor(features).float(), kind


class TestSmallLoss:
    def test_loops(self):
        logits, y, _, kind = record()
        losses = []
        for z, label in zip(logits.double().tolist(), y.tolist(), strict=True):
            log_sum = math.log(sum(math.exp(v) for v in z))
            losses.append(log_sum - z[label])
        losses = np.array(losses)
        mixture = fit_mixture(losses)
        found = flagged_by("small-loss", logits, y, None, 0.9)
        np.testing.assert_allclose(found.scores, losses, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.flags, mixture.monotone_posterior(losses) > 0.9)
        assert found.detector == "small-loss"
        assert found.note == ""
        assert found.weights is found.targets is found.pseudo_losses is None
        assert found.flags.dtype == torch.bool
        assert found.flags[kind == 1].float().mean() > 0.9

    def test_the_given_label_counts(self):
        """Not the label that the network would guess."""
        logits, y, _, _ = record()
        before, other = flagged_by("small-loss", logits, y, None, 0.9), y.clone()
        i = int((y == logits.argmax(1)).nonzero()[0])
        other[i] = (y[i] + 1) % 3
        after = flagged_by("small-loss", logits, other, None, 0.9)
        assert after.scores[i] > before.scores[i] + 1
        assert torch.equal(after.scores[i + 1 :], before.scores[i + 1 :])

    def test_a_higher_threshold_flags_fewer(self):
        logits, y, _, _ = record()
        loose, strict = (flagged_by("small-loss", logits, y, None, t).flags for t in (0.5, 0.999))
        assert (strict <= loose).all()
        assert strict.sum() < loose.sum()

    def test_a_logit_gap_of_200_is_finite(self):
        logits, y, _, _ = record()
        found = flagged_by("small-loss", 60 * logits, y, None, 0.9)
        assert torch.isfinite(found.scores).all()


class TestLinear:
    def test_is_the_detector_on_these_losses(self):
        logits, y, features, kind = record(wrong=0, foreign=0.3)
        p = logits.softmax(1).double().numpy()
        expected = LinearSeparation(0.9).fit(features.numpy(), y.numpy(), pred_probs=p)
        found = flagged_by("lsa", logits, y, features, 0.9)
        np.testing.assert_array_equal(found.flags, expected.flags_)
        np.testing.assert_allclose(found.scores, expected.scores_, rtol=1e-4, atol=1e-4)
        assert found.detector == "lsa"
        assert found.flags[kind == 2].float().mean() > 0.9
        assert found.flags[kind == 0].float().mean() < 0.1

    def test_its_note_is_handed_on(self):
        logits, y, _, _ = record(n=60)
        features = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))  # any seeds can be separated there
        assert "cross-fitted" in flagged_by("lsa", logits, y, features, 0.9).note


@pytest.mark.parametrize("detector", DETECTORS)
class TestBoth:
    def test_rows_may_come_in_any_order(self, detector):
        logits, y, features, _ = record(n=150)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        one = flagged_by(detector, logits, y, features, 0.9)
        other = flagged_by(detector, logits[order], y[order], features[order], 0.9)
        agree = (other.flags == one.flags[order]).float().mean()
        assert agree == 1 if detector == "small-loss" else agree > 0.95  # folds are drawn by position

    def test_equal_losses_flag_nothing(self, detector):
        found = flagged_by(detector, torch.zeros(20, 3), torch.arange(20) % 3, torch.rand(20, 4), 0.9)
        assert not found.flags.any()
        assert found.flags.shape == (20,)
        assert found.scores is None
        assert "losses are equal" in found.note

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_nan_flags_nothing_and_says_so(self, detector, bad):
        logits, y, features, _ = record(n=40)
        logits[3, 0] = bad
        found = flagged_by(detector, logits, y, features, 0.9)
        assert not found.flags.any()
        assert "row 3" in found.note

    def test_a_class_without_samples(self, detector):
        logits, y, features, _ = record()
        found = flagged_by(detector, torch.cat([logits, torch.full((300, 1), -9.0)], 1), y, features, 0.9)
        assert 0 < found.flags.sum() < 300

    def test_one_class_only(self, detector):
        logits, _, features, kind = record(wrong=0.5)
        found = flagged_by(detector, logits, torch.zeros(300, dtype=torch.long), features, 0.9)
        assert found.flags.shape == (300,)


def test_a_class_that_is_lost_is_said():
    """The network does not believe in class 2 at all."""
    logits, y, _, _ = record(wrong=0, foreign=0)
    logits[:, 2] = -9
    found = flagged_by("small-loss", logits, y, None, 0.9)
    assert found.flags[y == 2].all()
    assert found.note == "small-loss flagged every sample of 1 class(es), the first being class 2"


def test_all_flagged_is_said(monkeypatch):
    class Everything:
        def __init__(self, threshold):
            pass

        def fit(self, X, y, pred_probs):
            self.flags_, self.scores_, self.info_ = np.ones(len(y), bool), np.ones(len(y)), {}

    monkeypatch.setattr("chaffinch.trainers.dividing.SmallLoss", Everything)
    found = flagged_by("small-loss", torch.zeros(5, 3), torch.zeros(5, dtype=torch.long), None, 0.9)
    assert found.flags.all()
    assert found.note == "small-loss flagged every sample"


class TestTrust:
    def test_pls_7(self):
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(0.25, 0.08, 700), rng.normal(0.75, 0.08, 300)]).clip(0, 1)
        losses, flags = torch.full((1500,), 0.01), torch.zeros(1500, dtype=torch.bool)
        flags[500:], losses[500:] = True, torch.tensor(values).float()
        w = trust(losses, flags)
        np.testing.assert_allclose(fit_mixture(values).means, [0.2623, 0.7809], atol=0.01)
        assert w[500:1200].mean().item() == pytest.approx(0.9996, abs=0.003)
        assert w[1200:].mean().item() == pytest.approx(0.0026, abs=0.003)
        assert (w[:500] == 1).all(), "samples that are not flagged get 1, not the posterior"

    def test_only_flagged_samples_are_fitted(self):
        """A thousand sure samples more would make every guess look bad."""
        rng = np.random.default_rng(1)
        values = torch.tensor(np.concatenate([rng.normal(0.4, 0.05, 60), rng.normal(0.8, 0.05, 40)])).float()
        flags = torch.ones(100, dtype=torch.bool)
        alone = trust(values, flags)
        more = trust(torch.cat([values, torch.rand(1000)]), torch.cat([flags, torch.zeros(1000, dtype=torch.bool)]))
        assert torch.equal(more[:100], alone)
        assert (alone > 0.5).sum() == 60

    def test_a_lower_pseudo_loss_is_never_trusted_less(self):
        losses = torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 3
        w = trust(losses, torch.ones(200, dtype=torch.bool))[losses.argsort()]
        assert (w.diff() <= 1e-6).all()
        assert 0 <= w.min() <= w.max() <= 1

    @pytest.mark.parametrize("flagged", [0, 1, 2])
    def test_two_or_fewer_are_trusted(self, flagged):
        w = trust(torch.tensor([0.1, 5.0, 0.2, 0.3]), torch.arange(4) < flagged)
        assert (w == 1).all()

    def test_three_are_enough(self):
        w = trust(torch.tensor([0.1, 5.0, 0.1, 0.3]), torch.tensor([True, True, True, False]))
        assert w[1] < 0.5 < w[0]
        assert w[3] == 1

    @pytest.mark.parametrize("values", [[1.0] * 5, [math.nan, 1, 2, 3, 4], [math.inf] * 5], ids=["equal", "nan", "inf"])
    def test_what_says_nothing_is_trusted(self, values):
        assert (trust(torch.tensor(values), torch.ones(5, dtype=torch.bool)) == 1).all()

    def test_infinite_is_the_largest_finite(self):
        flags = torch.ones(5, dtype=torch.bool)
        found = trust(torch.tensor([0.1, 0.2, 0.15, 3.0, math.inf]), flags)
        assert torch.equal(found, trust(torch.tensor([0.1, 0.2, 0.15, 3.0, 3.0]), flags))
        assert found[4] < 0.5

    def test_given_values_are_left_alone(self):
        losses = torch.tensor([0.1, 0.2, 0.15, 3.0, math.inf])
        trust(losses, torch.ones(5, dtype=torch.bool))
        assert losses[4] == math.inf
