"""Symmetric cross-entropy: the numbers of its sheet, its limits, and that it memorises less."""

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
from chaffinch.losses.ce import CrossEntropy
from chaffinch.losses.gce import GeneralisedCrossEntropy
from chaffinch.losses.sce import SymmetricCrossEntropy

A = math.log(1e-4)


@pytest.mark.parametrize(
    ("alpha", "beta", "y", "value", "slope"),
    [
        (0.1, 1, 0, 1.998855, (-1.572778, 1.285863, 0.286915)),
        (0.1, 1, 2, 9.174231, (0.361563, 0.080676, -0.442239)),
        (6, 0.1, 0, 1.645340, (-1.441552, 1.178576, 0.262976)),
        (6, 0.1, 2, 20.332878, (4.741883, 1.058057, -5.799940)),
    ],
)
def test_known_answer(alpha, beta, y, value, slope):
    """9.174251 in the second row: the label of the cross-entropy was clipped too."""
    batch, loss = one(SHEET, y), SymmetricCrossEntropy(alpha, beta)
    assert loss(batch).total.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(gradient(loss, batch)[0, 0], tensor(slope), atol=1e-6, rtol=0)


def test_defaults():
    loss = SymmetricCrossEntropy()
    assert (loss.alpha, loss.beta) == (0.1, 1)
    assert pytest.approx(-9.210340, abs=1e-6) == loss.A


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), v=st.integers(1, 3), alpha=st.floats(0.1, 3), beta=st.floats(0, 3), a=st.floats(-9, -1)
)
def test_slow_reference(seed, v, alpha, beta, a):
    batch, loss = batch_of(v=v, seed=seed), SymmetricCrossEntropy(alpha, beta, a)

    def value(p, y):
        log_label = [0 if c == y else a for c in range(len(p))]
        return -alpha * math.log(p[y]) - beta * sum(q * t for q, t in zip(p, log_label, strict=True))

    torch.testing.assert_close(loss(batch).per_sample, slow(batch, value), atol=1e-10, rtol=1e-10)
    assert_behaves(loss, batch)


def test_limits():
    batch = batch_of(v=2)

    def same(one, other):
        torch.testing.assert_close(one(batch).per_sample, other, **TIGHT)

    same(SymmetricCrossEntropy(0.3, 0), 0.3 * CrossEntropy()(batch).per_sample)
    same(SymmetricCrossEntropy(0, 1 / abs(A)), GeneralisedCrossEntropy(q=1)(batch).per_sample)


def test_the_reverse_is_symmetric():
    """Over all labels it is constant, -A (C - 1), whatever the logits."""
    reverse = SymmetricCrossEntropy(0, 1)
    assert sum(reverse(one(SHEET, y)).total.item() for y in range(3)) == pytest.approx(-2 * A, abs=1e-12)


@pytest.mark.parametrize(("p", "weight"), [(0.01, 0.192), (0.1, 1.021), (0.5, 4.705), (0.9, 8.389)])
def test_weight_on_the_gradient_of_cross_entropy(p, weight):
    z = (math.log(p), math.log(0.4 * (1 - p)), math.log(0.6 * (1 - p)))
    ratio = gradient(SymmetricCrossEntropy(), one(z, 0)) / gradient(CrossEntropy(), one(z, 0))
    assert ratio.flatten().tolist() == pytest.approx([weight] * 3, abs=5e-4)


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0, "beta": 1}, {"alpha": 6, "beta": 0.1}])
def test_float32(parameters):
    assert_survives_float32(SymmetricCrossEntropy(**parameters))


def test_a_sure_and_wrong_network_still_learns_in_float32():
    """Its probability of the label is not clipped, which would cap cross-entropy and stop its gradient."""
    batch = Batch(z=torch.tensor([[[200.0, 0]]]), y=torch.tensor([1]))
    assert SymmetricCrossEntropy()(batch).total.item() == pytest.approx(0.1 * 200 - A, rel=1e-6)
    torch.testing.assert_close(gradient(SymmetricCrossEntropy(), batch), torch.tensor([[[0.1, -0.1]]]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha must be 0 or more and finite"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"beta": -0.1}, "beta must be 0 or more and finite"),
        ({"beta": float("inf")}, "beta must be"),
        ({"alpha": 0, "beta": 0}, "nothing would be learnt"),
        ({"A": 0}, "A must be below 0"),
        ({"A": -float("inf")}, "A must be below 0 and finite"),
        ({"A": float("nan")}, "A must be"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        SymmetricCrossEntropy(**parameters)


def test_it_memorises_less_than_cross_entropy_on_digits():
    """Its share of cross-entropy still memorises some."""
    right, memorised = trained(SymmetricCrossEntropy())
    entropy, by_entropy = trained(CrossEntropy())
    assert (right - entropy).mean() > 0.05  # 0.11 to 0.13 in three groups of 3 seeds
    assert (right > entropy).all()
    assert (by_entropy - memorised).min() > 0.4  # 0.60 or more of 9 seeds
    assert memorised.mean() > 0.2  # 0.33 to 0.34
