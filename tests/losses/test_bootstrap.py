"""Bootstrapping: the numbers of its sheet, whereto its gradient flows, and that it is no cure."""

import math

import pytest
import torch
from classification_heads import (
    SHEET,
    TIGHT,
    assert_behaves,
    assert_survives_float32,
    batch_of,
    gradient,
    one,
    slow,
    tensor,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch
from chaffinch.losses.bootstrap import Bootstrap
from chaffinch.losses.ce import CrossEntropy


@pytest.mark.parametrize(
    ("hard", "y", "value", "slope"),
    [
        (False, 0, 0.260325, (-0.218620, 0.176340, 0.042280)),
        (False, 2, 3.110325, (0.731380, 0.176340, -0.907720)),
        (True, 0, 0.241311, (-0.214403, 0.175290, 0.039113)),
        (True, 2, 2.641311, (0.585597, 0.175290, -0.760887)),
    ],
)
def test_known_answer_with_the_papers_betas(hard, y, value, slope):
    batch, loss = one(SHEET, y), Bootstrap(hard)
    assert loss.beta == (0.8 if hard else 0.95)
    assert loss(batch).total.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(gradient(loss, batch)[0, 0], tensor(slope), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), v=st.integers(1, 3), hard=st.booleans(), beta=st.floats(0.1, 1))
def test_slow_reference(seed, v, hard, beta):
    batch, loss = batch_of(v=v, seed=seed), Bootstrap(hard, beta)

    def value(p, y):
        said = [float(q == max(p)) for q in p] if hard else p
        target = [beta * (c == y) + (1 - beta) * s for c, s in enumerate(said)]
        return -sum(t * math.log(q) for t, q in zip(target, p, strict=True))

    torch.testing.assert_close(loss(batch).per_sample, slow(batch, value), atol=1e-10, rtol=1e-10)
    assert_behaves(loss, batch)


@pytest.mark.parametrize("hard", [False, True])
def test_beta_of_one_is_cross_entropy(hard):
    batch = batch_of(v=2)
    torch.testing.assert_close(Bootstrap(hard, 1.0)(batch).total, CrossEntropy()(batch).total, **TIGHT)


def test_hard_is_cross_entropy_where_the_label_is_predicted():
    batch = batch_of(b=20)
    batch.y = batch.z[:, 0].argmax(-1)
    torch.testing.assert_close(Bootstrap(True, 0.3)(batch).total, CrossEntropy()(batch).total, **TIGHT)


def test_gradients():
    batch, beta = batch_of(v=2), 0.6
    b, v, c = batch.z.shape
    p, e = batch.z.softmax(-1), torch.nn.functional.one_hot(batch.y, c)[:, None].double()
    h = -(p * p.log()).sum(-1, keepdim=True)
    soft = beta * (p - e) - (1 - beta) * p * (p.log() + h)
    torch.testing.assert_close(gradient(Bootstrap(False, beta), batch), soft / (b * v), **TIGHT)
    said = torch.nn.functional.one_hot(p.argmax(-1), c).double()
    hard = p - beta * e - (1 - beta) * said
    torch.testing.assert_close(gradient(Bootstrap(True, beta), batch), hard / (b * v), **TIGHT)


def test_the_soft_target_is_not_held_constant():
    """Else its gradient were beta times that of cross-entropy: a smaller step, no bootstrapping."""
    batch = batch_of()
    ratio = gradient(Bootstrap(), batch) / gradient(CrossEntropy(), batch)
    assert (ratio - 0.95).abs().max() > 0.01


def settled(beta, steps=300):
    """What descent of the hard loss ends at, for label 1, from a network that is fairly sure of class 0."""
    z = tensor([[[1.5, 0, 0]]])
    for _ in range(steps):
        z = z.detach() - gradient(Bootstrap(True, beta), Batch(z=z, y=torch.tensor([1])))
    return z.softmax(-1)[0, 0].tolist()


def test_a_small_beta_confirms_errors():
    """Below 1/2 the prediction weighs more than the label and stays; above, the label wins in the end."""
    assert settled(0.3) == pytest.approx([0.7, 0.3, 0], abs=0.01)
    assert settled(0.8) == pytest.approx([0, 1, 0], abs=0.01)


@pytest.mark.parametrize("hard", [False, True])
def test_float32(hard):
    assert_survives_float32(Bootstrap(hard))


def test_p_log_p_is_the_trap():
    """0 times -inf in float32; the loss is what is left: beta times 200, no entropy."""
    z = torch.tensor([[[200.0, 0, 0]]])
    assert (z.softmax(-1) * z.softmax(-1).log()).sum().isnan()
    assert Bootstrap()(Batch(z=z, y=torch.tensor([1]))).total.item() == pytest.approx(190)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_bad_beta(beta):
    with pytest.raises(InputError, match="beta must be from 0 to 1"):
        Bootstrap(beta=beta)


def test_it_is_no_cure_on_digits():
    entropy, _ = trained(CrossEntropy())
    for hard in (False, True):
        right, memorised = trained(Bootstrap(hard))
        assert memorised.min() > 0.85  # 0.89 or more of 9 seeds
        assert (right - entropy).mean().abs() < 0.05  # 0.03 at most in three groups of 3 seeds
