"""SBCL: the numbers of its sheet, the clustering, slow references, and what the cut into subclasses does."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes, unit
from chaffinch.losses.sbcl import SBCL, _assign, _start, balanced_kmeans, class_temperatures, subclass_counts

TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def on_circle(*degrees):
    """(B, V, 2) unit vectors from B rows of V angles."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def made(subclass=None, samples=None, classes=3, tau2=None, features=4, **options):
    """A loss set up, with these subclasses of the samples and temperatures of the classes."""
    loss = SBCL(**options)
    n = len(subclass) if subclass is not None else samples
    loss.setup(Sizes(features, features, classes, n, (1, 8, 8)))
    loss.double()
    if subclass is not None:
        loss.subclass.copy_(torch.as_tensor(subclass))
    if tau2 is not None:
        loss.class_temperature.copy_(torch.as_tensor(tau2, dtype=torch.float64))
    return loss


def planted(b=8, v=2, d=4, seed=0):
    """Projections with labels of two classes of two subclasses each and a class in one piece."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(b, v, d, generator=g, dtype=torch.float64)
    sub = torch.randint(5, (b,), generator=g)
    return Batch(z=z, y=sub // 2, index=torch.arange(b)), sub


def slow(z, y, sub, tau, tau2, beta, own_view=False):
    """Both levels of each sample (2, B), in plain loops; an empty set of positives gives 0."""
    b, v, _ = z.shape
    rows = [(i, k) for i in range(b) for k in range(v)]
    out = torch.zeros(2, b, dtype=torch.float64)

    def cosine(one, two):
        p, q = z[one].tolist(), z[two].tolist()
        return sum(x * w for x, w in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))

    def level(one, positives, among, temperature):
        if not positives:
            return 0.0
        whole = math.log(sum(math.exp(cosine(one, a) / temperature) for a in among))
        return sum(whole - cosine(one, p) / temperature for p in positives) / len(positives)

    for one in rows:
        others = [two for two in rows if two != one]
        mates = [two for two in others if sub[two[0]] == sub[one[0]]]
        outside = [two for two in others if two not in mates]
        positives = [two for two in outside if y[two[0]] == y[one[0]]]
        if own_view:
            own = [two for two in others if two[0] == one[0]]
            positives, outside = positives + own, outside + own
        out[0, one[0]] += level(one, mates, others, tau) / v
        out[1, one[0]] += level(one, positives, outside, tau2[y[one[0]]]) / v
    return out[0] + beta * out[1]


def supcon(z, y, tau):
    """(B,) supervised contrastive loss."""
    return slow(z, y, y, tau, [1.0] * (int(y.max()) + 1), 0.0)


SINGLE = on_circle([0], [10], [40], [50], [180], [200])
CLASSES, SUBCLASSES = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 2])


def test_known_answer_with_empty_rows():
    loss = made(SUBCLASSES, classes=2, tau2=[0.5, 0.5], temperature=0.5, beta=0.25)
    out = loss(Batch(z=SINGLE, y=CLASSES, index=torch.arange(6)))
    assert out.parts["subclass"] == pytest.approx(0.599355556, abs=1e-9)
    assert out.parts["class"] == pytest.approx(0.491270054, abs=1e-9)  # the mean over all six rows, two of them empty
    assert out.total.item() == pytest.approx(0.722173070, abs=1e-9)


def test_known_answer_without_subclasses_is_supcon():
    loss = made(CLASSES, classes=2, tau2=[0.5, 0.5], temperature=0.5)
    out = loss(Batch(z=SINGLE, y=CLASSES, index=torch.arange(6)))
    assert out.parts["class"] == 0
    assert out.total.item() == pytest.approx(0.798984248, abs=1e-9)


def test_known_answer_of_the_code_form():
    z = on_circle([0, 5], [40, 45], [180, 170], [200, 205])
    loss = made([0, 1, 2, 2], classes=2, tau2=[0.5, 0.5], temperature=0.5, own_view=True)
    out = loss(Batch(z=z, y=torch.tensor([0, 0, 1, 1]), index=torch.arange(4)))
    assert out.parts["subclass"] == pytest.approx(1.000158297, abs=1e-9)
    assert out.parts["class"] == pytest.approx(0.630014993, abs=1e-9)
    assert out.total.item() == pytest.approx(1.157662045, abs=1e-9)
    # The public code weighs its first level by tau / 0.07; ours does not.
    public = 0.5 / 0.07 * out.parts["subclass"] + 0.25 * out.parts["class"]
    assert public == pytest.approx(7.301490784, abs=1e-6)  # computed there in single precision


def test_known_numbers_of_subclasses():
    counts = torch.tensor([500, 250, 100, 50, 20, 5])
    assert subclass_counts(counts, 10).tolist() == [50, 25, 10, 5, 2, 1]
    assert subclass_counts(counts + 95, 10).tolist() == [5, 3, 1, 1, 1, 1]  # the smallest class decides
    assert subclass_counts(torch.tensor([40, 0, 20]), 10).tolist() == [2, 1, 1]  # an absent class does not
    assert subclass_counts(torch.tensor([300, 310, 305]), 10).tolist() == [1, 1, 1]
    assert subclass_counts(torch.tensor([300, 310, 305]), 10, size=100).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("exponential", "values"),
    [(False, [0.118633, 0.100202, 0.081165]), (True, [0.327504, 0.272377, 0.225162])],
)
def test_known_temperatures(exponential, values):
    spread, counts = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64), torch.tensor([100, 50, 10])
    found = class_temperatures(spread, counts, 0.1, exponential)
    assert found.tolist() == pytest.approx(values, abs=1e-6)


def test_temperatures_stay_above_zero():
    counts = torch.tensor([50, 50, 50])
    assert class_temperatures(torch.zeros(3), counts, 0.1).tolist() == pytest.approx([0.1] * 3)
    assert class_temperatures(torch.tensor([0.0, 0.0, 1.0]), counts, 0.1).min().item() == pytest.approx(0.01)


def test_known_sizes_of_balanced_clusters():
    x = unit(torch.rand(103, 6, generator=torch.Generator().manual_seed(0)))
    sizes = torch.bincount(balanced_kmeans(x, 10, torch.Generator().manual_seed(0)), minlength=10)
    assert sorted(sizes.tolist()) == [10] * 7 + [11] * 3


def greedy(score):
    """The sheet's assignment as it is written: one walk down the sorted pairs, then one more for each cluster."""
    n, k = score.shape
    cluster = [-1] * n
    for room in (n // k, 1):
        free, left = {i for i in range(n) if cluster[i] < 0}, [room] * k
        pairs = sorted(((float(score[i, c]), i, c) for i in free for c in range(k)), reverse=True)
        for _, i, c in pairs:
            if i in free and left[c]:
                cluster[i], left[c] = c, left[c] - 1
                free.remove(i)
    return cluster


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), k=st.integers(2, 9), n=st.integers(9, 60))
def test_assignment_is_the_walk_down_the_sorted_pairs(seed, k, n):
    score = torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert _assign(score).tolist() == greedy(score)


@pytest.mark.parametrize("rows", ["alike", "zero", "opposite", "pairs"])
def test_clusters_of_degenerate_rows_are_balanced(rows):
    x, place = unit(torch.rand(23, 5, generator=torch.Generator().manual_seed(0))), torch.arange(23)
    if rows == "zero":
        x = 0 * x
    elif rows == "opposite":
        x = x * (-1.0) ** place[:, None]
    else:
        x = x[0 * place if rows == "alike" else place // 2]
    cluster = balanced_kmeans(x, 5, torch.Generator().manual_seed(1))
    assert sorted(torch.bincount(cluster, minlength=5).tolist()) == [4, 4, 5, 5, 5]


@pytest.mark.parametrize("centred", [False, True])
def test_planted_clusters_are_found(centred):
    """Also where cosines are negative: the start must not divide by them, nor the scores change sign."""
    found = 0
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        means = 3 * torch.eye(4, 6) - (0.75 if centred else 0.0)
        truth = torch.arange(80) % 4
        cluster = balanced_kmeans(unit(means[truth] + 0.2 * torch.randn(80, 6, generator=g)), 4, g)
        found += normalized_mutual_info_score(truth, cluster) > 0.999
    assert found >= 7


def test_a_minority_opposite_to_the_rest_is_a_cluster():
    """Its sum of cosines is negative, which must not turn its order round."""
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        side = torch.tensor([1.0] * 60 + [-1.0] * 20)[:, None]
        cluster = balanced_kmeans(unit(side * torch.eye(1, 6) + 0.2 * torch.randn(80, 6, generator=g)), 4, g)
        assert len(cluster[60:].unique()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_clustering_in_plain_steps(seed):
    """From the same start: shares of each cluster's sum of cosines, the walk down, the means, until they stand."""
    g = torch.Generator().manual_seed(seed)
    clouds = torch.rand(5, 6, generator=g, dtype=torch.float64)
    noise = torch.rand(58, 1, generator=g, dtype=torch.float64) * torch.rand(58, 6, generator=g, dtype=torch.float64)
    x = unit(clouds[torch.randint(5, (58,), generator=g)] ** 2 + noise)
    centres = _start(x, 5, torch.Generator().manual_seed(0))
    shift, rounds = torch.inf, 0
    while shift >= 1e-3 and rounds < 50:
        rounds += 1
        cosine = x @ unit(centres).T
        cluster = torch.tensor(greedy(cosine / cosine.sum(0)))
        new = torch.stack([x[cluster == c].mean(0) for c in range(5)])
        shift, centres = ((new - centres) ** 2).sum(), new
    assert rounds > 1
    assert balanced_kmeans(x, 5, torch.Generator().manual_seed(0)).tolist() == cluster.tolist()


def test_start_prefers_far_rows():
    """Two rows apart from 98 equal ones: an even draw would take one of them in 4 % of the cases."""
    x = torch.eye(3)[[0] * 98 + [1, 2]]
    for seed in range(5):
        starts = _start(x, 3, torch.Generator().manual_seed(seed))
        assert sorted(starts.argmax(1).tolist()) == [0, 1, 2]


def long_tail(counts, width=128, seed=0):
    """Features after a ReLU, a dozen clouds in each class."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for n in counts:
        clouds = torch.randn(width, generator=g) + 0.7 * torch.randn(12, width, generator=g)
        rows.append((clouds[torch.randint(12, (n,), generator=g)] + 0.7 * torch.randn(n, width, generator=g)).relu())
    return torch.cat(rows), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def test_clustering_12000_samples_is_fast():
    counts = (5000, 3000, 2000, 1000, 600, 300, 100)
    features, y = long_tail(counts)
    loss = SBCL()
    loss.setup(Sizes(128, 128, 7, len(y), (1, 28, 28)))
    start = time.process_time()
    loss.on_epoch(features, y, 10, torch.Generator().manual_seed(0))
    assert time.process_time() - start < 3
    sizes = torch.bincount(loss.subclass)
    assert len(sizes) == 50 + 30 + 20 + 10 + 6 + 3 + 1
    assert sizes.tolist() == [100] * 120


class TestEpoch:
    counts = (60, 41, 12)

    def clustered(self, order=None, seed=0, **options):
        features, y = long_tail(self.counts, width=6)
        order = torch.arange(len(y)) if order is None else order
        loss = SBCL(**options)
        loss.setup(Sizes(6, 4, 3, len(y), (1, 8, 8)))
        loss.on_epoch(features[order], y[order], 10, torch.Generator().manual_seed(seed))
        return loss, features[order], y[order]

    def test_subclasses_belong_to_one_class_each(self):
        shuffled = torch.randperm(113, generator=torch.Generator().manual_seed(5))
        loss, _, y = self.clustered(shuffled)
        owners = [y[loss.subclass == s].unique().tolist() for s in range(int(loss.subclass.max()) + 1)]
        assert owners == [[0]] * 5 + [[1]] * 3 + [[2]]
        sizes = torch.bincount(loss.subclass).tolist()
        assert sizes[:5] == [12] * 5
        assert sorted(sizes[5:8]) == [13, 14, 14]

    def test_same_generator_same_bits(self):
        one, other, third = (self.clustered(seed=seed)[0] for seed in (0, 0, 1))
        assert torch.equal(one.subclass, other.subclass)
        assert not torch.equal(one.subclass, third.subclass)

    def test_scale_of_the_features_does_not_matter(self):
        loss, features, y = self.clustered()
        before = loss.subclass.clone()
        stretch = torch.tensor([0.5, 2.0, 4.0])[torch.arange(len(y)) % 3, None]  # exact in binary
        loss.on_epoch(features * stretch, y, 20, torch.Generator().manual_seed(0))
        assert torch.equal(loss.subclass, before)

    @pytest.mark.parametrize("exponential", [False, True])
    def test_temperatures_follow_the_spread(self, exponential):
        loss, features, y = self.clustered(exponential=exponential)
        x = features / features.norm(dim=1, keepdim=True)
        spread = torch.stack([(x[y == c] - x[y == c].mean(0)).norm(dim=1).mean() for c in range(3)])
        expected = class_temperatures(spread, torch.tensor(self.counts), 0.1, exponential)
        expected[2] = 0.1  # a class in one piece
        torch.testing.assert_close(loss.class_temperature, expected)
        assert loss.class_temperature[0] != 0.1

    def test_absent_class(self):
        """It has no part in the quantiles over classes."""
        features, y = long_tail((40, 25, 12), width=6)
        temperatures = []
        for classes, shift in ((3, 0), (5, 1)):
            loss = SBCL()
            loss.setup(Sizes(6, 4, classes, len(y), (1, 8, 8)))
            loss.on_epoch(features, y + shift, 10, torch.Generator().manual_seed(0))
            assert loss.subclass.unique().tolist() == list(range(6))
            temperatures.append(loss.class_temperature.tolist())
        assert temperatures[1] == pytest.approx([0.1, *temperatures[0], 0.1])

    def test_state_dict_round_trip(self):
        loss, _, y = self.clustered()
        fresh = SBCL()
        fresh.setup(Sizes(6, 4, 3, len(y), (1, 8, 8)))
        fresh.load_state_dict(loss.state_dict())
        z = torch.randn(20, 2, 4, generator=torch.Generator().manual_seed(0))
        index = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))[:20]
        batch = Batch(z=z, y=y[index], index=index)
        assert torch.equal(loss(batch).total, fresh(batch).total)

    def test_collapsed_features(self):
        loss, features, y = self.clustered()
        for rows in (torch.ones_like(features), torch.zeros_like(features)):
            loss.on_epoch(rows, y, 20, torch.Generator().manual_seed(0))
            assert torch.bincount(loss.subclass)[:5].tolist() == [12] * 5
            assert (loss.class_temperature > 0).all()


def test_when_it_clusters():
    assert [e for e in range(40) if SBCL().wants_epoch(e)] == [10, 20, 30]
    assert [e for e in range(12) if SBCL(step=4, warm_up=3).wants_epoch(e)] == [3, 7, 11]
    assert SBCL(warm_up=0).wants_epoch(0)


@pytest.mark.parametrize(("b", "v"), [(2, 2), (8, 2), (6, 1), (5, 3)])
@pytest.mark.parametrize("own_view", [False, True])
def test_slow_reference(b, v, own_view):
    batch, sub = planted(b, v, seed=b * v)
    tau2 = [0.3, 0.7, 0.4]
    out = made(sub, tau2=tau2, temperature=0.4, beta=0.6, own_view=own_view)(batch)
    expected = slow(batch.z, batch.y, sub, 0.4, tau2, 0.6, own_view)
    torch.testing.assert_close(out.per_sample, expected, **TIGHT)
    torch.testing.assert_close(out.total, expected.mean(), **TIGHT)
    assert out.parts["subclass"] + 0.6 * out.parts["class"] == pytest.approx(out.total.item(), abs=1e-10)


@pytest.mark.parametrize("own_view", [False, True])
def test_before_the_first_clustering_it_is_supcon(own_view):
    batch, _ = planted()
    out = made(samples=8, own_view=own_view)(batch)
    torch.testing.assert_close(out.per_sample, supcon(batch.z, batch.y, 0.1), **TIGHT)
    assert out.parts["class"] == 0


def test_supcon_of_the_metric_learning_library():
    peer = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    batch, _ = planted(12)
    z = batch.z.requires_grad_()
    ours = made(samples=12)(batch).total
    rows, y = z.transpose(0, 1).reshape(24, -1), batch.y.repeat(2)
    theirs = peer.SupConLoss(temperature=0.1)(rows, y)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for one, other in zip(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_one_picture_a_subclass_gives_nt_xent_first():
    """With the picture as subclass the first level is SimCLR's loss; the class level keeps the other pictures."""
    batch, sub = planted()
    out = made(torch.arange(8), beta=0.0, temperature=0.3)(batch)
    rows = unit(batch.z).transpose(0, 1).reshape(16, -1)
    logits = (rows @ rows.T / 0.3).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, (torch.arange(16) + 8) % 16)
    torch.testing.assert_close(out.total, expected, **TIGHT)


def test_subclass_mates_are_no_negatives_of_the_class_level():
    """The class level's denominator leaves the own subclass out: pulling mates together does not raise it."""
    z = SINGLE.clone()
    batch = Batch(z=z, y=CLASSES, index=torch.arange(6))
    loss = made(SUBCLASSES, classes=2, tau2=[0.5, 0.5], temperature=0.5)
    full = slow(z, CLASSES, SUBCLASSES, 0.5, [0.5, 0.5], 1.0) - slow(z, CLASSES, SUBCLASSES, 0.5, [0.5, 0.5], 0.0)
    cosine = (z[:, 0] @ z[:, 0].T / 0.5).fill_diagonal_(-torch.inf)
    positive = (CLASSES[:, None] == CLASSES) & (SUBCLASSES[:, None] != SUBCLASSES)
    with_mates = cosine.logsumexp(1) - cosine.masked_fill(~positive, 0).sum(1) / 2
    found = loss(batch).parts["class"]
    assert found == pytest.approx(full.mean().item(), abs=1e-10)
    assert found < with_mates[:4].sum().item() / 6 - 0.1


def test_subclasses_are_looked_up_by_position_in_the_dataset():
    batch, sub = planted()
    places = torch.tensor([19, 3, 0, 7, 11, 5, 2, 13])
    table = torch.full((20,), 99)
    table[places] = sub
    batch.index = places
    found = made(table, tau2=[0.5] * 3)(batch).per_sample
    batch.index = torch.arange(8)
    torch.testing.assert_close(found, made(sub, tau2=[0.5] * 3)(batch).per_sample, atol=0, rtol=0)


def test_samples_from_elsewhere_count_as_a_piece_of_their_class():
    batch, sub = planted()
    batch.index = torch.tensor([0, 1, 2, 3, 4, 5, -1, -1])
    effective = torch.cat([sub[:6], 10 + batch.y[6:]])
    found = made(sub, tau2=[0.5] * 3, temperature=0.5)(batch).per_sample
    torch.testing.assert_close(found, slow(batch.z, batch.y, effective, 0.5, [0.5] * 3, 0.25), **TIGHT)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), v=st.integers(1, 3), b=st.integers(2, 9), own_view=st.booleans())
def test_permutation_rotation_and_scale(seed, v, b, own_view):
    batch, sub = planted(b, v, seed=seed)
    loss = made(sub, tau2=[0.3, 0.2, 0.5], own_view=own_view)
    out = loss(batch)
    g = torch.Generator().manual_seed(seed)
    order, views = torch.randperm(b, generator=g), torch.randperm(v, generator=g)
    turned = loss(Batch(z=batch.z[order][:, views], y=batch.y[order], index=order))
    torch.testing.assert_close(turned.per_sample, out.per_sample[order], **TIGHT)
    torch.testing.assert_close(turned.total, out.total, **TIGHT)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    stretch = 0.1 + torch.rand(b, v, 1, generator=g, dtype=torch.float64)
    moved = loss(Batch(z=stretch * batch.z @ turn, y=batch.y, index=batch.index))
    torch.testing.assert_close(moved.per_sample, out.per_sample, **TIGHT)


def test_gradient_identity():
    """Per row and level, the derivative by a cosine is (share - 1/|P| for positives) / tau; each row sums to 0."""
    batch, sub = planted(6, 2, seed=2)
    z = batch.z.requires_grad_()
    tau, tau2, beta = 0.4, torch.tensor([0.3, 0.7, 0.5], dtype=torch.float64), 0.6
    (got,) = torch.autograd.grad(made(sub, tau2=tau2, temperature=tau, beta=beta)(batch).total, z)

    raw = z.detach().transpose(0, 1).reshape(12, -1)
    length = raw.norm(dim=1, keepdim=True)
    rows, s, y = raw / length, sub.repeat(2), batch.y.repeat(2)
    eye, alike = torch.eye(12, dtype=torch.bool), s[:, None] == s
    by_cosine = torch.zeros(12, 12, dtype=torch.float64)
    for weight, temperature, positive, among in (
        (1.0, torch.full((12, 1), tau, dtype=torch.float64), alike & ~eye, ~eye),
        (beta, tau2[y][:, None], (y[:, None] == y) & ~alike, ~alike),
    ):
        share = (rows @ rows.T / temperature).masked_fill(~among, -torch.inf).softmax(1)
        count = positive.sum(1, keepdim=True)
        level = (share - positive.double() / count.clamp_min(1)) / temperature * (count > 0)
        torch.testing.assert_close(level.sum(1), torch.zeros(12, dtype=torch.float64), atol=1e-12, rtol=0)
        by_cosine += weight * level
    by_row = (by_cosine + by_cosine.T) @ rows / 12
    by_row = (by_row - (by_row * rows).sum(1, keepdim=True) * rows) / length
    torch.testing.assert_close(got.transpose(0, 1).reshape(12, -1), by_row, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("own_view", [False, True])
def test_autograd_agrees_with_differences(own_view):
    batch, sub = planted(4, 2, 3, seed=1)
    loss = made(sub, tau2=[0.3, 0.7, 0.5], temperature=0.5, own_view=own_view)
    assert torch.autograd.gradcheck(
        lambda z: loss(Batch(z=z, y=batch.y, index=batch.index)).total, batch.z.requires_grad_()
    )


@pytest.mark.parametrize("own_view", [False, True])
@pytest.mark.parametrize("rows", ["alike", "zero", "one zero", "one class", "one subclass", "one sample"])
def test_degenerate_batches_are_finite(rows, own_view):
    batch, sub = planted()
    z = batch.z.float()
    if rows == "alike":
        z = torch.ones_like(z)
    elif rows == "zero":
        z = 0 * z
    elif rows == "one zero":
        z[0] = 0
    elif rows == "one class":
        batch.y, sub = torch.zeros_like(batch.y), sub % 2
    elif rows == "one subclass":
        batch.y, sub = torch.zeros_like(batch.y), torch.zeros_like(sub)
    else:
        z, batch.y, batch.index = z[:1], batch.y[:1], batch.index[:1]
    loss = made(sub, tau2=[0.05] * 3, temperature=0.05, own_view=own_view).float()
    batch.z = z.clone().requires_grad_()
    out = loss(batch)
    (gradient,) = torch.autograd.grad(out.total, batch.z)
    assert out.total.dtype == torch.float32
    assert out.per_sample.isfinite().all()
    assert gradient.isfinite().all()
    if rows == "alike":  # every allowed row is as likely as any other
        assert out.parts["subclass"] == pytest.approx(math.log(15), abs=1e-5)


def test_half_precision_is_computed_in_float32():
    batch, sub = planted()
    loss = made(sub, tau2=[0.02] * 3, temperature=0.02).float()
    batch.z = (100 * batch.z).to(torch.bfloat16)
    out = loss(batch)
    assert out.total.dtype == torch.float32
    batch.z = batch.z.float()
    torch.testing.assert_close(out.total, loss(batch).total)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"beta": -0.1}, "beta must be 0 or more"),
        ({"beta": math.nan}, "beta must be 0 or more"),
        ({"delta": 0}, "delta must be 1 or more"),
        ({"size": -1}, "size must be 0 or more"),
        ({"step": 0}, "step must be 1 or more"),
        ({"warm_up": -1}, "warm_up must be 0 or more"),
    ],
)
def test_bad_parameters(options, said):
    with pytest.raises(InputError, match=said):
        SBCL(**options)


def test_bad_batches():
    batch, sub = planted(1, 1)
    with pytest.raises(InputError, match="sbcl needs at least 2 views in a batch, got 1"):
        made(sub)(batch)
    with pytest.raises(InputError, match="sbcl needs the labels and positions"):
        made(sub)(Batch(z=batch.z, y=batch.y))


def train(pictures, y, seed, clusters, steps=80, every=30):
    """A small network on noisy views; with ``clusters`` false the loss stays the supervised contrastive one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU())
        head = torch.nn.Linear(32, 16)
    loss = SBCL()
    loss.setup(Sizes(32, 16, int(y.max()) + 1, len(y), (1, 8, 8)))
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    g = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if clusters and step and step % every == 0:
            with torch.no_grad():
                loss.on_epoch(body(pictures), y, step, g)
        i = torch.randint(len(y), (128,), generator=g)
        views = pictures[i, None] + 0.1 * torch.randn(128, 2, 64, generator=g)
        optimiser.zero_grad()
        loss(Batch(z=head(body(views)), y=y[i], index=i)).total.backward()
        optimiser.step()
    return loss, lambda x: unit(head(body(x))).detach()


def digits(seed):
    """Pictures, digits, and the digits in a random order."""
    pictures, digit = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digit))
    return torch.tensor(pictures[order] / 16, dtype=torch.float32), digit[order], rng.permutation(10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_effect_the_head_class_keeps_its_lobes(seed):
    """Long tail: four digits of 80 pictures under one label, six of 20 each. Do the four show within their label?"""
    pictures, digit, ranks = digits(seed)
    rank = np.argsort(ranks)[digit]
    y = torch.tensor(np.maximum(rank - 3, 0))
    seen = np.concatenate([np.flatnonzero(rank == r)[: 80 if r < 4 else 20] for r in range(10)])
    held = np.setdiff1d(np.arange(len(digit)), seen)
    lobes, right = {}, {}
    for clusters in (False, True):
        _, embed = train(pictures[seen], y[seen], seed, clusters)
        z = embed(pictures[held])
        head = (y[held] == 0).numpy()
        lobe = KMeans(4, n_init=3, random_state=0).fit_predict(z[head])
        lobes[clusters] = normalized_mutual_info_score(digit[held][head], lobe)
        nearest = (z @ embed(pictures[seen]).T).topk(5).indices
        vote = torch.nn.functional.one_hot(y[seen][nearest]).sum(1).argmax(1)
        right[clusters] = np.mean([(vote == c)[y[held] == c].float().mean() for c in range(7)])
    assert lobes[True] > lobes[False] + 0.25
    assert right[True] > right[False] - 0.04


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_effect_mislabelled_pictures_gather_in_subclasses(seed):
    """30 pictures of one digit under the label of another: most of them share a subclass of their own."""
    pictures, digit, order = digits(seed)
    parts = [np.flatnonzero(digit == d)[:n] for d, n in zip(order[:6], (120, 70, 30, 30, 30, 30), strict=True)]
    seen = np.concatenate(parts)
    y = np.repeat(np.arange(6), [len(p) for p in parts])
    wrong = np.zeros(len(y), bool)
    wrong[120:150] = True
    y[wrong] = 0
    loss, _ = train(pictures[seen], torch.tensor(y), seed, clusters=True, steps=40)
    sub, wrong = loss.subclass[y == 0].numpy(), wrong[y == 0]
    share = np.array([wrong[sub == s].mean() for s in sub])  # of mislabelled pictures in a picture's subclass
    assert share[wrong].mean() > 0.6  # 0.2 by chance
    assert share[~wrong].mean() < 0.1
