"""DebCSE-style pairs: the sampler's numbers and draws, slow reference, plain InfoNCE as its limit, less bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.datasets import load_digits

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes, unit
from chaffinch.losses.debcse import (
    LEAST,
    NEIGHBOURS,
    DebCSE,
    correlation,
    effective_size,
    keep_uniform,
    nearest,
    negative_probability,
    positive_probability,
    propensity,
    surface,
)
from chaffinch.losses.simclr import NTXent

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
SURF, SEM = (torch.tensor([row], dtype=torch.float64) for row in ((0.9, 0.3, 0.3), (0.9, 0.8, 0.3)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def batch_of(b=6, v=2, d=5, side=8, seed=0):
    x = torch.rand(b, v, 1, side, side, generator=seeded(seed), dtype=torch.float64)
    return Batch(z=normal(b, v, d, seed=seed), x=x, index=torch.arange(b))


def loss_of(samples=6, features=4, seed=0, fill=True, **parameters):
    loss = DebCSE(**parameters)
    loss.setup(Sizes(features=features, projection=5, classes=2, samples=samples, shape=(1, 8, 8)))
    loss.double()
    if fill:
        loss.on_epoch(normal(samples, features, seed=seed + 100), None, 5, None)
    return loss


class TestSampler:
    def test_propensity_of_the_sheet(self):
        e = propensity(SURF, 0.2, 0.01)
        assert e[0].tolist() == pytest.approx([0.9094, 0.0453, 0.0453], abs=5e-5)
        assert (SEM / e)[0].tolist() == pytest.approx([0.990, 17.668, 6.626], abs=5e-4)

    def test_positives_of_the_sheet(self):
        p = positive_probability(SURF, SEM, 0.2, 0.01)
        assert p[0].tolist() == pytest.approx([0.0391, 0.6988, 0.2621], abs=5e-5)

    def test_negatives_of_the_sheet(self):
        before = negative_probability(SURF, SEM, 0.2, 1.0)
        assert before[0].tolist() == pytest.approx([0.6906, 0.0688, 0.2407], abs=5e-5)
        after = negative_probability(SURF, SEM, 0.2, 0.9)
        assert after[0].tolist() == pytest.approx([0, 0.0688 / 0.3095, 0.2407 / 0.3095], abs=2e-4), "0.9 is cut"

    def test_weighting_identity_of_the_sheet(self):
        """f seen through e, weighted by target / e, has the target's mean; without weights it has not."""
        wanted = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
        e = propensity(0.3 * wanted.log(), 0.3, 0.01)
        torch.testing.assert_close(e, wanted)
        weight, f = 1 / 3 / e, torch.tensor([1.0, 2, 4], dtype=torch.float64)
        assert weight[0].tolist() == pytest.approx([0.476190, 1.666667, 3.333333], abs=1e-6)
        assert (e * weight * f).sum().item() == pytest.approx(2.333333, abs=1e-6)
        assert (e * f).sum().item() == pytest.approx(1.5)
        p = positive_probability(0.3 * wanted.log(), torch.ones_like(e), 0.3, 0.01)
        torch.testing.assert_close(p, weight / weight.sum(), msg="p+ has the same weights")

    def test_limits(self):
        hot = 1e9
        torch.testing.assert_close(propensity(SURF, hot, 0.01), torch.full_like(SURF, 1 / 3))
        torch.testing.assert_close(positive_probability(SURF, SEM, hot, 0.01), SEM / SEM.sum())
        torch.testing.assert_close(negative_probability(SURF, SEM, hot, 1.0), (1 - SEM) / (1 - SEM).sum())
        same = positive_probability(SURF, torch.full_like(SEM, 0.5), 0.2, 0.01)[0]
        assert same[0] < same[1] == same[2], "the least alike on the surface"
        for one in (
            positive_probability(SURF[:, :1], SEM[:, :1], 0.2, 0.01),
            negative_probability(SURF[:, :1], SEM[:, :1], 0.2, 1.0),
            propensity(SURF[:, :1], 0.2, 0.01),
        ):
            assert one.tolist() == [[1.0]]

    def test_propensities_are_clipped(self):
        """The sheet's trap: a tiny propensity would let one pair outweigh all others."""
        surf = torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64)
        assert propensity(surf, 0.1, 0.01).min() == 0.01
        clipped, free = (positive_probability(surf, torch.ones_like(surf), 0.1, least) for least in (0.01, 1e-12))
        assert free[0, 2] > 0.999999
        assert clipped[0, 2].item() == pytest.approx(100 / 104, abs=1e-6)
        assert effective_size(1 / propensity(surf, 0.1, 0.01)) > effective_size(1 / propensity(surf, 0.1, 1e-12))

    def test_candidates_only(self):
        allow = torch.tensor([[True, False, True], [False, False, False]])
        surf, sem = SURF.repeat(2, 1), SEM.repeat(2, 1)
        for p in (positive_probability(surf, sem, 0.2, 0.01, allow), negative_probability(surf, sem, 0.2, 1.0, allow)):
            assert p[0, 1] == 0
            assert p.sum(1).tolist() == pytest.approx([1, 0])
        inside = positive_probability(SURF[:, [0, 2]], SEM[:, [0, 2]], 0.2, 0.01)
        torch.testing.assert_close(positive_probability(surf, sem, 0.2, 0.01, allow)[0, [0, 2]], inside[0])

    def test_nothing_in_common_and_nothing_below_the_cut(self):
        assert positive_probability(SURF, -SEM, 0.2, 0.01).tolist() == [[0, 0, 0]]
        assert negative_probability(SURF, torch.ones_like(SEM), 0.2, 0.9).tolist() == [[0, 0, 0]]

    def test_a_uniform_share_is_kept(self):
        """The sheet's trap: the cut alone would throw true hard negatives away."""
        allow = torch.tensor([[True, True, True, False]] * 2)
        p = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
        mixed = keep_uniform(p, allow, 0.2)
        assert mixed[0].tolist() == pytest.approx([0.2 / 3, 0.4 + 0.2 / 3, 0.4 + 0.2 / 3, 0])
        assert mixed[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])

    def test_effective_size(self):
        assert effective_size(torch.tensor([[1.0, 1, 1, 1], [2, 2, 0, 0], [1, 0, 0, 0]])).tolist() == [4, 2, 1]
        assert effective_size(torch.tensor([[1.0, 3]])).item() == pytest.approx(1.6)

    def test_draws(self):
        """100,000 pairs drawn by p+: counts as expected; drawn by e, only weighted means are those of the target."""
        surf, sem = torch.rand(1, 8, generator=seeded(0)).double(), torch.rand(1, 8, generator=seeded(1)).double()
        p, e = positive_probability(surf, sem, 0.2, 0.01)[0], propensity(surf, 0.2, 0.01)[0]
        n, draw = 100_000, seeded(2)
        counts = torch.bincount(torch.multinomial(p, n, replacement=True, generator=draw), minlength=8)
        assert chisquare(counts.numpy(), (n * p).numpy()).pvalue > 1e-3
        assert chisquare(counts.numpy(), np.full(8, n / 8)).pvalue < 1e-9

        f = torch.arange(8).double() ** 2
        pairs = torch.multinomial(e, n, replacement=True, generator=draw)
        wanted = (p * f).sum()
        weighted, plain = (p / e * f)[pairs], f[pairs]
        assert abs(weighted.mean() - wanted) < 3 * weighted.std() / math.sqrt(n)
        assert abs(plain.mean() - wanted) > 10 * plain.std() / math.sqrt(n)

    def test_bright_and_dark_copies(self):
        """28x28 digits of one class, half of them dark: what looks alike is as bright; p+ chooses across."""
        images, digit = load_digits(return_X_y=True)
        x = torch.as_tensor(images[digit == 3][:60]).double().reshape(-1, 1, 8, 8) / 16
        x = torch.nn.functional.interpolate(x, size=(28, 28), mode="bilinear")
        bright = torch.arange(60) % 2 == 0
        x[~bright] *= 0.4
        flat = x.flatten(1)
        means = unit(flat - flat.mean(1, keepdim=True))  # cosine: brightness drops out
        surf, sem = surface(x) @ surface(x).T, means @ means.T
        others = ~torch.eye(60, dtype=torch.bool)
        same = bright[:, None] == bright

        def share(p):
            return ((p * same).sum(1) / p.sum(1)).mean().item()

        assert share(sem * others) == pytest.approx(0.5, abs=0.02)
        assert share(propensity(surf, 0.2, 1e-9, others)) > 0.9, "chosen by looks"
        assert share(nearest(surf, 5).double()) > 0.9
        assert share(positive_probability(surf, sem, 0.2, 0.01, others)) < 0.55
        assert correlation(surf, sem, others) < 0.9


class TestSurface:
    def test_cells(self):
        x = torch.rand(5, 3, 8, 12, generator=seeded(0), dtype=torch.float64)
        cells = x.mean(1).reshape(5, 4, 2, 4, 3).mean((2, 4)).flatten(1)
        wanted = unit((cells - cells.mean(0)) / cells.std(0, correction=0))
        torch.testing.assert_close(surface(x), wanted, **TIGHT)

    def test_brightness_counts(self):
        """Standardised over the batch, not within the picture."""
        x = (
            torch.rand(1, 1, 8, 8, generator=seeded(0)) * 0.2
            + torch.tensor([0.1, 0.15, 0.7, 0.75])[:, None, None, None]
        )
        looks = surface(x) @ surface(x).T
        assert looks[0, 1] > 0.9
        assert looks[0, 2] < -0.9

    def test_fine_texture_does_not(self):
        x = torch.rand(6, 1, 8, 8, generator=seeded(0), dtype=torch.float64) * 0.5 + 0.25
        texture = 0.2 * (-1.0) ** torch.arange(8)
        torch.testing.assert_close(surface(x + texture), surface(x), **TIGHT)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 9), (28, 28), (30, 30), (33, 32)])
    def test_pictures_of_any_size(self, shape):
        looks = surface(torch.rand(4, 1, *shape))
        assert looks.isfinite().all()
        assert 1 <= looks.shape[1] <= 56

    def test_flat_pictures_look_like_nothing(self):
        x = torch.full((4, 1, 8, 8), 0.3)
        assert surface(x).abs().max() < 1e-3


def slow(batch, remembered, filled, p):
    """(B,) losses in plain loops, from the definitions."""
    b, v, d = batch.z.shape
    cells = batch.x.mean(2).reshape(b, v, 4, 2, 4, 2).mean((3, 5)).reshape(b * v, 16)
    looks = ((cells - cells.mean(0)) / cells.std(0, correction=0)).reshape(b, v, 16)

    def cosine(one, two):
        one, two = one.tolist(), two.tolist()
        length = math.hypot(*one) * math.hypot(*two)
        return sum(s * t for s, t in zip(one, two, strict=True)) / length if length else 0.0

    per_sample = []
    for i in range(b):
        losses = []
        for k in range(v):
            s = {(j, m): cosine(batch.z[i, k], batch.z[j, m]) / p.temperature for j in range(b) for m in range(v)}
            own = [(i, m) for m in range(v) if m != k]
            others = [(j, m) for j, m in s if j != i]
            attract = sum(s[o] for o in own) / len(own)
            weight = dict.fromkeys(others, 1.0)
            if filled:
                surf = {o: cosine(looks[i, k], looks[o]) for o in others}
                sem = {(j, m): cosine(remembered[i], remembered[j]) for j, m in others}
                hard = {
                    o: (1 - sem[o]) * math.exp(surf[o] / p.surface_temperature) if sem[o] < p.cut else 0.0
                    for o in others
                }
                if sum(hard.values()):
                    u, n = p.uniform_share, len(others)
                    weight = {o: n * ((1 - u) * hard[o] / sum(hard.values()) + u / n) for o in others}
                near = sorted({j for j, _ in others}, key=lambda j: -sem[j, 0])[:NEIGHBOURS]
                near = [(j, m) for j in near for m in range(v)]
                total = sum(math.exp(surf[o] / p.surface_temperature) for o in near)
                e = {o: max(math.exp(surf[o] / p.surface_temperature) / total, LEAST) for o in near}
                ratio = {o: max(sem[o], 0) / e[o] for o in near}
                if sum(ratio.values()):
                    beta = p.neighbour_share
                    drawn = sum(r * s[o] for o, r in ratio.items()) / sum(ratio.values())
                    attract = (1 - beta) * attract + beta * drawn
            repel = sum(math.exp(s[o]) for o in own) + sum(weight[o] * math.exp(s[o]) for o in others)
            losses.append(math.log(repel) - attract)
        per_sample.append(sum(losses) / v)
    return torch.tensor(per_sample, dtype=torch.float64)


@pytest.mark.parametrize(("b", "v"), [(2, 2), (6, 2), (14, 2), (5, 3)])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"uniform_share": 0.0, "cut": 0.3}, {"neighbour_share": 0.6, "temperature": 0.5, "surface_temperature": 1.0}],
)
def test_slow_reference(b, v, parameters):
    batch, loss = batch_of(b, v, seed=b), loss_of(b, seed=b, **parameters)
    out = loss(batch)
    assert "effective_negatives" in out.parts or b == 2, "two pairs always correlate"
    filled = "effective_negatives" in out.parts
    torch.testing.assert_close(out.per_sample, slow(batch, loss.remembered, filled, loss), **TIGHT)
    torch.testing.assert_close(out.total, out.per_sample.mean(), **TIGHT)
    assert out.parts["attract"] + out.parts["repel"] == pytest.approx(out.total.item(), abs=1e-10)


class TestPlainLimit:
    @pytest.mark.parametrize(("b", "v"), [(1, 2), (6, 2), (4, 3)])
    @pytest.mark.parametrize("temperature", [0.05, 0.2])
    def test_before_features_are_remembered(self, b, v, temperature):
        batch = batch_of(b, v)
        ours, theirs = loss_of(b, fill=False, temperature=temperature)(batch), NTXent(temperature)(batch)
        torch.testing.assert_close(ours.per_sample, theirs.per_sample, **TIGHT)
        assert "effective_negatives" not in ours.parts

    def test_all_weight_uniform_and_no_neighbours(self):
        batch, loss = batch_of(), loss_of(uniform_share=1.0, neighbour_share=0.0)
        out = loss(batch)
        assert out.parts["effective_negatives"] == pytest.approx(10)
        torch.testing.assert_close(out.per_sample, NTXent()(batch).per_sample, **TIGHT)
        assert (loss_of()(batch).per_sample - out.per_sample).abs().max() > 1e-3

    def test_one_thing_twice_is_refused(self):
        """The sheet's trap: where looks are the meaning, the ratio is noise; the batch is then plain InfoNCE."""
        batch, loss = batch_of(), loss_of(features=16)
        batch.x[:, 1] = batch.x[:, 0]
        loss.remembered.copy_(surface(batch.x[:, 0]))
        out = loss(batch)
        assert out.parts["similarity_correlation"] > 0.9
        torch.testing.assert_close(out.per_sample, NTXent()(batch).per_sample, **TIGHT)
        loss.remembered.copy_(loss.remembered.flip(0))
        assert loss(batch).parts["similarity_correlation"] < 0.9
        assert (loss(batch).per_sample - out.per_sample).abs().max() > 1e-3


def test_correlation():
    one, two = normal(7, 7), normal(7, 7, seed=1)
    allow = ~torch.eye(7, dtype=torch.bool)
    wanted = np.corrcoef(one[allow], two[allow])[0, 1]
    assert correlation(one, two, allow) == pytest.approx(wanted, abs=1e-12)
    assert correlation(one, torch.ones(7, 7), allow) == 0


def test_weights_are_the_expected_sum_over_drawn_negatives():
    """Drawing n negatives by p- and adding them up unweighted gives the same sum: probability and 1/e never both."""
    batch, loss = batch_of(8, seed=3), loss_of(8, seed=3, neighbour_share=0.0)
    surf, sem = loss.similarities(batch)
    sample = torch.arange(8).repeat(2)
    others = sample[:, None] != sample
    p = keep_uniform(negative_probability(surf, sem.repeat(2, 2), 0.2, 0.9, others), others, 0.2)
    z = unit(batch.z.transpose(0, 1).reshape(16, -1))
    sim = z @ z.T / 0.2
    pairs = torch.multinomial(p, 14 * 2000, replacement=True, generator=seeded(0))
    drawn = 14 * sim.exp().gather(1, pairs).mean(1)
    positive = sim[torch.arange(16), torch.arange(16).roll(8)]
    by_draw = (positive.exp() + drawn).log() - positive
    torch.testing.assert_close(loss(batch).per_sample, by_draw.view(2, 8).mean(0), atol=0.03, rtol=0)


def test_false_negatives_do_not_repel():
    """Pairs above the cut have no gradient, but for the uniform share."""
    batch = batch_of(4, seed=1)
    for share, moves in ((0.0, False), (0.2, True)):
        loss = loss_of(4, uniform_share=share, neighbour_share=0.0)
        same = unit(torch.tensor([[1.0, 0, 0, 0], [1, 0.1, 0, 0], [-1, 0, 1, 0], [-1, 0, -1, 1]], dtype=torch.float64))
        loss.remembered.copy_(same)
        z = batch.z.clone()
        z[:, :, :] = 0
        z[0, :, 0] = z[1, :, 1] = z[2, :, 2] = z[3, :, 3] = 1.0
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(Batch(z=z, x=batch.x, index=batch.index)).total, z)
        assert (gradient[0, 0, 1].abs() > 1e-6) == moves, "0 and 1 mean the same"
        assert gradient[0, 0, 2].abs() > 1e-6
        assert (gradient[0, 0, 2] > gradient[0, 0, 1]).item()


def test_alike_but_different_repels_most():
    """Of two strangers in meaning, the one that looks the same has more weight."""
    batch, loss = batch_of(3), loss_of(3, neighbour_share=0.0)
    batch.x[0], batch.x[1] = 0.2, 0.25
    batch.x[2] = 0.8
    loss.remembered.zero_()
    loss.remembered[range(3), range(3)] = 1.0
    z = torch.zeros(3, 2, 5, dtype=torch.float64)
    z[range(3), :, range(3)] = 1.0
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(Batch(z=z, x=batch.x, index=batch.index)).total, z)
    assert gradient[0, 0, 1] > 1.5 * gradient[0, 0, 2] > 0


class TestMemory:
    def test_only_an_epoch_changes_it(self):
        """The sheet's trap: similarities of the network in training would drift with it."""
        loss, batch = loss_of(), batch_of()
        before = loss.remembered.clone()
        first = loss.similarities(batch)[1]
        loss(Batch(z=normal(6, 2, 5, seed=9), x=batch.x, index=batch.index))
        assert torch.equal(loss.remembered, before)
        assert torch.equal(loss.similarities(batch)[1], first)
        loss.on_epoch(normal(6, 4, seed=9), None, 10, None)
        assert not torch.equal(loss.remembered, before)

    def test_features_are_centred_and_of_length_one(self):
        loss, features = loss_of(fill=False), 10 + normal(6, 4)
        assert not loss.filled
        loss.on_epoch(features, None, 5, None)
        assert loss.filled
        torch.testing.assert_close(loss.remembered, unit(features - features.mean(0)), **TIGHT)

    def test_samples_are_looked_up_by_position(self):
        loss, batch = loss_of(20), batch_of()
        batch.index = torch.tensor([19, 3, 7, 0, 11, 5])
        rows = loss.remembered[batch.index]
        torch.testing.assert_close(loss.similarities(batch)[1], rows @ rows.T, **TIGHT)

    def test_strangers_are_like_nothing(self):
        loss, batch = loss_of(), batch_of()
        batch.index[2] = -1
        sem = loss.similarities(batch)[1]
        assert sem[2].abs().max() == sem[:, 2].abs().max() == 0
        assert loss(batch).per_sample.isfinite().all()
        batch.index[:] = -1
        assert loss(batch).per_sample.isfinite().all()

    @pytest.mark.parametrize(
        ("start", "refresh", "epochs"), [(5, 5, [5, 10, 15]), (0, 1, range(18)), (3, 7, [3, 10, 17])]
    )
    def test_epochs(self, start, refresh, epochs):
        loss = DebCSE(start=start, refresh=refresh)
        assert [epoch for epoch in range(18) if loss.wants_epoch(epoch)] == list(epochs)

    def test_state_goes_on_in_the_same_bits(self):
        loss, other = loss_of(), loss_of(fill=False)
        assert other(batch_of()).total != loss(batch_of()).total
        other.load_state_dict(loss.state_dict())
        assert other(batch_of()).total == loss(batch_of()).total
        assert not list(loss.parameters())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), b=st.integers(3, 8), v=st.integers(2, 3))
def test_permutation_of_samples_and_views(seed, b, v):
    batch, loss = batch_of(b, v, seed=seed), loss_of(b, seed=seed)
    order = torch.randperm(b, generator=seeded(seed))
    views = torch.randperm(v, generator=seeded(seed))
    per_sample = loss(batch).per_sample
    moved = loss(Batch(z=batch.z[order], x=batch.x[order], index=batch.index[order]))
    torch.testing.assert_close(moved.per_sample, per_sample[order], **TIGHT)
    turned = loss(Batch(z=batch.z[:, views], x=batch.x[:, views], index=batch.index))
    torch.testing.assert_close(turned.per_sample, per_sample, **TIGHT)


def test_length_does_not_matter_and_labels_neither():
    batch, loss = batch_of(), loss_of()
    each = torch.rand(6, 2, 1, generator=seeded(1), dtype=torch.float64) + 0.1
    longer = Batch(z=batch.z * each, x=batch.x, index=batch.index, y=torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(loss(longer).total, loss(batch).total, **TIGHT)


def test_gradients_agree_with_differences():
    batch, loss = batch_of(4, 2, 3), loss_of(4)
    assert torch.autograd.gradcheck(
        lambda z: loss(Batch(z=z, x=batch.x, index=batch.index)).total, batch.z.requires_grad_()
    )


@pytest.mark.parametrize("spoil", ["equal", "zero rows", "zero", "flat pictures", "equal features", "one sample"])
@pytest.mark.parametrize("uniform_share", [0.0, 0.2])
def test_degenerate_batches_are_finite(spoil, uniform_share):
    b = 1 if spoil == "one sample" else 6
    batch, loss = batch_of(b), loss_of(b, uniform_share=uniform_share, temperature=0.05)
    if spoil == "equal":
        batch.z[:] = 1.0
    elif spoil == "zero rows":
        batch.z[:2] = 0
    elif spoil == "zero":
        batch.z[:] = 0
    elif spoil == "flat pictures":
        batch.x[:] = 0.3
    elif spoil == "equal features":
        loss.on_epoch(torch.ones(b, 4, dtype=torch.float64), None, 5, None)
    batch.z.requires_grad_()
    out = loss(batch)
    (gradient,) = torch.autograd.grad(out.total, batch.z)
    assert out.per_sample.isfinite().all()
    assert gradient.isfinite().all()
    assert all(math.isfinite(value) for value in out.parts.values())


def test_collapse_is_the_log_of_the_number_of_pairs():
    """Weights add up to n, whatever they are."""
    batch = batch_of()
    batch.z[:] = 1.0
    assert loss_of()(batch).total.item() == pytest.approx(math.log(11), abs=1e-12)


def test_all_pairs_cut_are_weighted_alike():
    batch, loss = batch_of(), loss_of(uniform_share=0.0, neighbour_share=0.0)
    loss.remembered.copy_(torch.eye(4, dtype=torch.float64)[:1])
    torch.testing.assert_close(loss(batch).total, NTXent()(batch).total, **TIGHT)


def test_half_precision_is_computed_in_float32():
    batch, loss = batch_of(), loss_of().float()
    out = loss(Batch(z=batch.z.bfloat16(), x=batch.x.float(), index=batch.index))
    assert out.total.dtype == torch.float32
    assert out.total.isfinite()
    assert all(type(value) is float for value in out.parts.values())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"surface_temperature": math.nan}, "surface_temperature must be above 0"),
        ({"cut": 1.1}, "cut must be a cosine"),
        ({"cut": math.nan}, "cut must be a cosine"),
        ({"uniform_share": -0.1}, "uniform_share must be a share"),
        ({"neighbour_share": 1.1}, "neighbour_share must be a share"),
        ({"start": -1}, "start must be at least 0"),
        ({"refresh": 0}, "refresh must be at least 1"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        DebCSE(**parameters)


def test_one_view_is_an_error():
    with pytest.raises(InputError, match="debcse needs at least 2 views of each sample in a batch, got 1"):
        loss_of()(batch_of(v=1))


def textures(seed, n=384, classes=8):
    """Pictures of fine textures (the class), each as a dark and a bright copy (the nuisance)."""
    draw = seeded(seed)
    fine = torch.randn(classes, 4, 2, 4, 2, generator=draw)
    fine = (fine - fine.mean((2, 4), keepdim=True)).reshape(classes, 8, 8).sign()
    kind, bright = (torch.randint(size, (n,), generator=draw) for size in (classes, 2))
    x = 0.5 + 0.05 * fine[kind] + 0.2 * (2 * bright - 1)[:, None, None]
    return (x + 0.1 * torch.randn(n, 8, 8, generator=draw))[:, None].clamp(0, 1), kind, bright


def split(features, kind):
    """Share of the spread of the unit rows that lies between the kinds."""
    rows = unit(features - features.mean(0))
    rows = rows - rows.mean(0)
    means = torch.stack([rows[kind == k].mean(0) for k in kind])
    return (means.square().sum() / rows.square().sum()).item()


def trained(seed, epochs=16, **parameters):
    """How far textures, and dark and bright, lie apart after a short training."""
    x, kind, bright = textures(seed)
    torch.manual_seed(seed)
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU())
    head = torch.nn.Linear(64, 32)
    loss = DebCSE(**parameters)
    loss.setup(Sizes(features=64, projection=32, classes=8, samples=len(x), shape=(1, 8, 8)))
    optimiser = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=3e-3)
    draw = seeded(seed)
    for epoch in range(epochs):
        if loss.wants_epoch(epoch):
            loss.on_epoch(features(x - 0.5).detach(), None, epoch, draw)
        for rows in torch.randperm(len(x), generator=draw).split(96):
            noise = torch.randn(len(rows), 2, 1, 8, 8, generator=draw) + torch.randn(
                len(rows), 2, 1, 1, 1, generator=draw
            )
            views = (x[rows][:, None] + 0.1 * noise).clamp(0, 1)
            z = head(features((views - 0.5).flatten(0, 1))).view(len(rows), 2, -1)
            optimiser.zero_grad()
            loss(Batch(z=z, x=views, index=rows)).total.backward()
            optimiser.step()
    rows = features(x - 0.5).detach()
    return split(rows, kind), split(rows, bright)


def test_islands_split_less_by_brightness():
    """Against the same training without the sampler: more of the spread is between textures, less by brightness.

    Measured on six seeds: textures .17 -> .28 (least gain .08), brightness .41 -> .12 (largest ratio .41).
    """
    for seed in range(3):
        plain = trained(seed, start=1000)
        ours = trained(seed, start=3, refresh=3)
        assert ours[0] > plain[0] + 0.05, seed
        assert ours[1] < 0.6 * plain[1], seed
