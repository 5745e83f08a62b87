"""MCLRec: the numbers of its sheet, a slow reference, the two steps, and what R does to the learnt views."""

import math
from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.mclrec import MCLRec, regulariser
from chaffinch.losses.simclr import NTXent

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
D = 8


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(b=5, v=2, seed=0):
    return Batch(z=normal(b, v, D, seed=seed))


def built(seed=0, **parameters):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = MCLRec(**parameters)
        loss.setup(Sizes(16, D, 3, 100, (1, 4, 4)))
    return loss.double()


def without_augmenters(**parameters):
    loss = built(**parameters)
    loss.augmenters = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    return loss


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


POSITIVE, NEGATIVE = tensor([0.9, 0.6, 0.7]), tensor([[0.1, 0.3], [0.5, 0.2], [0.8, 0]])


def cosine(one, two):
    return sum(x * y for x, y in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))


def slow(loss, batch):
    """One loss a sample, L_cl2 and R, in plain loops."""
    with torch.no_grad():
        h = batch.z / batch.z.norm(dim=-1, keepdim=True)
        z1, z2 = (loss.augmenters[v](math.sqrt(D) * h[:, v]).tolist() for v in range(2))
    h1, h2 = h[:, 0].tolist(), h[:, 1].tolist()
    b = len(h1)

    def con(a, c, temperature):
        rows = [*a, *c]
        each = [0.0] * b
        for i, row in enumerate(rows):
            push = sum(math.exp(cosine(row, rows[j]) / temperature) for j in range(2 * b) if j != i)
            each[i % b] += (math.log(push) - cosine(row, rows[(i + b) % (2 * b)]) / temperature) / 2
        return each

    main, pairs = con(h1, h2, loss.temperature), [con(z1, z2, 1), con(h1, z2, 1), con(h2, z1, 1)]
    rows = [*z1, *z2]
    positive = [cosine(z1[i % b], z2[i % b]) for i in range(2 * b)]
    negative = [[cosine(rows[i], rows[j]) for j in range(2 * b) if j % b != i % b] for i in range(2 * b)]
    held = slow_regulariser(positive, negative, loss.per_row)
    learnt = [sum(each) for each in zip(*pairs, strict=True)]
    per_sample = [loss.lam * m + loss.beta * e + loss.gamma * held for m, e in zip(main, learnt, strict=True)]
    return tensor(per_sample), sum(learnt) / b, held


def slow_regulariser(positive, negative, per_row):
    above, below = [], []
    for score, others in zip(positive, negative, strict=True):
        low = score if per_row else min(positive)
        high = max(others) if per_row else max(max(row) for row in negative)
        above.append(max(0, score - min(low, high)))
        below += [max(0, max(low, high) - other) for other in others]
    return sum(above) / len(above) + sum(below) / len(below)


@pytest.mark.parametrize(("per_row", "value"), [(False, 0.616666667), (True, 0.683333333)])
def test_known_regulariser(per_row, value):
    assert regulariser(POSITIVE, NEGATIVE, per_row).item() == pytest.approx(value, abs=1e-9)
    assert slow_regulariser(POSITIVE.tolist(), NEGATIVE.tolist(), per_row) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("per_row", [False, True])
def test_regulariser_of_equal_scores_is_zero(per_row):
    positive, negative = torch.full((4,), 0.3, requires_grad=True), torch.full((4, 6), 0.3, requires_grad=True)
    loss = regulariser(positive, negative, per_row)
    assert loss.item() == 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [positive, negative]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), per_row=st.booleans())
def test_regulariser_is_not_negative(seed, per_row):
    positive, negative = normal(4, seed=seed), normal(4, 6, seed=seed + 1)
    loss = regulariser(positive, negative, per_row)
    assert loss > 0
    assert loss.item() == pytest.approx(slow_regulariser(positive.tolist(), negative.tolist(), per_row), abs=1e-12)


def test_regulariser_opposes_separation():
    """Of separated scores it is mean(s+) - max(s-) + min(s+) - mean(s-): positives fall, negatives rise."""
    positive, negative = tensor([0.9, 0.7, 0.8]).requires_grad_(), tensor([[0.1, 0.3], [0.4, 0.2], [0.0, -0.1]])
    negative.requires_grad_()
    loss = regulariser(positive, negative)
    assert loss.item() == pytest.approx(0.8 - 0.4 + 0.7 - 0.15, abs=1e-12)
    by_positive, by_negative = torch.autograd.grad(loss, [positive, negative])
    torch.testing.assert_close(by_positive, tensor([1 / 3, 4 / 3, 1 / 3]))
    torch.testing.assert_close(by_negative, tensor([[-1 / 6, -1 / 6], [-7 / 6, -1 / 6], [-1 / 6, -1 / 6]]))


@pytest.mark.parametrize("b", [2, 3, 6])
@pytest.mark.parametrize(
    "parameters", [{}, {"temperature": 0.7, "lam": 0.4, "beta": 2.0, "gamma": 3.0, "per_row": True}]
)
def test_slow_reference(b, parameters):
    loss, batch = built(**parameters), batch_of(b, seed=b)
    out = loss(batch)
    per_sample, learnt, held = slow(loss, batch)
    torch.testing.assert_close(out.per_sample, per_sample, **TIGHT)
    torch.testing.assert_close(out.total, per_sample.mean(), **TIGHT)
    assert out.parts["learnt"] == pytest.approx(learnt, abs=1e-10)
    assert out.parts["regulariser"] == pytest.approx(held, abs=1e-10)
    assert loss.second(batch).item() == pytest.approx(learnt + loss.gamma * held, abs=1e-10)  # without beta


def test_output_contract():
    batch = batch_of()
    batch.z.requires_grad_()
    out = built()(batch)
    assert out.total.shape == ()
    assert out.total.requires_grad
    assert out.per_sample.shape == (5,)
    assert not out.per_sample.requires_grad
    assert all(type(value) is float for value in out.parts.values())
    assert set(MCLRec.needs) == {"z"}
    assert out.parts["negative"] <= out.parts["hardest_negative"] <= 1


def test_defaults():
    loss = MCLRec()
    assert (loss.temperature, loss.lam, loss.beta, loss.gamma, loss.per_row) == (0.2, 1, 0.1, 0.01, False)


def test_collapse():
    loss, z = without_augmenters(), torch.ones(4, 2, D, dtype=torch.float64, requires_grad=True)
    out = loss(Batch(z=z))
    (gradient,) = torch.autograd.grad(out.total, z)
    assert out.parts["views"] == pytest.approx(1.945910149, abs=1e-9)
    assert out.parts["learnt"] == pytest.approx(3 * math.log(7), abs=1e-12)
    assert out.parts["regulariser"] == pytest.approx(0, abs=1e-12)
    assert gradient.isfinite().all()


def test_identity_augmenters_give_three_times_the_loss_of_the_views():
    batch = batch_of()
    expected = 3 * NTXent(1.0)(batch).total.item()
    assert without_augmenters()(batch).parts["learnt"] == pytest.approx(expected, abs=1e-12)


def test_without_learnt_views_it_is_simclr():
    batch = batch_of()
    out, plain = built(beta=0.0, gamma=0.0)(batch), NTXent(0.2)(batch)
    torch.testing.assert_close(out.total, plain.total, **TIGHT)
    torch.testing.assert_close(out.per_sample, plain.per_sample, **TIGHT)


def test_temperature_is_of_the_views_alone():
    cold, warm = built(temperature=0.1)(batch_of()), built(temperature=1.0)(batch_of())
    assert cold.parts["views"] != warm.parts["views"]
    assert cold.parts["learnt"] == warm.parts["learnt"]


def test_autograd_agrees_with_differences():
    loss = built(gamma=1.0)
    assert torch.autograd.gradcheck(lambda z: loss(Batch(z=z)).total, batch_of(3).z.requires_grad_())


def test_the_augmenters_are_two_and_have_the_papers_widths():
    loss = MCLRec()
    loss.setup(Sizes(128, 64, 7, 100, (1, 28, 28)))
    widths = [[layer.weight.shape for layer in a if isinstance(layer, torch.nn.Linear)] for a in loss.augmenters]
    assert widths == [[(32, 64), (16, 32), (64, 16)]] * 2
    assert not torch.equal(loss.augmenters[0][0].weight, loss.augmenters[1][0].weight)


def test_second_parameters_are_all_that_the_loss_learns():
    loss = built()
    assert [id(p) for p in loss.second_parameters()] == [id(p) for p in loss.parameters()]
    assert len(loss.second_parameters()) == 12


def stepped(loss, encoder, x, step, rate=1e-3):
    """Take one of the two steps; return the loss before it."""
    main = step == "main"
    optimiser = torch.optim.SGD(encoder.parameters() if main else loss.second_parameters(), lr=rate)
    for parameter in [*encoder.parameters(), *loss.parameters()]:
        parameter.grad = None
    value = loss(Batch(z=encoder(x))).total if main else loss.second(Batch(z=encoder(x)))
    value.backward()
    optimiser.step()
    return value.item()


def bits(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0])
def test_the_two_steps(gamma):
    loss, x = built(gamma=gamma), normal(6, 2, 4)
    encoder = torch.nn.Linear(4, D).double()
    before = bits(encoder), bits(loss)
    stepped(loss, encoder, x, "main")
    assert not torch.equal(encoder.weight, before[0][0])
    assert all(map(torch.equal, bits(loss), before[1]))

    before = bits(encoder), bits(loss)
    value = stepped(loss, encoder, x, "second")
    assert all(map(torch.equal, bits(encoder), before[0]))
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(map(torch.equal, bits(loss), before[1]))
    assert loss.second(Batch(z=encoder(x))) < value


def test_the_main_step_is_of_first_order():
    """Its gradient does not depend on what the second step does: the augmenters count as constants."""
    loss, z = built(), batch_of().z.requires_grad_()
    (got,) = torch.autograd.grad(loss(Batch(z=z)).total, z)
    frozen = deepcopy(loss).requires_grad_(False)
    (expected,) = torch.autograd.grad(frozen(Batch(z=z)).total, z)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), b=st.integers(2, 7))
def test_permutation_of_samples(seed, b):
    loss, batch = built(), batch_of(b, seed=seed)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    per_sample = loss(batch).per_sample
    torch.testing.assert_close(loss(Batch(z=batch.z[order])).per_sample, per_sample[order], **TIGHT)


def test_views_swap_together_with_their_augmenters():
    loss, batch = built(), batch_of()
    swapped = Batch(z=batch.z.flip(1))
    before = loss(batch).per_sample
    assert (loss(swapped).per_sample - before).abs().max() > 1e-6
    loss.augmenters = loss.augmenters[::-1]
    torch.testing.assert_close(loss(swapped).per_sample, before, **TIGHT)


def test_scale_invariance():
    loss, batch = built(), batch_of()
    each = torch.rand(5, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    torch.testing.assert_close(loss(Batch(z=each * batch.z)).per_sample, loss(batch).per_sample, **TIGHT)
    torch.testing.assert_close(loss.second(Batch(z=each * batch.z)), loss.second(batch), **TIGHT)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("per_row", [False, True])
def test_zero_rows_and_collapse_are_finite(rows, value, per_row):
    loss, z = built(per_row=per_row).float(), batch_of().z.float()
    z[rows] = value
    z.requires_grad_()
    out = loss(Batch(z=z))
    (gradient,) = torch.autograd.grad(out.total, z)
    steps = torch.autograd.grad(loss.second(Batch(z=z)), loss.second_parameters())
    assert out.per_sample.isfinite().all()
    assert gradient.isfinite().all()
    assert all(step.isfinite().all() for step in steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    loss, z = built().float(), batch_of().z.to(dtype)
    out = loss(Batch(z=z))
    assert out.total.dtype == loss.second(Batch(z=z)).dtype == torch.float32
    torch.testing.assert_close(out.total, loss(Batch(z=z.float())).total, atol=0, rtol=0)


def test_labels_are_not_used():
    batch = batch_of()
    full = Batch(z=batch.z, y=torch.zeros(5, dtype=torch.long), index=torch.arange(5))
    torch.testing.assert_close(built()(full).total, built()(batch).total, atol=0, rtol=0)


def test_state_round_trip():
    loss, other, batch = built(seed=0), built(seed=1), batch_of()
    assert loss(batch).total != other(batch).total
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(batch).per_sample, loss(batch).per_sample, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("lam", -1.0), ("beta", float("nan")), ("gamma", float("inf"))]
)
def test_bad_parameters(name, value):
    with pytest.raises(InputError, match=f"{name} must be"):
        MCLRec(**{name: value})


def test_bad_batches():
    for call in (built(), built().second):
        with pytest.raises(InputError, match="mclrec needs at least 2 pictures in a batch, got 1"):
            call(batch_of(1))
        with pytest.raises(ValueError, match="two views of each sample, got 3"):
            call(batch_of(4, 3))


@cache
def trained(seed, gamma, alternate=True):
    """What the last step says after training an encoder and, in turn, the augmenters on sixteen noisy points."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(16, 16)
        encoder = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
        loss = MCLRec(gamma=gamma)
        loss.setup(Sizes(32, 16, 2, 16, (1, 4, 4)))
        main = torch.optim.Adam(encoder.parameters(), lr=0.01)
        turn = torch.optim.Adam(loss.second_parameters(), lr=0.01)
        for _ in range(40):
            views = x[:, None] + 0.1 * torch.randn(16, 2, 16)
            out = loss(Batch(z=encoder(views)))
            main.zero_grad()
            out.total.backward()
            main.step()
            if alternate:
                turn.zero_grad()
                loss.second(Batch(z=encoder(views))).backward()
                turn.step()
    return out.parts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_regulariser_keeps_the_learnt_views_hard(seed):
    """R narrows the gap between pairs and others among the learnt views, but not among the encoder's."""
    free, held = trained(seed, 0.0), trained(seed, 0.5)
    gap = free["positive"] - free["negative"]
    assert gap > 0.5
    assert held["positive"] - held["negative"] < gap - 0.25
    assert held["views"] < 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_second_step_teaches_the_augmenters(seed):
    assert trained(seed, 0.0)["learnt"] < trained(seed, 0.0, alternate=False)["learnt"] - 0.5
