"""SupReMix: the numbers of its sheet, a slow reference, its traps, and the ribbon that it makes of rotated pictures."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import rotate
from scipy.stats import beta, kstest, spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, unit
from chaffinch.losses.supremix import SupReMix

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
DOUBLE = partial(torch.tensor, dtype=torch.float64)
ALL = 10_000  # pairs: more than any of these batches has


def run(loss, z, target, seed=0):
    target = torch.as_tensor(target, dtype=torch.float64)
    return loss.double()(Batch(z=z, rng=torch.Generator().manual_seed(seed), aux={"target": target}))


def planted(b=6, v=2, d=4, seed=0, values=5):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(b, v, d, generator=g, dtype=torch.float64)
    return z, torch.randint(values, (b,), generator=g).double()


def with_share(loss, share):
    """The loss with the anchor's share in its mixed negatives set: a number, or a matrix of rows by rows."""
    loss._shares = lambda shape, rng: torch.as_tensor(share, dtype=torch.float64).expand(shape)
    return loss


def with_cosines(*cosines):
    """One view of an anchor and of samples at these cosines to it, each in a plane of its own."""
    z = torch.zeros(1 + len(cosines), 1, 1 + len(cosines), dtype=torch.float64)
    z[0, 0, 0] = 1
    for place, cosine in enumerate(cosines, start=1):
        z[place, 0, 0], z[place, 0, place] = cosine, math.sqrt(1 - cosine**2)
    return z


def slow(z, target, shares, temperature=0.3, window=5.0, magnify=1.0, mix_negatives=True, mix_positives=True):
    """(B,) losses and the gradient of their mean by z, in plain loops over mixtures that are really built."""
    z = z.clone().requires_grad_()
    b, v, _ = z.shape
    rows = [z[i, k] / z[i, k].norm() for k in range(v) for i in range(b)]
    t = [float(target[i]) for k in range(v) for i in range(b)]
    n, losses = v * b, []
    for i in range(n):
        seen = [(rows[a], t[a]) for a in range(n) if a != i]
        positives = [rows[a] for a in range(n) if a != i and t[a] == t[i]]
        if mix_negatives:
            for k in range(n):
                if t[k] != t[i]:
                    share = shares[i][k]
                    mixture = (share * rows[i] + (1 - share) * rows[k]).detach()
                    seen.append((mixture, share * t[i] + (1 - share) * t[k]))
        if mix_positives:
            for j in range(n):
                for k in range(n):
                    if t[i] - window < t[j] < t[i] < t[k] < t[i] + window:
                        share = (t[k] - t[i]) / (t[k] - t[j])
                        mixture = (share * rows[j] + (1 - share) * rows[k]).detach()
                        positives.append(mixture)
                        seen.append((mixture, share * t[j] + (1 - share) * t[k]))
        if not positives:
            losses.append(0 * rows[i].sum())
            continue
        logits = [rows[i] @ m / temperature + math.log(1 + magnify * abs(t[i] - label)) for m, label in seen]
        pull = sum(rows[i] @ m for m in positives) / len(positives) / temperature
        losses.append(torch.logsumexp(torch.stack(logits), 0) - pull)
    per_row = torch.stack(losses)
    (gradient,) = torch.autograd.grad(per_row.mean(), z)
    return per_row.detach().view(v, b).mean(0), gradient


class TestKnownAnswers:
    def test_weights_of_real_negatives(self):
        """Cosines .9 (positive), .5, .1 with weights 1, 2, 11."""
        z = with_cosines(0.9, 0.5, 0.1)
        targets = [30, 30, 31, 40]
        weighted = run(SupReMix(pairs=0, mix_negatives=False), z, targets).per_sample[0].item()
        assert weighted == pytest.approx(0.829211966, abs=1e-9)
        logits = DOUBLE([0.9, 0.5, 0.1]) / 0.3 + DOUBLE([1.0, 2, 11]).log()
        assert weighted == pytest.approx(logits.logsumexp(0).item() - 0.9 / 0.3, abs=1e-12)
        plain = run(SupReMix(pairs=0, mix_negatives=False, magnify=0), z, targets).per_sample[0].item()
        assert plain == pytest.approx(0.287492496, abs=1e-9)

    def test_weight_of_a_mixed_negative(self):
        """Targets 30 and 40 with share .2: label 38, weight 9, similarity .2 + .8 * cosine."""
        z = with_cosines(0.9, 0.1)
        found = run(with_share(SupReMix(pairs=0), 0.2), z, [30, 30, 40]).per_sample[0].item()
        expected = math.log(
            math.exp(0.9 / 0.3) + 11 * math.exp(0.1 / 0.3) + 9 * math.exp((0.2 + 0.8 * 0.1) / 0.3)
        ) - 0.9 / 0.3  # fmt: skip
        assert found == pytest.approx(expected, abs=1e-12)

    def test_share_of_a_mixed_positive(self):
        """Targets 28 < 30 < 33: alpha .6, so the mixture is .6 of the lower and .4 of the upper."""
        z = with_cosines(0.7, -0.2)
        found = run(SupReMix(mix_negatives=False), z, [30, 28, 33]).per_sample[0].item()
        mixed = 0.6 * 0.7 + 0.4 * -0.2
        expected = math.log(3 * math.exp(0.7 / 0.3) + 4 * math.exp(-0.2 / 0.3) + math.exp(mixed / 0.3)) - mixed / 0.3
        assert found == pytest.approx(expected, abs=1e-12)

    def test_one_logsumexp_over_real_rows_and_mixtures(self):
        """Logits 3 (positive) and 1, mixture 2.5; with a maximum of its own for each sort it would be .758623676."""
        loss = with_share(SupReMix(temperature=0.25, pairs=0, magnify=0), 0.5)
        found = run(loss, with_cosines(0.75, 0.25), [0, 0, 1]).per_sample[0].item()
        assert found == pytest.approx(0.554956920, abs=1e-9)


@pytest.mark.parametrize(("b", "v"), [(2, 2), (6, 2), (7, 1), (4, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"window": 2.0, "temperature": 0.1}, {"mix_negatives": False}, {"magnify": 0.3}]
)
def test_slow_reference(b, v, options):
    z, target = planted(b, v, seed=b * v)
    shares = torch.rand(v * b, v * b, generator=torch.Generator().manual_seed(b), dtype=torch.float64)
    expected, gradient = slow(z, target, shares, **options)
    z.requires_grad_()
    out = run(with_share(SupReMix(pairs=ALL, **options), shares), z, target)
    torch.testing.assert_close(out.per_sample, expected, **TIGHT)
    torch.testing.assert_close(out.total, expected.mean(), **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(out.total, z)[0], gradient, **TIGHT)


def test_continuous_targets():
    """No two targets equal: the other view and the mixtures are the positives."""
    z, _ = planted(6)
    target = DOUBLE([0.3, 7.1, 2.25, 3.9, 2.2, 40.0])
    shares = torch.full((12, 12), 0.2, dtype=torch.float64)
    expected, _ = slow(z, target, shares)
    found = run(with_share(SupReMix(pairs=ALL), 0.2), z, target).per_sample
    torch.testing.assert_close(found, expected, **TIGHT)


def supcon(z, target, temperature):
    """(B,) supervised contrastive loss with exactly equal targets as positives."""
    b, v, _ = z.shape
    rows, t = unit(z).transpose(0, 1).reshape(v * b, -1), target.repeat(v)
    eye = torch.eye(v * b, dtype=torch.bool)
    sim, positive = rows @ rows.T / temperature, (t[:, None] == t) & ~eye
    pull = sim.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    return (sim.masked_fill(eye, -torch.inf).logsumexp(1) - pull).view(v, b).mean(0)


def test_without_mixtures_and_weights_it_is_supcon():
    z, target = planted(9)
    found = run(SupReMix(pairs=0, mix_negatives=False, magnify=0), z, target)
    torch.testing.assert_close(found.per_sample, supcon(z, target, 0.3), **TIGHT)
    peer = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    theirs = peer.SupConLoss(temperature=0.3)(z.transpose(0, 1).reshape(18, -1), target.repeat(2))
    torch.testing.assert_close(found.total, theirs, atol=1e-6, rtol=1e-6)


def test_of_one_target_there_is_nothing_to_mix():
    z, _ = planted(6)
    torch.testing.assert_close(run(SupReMix(), z, [2] * 6).per_sample, supcon(z, torch.full((6,), 2), 0.3), **TIGHT)


def test_mixed_negatives_are_harder_and_mixed_positives_are_not():
    """.2 + .8c is above c, so the loss rises; a mixed positive is never nearer than the nearer of its ends."""
    z, target = planted(8)
    plain = run(SupReMix(pairs=0, mix_negatives=False), z, target).per_sample
    assert (run(with_share(SupReMix(pairs=0), 0.2), z, target).per_sample > plain).all()
    ends = with_cosines(0.7, -0.2)
    out = run(SupReMix(mix_negatives=False), ends, [30, 28, 33])
    assert out.parts["positive_cosine"] * 3 == pytest.approx(0.6 * 0.7 - 0.4 * 0.2)  # two of three rows have none


def test_mixtures_pass_no_gradient_to_their_ends():
    """A row that anchors nothing but is mixed into the others' pairs."""
    z = with_cosines(0.7, -0.2)
    z.requires_grad_()
    loss = SupReMix(mix_negatives=False)
    with_mixture, without = (run(loss if on else SupReMix(pairs=0), z, [30, 28, 33]) for on in (True, False))
    assert with_mixture.per_sample[1] == with_mixture.per_sample[2] == 0  # the edges have no positive at all
    assert (without.per_sample == 0).all()
    (gradient,) = torch.autograd.grad(with_mixture.total, z)
    # The mixture's pull would show in the anchor's plane only; its push on the ends as real negatives is known.
    logits = DOUBLE([0.7, -0.2]) / 0.3 + DOUBLE([3.0, 4.0]).log()
    mixed = (0.6 * 0.7 - 0.4 * 0.2) / 0.3
    push = torch.exp(logits) / (logits.exp().sum() + math.exp(mixed)) / 0.3 / 3
    expected = torch.stack([push[i] * (z[0, 0] - c * z[1 + i, 0]) for i, c in enumerate((0.7, -0.2))]).detach()
    torch.testing.assert_close(gradient[1:, 0], expected, **TIGHT)


@pytest.mark.parametrize(("gap", "inside"), [(4.0, True), (5.0, False), (4.999, True)])
def test_window_is_open(gap, inside):
    """A mixed positive's ends lie nearer than the window, not at it."""
    z = with_cosines(0.7, -0.2)
    for targets in ([30, 30 - gap, 31], [30, 29, 30 + gap]):
        assert (run(SupReMix(mix_negatives=False), z, targets).per_sample[0] != 0) == inside


class TestPairs:
    @staticmethod
    def drawn(target, pairs, window=5.0, seed=0):
        """For each row the (j, k) that are used."""
        t = torch.as_tensor(target, dtype=torch.float64)
        j, k, real = SupReMix(pairs=pairs, window=window)._between(t, torch.Generator().manual_seed(seed))
        return [[(int(a), int(b)) for a, b in zip(j[i][real[i]], k[i][real[i]], strict=True)] for i in range(len(t))]

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 999), pairs=st.integers(1, 40), window=st.floats(0.5, 6))
    def test_all_if_few_and_distinct_draws_if_many(self, seed, pairs, window):
        t = torch.randint(8, (14,), generator=torch.Generator().manual_seed(seed)).tolist()
        for i, found in enumerate(self.drawn(t, pairs, window, seed)):
            low = [j for j in range(14) if t[i] - window < t[j] < t[i]]
            high = [k for k in range(14) if t[i] < t[k] < t[i] + window]
            whole = {(j, k) for j in low for k in high}
            assert len(found) == len(set(found)) == min(pairs, len(whole))
            assert set(found) <= whole

    def test_each_pair_is_as_likely_as_any_other(self):
        t = [0] * 4 + [1] + [2] * 5  # 20 pairs for the row in the middle
        loss, rng, hits = SupReMix(pairs=8), torch.Generator().manual_seed(0), np.zeros((10, 10))
        for _ in range(1000):
            j, k, _ = loss._between(DOUBLE(t), rng)
            np.add.at(hits, (j[4].numpy(), k[4].numpy()), 1)
        share = hits[:4, 5:] / 1000
        assert share.sum() == pytest.approx(8)
        assert np.abs(share - 0.4).max() < 0.06  # four standard deviations

    def test_total_stays_near_the_full_one_where_pairs_are_drawn(self):
        z, target = planted(24, 2, 6, seed=3)
        off = SupReMix(pairs=ALL, mix_negatives=False)
        some = SupReMix(pairs=32, mix_negatives=False)
        mean = np.mean([run(some, z, target, seed).parts["positive_cosine"] for seed in range(20)])
        assert mean == pytest.approx(run(off, z, target).parts["positive_cosine"], abs=0.02)


def test_shares_follow_the_beta_law():
    rng = torch.Generator().manual_seed(0)
    for options, law in (({}, beta(2, 8)), ({"mix_a": 0.7, "mix_b": 1.5}, beta(0.7, 1.5))):
        shares = SupReMix(**options)._shares(torch.Size([200, 100]), rng).numpy()
        assert shares.min() >= 0
        assert shares.max() < 1
        assert shares.mean() == pytest.approx(law.mean(), abs=0.005)
        assert kstest(shares.ravel(), law.cdf).pvalue > 0.01


def test_output_contract_and_draws():
    z, target = planted()
    out, again, other = (run(SupReMix(), z, target, seed) for seed in (0, 0, 1))
    assert torch.equal(out.total, again.total)
    assert not torch.equal(out.total, other.total)
    assert out.per_sample.shape == (6,)
    torch.testing.assert_close(out.per_sample.mean(), out.total)
    assert all(type(value) is float for value in out.parts.values())
    rows, t = unit(z).transpose(0, 1).reshape(12, -1), target.repeat(2)
    negative = t[:, None] != t
    assert out.parts["negative_cosine"] == pytest.approx((rows @ rows.T)[negative].mean().item())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), v=st.integers(1, 3), b=st.integers(2, 8))
def test_permutation_rotation_and_scale(seed, v, b):
    """With the share fixed and all pairs used; drawn numbers belong to places in the batch."""
    z, target = planted(b, v, seed=seed)
    loss, g = with_share(SupReMix(pairs=ALL), 0.2), torch.Generator().manual_seed(seed)
    out = run(loss, z, target)
    order, views = torch.randperm(b, generator=g), torch.randperm(v, generator=g)
    turned = run(loss, z[order][:, views], target[order])
    torch.testing.assert_close(turned.per_sample, out.per_sample[order], **TIGHT)
    torch.testing.assert_close(turned.total, out.total, **TIGHT)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    stretch = 0.1 + torch.rand(b, v, 1, generator=g, dtype=torch.float64)
    torch.testing.assert_close(run(loss, stretch * z @ turn, target).per_sample, out.per_sample, **TIGHT)
    torch.testing.assert_close(run(loss, z, target + 16).per_sample, out.per_sample, **TIGHT)
    torch.testing.assert_close(run(loss, z, 16 - target).per_sample, out.per_sample, **TIGHT)  # order reversed


def test_unit_of_the_target():
    """Targets ten times as large are the same with a window ten times as wide and a tenth of the weight."""
    z, target = planted(8)
    one = run(SupReMix(window=2.5), z, target).total
    torch.testing.assert_close(run(SupReMix(window=25, magnify=0.1), z, 10 * target).total, one, **TIGHT)
    assert not torch.isclose(run(SupReMix(window=2.5), z, 10 * target).total, one)


@pytest.mark.parametrize("rows", ["alike", "zero", "one zero", "one target", "one sample", "far"])
def test_degenerate_batches_are_finite(rows):
    z, target = planted()
    z = z.float()
    if rows == "alike":
        z = torch.ones_like(z)
    elif rows == "zero":
        z = 0 * z
    elif rows == "one zero":
        z[0] = 0
    elif rows == "one target":
        target = 0 * target
    elif rows == "far":
        target = 1e6 * target
    else:
        z, target = z[:1], target[:1]
    z = z.clone().requires_grad_()
    out = SupReMix(temperature=0.05)(
        Batch(z=z, rng=torch.Generator().manual_seed(0), aux={"target": target.float()})
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.total, z)
    assert out.total.dtype == torch.float32
    assert out.per_sample.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_is_computed_in_float32():
    z, target = planted()
    z = (100 * z).to(torch.bfloat16)
    found, expected = (
        SupReMix()(Batch(z=rows, rng=torch.Generator().manual_seed(0), aux={"target": target.float()})).total
        for rows in (z, z.float())
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"window": 0}, "window must be above 0"),
        ({"window": math.inf}, "window must be above 0 and finite"),
        ({"mix_a": -1}, "mix_a must be above 0"),
        ({"mix_b": 0}, "mix_b must be above 0"),
        ({"pairs": -1}, "pairs must be 0 or more"),
        ({"magnify": -1}, "magnify must be 0 or more"),
        ({"magnify": math.nan}, "magnify must be 0 or more"),
    ],
)
def test_bad_parameters(options, said):
    with pytest.raises(InputError, match=said):
        SupReMix(**options)


def test_bad_batches():
    z, target = planted(1, 1)
    with pytest.raises(InputError, match="supremix needs at least 2 views in a batch, got 1"):
        run(SupReMix(), z, target)
    with pytest.raises(InputError, match="supremix needs a target"):
        SupReMix()(Batch(z=z, rng=torch.Generator()))
    with pytest.raises(InputError, match="random number generator"):
        SupReMix()(Batch(z=z, aux={"target": target}))


def test_state_dict_holds_nothing():
    assert not SupReMix().state_dict()
    assert not list(SupReMix().parameters())


def rank_n_contrast(z, t, temperature=2.0):
    """The baseline Rank-N-Contrast on (n, D) free features: j against all that are as far from i in t, or farther."""
    n = len(z)
    eye = torch.eye(n, dtype=torch.bool)
    logits, apart = -torch.cdist(z, z) / temperature, (t[:, None] - t).abs()
    farther = (apart[:, None, :] >= apart[:, :, None]) & ~eye[:, None, :]  # (i, j, k)
    whole = logits[:, None, :].masked_fill(~farther, -torch.inf).logsumexp(2)
    return (whole - logits)[~eye].mean()


def test_known_answers_of_rank_n_contrast():
    z = torch.tensor([[0.0], [1], [3]], dtype=torch.float64)
    ordered, shuffled = torch.tensor([0.0, 1, 3]), torch.tensor([1.0, 3, 0])
    assert rank_n_contrast(z, ordered).item() == pytest.approx(0.210235943, abs=1e-9)
    assert rank_n_contrast(z, shuffled).item() == pytest.approx(0.460235943, abs=1e-9)
    assert rank_n_contrast(100 * z, ordered).item() == pytest.approx(0, abs=1e-9)
    assert rank_n_contrast(z.repeat(2, 1), ordered.repeat(2)).item() == pytest.approx(0.912021626, abs=1e-9)


def turned_digits(seed, n=600, noise=0.3):
    """Pictures of digits turned by -60 to 60 degrees, their angles in steps of 10, and those with some wrong ones."""
    pictures = load_digits().images
    rng = np.random.default_rng(seed)
    true = rng.integers(-6, 7, 2 * n)
    chosen = pictures[rng.permutation(len(pictures))[: 2 * n]]
    x = np.stack([rotate(p, 10 * a, reshape=False, order=1) for p, a in zip(chosen, true, strict=True)])
    wrong = rng.random(2 * n) < noise
    given = np.where(wrong, rng.integers(-6, 7, 2 * n), true)
    return torch.tensor(x.reshape(2 * n, -1) / 16, dtype=torch.float32), true, given


def embedding(loss, x, given, seed, steps=100):
    """Unit projections of all pictures by a small network, trained on those with a given angle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    t, g = torch.tensor(given, dtype=torch.float32), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        i = torch.randint(len(t), (64,), generator=g)
        views = x[i, None] + 0.1 * torch.randn(64, 2, 64, generator=g)
        optimiser.zero_grad()
        loss(network(views), t[i], g).backward()
        optimiser.step()
    return unit(network(x)).detach()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_effect_islands_become_a_ribbon(seed):
    """30 % wrong angles: on clean held-out pictures distances follow the angle, where SupCon's do not."""
    x, true, given = turned_digits(seed)
    ours = SupReMix()
    losses = {
        "supremix": lambda z, t, g: ours(Batch(z=z, rng=g, aux={"target": t})).total,
        "supcon": lambda z, t, g: supcon(z, t, 0.3).mean(),
    }
    order, error = {}, {}
    for name, loss in losses.items():
        z = embedding(loss, x, given[:600], seed)
        seen, held = z[:600], z[600:]
        upper = np.triu_indices(600, 1)
        distance, apart = torch.cdist(held, held).numpy(), np.abs(true[600:, None] - true[600:])
        order[name] = spearmanr(distance[upper], apart[upper]).statistic
        error[name] = np.abs(Ridge(1.0).fit(seen, given[:600]).predict(held) - true[600:]).mean()
        if name == "supremix":
            nearest = (seen @ seen.T).fill_diagonal_(-2).topk(15).indices.numpy()
            odd = np.abs(given[:600] - given[nearest].mean(1))
            assert roc_auc_score(given[:600] != true[:600], odd) > 0.8
            assert spearmanr(given[(held @ seen.T).topk(15).indices.numpy()].mean(1), true[600:]).statistic > 0.9
    assert order["supremix"] > order["supcon"] + 0.1
    assert error["supremix"] < error["supcon"]
