"""RRL: the sheet's numbers, cleaning and contrast in loops, lost classes, unsure labels, a training on stripes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.encoders.network import build
from chaffinch.losses.base import unit
from chaffinch.trainers.base import Net, Site
from chaffinch.trainers.mixing import Mix, mixed_ce
from chaffinch.trainers.rrl import (
    CALM,
    EMBEDDING,
    RobustRepresentationLearning,
    class_means,
    instance_logits,
    instance_loss,
    rebuilding,
    refreshed,
)


def made(labels, classes=3, **parameters):
    """A trainer that is set up, outside of a training."""
    trainer = RobustRepresentationLearning(**parameters)
    body = build("preact-resnet-8-16-32", 1)
    trainer.build([Net(body, classes, trainer.make_heads(body.dim))])
    trainer.setup(
        Site(torch.as_tensor(labels), classes, body.dim, 10, 4, torch.Generator(), lambda: torch.zeros(len(labels), 1))
    )
    return trainer


class TestSheet:
    v = np.array([[1, 0], [0.96, 0.28], [0, 1], [0.28, 0.96]])
    s = np.array([[1, 0], [1, 0], [0, 1], [0.4, 0.6]])
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7]])

    def test_1_cleaning(self):
        y = np.array([0, 0, 1, 0])
        soft, own, kept = refreshed(self.s, self.p, y, self.v, 2, 0.3, 0.4)
        np.testing.assert_allclose(own, [0.9218, 0.7910, 0.6718, 0.2483], atol=5e-5)
        np.testing.assert_array_equal(kept, [True, True, True, False])
        np.testing.assert_array_equal(soft[:3], np.eye(2)[y[:3]])
        np.testing.assert_allclose(soft[3], [0.2483, 0.7517], atol=5e-5)
        np.testing.assert_array_equal(soft.max(axis=1) > 0.9, [True, True, True, False])
        means = 2 * refreshed(self.s, self.p, y, self.v, 2, 0.3, 0.999)[0] - self.p
        expected = [[0.9436, 0.0564], [0.8821, 0.1179], [0.4564, 0.5436], [0.1965, 0.8035]]
        np.testing.assert_allclose(means, expected, atol=5e-5)

    def test_2_a_sample_among_all_views(self):
        v = unit(torch.randn(4, 5))
        assert instance_logits(v, unit(torch.randn(4, 5)), 0.3).shape == (4, 7)

    def test_3_the_prototype_term_is_linear_in_the_target(self):
        logits, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
        mix, targets = Mix(0.3, torch.tensor([3, 0, 5, 4, 1, 2])), F.one_hot(y, 4).double()
        both = mixed_ce(logits, targets, torch.ones(6).double(), mix)
        torch.testing.assert_close(both, F.cross_entropy(logits, mix(targets)), atol=1e-9, rtol=0)

    def test_4_fixed_point(self):
        p = np.tile([0.2, 0.3, 0.5], (30, 1))
        v = np.random.default_rng(0).normal(size=(30, 3))
        soft, _, kept = refreshed(p, p, np.zeros(30, int), v, 10, 0.3, 0.3)
        np.testing.assert_allclose(soft, p, atol=1e-12)
        assert not kept.any()


def test_cleaning_in_loops():
    rng = np.random.default_rng(0)
    n, k, tau, low = 50, 7, 0.2, 0.35
    v, y = rng.normal(size=(n, 4)), rng.integers(0, 3, n)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    before, p = rng.dirichlet(np.ones(3), n), rng.dirichlet(np.ones(3), n)
    soft, own, kept = refreshed(before, p, y, v, k, tau, low)
    for i in range(n):
        cosines = sorted(((float(v[i] @ v[j]), j) for j in range(n) if j != i), reverse=True)[:k]
        total = sum(math.exp(c / tau) for c, _ in cosines)
        mean = [sum(math.exp(c / tau) * before[j, c2] for c, j in cosines) / total for c2 in range(3)]
        expected = [(a + b) / 2 for a, b in zip(p[i], mean, strict=True)]
        assert own[i] == pytest.approx(expected[y[i]], abs=1e-6)
        assert kept[i] == (own[i] > low)
        np.testing.assert_allclose(soft[i], np.eye(3)[y[i]] if kept[i] else expected, atol=1e-6)


def test_the_order_of_samples_does_not_matter():
    """All soft labels change at once."""
    rng = np.random.default_rng(1)
    v, y, s, p = rng.normal(size=(40, 3)), rng.integers(0, 2, 40), *rng.dirichlet(np.ones(2), (2, 40))
    order = rng.permutation(40)
    soft = refreshed(s, p, y, v, 5, 0.3, 0.4)[0]
    np.testing.assert_allclose(
        refreshed(s[order], p[order], y[order], v[order], 5, 0.3, 0.4)[0], soft[order], atol=1e-6
    )


def test_small_classes_are_not_outvoted():
    """Twelve close samples of a rare class listen to ten neighbours, not to 200."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 12])
    v = np.eye(4)[y] + 0.2 * rng.normal(size=(312, 4))
    own = refreshed(np.eye(2)[y], np.full((312, 2), 0.5), y, v, 200, 0.3, 0.4)[1]
    assert own[y == 1].min() > 0.6


def test_instance_loss_in_loops():
    v, strong = unit(torch.randn(5, 6).double()), unit(torch.randn(5, 6).double())
    expected = 0.0
    for i in range(5):
        own = math.exp(float(v[i] @ strong[i]) / 0.3)
        rest = sum(math.exp(float(v[i] @ x[j]) / 0.3) for x in (v, strong) for j in range(5) if j != i)
        expected -= math.log(own / (own + rest)) / 5
    assert float(instance_loss(v, strong, 0.3)) == pytest.approx(expected, abs=1e-9)


def test_the_instance_term_reaches_both_views():
    v, strong = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    instance_loss(unit(v), unit(strong), 0.3).backward()
    assert v.grad.abs().sum() > 0
    assert strong.grad.abs().sum() > 0


def test_rebuilding_in_loops():
    trainer = made([0, 1, 2])
    u, h = torch.randn(3, EMBEDDING), torch.rand(3, 32, requires_grad=True)
    W, b = (p.detach() for p in trainer.nets[0].heads["decode"].parameters())
    expected = np.mean(
        [[(max(0.0, float(W[f] @ u[i] + b[f])) - float(h.detach()[i, f])) ** 2 for f in range(32)] for i in range(3)]
    )
    loss = rebuilding(trainer.nets[0], u, h)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert h.grad.abs().sum() > 0, "the features are not detached"


def test_prototypes_in_loops_and_of_lost_classes():
    v, y = unit(torch.randn(9, 4)), torch.tensor([0, 0, 0, 2, 2, 2, 2, 0, 2])
    before = unit(torch.randn(4, 4))
    after = class_means(v, y, before)
    for c in (0, 2):
        mean = torch.stack([v[i] for i in range(9) if y[i] == c]).mean(0)
        torch.testing.assert_close(after[c], mean / mean.norm())
    torch.testing.assert_close(after[[1, 3]], before[[1, 3]])
    torch.testing.assert_close(class_means(v[:0], y[:0], before), before)


def test_ramp_and_rate():
    trainer = made([0, 1, 2], ramp=4)
    assert [trainer.pull(e) for e in (0, 2, 4, 9)] == [1, 3, 5, 5]
    assert made([0, 1, 2]).pull(1) == 5
    assert trainer.rate(0) == pytest.approx(CALM * (1 + math.cos(math.pi / 11)) / 2)


class TestDivide:
    y = np.arange(60) % 3

    def looks(self, classes, sure=8.0):
        logits = sure * F.one_hot(torch.as_tensor(classes), 3).float()
        return [{"logits": logits, "embedding": unit(logits + 0.01 * torch.randn(60, 3) @ torch.ones(3, 3))}]

    def wide(self, looks):
        looks[0]["embedding"] = F.pad(looks[0]["embedding"], (0, EMBEDDING - 3))
        return looks

    def test_before_it_is_time_nothing_is_flagged_but_prototypes_are_found(self):
        trainer = made(self.y, clean_from=2)
        found = trainer.divide(self.wide(self.looks(self.y)), 0)
        assert not found.flags.any()
        assert found.scores is None
        torch.testing.assert_close(trainer.prototypes.norm(dim=1), torch.ones(3))

    def test_a_contradicted_label_is_replaced(self):
        said = self.y.copy()
        said[:4] = [1, 2, 0, 1]
        trainer = made(self.y, clean_from=1, k=5)
        found = trainer.divide(self.wide(self.looks(said)), 0)
        np.testing.assert_array_equal(found.flags.numpy(), np.arange(60) < 4)
        assert found.scores[:4].min() > found.scores[4:].max()
        assert found.weights.all()
        trainer.accept(found)
        y, used = trainer.cleaned(trainer.flags, trainer.weights)
        np.testing.assert_array_equal(y.numpy(), said)
        assert used.all()

    def test_an_open_label_is_left_out_and_a_trusted_one_is_not(self):
        looks = self.wide(self.looks(self.y))
        looks[0]["logits"][0] = torch.tensor([-9.0, 0, 0])
        looks[0]["embedding"][0] = F.pad(unit(torch.tensor([-1.0, 1, 1])), (0, EMBEDDING - 3))
        trainer = made(self.y, clean_from=1, k=10, eta_low=0.4)
        found = trainer.divide(looks, 0)
        assert found.flags.nonzero().tolist() == [[0]]
        assert found.weights[0] == 0
        assert found.targets[0].max() < 0.9
        trainer.accept(found)
        assert not trainer.cleaned(trainer.flags, trainer.weights)[1][0]
        trainer.flags[0] = False
        y, used = trainer.cleaned(trainer.flags, trainer.weights)
        assert used.all()
        assert y[0] == 0

    def test_soft_labels_remember_the_epochs_before(self):
        """Once the classifier says nothing, the soft labels of before still speak for each label: (1/3 + 1) / 2."""
        trainer = made(self.y, clean_from=1, k=5)
        looks = self.wide(self.looks(self.y))
        trainer.divide(looks, 0)
        torch.testing.assert_close(trainer.soft, F.one_hot(torch.as_tensor(self.y), 3).float())
        looks[0]["logits"] = torch.zeros(60, 3)
        found = trainer.divide(looks, 1)
        torch.testing.assert_close(found.scores, torch.full((60,), 1 / 3))
        assert not found.flags.any()

    def test_nobody_is_sure(self):
        trainer = made(self.y, clean_from=1, eta_low=0.5)
        found = trainer.divide(self.wide(self.looks(self.y, sure=0.0)), 0)
        assert not found.flags.any()
        assert found.note == "rrl is sure of no label, so nothing is left out"
        trainer.accept(found)
        assert trainer.cleaned(trainer.flags, trainer.weights)[1].all()

    def test_a_class_that_lost_all_samples_keeps_a_prototype(self):
        said = np.where(self.y == 2, 0, self.y)
        trainer = made(self.y, clean_from=1, k=5)
        found = trainer.divide(self.wide(self.looks(said)), 0)
        assert "no sample of 1 class(es) is left" in found.note
        assert found.flags[self.y == 2].all()
        torch.testing.assert_close(trainer.prototypes.norm(dim=1), torch.ones(3))

    def test_the_bar_falls_with_the_number_of_classes(self):
        """0 takes 2/C, at most 0.4: a support of .3 is too little among three classes, enough among ten."""
        for classes, note in ((3, "rrl is sure of no label, so nothing is left out"), (10, "")):
            p = torch.full((60, classes), 0.7 / (classes - 1))
            p[torch.arange(60), torch.as_tensor(self.y)] = 0.3
            look = {"logits": p.log(), "embedding": F.one_hot(torch.as_tensor(self.y), EMBEDDING).float()}
            assert made(self.y, classes, clean_from=1, k=5).divide([look], 0).note == note


def test_terms_by_epoch_and_what_is_recorded(stripes, trained):
    data = stripes(120)
    run = trained(data, trainer="rrl", parameters={"clean_from": 2})
    parts = [set(run.epoch(e).parts) for e in range(3)]
    assert parts[0] == {"classification", "reconstruction"}
    assert parts[1] == parts[2] == parts[0] | {"instance", "prototype"}
    assert not run.epoch(0).flags.any()
    last = run.epoch(-1)
    assert last.detector == "rrl"
    assert last.scores.shape == last.weights.shape == (120,)
    np.testing.assert_allclose(last.targets.sum(axis=1), 1, atol=1e-2)
    own = last.targets[np.arange(120), data.observed.labels]
    np.testing.assert_array_equal(own[~last.flags], 1)
    assert set(np.unique(last.weights)) <= {0, 1}
    assert last.weights[~last.flags].all()


@pytest.mark.parametrize("seed", range(2))
def test_finds_wrong_labels(stripes, trained, seed):
    data = stripes(210, seed=seed)
    run = trained(data, trainer="rrl", epochs=4, seed=seed, parameters={"clean_from": 2, "both": False})
    last, kind = run.epoch(-1), data.truth.kind
    assert last.flags[kind == 1].mean() > 0.9
    assert last.flags[kind == 2].mean() > 0.25
    assert last.flags[kind == 0].mean() < 0.05
    assert (last.targets.argmax(axis=1) == data.truth.labels)[kind == 1].mean() > 0.9


def test_resumes(stripes, resumes):
    resumes(stripes(96), trainer="rrl", parameters={"clean_from": 1, "both": False})


def test_a_tiny_dataset(stripes, trained):
    """Fewer samples than neighbours; batches of which nothing may be used."""
    run = trained(stripes(12), trainer="rrl", batch=4, parameters={"clean_from": 1})
    assert all(np.isfinite(run.epoch(e).loss) for e in range(3))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": 0}, "warmup must be at least 1, got 0"),
        ({"clean_from": 0}, "clean_from must be at least 1"),
        ({"k": 0}, "k must be at least 1"),
        ({"ramp": -1}, "ramp must be at least 0"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"eta_low": 1.0}, "eta_low must be at least 0 and below 1, got 1.0"),
        ({"eta_high": -0.5}, "eta_high must be at least 0 and below 1"),
        ({"prototype": -1.0}, "prototype must be 0 or more"),
        ({"alpha": float("inf")}, "alpha must be 0 or more and finite"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        RobustRepresentationLearning(**parameters)
