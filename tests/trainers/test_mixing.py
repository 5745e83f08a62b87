"""What mixing trainers share: the numbers of the PLS and LSA sheets, loops, limits, hard cases."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chaffinch.trainers.mixing import (
    Mix,
    balance_penalty,
    draw_mix,
    mixed_ce,
    same_class,
    sharpen,
    targeted_contrast,
    weighted_ce,
)

FEATURES = torch.tensor([(1, 0), (0.8, 0.6), (0.6, 0.8), (0, 1)])
FADED = torch.tensor([[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 0.5, 0], [0, 0, 0, 0.68]])
CLASSES = torch.tensor([0, 0, 0, 1])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(b=6, c=4, seed=0):
    """Logits, soft targets, weights, a mix."""
    g = rng(seed)
    logits, targets = 3 * torch.randn(b, c, generator=g), torch.rand(b, c, generator=g).softmax(1)
    return logits, targets, torch.rand(b, generator=g), Mix(0.7, torch.randperm(b, generator=g))


def ce_in_loops(logits, target):
    """Cross-entropy of one sample."""
    z = [float(v) for v in logits]
    log_sum = math.log(sum(math.exp(v) for v in z))
    return -sum(float(t) * (v - log_sum) for t, v in zip(target, z, strict=True))


class TestDraw:
    def test_lsa_6_mean_of_the_larger_lambda(self):
        """E[max(lambda, 1 - lambda)] = 0.75 for Beta(1, 1)."""
        g = rng()
        assert np.mean([draw_mix(2, 1.0, g).lam for _ in range(4000)]) == pytest.approx(0.75, abs=0.01)

    def test_lambda_itself(self):
        g = rng()
        lams = [draw_mix(2, 4.0, g, larger=False).lam for _ in range(2000)]
        assert np.mean(lams) == pytest.approx(0.5, abs=0.01)
        assert np.var(lams) == pytest.approx(1 / 36, rel=0.1)
        assert min(lams) < 0.5 < max(lams)
        assert all(draw_mix(2, 4.0, g).lam >= 0.5 for _ in range(50))

    def test_order_is_a_permutation_and_differs(self):
        g = rng()
        orders = [draw_mix(8, 1.0, g).order for _ in range(5)]
        assert all(sorted(order.tolist()) == list(range(8)) for order in orders)
        assert len({tuple(order.tolist()) for order in orders}) == 5

    def test_generator_decides_alone(self):
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        one, two, other = draw_mix(8, 1.0, rng(1)), draw_mix(8, 1.0, rng(1)), draw_mix(8, 1.0, rng(2))
        assert one.lam == two.lam != other.lam
        assert torch.equal(one.order, two.order)
        assert torch.equal(torch.get_rng_state(), torch_before)
        assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002

    def test_alpha_zero_mixes_nothing(self):
        mix, x = draw_mix(5, 0.0, rng()), torch.rand(5, 1, 3, 3)
        assert mix.lam == 1
        assert torch.equal(mix(x), x)

    def test_mixture(self):
        x = torch.rand(3, 2, 4, 4, generator=rng())
        mixed = Mix(0.7, torch.tensor([1, 2, 0]))(x)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            torch.testing.assert_close(mixed[i], 0.7 * x[i] + 0.3 * x[j])


class TestCrossEntropy:
    def test_pls_6_weighted_mixup(self):
        logits, targets = torch.tensor([[2.0, 0], [0, 1]]), torch.eye(2)
        found = mixed_ce(logits, targets, torch.tensor([1, 0.25]), Mix(0.7, torch.tensor([1, 0])))
        assert found.item() == pytest.approx(0.557735, abs=1e-6)

    def test_loops(self):
        logits, targets, weights, mix = rows()
        own = sum(w * ce_in_loops(z, t) for z, t, w in zip(logits, targets, weights, strict=True)) / weights.sum()
        assert weighted_ce(logits, targets, weights).item() == pytest.approx(own.item(), abs=1e-5)
        partner = sum(weights[o] * ce_in_loops(logits[i], targets[o]) for i, o in enumerate(mix.order))
        expected = 0.7 * own + 0.3 * partner / weights.sum()
        assert mixed_ce(logits, targets, weights, mix).item() == pytest.approx(expected.item(), abs=1e-5)

    def test_equal_weights_are_the_mean(self):
        logits, targets, weights, mix = rows()
        for w in (1.0, 0.3):
            found = weighted_ce(logits, targets, torch.full_like(weights, w))
            torch.testing.assert_close(found, F.cross_entropy(logits, targets))
        soft = 0.7 * targets + 0.3 * targets[mix.order]
        found = mixed_ce(logits, targets, torch.ones_like(weights), mix)
        torch.testing.assert_close(found, F.cross_entropy(logits, soft))

    def test_a_weight_of_zero_leaves_a_sample_out(self):
        logits, targets, weights, _ = rows()
        weights[2] = 0
        left = [0, 1, 3, 4, 5]
        torch.testing.assert_close(
            weighted_ce(logits, targets, weights), weighted_ce(logits[left], targets[left], weights[left])
        )

    def test_no_weight_at_all_is_0_and_so_is_its_gradient(self):
        logits, targets, weights, mix = rows()
        logits.requires_grad_()
        total = mixed_ce(logits, targets, torch.zeros_like(weights), mix)
        total.backward()
        assert total == 0
        assert (logits.grad == 0).all()

    def test_a_gap_of_200_is_finite(self):
        """log(softmax) of the released code gives NaN here."""
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
        total = mixed_ce(logits, torch.eye(2).flip(0), torch.ones(2), Mix(1.0, torch.arange(2)))
        total.backward()
        assert total.item() == pytest.approx(200)
        assert torch.isfinite(logits.grad).all()

    def test_half_precision_logits_are_widened(self):
        logits, targets, weights, mix = rows()
        assert mixed_ce(logits.bfloat16(), targets, weights, mix).dtype == torch.float32


class TestGuess:
    def test_pls_4_sharpen_and_pseudo_loss(self):
        p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
        q = sharpen(p, 2.0)
        np.testing.assert_allclose(q[0], [36 / 46, 9 / 46, 1 / 46], atol=1e-12)
        np.testing.assert_allclose(q[0], [0.7826, 0.1957, 0.0217], atol=5e-5)
        assert -(q * p.log()).sum().item() == pytest.approx(0.68539, abs=5e-6)

    def test_sharpen_limits(self):
        p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
        torch.testing.assert_close(sharpen(p, 1.0), p)
        torch.testing.assert_close(sharpen(p, 0.0), torch.full((2, 3), 1 / 3))
        torch.testing.assert_close(sharpen(p, 1e4), torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
        torch.testing.assert_close(sharpen(torch.full((1, 100), 0.01), 50.0), torch.full((1, 100), 0.01))

    def test_sharpen_loops(self):
        p = torch.rand(5, 4, generator=rng()).softmax(1)
        for row, q in zip(p, sharpen(p, 2.5), strict=True):
            powers = [float(v) ** 2.5 for v in row]
            np.testing.assert_allclose(q, [v / sum(powers) for v in powers], rtol=1e-5)


class TestBalance:
    def test_pls_5(self):
        logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
        assert balance_penalty(logits).item() == pytest.approx(0.324287, abs=1e-6)
        assert balance_penalty(torch.zeros(4, 3)).item() == pytest.approx(0, abs=1e-6)

    def test_loops(self):
        logits = 2 * torch.randn(5, 3, generator=rng())
        mean = [sum(float(row.softmax(0)[c]) for row in logits) / 5 for c in range(3)]
        expected = sum(1 / 3 * math.log((1 / 3) / m) for m in mean)
        assert balance_penalty(logits).item() == pytest.approx(expected, abs=1e-5)

    def test_only_the_mean_counts(self):
        """Every class once, surely, is as balanced as uniform."""
        assert balance_penalty(50 * torch.eye(3)).item() == pytest.approx(0, abs=1e-5)

    def test_one_class_alone_is_finite(self):
        logits = torch.tensor([[300.0, 0, 0]] * 4, requires_grad=True)
        balance_penalty(logits).backward()
        assert torch.isfinite(logits.grad).all()


class TestContrast:
    @pytest.mark.parametrize(
        ("targets", "by_row", "mean"),
        [
            (FADED, (1.2121, 1.2824, 1.5757, 0.4121), 1.1206),
            (same_class(CLASSES, CLASSES), (1.4121, 1.2424, 1.5757, 0.4121), 1.1606),
        ],
        ids=["pls", "lsa"],
    )
    def test_pls_2(self, targets, by_row, mean):
        assert targeted_contrast(FEATURES, FEATURES, targets, 0.2).item() == pytest.approx(mean, abs=5e-5)
        for i, value in enumerate(by_row):
            alone = torch.zeros(4, 4)
            alone[i] = targets[i]
            assert 4 * targeted_contrast(FEATURES, FEATURES, alone, 0.2).item() == pytest.approx(value, abs=6e-5)

    def test_pls_3_limits(self):
        g = rng()
        a, k = torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g)
        similarity = F.normalize(a) @ F.normalize(k).T / 0.2
        torch.testing.assert_close(
            targeted_contrast(a, k, torch.eye(6), 0.2), F.cross_entropy(similarity, torch.arange(6))
        )

    def test_loops(self):
        g = rng(3)
        a, k, t = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g), torch.rand(5, 5, generator=g)
        total = 0.0
        for i in range(5):
            cosines = [float(a[i] @ k[j] / a[i].norm() / k[j].norm()) / 0.3 for j in range(5)]
            log_sum = math.log(sum(math.exp(c) for c in cosines))
            total += sum(-float(t[i, j]) * (cosines[j] - log_sum) for j in range(5)) / float(t[i].sum()) / 5
        assert targeted_contrast(a, k, t, 0.3).item() == pytest.approx(total, abs=1e-5)

    def test_gradient_flows_through_both_views(self):
        g = rng()
        a, k = torch.randn(4, 3, generator=g).requires_grad_(), torch.randn(4, 3, generator=g).requires_grad_()
        targeted_contrast(a, k, FADED, 0.2).backward()
        assert (a.grad.abs().sum(1) > 0).all()
        assert (k.grad.abs().sum(1) > 0).all()

    def test_lengths_do_not_matter(self):
        g = rng()
        a, k = torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g)
        torch.testing.assert_close(targeted_contrast(5 * a, k / 7, FADED, 0.2), targeted_contrast(a, k, FADED, 0.2))

    def test_zero_rows(self):
        """A row of targets that is zero counts 0; a zero vector has a finite gradient."""
        assert targeted_contrast(FEATURES, FEATURES, torch.zeros(4, 4), 0.2) == 0
        a = torch.zeros(4, 2, requires_grad=True)
        targeted_contrast(a, FEATURES, FADED, 0.2).backward()
        assert torch.isfinite(a.grad).all()


def test_same_class():
    found = same_class(torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    assert found.tolist() == [[1, 1, 0], [0, 0, 1]]
