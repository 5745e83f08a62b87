"""CAPro: the sheet's numbers, votes, queue and prototypes in loops, dropped samples, anchors, a training on stripes.

The paper smooths texts over a graph (the sheet's check 5); there are no texts here.
"""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.detectors.capro import DROPPED
from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.network import build, to_tensor
from chaffinch.losses.base import unit
from chaffinch.trainers.base import Batch, Net, Site
from chaffinch.trainers.capro import CALM, EMBEDDING, AlignedPrototypes, bootstrapped, instance_loss, moved
from chaffinch.trainers.rrl import class_means

SMALL = "preact-resnet-8-16-32"


@pytest.fixture(scope="module")
def start(stripes):
    """An encoder of random weights that has seen stripes, so that its features are alike in both modes."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(SMALL, 1)
        x = to_tensor(stripes(seed=9).observed.images)
        for _ in range(40):
            network(x)
    card = ModelCard(
        name="random", architecture=SMALL, channels=1, dim=32, loss="simclr", dataset="none", seed=0, epochs=0, batch=0,
        learning_rate=0.0, precision="float32", device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


def made(labels, classes=3, features=None, epochs=10, **parameters):
    """A trainer that is set up outside of a training; without features, from scratch."""
    trainer = AlignedPrototypes(**parameters)
    body = build(SMALL, 1)
    trainer.build([Net(body, classes, trainer.make_heads(body.dim))])
    site = Site(
        torch.as_tensor(labels), classes, body.dim, epochs, 4, torch.Generator(), lambda: features,
        started=features is not None,
    )  # fmt: skip
    trainer.setup(site)
    return trainer


def begun(labels, **parameters):
    """The same with prototypes and some keys."""
    trainer = made(labels, **parameters)
    trainer.begin(torch.rand(len(labels), 32))
    trainer.enqueue(unit(torch.randn(5, EMBEDDING)))
    return trainer


def batch_of(trainer, rows, epoch=3):
    rows, rng = torch.as_tensor(rows), torch.Generator().manual_seed(0)
    x = torch.rand(len(rows), 1, 12, 12, generator=rng)
    views = dict.fromkeys(("weak", "strong", "contrast", "plain"), lambda: x)
    return Batch(rows, trainer.labels[rows], epoch, 0, rng, **views)


class TestSheet:
    def test_1_cleaning(self):
        """Four samples labelled 0; two more, so that the other classes have somebody."""
        logits = torch.tensor([[2, 0, 0], [0, 3, 0], [0.2, 0.1, 0], [0, 0, 4], [0, 9, 0], [0, 0, 9]])
        cosine = torch.tensor(
            [[0.8, 0.1, 0.1], [0.1, 0.9, 0], [0.33, 0.33, 0.34], [0.2, 0.7, 0.1], [0, 1, 0], [0, 0, 1]]
        )
        trainer = made([0, 0, 0, 0, 1, 2])
        trainer.prototypes.copy_(torch.eye(3, EMBEDDING))
        found = trainer.clean({"logits": logits, "embedding": F.pad(cosine, (0, EMBEDDING - 3))})
        np.testing.assert_allclose(1 - found.scores[:4], [0.8926, 0.0228, 0.3446, 0.0122], atol=5e-5)
        assert float(found.targets[3].max()) == pytest.approx(0.5043, abs=5e-5)
        assert trainer.cleaned.tolist() == [0, 1, 0, DROPPED, 1, 2]
        assert found.flags.tolist() == [False, True, False, True, False, False]
        assert found.weights.tolist() == [1, 1, 1, 0, 1, 1]

    def test_2_bootstrapping(self):
        v, keys = torch.tensor([[1.0, 0]]), torch.tensor([[1, 0], [0.6, 0.8], [-1, 0]])
        a = bootstrapped(v, keys, torch.eye(3))
        np.testing.assert_allclose(a, [[0.625, 0.375, 6.25e-8]], atol=1e-6)
        b = bootstrapped(v, keys, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
        np.testing.assert_allclose(b, [[0.6375, 0.3625]], atol=1e-6)

    def test_3_one_step_of_a_prototype(self):
        start = torch.tensor([[1.0, 0]], dtype=torch.float64)
        found = moved(start, torch.tensor([[0.0, 1]], dtype=torch.float64), torch.tensor([0]), 0.999)
        np.testing.assert_allclose(found, [[0.9999995, 0.0010010]], atol=5e-8)

    def test_4_limits(self):
        y = np.arange(30) % 3
        trainer = begun(y, beta=0.0)
        batch = batch_of(trainer, range(12))
        out = copy.deepcopy(trainer).step(0, batch)
        net = trainer.nets[0]
        said = net.heads["aux"](trainer.embed(net, net.body.features(batch.weak())))
        assert out.parts["embedding"] == pytest.approx(float(F.cross_entropy(said, batch.y).detach()), rel=1e-5)
        v, keys = unit(torch.randn(4, EMBEDDING)), trainer.queue[:5]
        for alpha, own in ((1.0, net.heads["aux"](keys)), (0.0, keys @ trainer.prototypes.T / 0.1)):
            trainer.alpha = alpha
            torch.testing.assert_close(trainer.vote(net, v), bootstrapped(v, keys, own.softmax(1)).detach())

    @pytest.mark.parametrize("seed", range(3))
    def test_6_anchors_give_a_better_prototype_than_the_label_mean(self, seed):
        """60 % of the samples labelled 3 are eights; agreement of neighbours stands in for the text."""
        X, truth = load_digits(return_X_y=True)
        rng = np.random.default_rng(seed)
        gone = rng.choice(np.flatnonzero(truth == 3), 133, replace=False)
        rows = np.setdiff1d(np.arange(len(truth)), gone)
        y = truth.copy()
        y[rng.choice(np.flatnonzero(truth == 8), 75, replace=False)] = 3
        X, y, truth = unit(torch.as_tensor(X[rows] - X.mean(axis=0))), y[rows], torch.as_tensor(truth[rows])
        anchor = made(y, 10, X).anchor
        empty, y = torch.zeros(10, 64).double(), torch.as_tensor(y)
        target = class_means(X, truth, empty)[3]
        assert class_means(X[anchor], y[anchor], empty)[3] @ target > class_means(X, y, empty)[3] @ target + 0.05
        assert (truth[anchor & (y == 3)] == 3).float().mean() > 0.8


def test_votes_in_loops():
    v, keys, said = unit(torch.randn(3, 4)), unit(torch.randn(6, 4)), torch.rand(6, 3).softmax(1)
    b = bootstrapped(v, keys, said)
    for i in range(3):
        a = [min(1.0, max(0.0, float(v[i] @ k))) + 1e-7 for k in keys]
        expected = [sum(a[j] * float(said[j, c]) for j in range(6)) / sum(a) for c in range(3)]
        np.testing.assert_allclose(b[i], expected, atol=1e-6)


def test_instance_loss_in_loops():
    v, key, queue = unit(torch.randn(3, 4)).double(), unit(torch.randn(3, 4)).double(), unit(torch.randn(7, 4)).double()
    expected = 0.0
    for i in range(3):
        own = math.exp(float(v[i] @ key[i]) / 0.1)
        expected -= math.log(own / (own + sum(math.exp(float(v[i] @ q) / 0.1) for q in queue))) / 3
    assert float(instance_loss(v, key, queue, 0.1)) == pytest.approx(expected, abs=1e-6)
    assert float(instance_loss(v, key, queue[:0], 0.1)) == 0, "with nobody to be confused with"


def test_prototypes_move_sample_by_sample():
    rng = torch.Generator().manual_seed(0)
    z = unit(torch.randn(4, 6, generator=rng)).double()
    v, y = unit(torch.randn(200, 6, generator=rng)).double(), torch.randint(3, (200,), generator=rng)
    expected = z.clone()
    for x, c in zip(v, y, strict=True):
        expected[c] = F.normalize(0.999 * expected[c] + 0.001 * x, dim=0)
    found = moved(z, v, y, 0.999)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[3], z[3])
    torch.testing.assert_close(moved(z, v[:0], y[:0], 0.999), z)
    torch.testing.assert_close(moved(z, v[:1], y[:1], 0.0)[y[0]], v[0])


def test_the_queue_is_a_ring():
    trainer = made(np.arange(10) % 3, queue=7)
    keys = torch.arange(12.0)[:, None].expand(12, EMBEDDING)
    trainer.enqueue(keys[:4])
    assert int(trainer.filled) == 4
    trainer.enqueue(keys[4:9])
    assert int(trainer.filled) == 7
    assert trainer.queue[:, 0].tolist() == [7, 8, 2, 3, 4, 5, 6]
    trainer.enqueue(keys)  # more than fit
    assert sorted(trainer.queue[:, 0].tolist()) == [5, 6, 7, 8, 9, 10, 11]
    assert len(made(np.arange(10) % 3).queue) == 10, "no more keys than samples"


class TestStep:
    y = np.arange(30) % 3

    def test_terms_before_and_after_there_are_prototypes(self):
        early, late = made(self.y), begun(self.y)
        first, then = (trainer.step(0, batch_of(trainer, range(12))) for trainer in (early, late))
        assert set(first.parts) == {"instance", "rebuilding", "classification", "embedding"}
        assert set(then.parts) == set(first.parts) | {"prototypes"}
        assert float(then.total.detach()) == pytest.approx(sum(then.parts.values()), rel=1e-5)
        assert int(early.filled) == 12

    def test_the_own_key_votes_but_is_no_negative(self):
        trainer = made(self.y)
        assert trainer.step(0, batch_of(trainer, range(12))).parts["instance"] == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize(("ready", "same"), [(False, False), (True, True)])
    def test_rebuilding_does_not_bend_the_embedding_once_there_are_prototypes(self, ready, same):
        """Another back-projector gives the projector another gradient only before."""
        trainer = begun(self.y) if ready else made(self.y)
        twin = copy.deepcopy(trainer)
        with torch.no_grad():
            for p in twin.nets[0].heads["back"].parameters():
                p.mul_(-3)
        grads = []
        for each in (trainer, twin):
            each.step(0, batch_of(each, range(12))).total.backward()
            grads.append(each.nets[0].heads["project"][0].weight.grad)
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-6) == same

    def test_dropped_samples_teach_by_the_instance_term_alone(self):
        trainer = begun(self.y)
        trainer.flags[:12], trainer.cleaned[:12] = True, DROPPED
        before = trainer.prototypes.clone()
        out = trainer.step(0, batch_of(trainer, range(12)))
        assert all(value == 0 for name, value in out.parts.items() if name != "instance")
        assert out.parts["instance"] > 0
        out.total.backward()
        assert trainer.nets[0].body.stem.weight.grad.isfinite().all()
        assert not trainer.nets[0].classify.weight.grad.any()
        torch.testing.assert_close(trainer.prototypes, before)

    def test_a_replaced_label_is_learnt_unless_the_given_one_is_trusted(self):
        trainer = begun(self.y, beta=0.0)
        trainer.cleaned[:12] = (trainer.labels[:12] + 1) % 3
        trusted = copy.deepcopy(trainer)
        trainer.flags[:12] = True
        batch = batch_of(trainer, range(12))
        for each, y in ((trainer, trainer.cleaned[:12]), (trusted, trainer.labels[:12])):
            out = each.step(0, batch)
            expected = float(F.cross_entropy(out.logits, y).detach())
            assert out.parts["classification"] == pytest.approx(expected, rel=1e-5)

    def test_at_last_only_the_classifier_learns(self):
        trainer = begun(self.y, epochs=10, finish=2)
        trainer.train()
        stats = trainer.nets[0].body.norm.running_mean.clone()
        out = trainer.step(0, batch_of(trainer, range(12), epoch=8))
        assert set(out.parts) == {"refinement"}
        out.total.backward()
        learnt = {name for name, p in trainer.nets[0].named_parameters() if p.grad is not None}
        assert learnt == {"classify.weight", "classify.bias"}
        torch.testing.assert_close(trainer.nets[0].body.norm.running_mean, stats)
        trainer.flags[:12], trainer.cleaned[:12] = True, DROPPED
        out = trainer.step(0, batch_of(trainer, range(12), epoch=9))
        assert float(out.total.detach()) == 0, "nothing of the batch is left"

    def test_the_slow_copies_follow(self):
        trainer = made(self.y, momentum=0.9)
        fast = trainer.nets[0].body.stem.weight
        before = trainer.slow.stem.weight.clone()
        with torch.no_grad():
            fast.add_(1.0)
        trainer.stepped(0, batch_of(trainer, range(2)))
        torch.testing.assert_close(trainer.slow.stem.weight, before + 0.1)
        assert not any(p.requires_grad for p in (*trainer.slow.parameters(), *trainer.slow_project.parameters()))


class TestDivide:
    y = np.arange(60) % 3

    def look(self, said):
        logits = 8 * F.one_hot(torch.as_tensor(said), 3).float()
        return {"logits": logits, "embedding": F.pad(unit(logits), (0, EMBEDDING - 3)), "slow": torch.rand(60, 32)}

    def test_in_its_time(self):
        trainer = made(self.y, prototypes_from=2, clean_from=3)
        assert not trainer.divide([self.look(self.y)], 0).flags.any()
        assert not trainer.ready
        found = trainer.divide([self.look(self.y)], 1)
        assert found.scores is None
        assert trainer.ready
        torch.testing.assert_close(trainer.prototypes.norm(dim=1), torch.ones(3))
        assert trainer.divide([self.look(self.y)], 2).detector == "capro"

    def test_anchors_keep_their_label(self):
        trainer = made(self.y, prototypes_from=1, clean_from=1, alpha=1.0)
        found = trainer.divide([self.look((self.y + 1) % 3)], 0)
        assert trainer.anchor.any()
        np.testing.assert_array_equal(found.flags.numpy(), ~trainer.anchor.numpy())
        assert trainer.cleaned[~trainer.anchor].tolist() == ((self.y + 1) % 3)[~trainer.anchor.numpy()].tolist()

    def test_anchors_are_of_the_start_where_there_is_one(self):
        rng = np.random.default_rng(0)
        X = torch.as_tensor(np.eye(5)[self.y] + 0.2 * rng.normal(size=(60, 5)))
        X[:6] = X[torch.tensor([1, 2, 0, 4, 5, 3])]  # six labels are wrong
        trainer = made(self.y, features=X)
        assert trainer.anchor.sum() == 15
        assert not trainer.anchor[:6].any()
        assert not made(self.y).anchor.any()

    def test_a_class_whose_samples_have_no_agreeing_neighbour(self):
        y = self.y.copy()
        y[:2] = 3
        X = torch.as_tensor(np.eye(8)[self.y]) + 0.1 * torch.rand(60, 8)
        trainer = made(y, 5, X, k=5)
        assert not trainer.anchor[:2].any()
        trainer.begin(torch.rand(60, 32))
        norms = trainer.prototypes.norm(dim=1)
        torch.testing.assert_close(norms, torch.tensor([1.0, 1, 1, 1, 0]))
        p = torch.full((60, 5), 0.2)
        found = trainer.clean({"logits": p.log(), "embedding": -trainer.prototypes[torch.as_tensor(y)]})
        assert found.targets[:, 4].max() < 0.11, "nobody carries class 4, so no prototype speaks for it"

    def test_a_class_without_anchors_may_be_lost_and_is_noted(self):
        y = self.y.copy()
        y[:2] = 3
        trainer = made(y, 4, torch.as_tensor(np.eye(8)[self.y]) + 0.1 * torch.rand(60, 8), k=5)
        trainer.begin(torch.rand(60, 32))
        logits = 9 * F.one_hot(torch.as_tensor(self.y), 4).float()
        found = trainer.clean({"logits": logits, "embedding": trainer.prototypes[torch.as_tensor(self.y)]})
        assert found.note == "no sample of 1 class(es) is left to train on"
        assert found.flags[:2].all()

    @pytest.mark.parametrize("slow", [torch.zeros(60, 32), torch.ones(60, 32)])
    def test_features_that_say_nothing(self, slow):
        trainer = made(self.y, prototypes_from=1, clean_from=1)
        found = trainer.divide([self.look(self.y) | {"slow": slow}], 0)
        assert trainer.prototypes.isfinite().all()
        assert found.scores.isfinite().all()


def test_the_rate_is_three_tenths():
    assert made(np.arange(6) % 3).rate(0) == pytest.approx(CALM * (1 + math.cos(math.pi / 11)) / 2)


@pytest.mark.parametrize(("seed", "started"), [(0, True), (1, False)])
def test_finds_wrong_labels_and_tells_classes_apart(stripes, trained, start, seed, started):
    data = stripes(210, seed=seed)
    run = trained(data, trainer="capro", epochs=8, seed=seed, start=start if started else None)
    last, kind = run.epoch(-1), data.truth.kind
    assert last.flags[kind == 1].mean() > 0.85
    assert last.flags[kind == 2].mean() > 0.2
    assert last.flags[kind == 0].mean() < 0.05
    assert (last.targets.argmax(axis=1) == data.truth.labels)[kind == 1].mean() > 0.85
    assert set(last.parts) == {"refinement"}
    # had all pictures one embedding, this would be log 3
    assert run.epoch(-2).parts["prototypes"] < 0.7
    assert last.accuracy > 0.9


def test_resumes(stripes, resumes, start):
    resumes(stripes(120), start, trainer="capro", parameters={"prototypes_from": 1, "clean_from": 1, "queue": 50})


def test_resumes_before_there_are_prototypes(stripes, resumes):
    resumes(stripes(90), trainer="capro", parameters={"prototypes_from": 2, "clean_from": 2})


def test_a_tiny_dataset(stripes, trained):
    run = trained(stripes(12), trainer="capro", batch=4, parameters={"prototypes_from": 1, "clean_from": 1})
    assert all(np.isfinite(run.epoch(e).loss) for e in range(3))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prototypes_from": 0}, "prototypes_from must be at least 1, got 0"),
        ({"clean_from": 1}, r"clean_from must be at least prototypes_from \(2\), got 1"),
        ({"finish": -1}, "finish must be at least 0, got -1"),
        ({"anchors": 0}, "anchors must be at least 1"),
        ({"k": 0}, "k must be at least 1"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"alpha": 1.1}, "alpha must be between 0 and 1, got 1.1"),
        ({"threshold": -0.1}, "threshold must be between 0 and 1"),
        ({"beta": 2.0}, "beta must be between 0 and 1"),
        ({"momentum": float("nan")}, "momentum must be between 0 and 1"),
        ({"prototype_momentum": 1.5}, "prototype_momentum must be between 0 and 1"),
        ({"tau": 0.0}, "tau must be above 0"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        AlignedPrototypes(**parameters)
