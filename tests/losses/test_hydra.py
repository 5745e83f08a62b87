"""Hydra / SimLAP: the numbers of its sheet, a slow reference with a (B, B, D) tensor, and what its gates are for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.losses.base import Batch, Sizes, unit
from chaffinch.losses.hydra import Hydra, gated_cosines, pair_losses

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
OPEN = 40.0  # sigmoid(40) is 1 in float64 but for 4e-18


class Fixed(Hydra):
    """Every gate has the same logits."""

    def __init__(self, logits, **options):
        super().__init__(**options)
        self.logits = torch.as_tensor(logits, dtype=torch.float64)

    def gate(self, a, b):
        return self.logits.expand(len(a), -1)


def made(loss, classes=4, d=6, seed=0):
    torch.manual_seed(seed)
    loss.setup(Sizes(features=8, projection=d, classes=classes, samples=100, shape=(1, 4, 4)))
    return loss


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(b=9, v=1, d=6, classes=4, seed=0):
    g = rng(seed)
    z = torch.randn(b, v, d, generator=g, dtype=torch.float64)
    return Batch(z=z, y=torch.randint(classes, (b,), generator=g), rng=rng(seed))


def swap_seed():
    """A seed that gives four rows the partners 1, 0, 3, 2."""
    return next(s for s in range(1000) if torch.randperm(4, generator=rng(s)).tolist() == [1, 0, 3, 2])


def slow(z, y, partner, gates, temperature):
    """Sum over the positives of each row and number of pairs; all rows filtered by all gates, one pair at a time."""
    sums, pairs = [0.0] * len(z), 0
    for i in range(len(z)):

        def s(n, i=i):
            a, k = (z[i] * gates[i]).tolist(), (z[n] * gates[i]).tolist()
            return sum(p * q for p, q in zip(a, k, strict=True)) / (math.hypot(*a) * math.hypot(*k) * temperature)

        negatives = [n for n in range(len(z)) if y[n] not in (y[i], partner[i])]
        for p in range(len(z)):
            if p != i and y[p] == partner[i]:
                sums[i] += math.log(math.exp(s(p)) + sum(math.exp(s(n)) for n in negatives)) - s(p)
                pairs += 1
    return torch.tensor(sums, dtype=torch.float64), max(pairs, 1)


SHEET = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("logits", "temperature", "value"),
    [
        ([OPEN] * 4, 1.0, 0.958020087947),
        ([OPEN] * 4, 0.1, 0.696510491782),
        ([OPEN, OPEN, -OPEN, -OPEN], 1.0, 0.551444713932),
        ([OPEN, OPEN, -OPEN, -OPEN], 0.1, 9.0795737e-5),
    ],
)
def test_known_answer(logits, temperature, value):
    loss = made(Fixed(logits, temperature=temperature), d=4)
    out = loss(Batch(z=SHEET[:, None], y=torch.arange(4), rng=rng(swap_seed())))
    assert out.total.item() == pytest.approx(value, abs=1e-11)
    torch.testing.assert_close(out.per_sample, torch.full((4,), out.total.item(), dtype=torch.float64))


def test_known_cosines():
    ones = torch.ones(4, 4, dtype=torch.float64)
    assert gated_cosines(SHEET, ones)[0].tolist() == pytest.approx([1, 0.5, 0.5, 0])
    assert gated_cosines(SHEET, ones * torch.tensor([1, 1, 0, 0]))[0].tolist() == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize("partner", ["arbitrary", "distinct", "identical"])
@pytest.mark.parametrize(("b", "v", "temperature"), [(9, 1, 0.1), (12, 1, 0.5), (6, 2, 0.3)])
def test_slow_reference(partner, b, v, temperature):
    loss = made(Hydra(temperature, partner, width=8)).double()
    batch = batch_of(b, v, seed=b)
    out = loss(batch)
    z, y = batch.z.transpose(0, 1).reshape(v * b, -1), batch.y.repeat(v)
    other = loss.partners(y, rng(b))
    sums, pairs = slow(z, y.tolist(), other.tolist(), loss.gate(y, other).sigmoid().detach(), temperature)
    torch.testing.assert_close(out.total.detach(), sums.sum() / pairs, **TIGHT)
    torch.testing.assert_close(out.per_sample, sums.view(v, b).sum(0) * b / pairs, **TIGHT)
    torch.testing.assert_close(out.per_sample.mean(), out.total.detach(), **TIGHT)


def test_products_equal_the_big_tensor():
    z, gates = (torch.randn(7, 5, generator=rng(s), dtype=torch.float64) for s in (1, 2))
    gates = gates.sigmoid()
    big = torch.nn.functional.normalize(z[None] * gates[:, None], dim=-1)  # (7, 7, 5), row n under gate i
    cosines = gated_cosines(z, gates)
    torch.testing.assert_close(cosines, (big[range(7), range(7)][:, None] * big).sum(-1), **TIGHT)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(7, dtype=torch.float64), **TIGHT)
    assert (cosines - cosines.T).abs().max() > 0.01, "each row looks through its own gate, so this is not symmetric"


def test_no_tensor_of_all_pairs_and_dimensions():
    b, d, kept = 48, 40, []
    loss = made(Hydra(width=4), d=d)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss(Batch(z=torch.randn(b, 1, d, requires_grad=True), y=torch.arange(b) % 4, rng=rng()))
    assert b * b <= max(kept) < b * b * d


def test_scale_of_a_gate_does_not_matter():
    z, y = batch_of().z[:, 0], batch_of().y
    gates = torch.rand(9, 6, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(gated_cosines(z, 0.3 * gates), gated_cosines(z, gates), **TIGHT)
    loss = pair_losses(gated_cosines(z, gates), y, y.flip(0))[0]
    torch.testing.assert_close(pair_losses(gated_cosines(z, 0.3 * gates), y, y.flip(0))[0], loss, **TIGHT)


def test_scale_of_the_rows_does_not_matter():
    loss, batch = made(Hydra(width=8)).double(), batch_of()
    each = torch.rand(9, 1, 1, generator=rng(1), dtype=torch.float64) + 0.1
    scaled = loss(Batch(z=1e3 * each * batch.z, y=batch.y, rng=rng()))
    torch.testing.assert_close(scaled.total, loss(batch).total, **TIGHT)


def test_gate_is_symmetric_and_of_its_pair_alone():
    """With BatchNorm in the gate it would depend on the other pairs, and on the mode of the module."""
    loss = made(Hydra(width=8))
    a, b = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    gates = loss.gate(a, b)
    assert torch.equal(gates, loss.gate(b, a))
    torch.testing.assert_close(loss.gate(a[:1], b[:1]), gates[:1])
    torch.testing.assert_close(loss.eval().gate(a, b), gates)
    assert (gates[0] - gates[1]).abs().max() > 0.01


def test_partners():
    y = torch.randint(4, (200,), generator=rng())
    drawn = {name: made(Hydra(partner=name)).partners(y, rng(1)) for name in ("arbitrary", "distinct", "identical")}
    assert torch.equal(drawn["arbitrary"].bincount(), y.bincount())
    assert 20 < (drawn["arbitrary"] == y).sum() < 80
    assert (drawn["distinct"] != y).all()
    assert drawn["distinct"].unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(drawn["identical"], y)
    assert made(Hydra(partner="distinct"), classes=1).partners(y * 0, rng()).unique().tolist() == [0]


def test_draws_come_from_the_generator_alone():
    loss, batch = made(Hydra(width=8)), batch_of()
    state = torch.get_rng_state()
    totals = [loss(Batch(z=batch.z, y=batch.y, rng=rng(seed))).total.item() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert totals[0] == totals[1] != totals[2]


def test_positives_negatives_and_the_rest():
    """Row 0 of class 0 with partner 1: row 1 is left out, row 2 attracts, rows 3 and 4 repel; never row 0 itself."""
    sim = batch_of(5, 1, 5).z[:, 0].requires_grad_()
    y, partner = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 9, 9, 9, 3])
    loss, count = pair_losses(sim, y, partner)
    assert count == 1, "the only row of the partner's class is row 4 itself, so it has no positive"
    (by_sim,) = torch.autograd.grad(loss[0], sim, retain_graph=True)
    assert by_sim[0].sign().tolist() == [0, 0, -1, 1, 1]
    assert by_sim[0].sum().item() == pytest.approx(0, abs=1e-12)
    assert loss[1:].tolist() == [0] * 4


def test_identical_partners_and_an_open_gate_are_labelled_ntxent():
    """SupCon but for the denominator, where each positive is alone with the negatives."""
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    batch = batch_of(16)
    z = batch.z.clone().requires_grad_()
    ours = made(Fixed([OPEN] * 6, temperature=0.2, partner="identical"))(Batch(z=z, y=batch.y)).total
    theirs = losses.NTXentLoss(temperature=0.2)(z[:, 0], batch.y)
    torch.testing.assert_close(ours, theirs, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), **TIGHT)


def test_arbitrary_partners_and_an_open_gate_against_the_library():
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    batch = batch_of(16)
    z, y, loss = batch.z.clone().requires_grad_(), batch.y, made(Fixed([OPEN] * 6, temperature=0.2))
    partner = loss.partners(y, rng(5))
    positive = (partner[:, None] == y) & ~torch.eye(16, dtype=torch.bool)
    negative = (y[:, None] != y) & (partner[:, None] != y)
    ours = loss(Batch(z=z, y=y, rng=rng(5))).total
    theirs = losses.NTXentLoss(temperature=0.2)(z[:, 0], indices_tuple=(*positive.nonzero().T, *negative.nonzero().T))
    torch.testing.assert_close(ours, theirs, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), **TIGHT)


def test_autograd_agrees_with_differences():
    loss, batch = made(Hydra(0.5, width=4), d=3).double(), batch_of(5, d=3)
    z = batch.z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(Batch(z=z, y=batch.y, rng=rng())).total, z)


def test_output_contract():
    loss, batch = made(Hydra(width=8)), batch_of()
    z = batch.z.requires_grad_()
    out = loss(batch)
    out.total.backward()
    assert out.total.shape == ()
    assert out.per_sample.shape == (9,)
    assert not out.per_sample.requires_grad
    assert all(type(value) is float for value in out.parts.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert loss.embedding.weight.grad.abs().sum() > 0
    assert out.total.dtype == z.grad.dtype == torch.float64


def test_parts_watch_the_gates():
    half = made(Fixed([0.0] * 6))(batch_of()).parts
    assert half == pytest.approx({"gate": 0.5, "gate_entropy": math.log(2)})
    assert made(Fixed([OPEN] * 6))(batch_of()).parts == pytest.approx({"gate": 1, "gate_entropy": 0}, abs=1e-12)
    p = 0.25
    quarter = made(Fixed([math.log(p / (1 - p))] * 6))(batch_of()).parts
    assert quarter == pytest.approx({"gate": p, "gate_entropy": -p * math.log(p) - (1 - p) * math.log(1 - p)})


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), b=st.integers(3, 12))
def test_permutation(seed, b):
    """Partners that go with their rows; drawn ones stay at their places, so only ``identical`` is equivariant."""
    batch, order = batch_of(b, seed=seed), torch.randperm(b, generator=rng(seed))
    loss = made(Hydra(partner="identical", width=4)).double()
    per_sample = loss(batch).per_sample
    moved = loss(Batch(z=batch.z[order], y=batch.y[order])).per_sample
    torch.testing.assert_close(moved, per_sample[order], **TIGHT)

    sim, partner = batch.z[:, 0] @ batch.z[:, 0].T, torch.randint(4, (b,), generator=rng(seed))
    sums, count = pair_losses(sim, batch.y, partner)
    again, same = pair_losses(sim[order][:, order], batch.y[order], partner[order])
    torch.testing.assert_close(again, sums[order], **TIGHT)
    assert count == same


@pytest.mark.parametrize("partner", ["arbitrary", "distinct", "identical"])
@pytest.mark.parametrize("case", ["collapse", "one zero row", "all zero", "one class", "all classes differ", "sharp"])
def test_finite(partner, case):
    temperature = 1e-3 if case == "sharp" else 0.1  # shifting by the mean of the row would overflow there
    loss, batch = made(Hydra(temperature, partner, width=4), classes=9), batch_of()
    z, y = batch.z.float(), batch.y
    if case == "collapse":
        z = torch.ones_like(z)
    elif case != "sharp" and "class" not in case:
        z[0 if case == "one zero row" else slice(None)] = 0
    y = {"one class": y * 0, "all classes differ": torch.arange(9)}.get(case, y)
    out = loss(Batch(z=z.requires_grad_(), y=y, rng=rng()))
    gradients = torch.autograd.grad(out.total, [z, *loss.parameters()])
    assert out.total.isfinite()
    assert out.per_sample.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    if partner == "identical" and "class" in case:
        assert out.total == 0, "no negatives, or no positives"


def test_collapse_counts_the_negatives():
    loss = made(Hydra(partner="identical", width=4), classes=3).double()
    out = loss(Batch(z=torch.ones(6, 1, 6, dtype=torch.float64), y=torch.tensor([0, 0, 0, 0, 1, 1])))
    sums = [3 * math.log(3)] * 4 + [math.log(5)] * 2  # positives * log(1 + negatives)
    assert out.total.item() == pytest.approx(sum(sums) / 14, abs=1e-12)
    assert out.per_sample.tolist() == pytest.approx([6 * x / 14 for x in sums], abs=1e-12)


@pytest.mark.parametrize("gate", [[1.0, 0, 0, 0], [0.0, 0, 0, 0]])
def test_a_gate_of_one_dimension_or_none(gate):
    """Cosines are then +-1 or 0, and nothing blows up."""
    z = torch.tensor([[1.0, 2, 0, 0], [-2, 1, 0, 0], [0, 1, 1, 0]], requires_grad=True)
    gates = torch.tensor([gate] * 3, requires_grad=True)
    cosines = gated_cosines(unit(z), gates)
    assert cosines.tolist() == [[gate[0], -gate[0], 0], [-gate[0], gate[0], 0], [0, 0, 0]]
    gradients = torch.autograd.grad(
        pair_losses(cosines / 0.1, torch.arange(3), torch.tensor([1, 2, 0]))[0].sum(), [z, gates]
    )
    assert all(g.isfinite().all() for g in gradients)


def test_half_precision_is_computed_in_float32():
    loss, batch = made(Hydra(width=4)), batch_of()
    out = loss(Batch(z=batch.z.bfloat16(), y=batch.y, rng=rng()))
    assert out.total.dtype == torch.float32
    expected = loss(Batch(z=batch.z.bfloat16().float(), y=batch.y, rng=rng())).total
    torch.testing.assert_close(out.total, expected, atol=0, rtol=0)


def test_state_comes_back():
    one, two = made(Hydra(width=4)), made(Hydra(width=4), seed=1)
    assert one(batch_of()).total != two(batch_of()).total
    two.load_state_dict(one.state_dict())
    assert one(batch_of()).total == two(batch_of()).total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"partner": "none"}, "partner must be one of arbitrary, distinct, identical, got 'none'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        Hydra(**options)


def test_two_samples_are_too_few():
    with pytest.raises(ValueError, match="hydra needs at least 3 samples in a batch, got 2"):
        made(Hydra(width=4))(batch_of(2))


# What the gates do, on nine classes that are pairs of a shape and a colour, mixed.

PAIRS = torch.arange(9)
SHAPE, COLOUR = PAIRS // 3, PAIRS % 3
RELATED = (SHAPE[:, None] == SHAPE) ^ (COLOUR[:, None] == COLOUR)
FOREIGN = (SHAPE[:, None] != SHAPE) & (COLOUR[:, None] != COLOUR)


def planted(seed, n=800, flipped=0.1):
    g = rng(seed)
    y = torch.randint(9, (n,), generator=g)
    x = torch.cat([torch.eye(3)[SHAPE[y]], torch.eye(3)[COLOUR[y]], torch.zeros(n, 6)], 1)
    mix = torch.linalg.qr(torch.randn(12, 12, generator=g))[0]
    wrong = torch.rand(n, generator=g) < flipped
    given = torch.where(wrong, (y + torch.randint(1, 9, (n,), generator=g)) % 9, y)
    return (x + 0.3 * torch.randn(n, 12, generator=g)) @ mix, given, wrong


def trained(loss, x, y, seed, steps=120):
    made(loss, classes=9, d=16, seed=seed)
    net = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    optimiser = torch.optim.AdamW([*net.parameters(), *loss.parameters()], lr=1e-2)
    g, totals = rng(seed), []
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=g)
        out = loss(Batch(z=net(x[rows])[:, None], y=y[rows], rng=g))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
        totals.append(out.total.item())
    with torch.no_grad():
        return net(x), sum(totals[-10:]) / 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gates_make_arbitrary_pairs_separable(seed):
    x, y, wrong = planted(seed)
    loss = Hydra(width=32)
    z, total = trained(loss, x, y, seed)
    _, without = trained(Fixed([OPEN] * 16), x, y, seed)
    assert total < without - 0.7, "with one sub-space for all pairs, arbitrary positives cannot be told from negatives"

    with torch.no_grad():
        own = unit(loss.gate(PAIRS, PAIRS).sigmoid())
        overlap = own @ own.T
        assert overlap[RELATED].mean() > overlap[FOREIGN].mean() + 0.02, "related classes share gates"
        per_sample = sum(loss(Batch(z=z[:, None], y=y, rng=rng(s))).per_sample for s in range(5))
    pairs = per_sample[wrong][:, None] > per_sample[~wrong]
    assert pairs.double().mean() > 0.85, "AUROC of the loss for wrong labels"
