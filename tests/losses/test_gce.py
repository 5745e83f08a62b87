"""Generalised cross-entropy: the numbers of its sheet, its limits, truncation, and which loss memorises more."""

import math

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
    slow,
    tensor,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.ce import CrossEntropy
from chaffinch.losses.gce import GeneralisedCrossEntropy
from chaffinch.losses.sce import SymmetricCrossEntropy


def built(samples=10, **parameters):
    loss = GeneralisedCrossEntropy(**parameters)
    loss.setup(Sizes(8, 4, 4, samples, (1, 4, 4)))
    return loss


def total(z, y, **parameters):
    return built(**parameters)(one(z, y)).total.item()


@pytest.mark.parametrize(
    ("q", "y", "value", "slope"),
    [
        (0.3, 0, 0.232784, (-0.199430, 0.163049, 0.036381)),
        (0.3, 2, 2.072744, (0.297095, 0.066291, -0.363385)),
        (0.7, 0, 0.222031, (-0.181080, 0.148046, 0.033034)),
        (0.7, 2, 1.280823, (0.081250, 0.018129, -0.099379)),
        (1.0, 0, 0.214403, (-0.168434, 0.137708, 0.030727)),
        (1.0, 2, 0.960887, (0.030727, 0.006856, -0.037583)),
    ],
)
def test_known_answer(q, y, value, slope):
    batch, loss = one(SHEET, y), built(q=q)
    assert loss(batch).total.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(gradient(loss, batch)[0, 0], tensor(slope), atol=1e-6, rtol=0)


def test_known_truncation():
    batch, loss = one(SHEET, 2), built(k=0.5, start=0)
    assert loss(batch).total.item() == pytest.approx(0.549183, abs=1e-6)
    assert gradient(loss, batch).abs().max() == 0
    kept = one(SHEET, 0)
    assert loss(kept).total.item() == pytest.approx(0.222031, abs=1e-6)
    torch.testing.assert_close(gradient(loss, kept), gradient(built(), kept), **TIGHT)


@pytest.mark.parametrize(("q", "value"), [(0.1, 2.7684), (0.01, 3.1893), (0.001, 3.2361)])
def test_small_q_is_cross_entropy(q, value):
    assert total(SHEET, 2, q=q) == pytest.approx(value, abs=5e-5)
    assert total(SHEET, 2, q=1e-12) == pytest.approx(3.241311, abs=1e-6)


def test_q_of_one_is_half_the_absolute_error():
    assert total(SHEET, 2, q=1.0) == pytest.approx((P[0] + P[1] + 1 - P[2]) / 2, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_bounds_of_the_sum_over_labels(seed):
    z = 3 * torch.randn(10, generator=torch.Generator().manual_seed(seed)).double()

    def summed(q):
        return sum(total(z.tolist(), y, q=q) for y in range(10))

    assert 11.4353 - 1e-4 <= summed(0.7) <= 12.8571 + 1e-4
    assert summed(1.0) == pytest.approx(9, abs=1e-12)


def test_bounds_are_reached():
    assert 10 * total([0] * 10, 0) == pytest.approx(11.4353, abs=1e-4)
    assert sum(total([50] + [0] * 9, y) for y in range(10)) == pytest.approx(12.8571, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), v=st.integers(1, 3), q=st.sampled_from([0.1, 0.7, 1.0]), k=st.sampled_from([0, 0.2, 0.5])
)
def test_slow_reference(seed, v, q, k):
    """Views are cut one by one."""
    batch, loss = batch_of(v=v, seed=seed), built(q=q, k=k, start=0)
    expected = slow(batch, lambda p, y: (1 - max(p[y], k) ** q) / q)
    torch.testing.assert_close(loss(batch).per_sample, expected, atol=1e-10, rtol=1e-10)
    assert_behaves(loss, batch)


@pytest.mark.parametrize(("p", "weight"), [(0.01, 0.040), (0.1, 0.200), (0.5, 0.616), (0.9, 0.929)])
def test_weight_on_the_gradient_of_cross_entropy(p, weight):
    z = (math.log(p), math.log(0.4 * (1 - p)), math.log(0.6 * (1 - p)))
    ratio = gradient(built(), one(z, 0)) / gradient(CrossEntropy(), one(z, 0))
    assert ratio.flatten().tolist() == pytest.approx([weight] * 3, abs=5e-4)
    assert p**0.7 == pytest.approx(weight, abs=5e-4)


def test_autograd_agrees_with_differences():
    batch, loss = batch_of(3, 2, 3), built(k=0.3, start=0)
    assert torch.autograd.gradcheck(lambda z: loss(Batch(z=z, y=batch.y)).total, batch.z.requires_grad_())


def test_no_truncation_by_default():
    """Not even of a label whose probability is 0 in float32."""
    loss = built(start=0)
    batch = Batch(z=torch.tensor([[[150.0, 0]]]), y=torch.tensor([1]))
    assert batch.z.softmax(-1)[0, 0, 1] == 0
    assert (loss.q, loss.k, GeneralisedCrossEntropy().start) == (0.7, 0, 20)
    assert loss(batch).total.item() == pytest.approx(1 / 0.7)
    assert GeneralisedCrossEntropy(q=0.01)(batch).total.item() == pytest.approx((1 - math.exp(-1.5)) / 0.01, rel=1e-6)


def cuts(loss, batch):
    return gradient(loss, batch).abs().max().item() == 0


def test_nothing_is_cut_before_the_start():
    """Equal logits of 4 classes: every label is below k, so from the start nothing would ever be learnt."""
    batch = Batch(z=torch.zeros(4, 1, 4), y=torch.arange(4))
    assert cuts(built(k=0.5, start=0), batch)
    loss = built(samples=10, k=0.5, start=2)  # 20 pictures, 4 a step
    assert [cuts(loss, batch) for _ in range(7)] == [False] * 5 + [True] * 2


def test_only_training_counts():
    batch = Batch(z=torch.zeros(4, 1, 4), y=torch.arange(4))
    loss = built(samples=4, k=0.5, start=1).eval()
    assert [cuts(loss, batch) for _ in range(3)] == [False] * 3
    loss.train()
    assert [cuts(loss, batch) for _ in range(3)] == [False, True, True]


def test_a_resumed_training_goes_on_cutting():
    batch = Batch(z=torch.zeros(4, 1, 4), y=torch.arange(4))
    loss, fresh = (built(samples=4, k=0.5, start=1) for _ in range(2))
    loss(batch)
    fresh.load_state_dict(loss.state_dict())
    assert cuts(fresh, batch)


@pytest.mark.parametrize("parameters", [{}, {"q": 0.01}, {"q": 1.0}, {"k": 0.5, "start": 0}])
def test_float32(parameters):
    assert_survives_float32(built(**parameters))


def test_a_power_of_the_probability_is_the_trap():
    """What float32 makes of the formula as written; the loss keeps its value and a gradient of 0."""
    z = torch.tensor([[[200.0, 0, 0]]], requires_grad=True)
    naive = (1 - z.softmax(-1)[0, 0, 1] ** 0.7) / 0.7
    assert torch.autograd.grad(naive, z)[0].isnan().any()
    batch = Batch(z=z, y=torch.tensor([1]))
    assert built()(batch).total.item() == pytest.approx(1 / 0.7)
    assert gradient(built(), batch).abs().max() == pytest.approx(0, abs=1e-30)


def test_small_q_keeps_its_digits_in_float32():
    """1 - p**q is a difference of almost equal numbers: the formula as written is off by some 1e-3."""
    batch = Batch(z=torch.tensor([[[2.0, 0]]]), y=torch.tensor([0]))
    value = (1 - (1 + math.exp(-2)) ** -1e-4) / 1e-4
    assert built(q=1e-4)(batch).total.item() == pytest.approx(value, rel=1e-6)
    naive = (1 - batch.z.softmax(-1)[0, 0, 0] ** 1e-4) / 1e-4
    assert naive.item() != pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"q": 0}, "q must be above 0"),
        ({"q": 1.1}, "q must be above 0 and at most 1"),
        ({"q": float("nan")}, "q must be"),
        ({"k": 1.0}, "k must be from 0 to below 1"),
        ({"k": -0.1}, "k must be"),
        ({"k": float("nan")}, "k must be"),
        ({"start": -1}, "start must be 0 or more"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        GeneralisedCrossEntropy(**parameters)


def test_who_memorises_on_digits():
    """Truncated and plain above symmetric above cross-entropy, where cross-entropy knows the labels by heart."""
    truncated, by_truncated = trained(GeneralisedCrossEntropy(k=0.5))
    plain, by_plain = trained(GeneralisedCrossEntropy())
    symmetric, by_symmetric = trained(SymmetricCrossEntropy())
    entropy, by_entropy = trained(CrossEntropy())
    assert by_entropy.min() > 0.97
    for better, worse in ((truncated, symmetric), (plain, symmetric), (symmetric, entropy)):
        assert (better - worse).mean() > 0.05  # 0.09 or more in three groups of 3 seeds
        assert (better > worse).all()  # by 0.04 or more of 9 seeds
    assert by_truncated.mean() < by_plain.mean() < by_symmetric.mean() < by_entropy.mean()


def test_cutting_from_the_start_learns_nothing_on_digits():
    right, _ = trained(GeneralisedCrossEntropy(k=0.5, start=0), epochs=15)
    assert right.max() < 0.4
