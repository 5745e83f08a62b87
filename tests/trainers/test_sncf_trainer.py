"""SNCF: streams, guided contrast in loops, clusters of foreign samples, lost groups, a training on stripes.

What the sheet computes for the detection itself is in ``tests/detectors/test_sncf.py``.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.detectors.sncf import CLEAN, MISLABELLED, OOD, Sncf
from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.network import build
from chaffinch.losses.base import unit
from chaffinch.trainers import sncf
from chaffinch.trainers.base import Batch, Net, Site
from chaffinch.trainers.mixing import Mix, sharpen, targeted_contrast
from chaffinch.trainers.sncf import ALONE, GuidedContrast, foreign_clusters, guide, in_turn

SMALL = "preact-resnet-8-16-32"


@pytest.fixture(scope="module")
def start():
    """An encoder of random weights: its features know enough of stripes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(SMALL, 1)
    card = ModelCard(
        name="random", architecture=SMALL, channels=1, dim=32, loss="simclr", dataset="none", seed=0, epochs=0, batch=0,
        learning_rate=0.0, precision="float32", device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


def made(group, labels=None, features=None, **parameters):
    """A trainer that is set up outside of a training, with groups put in its place."""
    n = len(group)
    labels = torch.arange(n) % 3 if labels is None else torch.as_tensor(labels)
    features = torch.randn(n, 8, generator=torch.Generator().manual_seed(0)) if features is None else features
    trainer = GuidedContrast(**parameters)
    body = build(SMALL, 1)
    trainer.build([Net(body, 3, trainer.make_heads(body.dim))])
    trainer.setup(Site(labels, 3, body.dim, 10, 4, torch.Generator(), lambda: features))
    trainer.group.copy_(torch.as_tensor(group))
    trainer.flags.copy_(trainer.group != CLEAN)
    return trainer


def batch_of(trainer, rows, epoch=9):
    rows, rng = torch.as_tensor(rows), torch.Generator().manual_seed(0)
    x = torch.rand(len(rows), 1, 12, 12, generator=rng)
    views = dict.fromkeys(
        ("weak", "strong", "contrast", "plain"), lambda: x + 0.01 * torch.rand(x.shape, generator=rng)
    )
    return Batch(rows, trainer.labels[rows], epoch, 0, rng, **views)


class TestStreams:
    def members(self, *sizes):
        group = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
        return [group == g for g in range(3)], group

    def test_every_batch_is_a_third_of_each(self):
        members, group = self.members(70, 20, 10)
        order = in_turn(members, torch.Generator().manual_seed(0))
        assert order.shape == (100,)
        for start in range(0, 99, 30):
            counts = torch.bincount(group[order[start : start + 30]], minlength=3)
            assert counts.max() - counts.min() <= 1

    def test_small_groups_are_repeated_evenly_and_large_ones_cut(self):
        members, group = self.members(70, 20, 10)
        times = torch.bincount(in_turn(members, torch.Generator().manual_seed(0)), minlength=100)
        assert times[group == CLEAN].max() == 1
        assert times[group == CLEAN].sum() == 34
        assert set(times[group == MISLABELLED].tolist()) <= {1, 2}
        assert set(times[group == OOD].tolist()) <= {3, 4}

    def test_empty_groups_leave_their_place_to_the_others(self):
        members, group = self.members(60, 0, 40)
        counts = torch.bincount(group[in_turn(members, torch.Generator().manual_seed(0))], minlength=3)
        assert counts.tolist() == [50, 0, 50]

    def test_the_warm_up_sees_clean_samples_alone(self):
        group = np.repeat([CLEAN, MISLABELLED, OOD], [30, 20, 10])
        trainer, rng = made(group, warmup=2), torch.Generator().manual_seed(0)
        assert (trainer.visit(0, 1, rng) < 30).all()
        assert trainer.visit(0, 1, rng).shape == (60,)
        assert torch.bincount(torch.as_tensor(group)[trainer.visit(0, 2, rng)]).tolist() == [20, 20, 20]

    def test_what_is_not_flagged_is_clean(self):
        """As samples known to be clean are not."""
        trainer = made(np.repeat([CLEAN, MISLABELLED, OOD], [30, 20, 10]))
        trainer.flags[55:] = False
        assert (trainer.groups()[55:] == CLEAN).all()
        assert (trainer.groups()[50:55] == OOD).all()


class TestGuidedContrast:
    def test_4_unmixed_and_all_different_it_is_infonce(self):
        """The sheet's check 4: lambda 1, each sample alike itself alone."""
        anchors, keys = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
        targets = guide(torch.arange(6), Mix(1.0, torch.randperm(6))).double()
        torch.testing.assert_close(targets, torch.eye(6).double())
        expected = F.cross_entropy(unit(anchors) @ unit(keys).T / 0.2, torch.arange(6))
        torch.testing.assert_close(targeted_contrast(anchors, keys, targets, 0.2), expected, atol=1e-9, rtol=0)

    def test_mixed_and_all_different_it_is_i_mix(self):
        anchors, keys = torch.randn(6, 5), torch.randn(6, 5)
        order = torch.tensor([3, 4, 5, 0, 1, 2])
        logits = unit(anchors) @ unit(keys).T / 0.2
        expected = 0.7 * F.cross_entropy(logits, torch.arange(6)) + 0.3 * F.cross_entropy(logits, order)
        found = targeted_contrast(anchors, keys, guide(torch.arange(6), Mix(0.7, order)), 0.2)
        torch.testing.assert_close(found, expected)

    def test_in_loops(self):
        alike, order, lam = [0, 1, 0, 7, 7, 9], [2, 0, 1, 5, 3, 4], 0.8
        z, keys = unit(torch.randn(6, 4)).double(), unit(torch.randn(6, 4)).double()
        total = 0.0
        for i in range(6):
            e = [math.exp(float(z[i] @ keys[j]) / 0.2) for j in range(6)]
            t = [lam * (alike[i] == alike[j]) + (1 - lam) * (alike[order[i]] == alike[j]) for j in range(6)]
            total -= sum(t[j] * math.log(e[j] / sum(e)) for j in range(6)) / sum(t) / 6
        targets = guide(torch.tensor(alike), Mix(lam, torch.tensor(order))).double()
        assert float(targeted_contrast(z, keys, targets, 0.2)) == pytest.approx(total, abs=1e-6)

    def test_who_is_alike(self):
        trainer = made(np.array([CLEAN, CLEAN, MISLABELLED, OOD, OOD, OOD, OOD, CLEAN]))
        trainer.cluster.copy_(torch.tensor([ALONE, ALONE, ALONE, 0, 1, ALONE, ALONE, ALONE]))
        rows = torch.tensor([0, 3, 4, 5, 6, 2, 5, 3])
        classes = torch.tensor([1, 1, 1, 1, 1, 1, 2, 2])
        alike = trainer.alike(classes, trainer.group[rows], rows).tolist()
        assert alike[0] == alike[5] == 1, "mislabelled samples take the guessed class"
        assert alike[1] == alike[7] == 3, "a cluster is no class"
        assert alike[2] == 4
        assert alike[3] == alike[6], "shown twice, a sample alone is like itself"
        assert len(set(alike)) == 5


class TestStep:
    def test_guesses_are_sharpened_means_of_two_views(self):
        trainer = made(np.repeat([CLEAN, MISLABELLED, OOD], [6, 6, 6]))
        trainer.train()
        batch = batch_of(trainer, range(18))
        before = trainer.guess.clone()
        views, said = [], []
        original = trainer.nets[0].body.features
        trainer.nets[0].body.features = lambda x: (views.append(x), original(x))[1]
        trainer.step(0, batch)
        with torch.no_grad():
            for view in (views[0], views[1]):  # the second view comes first; the third pass is a mixture
                said.append(trainer.nets[0].classify(original(view)).softmax(1))
        torch.testing.assert_close(trainer.guess[6:12], sharpen((said[0] + said[1]) / 2, 2.0)[6:12])
        torch.testing.assert_close(trainer.guess[[*range(6), *range(12, 18)]], before[[*range(6), *range(12, 18)]])
        assert len(views[2]) == 18, "clean twice, mislabelled once"

    @pytest.mark.parametrize("rows", [[12, 13, 14], [6, 12], [0, 1], [12, 12]])
    def test_any_batch_has_a_finite_loss(self, rows):
        trainer = made(np.repeat([CLEAN, MISLABELLED, OOD], [6, 6, 6]))
        out = trainer.step(0, batch_of(trainer, rows))
        assert out.total.isfinite()
        out.total.backward()
        grads = [p.grad for p in trainer.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in grads)

    def test_foreign_samples_teach_no_class(self):
        trainer = made(np.repeat([CLEAN, OOD], [9, 9]), contrast=0.0)
        out = trainer.step(0, batch_of(trainer, range(9, 18)))
        assert float(out.total.detach()) == 0
        assert out.parts == {}
        out.total.backward()
        assert all(p.grad is None or not p.grad.any() for p in trainer.parameters())


def partition(labels):
    return {tuple(np.flatnonzero(labels == c)) for c in set(labels.tolist()) - {ALONE}}


class TestForeignClusters:
    def blobs(self, seed=0):
        rng = np.random.default_rng(seed)
        which = np.repeat([0, 1, 2], 70)
        return 3 * np.eye(8)[which] + 0.4 * rng.normal(size=(210, 8)), which

    def test_finds_blobs(self):
        X, which = self.blobs()
        found = foreign_clusters(X)
        assert found.max() == 2
        for c in range(3):
            members = which[found == c]
            assert len(members) > 35
            assert len(set(members.tolist())) == 1

    def test_the_order_of_samples_does_not_matter(self):
        X, _ = self.blobs()
        order = np.random.default_rng(1).permutation(210)
        back = np.empty(210, int)
        back[order] = foreign_clusters(X[order])
        assert partition(back) == partition(foreign_clusters(X))

    def test_of_many_a_subset_is_clustered(self):
        X, which = self.blobs()
        found = foreign_clusters(X, limit=120)
        assert found.max() == 2
        assert all(len(set(which[found == c].tolist())) == 1 for c in range(3))
        assert (found != ALONE).sum() > 120

    @pytest.mark.parametrize("n", [0, 1, 9])
    def test_few_stay_alone(self, n):
        assert (foreign_clusters(np.ones((n, 4))) == ALONE).all()

    @pytest.mark.parametrize("X", [np.ones((40, 3)), np.repeat(np.eye(3), 20, axis=0)])
    def test_duplicates(self, X):
        assert foreign_clusters(X).shape == (len(X),)


class TestSetup:
    def test_divides_by_the_start(self, stripes, start):
        data = stripes()
        X, y = torch.as_tensor(start.embed(data.observed.images)), data.observed.labels
        trainer = made(np.zeros(240, int), y, X)
        trainer.setup(Site(torch.as_tensor(y), 3, 32, 10, 4, torch.Generator(), lambda: X))
        expected = Sncf().fit(X.numpy(), y)
        np.testing.assert_array_equal(trainer.group.numpy(), expected.groups_)
        np.testing.assert_allclose(trainer.suspicion.numpy(), expected.scores_, rtol=1e-6)
        np.testing.assert_array_equal(trainer.flags.numpy(), expected.flags_)
        assert (trainer.cluster.numpy()[expected.groups_ != OOD] == ALONE).all()

    def test_nothing_clean(self, monkeypatch):
        original = Sncf.fit

        def lost(self, X, y):
            original(self, X, y)
            self.groups_ = np.full(len(y), OOD)
            return self

        monkeypatch.setattr(sncf.Sncf, "fit", lost)
        trainer = GuidedContrast()
        body = build(SMALL, 1)
        trainer.build([Net(body, 3, trainer.make_heads(body.dim))])
        trainer.setup(Site(torch.arange(30) % 3, 3, 32, 10, 4, torch.Generator(), lambda: torch.randn(30, 5)))
        assert not trainer.flags.any()
        assert trainer.divide([], 0).note == "sncf called no sample clean, so all are taken for clean"

    def test_equal_features(self):
        with pytest.raises(InputError, match="all rows point the same way"):
            made(np.zeros(30, int), features=torch.ones(30, 4))

    def test_from_scratch_it_says_what_it_lacks(self, stripes, trained):
        with pytest.raises(InputError, match="reads the features of the encoder that it starts from"):
            trained(stripes(60), trainer="sncf")


def test_the_rate_falls_twice():
    trainer = made(np.zeros(12, int))
    assert [trainer.rate(e) for e in (0, 4, 5, 7, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_what_is_recorded(stripes, trained, start):
    data = stripes()
    run = trained(data, trainer="sncf", start=start, parameters={"warmup": 1})
    first, last = run.epoch(0), run.epoch(-1)
    assert first.detector == "sncf"
    np.testing.assert_array_equal(first.flags, last.flags)
    np.testing.assert_array_equal(first.scores, last.scores)
    foreign = last.weights == 0
    assert foreign.any()
    assert last.flags[foreign].all()
    np.testing.assert_allclose(last.targets[foreign], 1 / 3, atol=1e-3)
    np.testing.assert_array_equal(last.targets[~last.flags].argmax(axis=1), data.observed.labels[~last.flags])
    assert set(last.parts) == {"classification", "contrast"}


@pytest.mark.parametrize("seed", range(2))
def test_groups_and_guesses(stripes, trained, start, seed):
    """Flags are mostly noise, and the mislabelled are guessed to be what they are."""
    data = stripes(seed=seed)
    run = trained(data, trainer="sncf", epochs=6, start=start, learning_rate=0.03, seed=seed, parameters={"warmup": 1})
    last, kind = run.epoch(-1), data.truth.kind
    assert last.flags[kind != 0].mean() > 0.75
    assert last.flags[kind == 0].mean() < 0.25
    guessed = (kind == 1) & last.flags & (last.weights > 0)
    assert (last.targets.argmax(axis=1) == data.truth.labels)[guessed].mean() > 0.8
    assert last.accuracy > 0.9


def test_resumes(stripes, resumes, start):
    resumes(stripes(120), start, trainer="sncf", parameters={"warmup": 1})


def test_trusted_samples_are_trained_on_as_clean(stripes, trained, start):
    data = stripes(120)
    observed = replace(data.observed, trusted=np.arange(120) < 60)
    last = trained(replace(data, observed=observed), trainer="sncf", start=start, epochs=2).epoch(-1)
    assert not last.flags[:60].any()
    assert last.flags[60:].any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": -1}, "warmup must be at least 0 epochs, got -1"),
        ({"rule": "sample"}, "rule must be class or dataset, got 'sample'"),
        ({"sense": "loose"}, "sense must be paper, sparser or denser"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"contrast": -1.0}, "contrast must be 0 or more"),
        ({"alpha": float("nan")}, "alpha must be 0 or more"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        GuidedContrast(**parameters)
