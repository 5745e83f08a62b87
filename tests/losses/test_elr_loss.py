"""Early-learning regularisation: the numbers of its sheet, its targets, and that it keeps early decisions."""

import math
from functools import cache

import pytest
import torch
from classification_heads import (
    SHEET,
    TIGHT,
    P,
    assert_behaves,
    assert_survives_float32,
    batch_of,
    gradient,
    one,
    probabilities,
    tensor,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.ce import CrossEntropy
from chaffinch.losses.elr import EarlyLearningRegularisation

CE = (-0.214403, 0.175290, 0.039113)
G = (0.124014, -0.130188, 0.006174)


def built(samples=6, classes=4, **parameters):
    loss = EarlyLearningRegularisation(**parameters)
    loss.setup(Sizes(8, classes, classes, samples, (1, 4, 4)))
    return loss


def held(target, **parameters):
    """A loss that does not update its targets."""
    loss = built(*torch.tensor(target).shape, **parameters).eval().double()
    loss.target.copy_(tensor(target))
    return loss


def test_known_answer():
    batch, loss = one(SHEET, 0), held([[0.1, 0.8, 0.1]])
    out = loss(batch)
    assert out.total.item() == pytest.approx(-0.514488, abs=1e-6)
    assert out.parts["regulariser"] == pytest.approx(3 * -0.251933, abs=3e-6)
    assert out.parts["p_y"] == pytest.approx(P[0], abs=1e-6)
    slope = gradient(loss, batch)[0, 0]
    torch.testing.assert_close(slope, tensor([0.157638, -0.215273, 0.057635]), atol=1e-6, rtol=0)
    torch.testing.assert_close((slope - tensor(CE)) / 3, tensor(G), atol=1e-6, rtol=0)
    assert slope[0] > 0 > CE[0]  # it turns the direction of cross-entropy round


def test_three_visits():
    """The target has no correction for its start at 0: its sum is 1 - beta^k."""
    loss, batch = built(1, 3), one(SHEET, 0)
    for k in (1, 2, 3):
        loss(batch)
        assert loss.target.sum().item() == pytest.approx(1 - 0.7**k, abs=1e-6)
    assert loss.target.sum().item() == pytest.approx(0.657, abs=1e-6)
    torch.testing.assert_close(loss.target[0].double(), 0.657 * tensor(P), atol=1e-6, rtol=0)


def test_a_sure_prediction_has_no_gradient_but_that_of_cross_entropy():
    batch = one((12, 0, 0), 1)
    torch.testing.assert_close(gradient(held([[0.5, 0.2, 0.1]]), batch), gradient(CrossEntropy(), batch), **TIGHT)


def test_floor():
    """p and t agree and are sure: log 1e-4, never -inf."""
    loss = held([[1.0, 0, 0]], lam=1)
    for z in ((12, 0, 0), (1e3, 0, 0)):
        assert loss(one(z, 0)).parts["regulariser"] == pytest.approx(-9.2103, abs=1e-4)
    loss = built(1, 2, lam=1)
    for _ in range(200):
        out = loss(Batch(z=torch.tensor([[[50.0, 0]]]), y=torch.tensor([0]), index=torch.tensor([0])))
    assert out.parts["regulariser"] == pytest.approx(-9.2103 + math.log(2), abs=0.01)  # <p, t> = 1 - 2e-4


def test_lambda_of_zero_is_cross_entropy():
    batch, loss = batch_of(v=2), built(lam=0)
    for _ in range(3):
        torch.testing.assert_close(loss(batch).per_sample, CrossEntropy()(batch).per_sample, **TIGHT)


@pytest.mark.parametrize("c", [0, 1, 2])
def test_one_hot_target(c):
    out = held([torch.eye(3)[c].tolist()], lam=1)(one(SHEET, 0))
    assert out.parts["regulariser"] == pytest.approx(math.log(1 - probabilities(SHEET)[c]), abs=1e-12)


def slow(batch, target, beta, lam):
    """Loss of each sample, and the targets after it, in plain loops."""
    losses, target = [], [row[:] for row in target]
    for views, y, i in zip(batch.z.tolist(), batch.y.tolist(), batch.index.tolist(), strict=True):
        raw = [probabilities(view) for view in views]
        cut = [[min(max(q, 1e-4), 1 - 1e-4) for q in p] for p in raw]
        for c in range(len(target[i])):
            said = sum(p[c] / sum(p) for p in cut) / len(cut)
            target[i][c] = beta * target[i][c] + (1 - beta) * said
        value = 0
        for p, q in zip(raw, cut, strict=True):
            value += -math.log(p[y]) + lam * math.log(1 - sum(a * b for a, b in zip(q, target[i], strict=True)))
        losses.append(value / len(views))
    return losses, target


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), v=st.integers(1, 3), beta=st.sampled_from([0, 0.7, 0.9]), lam=st.sampled_from([1.0, 3.0])
)
def test_slow_reference(seed, v, beta, lam):
    loss, target = built(9, beta=beta, lam=lam).double(), [[0.0] * 4 for _ in range(9)]
    for step in range(3):
        batch = batch_of(v=v, seed=seed + step)
        batch.z *= 3  # some beyond the cut
        batch.index += step  # some samples come thrice, some once
        expected, target = slow(batch, target, beta, lam)
        torch.testing.assert_close(loss(batch).per_sample, tensor(expected), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(loss.target, tensor(target), **TIGHT)
    assert_behaves(loss.eval(), batch)


@pytest.mark.parametrize("lam", [1.0, 3.0])
def test_gradient(lam):
    """p - e_y + lambda g, g = p (<p,t> - t) / (1 - <p,t>) with t constant; g sums to 0."""
    target = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)).double() / 5
    batch, loss = batch_of(), held(target.tolist(), lam=lam)
    p, t = batch.z[:, 0].softmax(-1), target[batch.index]
    agree = (p * t).sum(-1, keepdim=True)
    g = p * (agree - t) / (1 - agree)
    torch.testing.assert_close(g.sum(-1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    expected = (p - torch.nn.functional.one_hot(batch.y, 4) + lam * g) / 6
    torch.testing.assert_close(gradient(loss, batch)[:, 0], expected, **TIGHT)


def test_no_gradient_flows_through_the_target():
    """The prediction just made is part of it, as a constant."""
    batch, loss = one(SHEET, 0), built(1, 3).double()
    moved = gradient(loss, batch)
    assert not loss.target.requires_grad
    torch.testing.assert_close(loss.target[0], 0.3 * batch.z[0, 0].detach().softmax(-1), **TIGHT)
    torch.testing.assert_close(moved, gradient(held(loss.target.tolist()), batch), **TIGHT)


def test_the_target_is_updated_before_the_loss():
    """The first visit is not plain cross-entropy: t = 0.3 p, so the regulariser is 3 log(1 - 0.3 |p|^2)."""
    out = built(1, 3)(one(SHEET, 0))
    square = sum(p * p for p in P)
    assert out.parts["regulariser"] == pytest.approx(3 * math.log(1 - 0.3 * square), abs=1e-5)


def test_the_regulariser_is_minimised_by_agreement():
    """No minus sign in front of the logarithm: agreeing with the target lowers the loss."""
    loss = held([[0.1, 0.8, 0.1]])
    with_target, against = (loss(one(z, 2)).total.item() for z in ((0, 3, 0), (3, 0, 0)))
    assert with_target < against
    assert loss(one(SHEET, 0)).parts["regulariser"] < 0


def test_targets_are_kept_by_position_in_the_dataset():
    loss = built(9)
    batch = batch_of(b=3)
    batch.index = torch.tensor([7, 0, 4])
    loss(batch)
    assert loss.target.sum(1).nonzero().flatten().tolist() == [0, 4, 7]
    said = batch.z[:, 0].softmax(-1).float()
    torch.testing.assert_close(loss.target[[7, 0, 4]], 0.3 * said, atol=1e-4, rtol=0)


def test_two_views_are_one_visit():
    batch, loss = batch_of(v=2), built()
    loss(batch)
    torch.testing.assert_close(loss.target.sum(1), torch.full((6,), 0.3))


def test_only_training_updates():
    loss = built().eval()
    loss(batch_of())
    assert (loss.target == 0).all()


def test_a_step_may_come_between_loss_and_gradient():
    batch, loss = batch_of(), built()
    first = loss(Batch(z=batch.z.requires_grad_(), y=batch.y, index=batch.index)).total
    loss(batch_of(seed=1))
    assert torch.autograd.grad(first, batch.z)[0].isfinite().all()


def test_targets_stay_in_float32_and_in_the_state():
    loss, fresh = built(), built()
    batch = batch_of()
    batch.z = batch.z.bfloat16()
    loss(batch)
    assert loss.target.dtype == torch.float32
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(loss(batch).total, fresh(batch).total)
    assert torch.equal(loss.target, fresh.target)


def test_float32():
    loss = built(5, 3)
    for _ in range(3):
        assert_survives_float32(loss)
    assert loss.target.isfinite().all()


def test_defaults():
    loss = EarlyLearningRegularisation()
    assert (loss.beta, loss.lam) == (0.7, 3)
    assert set(loss.needs) == {"logits", "y", "index"}
    assert loss.views == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta": 1.0}, "beta must be from 0 to below 1"),
        ({"beta": -0.1}, "beta must be"),
        ({"beta": float("nan")}, "beta must be"),
        ({"lam": -1}, "lam must be 0 or more and finite"),
        ({"lam": float("inf")}, "lam must be"),
        ({"lam": float("nan")}, "lam must be"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        EarlyLearningRegularisation(**parameters)


@cache
def toy(lam, seed):
    """Linear softmax on two Gaussians in 400 dimensions, 40 % of 200 labels flipped.

    Returns:
        Share of the flipped samples whose true class is predicted after 3 and 100 steps; how often
        "the target contradicts the label" is right about a flip.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(200) % 2
    x = 0.35 * torch.randn(200, 400, generator=g)
    x[:, 0] += 3.0 * (2 * y - 1)
    flipped = torch.randperm(200, generator=g) < 80
    labels = torch.where(flipped, 1 - y, y)
    loss, weight, truth = built(200, 2, lam=lam), torch.zeros(400, 2, requires_grad=True), {}
    for step in range(101):
        z = x @ weight
        truth[step] = (z.argmax(1) == y)[flipped].double().mean().item()
        total = loss(Batch(z=z[:, None], y=labels, index=torch.arange(200))).total
        (slope,) = torch.autograd.grad(total, weight)
        weight = (weight - 0.5 * slope).detach().requires_grad_()
    return truth[3], truth[100], ((loss.target.argmax(1) != labels) == flipped).double().mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_early_decisions_are_kept(seed):
    """Cross-entropy knows the truth of flipped samples at first, too, and loses all of it."""
    early, late, found = toy(3.0, seed)
    assert early > 0.95
    assert late > 0.9
    assert found > 0.95
    early, late, found = toy(0.0, seed)
    assert early > 0.95
    assert late < 0.05
    assert found < 0.7


def test_it_memorises_less_than_cross_entropy_on_digits():
    right, memorised = trained(EarlyLearningRegularisation())
    entropy, by_entropy = trained(CrossEntropy())
    assert (right - entropy).min() > 0.1  # 0.15 or more of 9 seeds
    assert (by_entropy - memorised).min() > 0.5  # 0.68 or more


def test_samples_that_are_not_in_the_dataset_have_no_memory():
    """Their index is -1: for them it is cross-entropy, and nobody's target changes."""
    loss, generator = built(samples=3), torch.Generator().manual_seed(0)
    loss.target.fill_(0.25)
    z = torch.randn(3, 1, 4, generator=generator)
    y = torch.tensor([0, 1, 2])
    out = loss(Batch(z=z, y=y, index=torch.tensor([0, -1, -1])))
    assert not torch.equal(loss.target[0], torch.full((4,), 0.25))
    torch.testing.assert_close(loss.target[1:], torch.full((2, 4), 0.25), rtol=0, atol=0)
    alone = CrossEntropy()(Batch(z=z, y=y)).per_sample
    torch.testing.assert_close(out.per_sample[1:], alone[1:])
    assert out.per_sample[0] != alone[0]
