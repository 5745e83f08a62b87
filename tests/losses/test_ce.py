"""Cross-entropy: the numbers of its sheet, a slow reference, torch's own, and what smoothing does to noisy labels."""

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


@pytest.mark.parametrize(
    ("smoothing", "y", "value", "slope"),
    [
        (0.0, 0, 0.241311, (-0.214403, 0.175290, 0.039113)),
        (0.0, 2, 3.241311, (0.785597, 0.175290, -0.960887)),
        (0.1, 0, 0.391311, (-0.147736, 0.141957, 0.005779)),
        (0.1, 2, 3.091311, (0.752264, 0.141957, -0.894221)),
    ],
)
def test_known_answer(smoothing, y, value, slope):
    batch, loss = one(SHEET, y), CrossEntropy(smoothing)
    assert loss(batch).total.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(gradient(loss, batch)[0, 0], tensor(slope), atol=1e-6, rtol=0)


def test_known_mixup():
    """It is linear in the target, so two labels of a mixed picture are two terms."""
    batch, other = one(SHEET, 0), one(SHEET, 2)
    loss = CrossEntropy()
    assert 0.3 * loss(batch).total + 0.7 * loss(other).total == pytest.approx(2.341311, abs=1e-6)
    mixed = 0.3 * gradient(loss, batch) + 0.7 * gradient(loss, other)
    torch.testing.assert_close(mixed[0, 0], tensor([0.485597, 0.175290, -0.660887]), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), v=st.integers(1, 3), smoothing=st.sampled_from([-0.4, 0.0, 0.1, 1.0]))
def test_slow_reference(seed, v, smoothing):
    batch, loss = batch_of(v=v, seed=seed), CrossEntropy(smoothing)

    def value(p, y):
        target = [(1 - smoothing) * (c == y) + smoothing / len(p) for c in range(len(p))]
        return -sum(t * math.log(q) for t, q in zip(target, p, strict=True))

    torch.testing.assert_close(loss(batch).per_sample, slow(batch, value), atol=1e-10, rtol=1e-10)
    assert_behaves(loss, batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
def test_as_torch_has_it(smoothing):
    batch, loss = batch_of(b=9, c=5), CrossEntropy(smoothing)
    got = gradient(loss, batch)
    theirs = torch.nn.functional.cross_entropy(batch.z[:, 0], batch.y, label_smoothing=smoothing)
    torch.testing.assert_close(loss(batch).total, theirs, **TIGHT)
    torch.testing.assert_close(got, torch.autograd.grad(theirs, batch.z)[0], **TIGHT)


@pytest.mark.parametrize("smoothing", [-0.5, 0.0, 0.3])
def test_gradient_is_prediction_minus_target(smoothing):
    batch = batch_of(v=2)
    b, v, c = batch.z.shape
    target = (1 - smoothing) * torch.nn.functional.one_hot(batch.y, c).double() + smoothing / c
    expected = (batch.z.softmax(-1) - target[:, None]) / (b * v)
    torch.testing.assert_close(gradient(CrossEntropy(smoothing), batch), expected, **TIGHT)


def test_full_smoothing_ignores_the_labels():
    batch, loss = batch_of(), CrossEntropy(1.0)
    other = Batch(z=batch.z, y=(batch.y + 1) % 4)
    torch.testing.assert_close(loss(batch).per_sample, loss(other).per_sample, **TIGHT)


def test_negative_smoothing_may_go_below_zero():
    assert CrossEntropy(-0.4)(one((9, 0, 0), 0)).total < 0


def test_defaults():
    assert CrossEntropy().smoothing == 0
    assert set(CrossEntropy.needs) == {"logits", "y"}
    assert CrossEntropy.views == 1


def test_equal_logits_are_the_log_of_the_classes():
    batch = Batch(z=torch.full((5, 2, 7), 3.0, dtype=torch.float64), y=torch.arange(5))
    assert CrossEntropy()(batch).per_sample.tolist() == pytest.approx([math.log(7)] * 5, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_float32(smoothing):
    assert_survives_float32(CrossEntropy(smoothing))


def test_a_sure_and_wrong_network_still_learns_in_float32():
    """exp(-200) is 0 in float32, and so would be the loss's gradient through its logarithm, or NaN."""
    batch = Batch(z=torch.tensor([[[200.0, 0, 0]]]), y=torch.tensor([1]))
    assert CrossEntropy()(batch).total.item() == 200
    assert gradient(CrossEntropy(), batch).tolist() == [[[1, -1, 0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = batch_of().z.to(dtype)
    out, wide = (CrossEntropy()(Batch(z=z, y=torch.zeros(6).long())) for z in (z, z.float()))
    assert out.total.dtype == torch.float32
    assert torch.equal(out.total, wide.total)


@pytest.mark.parametrize("smoothing", [1.1, float("nan"), float("inf"), -float("inf")])
def test_bad_smoothing(smoothing):
    with pytest.raises(InputError, match="smoothing must be finite and at most 1"):
        CrossEntropy(smoothing)


def test_smoothing_slows_memorising_down_on_digits():
    right, memorised = trained(CrossEntropy())
    smooth, remembered = trained(CrossEntropy(0.4))
    assert memorised.min() > 0.97  # 0.99 or more of 9 seeds
    assert (memorised - remembered).mean() > 0.02  # 0.04 to 0.07 in three groups of 3 seeds
    assert (smooth - right).mean() > 0.02  # 0.04 to 0.07
    assert remembered.min() > 0.8  # but it is no cure
