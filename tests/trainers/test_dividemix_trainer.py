"""DivideMix: the numbers of its sheet, a step in plain loops, who believes whom, limits, and what it finds."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from by_hand import known
from torch import nn
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.base.mixture import Mixture, fit_mixture
from chaffinch.data.dataset import MISLABELLED
from chaffinch.trainers.base import Batch, Site
from chaffinch.trainers.dividemix import DivideMix, co_refine, entropy, in_turns, ramped, squared_error, write
from chaffinch.trainers.mixing import draw_mix

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


def told(labels=LABELS, classes=3, trusted=None, **parameters):
    """A trainer in float64 on pictures that are logits (B, 1, 1, C); the second network reads them turned round."""
    trainer = DivideMix(**{"warmup": 2, **parameters})
    turn = nn.Linear(classes, classes, bias=False)
    turn.weight.data.copy_(torch.eye(classes).flip(0) + 0.5)
    trainer.build([nn.Flatten(), nn.Sequential(nn.Flatten(), turn)])
    rng = torch.Generator().manual_seed(0)
    n = len(labels)
    trainer.setup(Site(labels, classes, 8, 20, 10, rng, lambda: torch.zeros(n, 8), trusted=trusted))
    return trainer.double()


def seat(views, rows, y, epoch, seed=7):
    left = iter(views)
    rng = torch.Generator().manual_seed(seed)
    return Batch(rows, y, epoch, epoch * 10 + 5, rng, lambda: next(left)[:, None, None], *[lambda: None] * 3)


def some(b=6, c=3, seed=0):
    return 2 * torch.randn(2, b, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestSheet:
    def test_5_ramp(self):
        assert [ramped(e, 25, warmup=10) for e in (0, 10, 14, 18, 26, 300)] == [0, 0, 6.25, 12.5, 25, 25]
        assert [ramped(e, 25, warmup=10, ramp=0) for e in (9.9, 10, 11)] == [0, 25, 25]

    def test_5_co_refine(self):
        p, y = torch.tensor([[0.5, 0.3, 0.2]]), F.one_hot(torch.tensor([0]), 3)
        found = co_refine(p, y, torch.tensor([0.8]), 0.5)
        torch.testing.assert_close(found, torch.tensor([[0.99362, 0.00442, 0.00196]]), atol=5e-6, rtol=0)

    def test_5_trap_of_the_posterior(self):
        """By Bayes' rule the smallest losses would not be believed; here they are."""
        mixture = Mixture(np.array([0.3, 0.35]), np.array([0.02, 0.2]), np.array([0.5, 0.5]))
        x = np.array([0.0, 0.1, 0.3])
        np.testing.assert_allclose(1 - mixture.posterior(x), [0, 0, 0.912], atol=5e-4)
        low = 1 - mixture.monotone_posterior(x)
        assert (np.diff(low) <= 0).all()
        assert low.min() > 0.9

    def test_5_floor_of_the_spread(self):
        found = fit_mixture(np.repeat([0.0, 1.0], 50))
        np.testing.assert_allclose(found.sds, 0.02236, atol=5e-6)

    def test_1_penalty_is_on_sure_predictions(self):
        z, y = some(4)[0], torch.tensor([0, 1, 2, 0])
        p = z.softmax(1)
        expected = F.cross_entropy(z, y) + (p * p.log()).sum(1).mean()
        out = told(penalty=1.0).step(0, seat([z], torch.arange(4), y, 0))
        torch.testing.assert_close(out.total, expected)
        torch.testing.assert_close(told().step(0, seat([z], torch.arange(4), y, 1)).total, F.cross_entropy(z, y))
        assert entropy(torch.zeros(2, 5)).item() == pytest.approx(math.log(5))


def softmax(values):
    exp = [math.exp(v) for v in values]
    return [e / sum(exp) for e in exp]


@pytest.mark.parametrize("k", [0, 1])
def test_a_step_in_plain_loops(k):
    """Refined labels from the network's own views, guesses from both networks', one mixture of everything."""
    trainer, (a, b) = told(lambda_u=25.0, ramp=4, temperature=0.5, balance=0.7), some()
    rows = torch.tensor([5, 0, 3, 1, 6, 2])
    y = LABELS[rows]
    trainer.clean[0] = torch.tensor([0.9, 0.2, 0.7, 0.4, 0.6, 0.1, 0.3, 0.8])
    trainer.clean[1] = torch.tensor([0.3, 0.8, 0.4, 0.9, 0.2, 0.6, 0.7, 0.1])
    w = trainer.clean[1 - k, rows].tolist()
    assert sum(v > 0.5 for v in w) in (2, 4)
    with torch.no_grad():
        said = [[net(v[:, None, None]).tolist() for v in (a, b)] for net in trainer.nets]
    targets = []
    for i in range(6):
        own = [sum(softmax(said[k][v][i])[c] for v in (0, 1)) / 2 for c in range(3)]
        other = [sum(softmax(said[1 - k][v][i])[c] for v in (0, 1)) / 2 for c in range(3)]
        if w[i] > 0.5:
            raw = [w[i] * (c == int(y[i])) + (1 - w[i]) * own[c] for c in range(3)]
        else:
            raw = [(own[c] + other[c]) / 2 for c in range(3)]
        targets.append([v**2 / sum(u**2 for u in raw) for v in raw])
    mix = draw_mix(12, 4.0, torch.Generator().manual_seed(7))
    assert mix.lam >= 0.5
    x, t = [*a.tolist(), *b.tolist()], targets * 2
    labelled, unlabelled, mean = [], [], [0.0] * 3
    for i, j in enumerate(mix.order.tolist()):
        mixed = [mix.lam * u + (1 - mix.lam) * v for u, v in zip(x[i], x[j], strict=True)]
        with torch.no_grad():
            p = softmax(trainer.nets[k](torch.tensor(mixed, dtype=torch.float64)[None, None, None])[0].tolist())
        q = [mix.lam * u + (1 - mix.lam) * v for u, v in zip(t[i], t[j], strict=True)]
        mean = [m + v / 12 for m, v in zip(mean, p, strict=True)]
        if w[i % 6] > 0.5:
            labelled.append(-sum(u * math.log(v) for u, v in zip(q, p, strict=True)))
        else:
            unlabelled.append(sum((u - v) ** 2 for u, v in zip(q, p, strict=True)) / 3)
    out = trainer.step(k, seat([a, b], rows, y, epoch=3))
    expected = {
        "labelled": sum(labelled) / len(labelled),
        "unlabelled": sum(unlabelled) / len(unlabelled),
        "balance": sum(math.log((1 / 3) / m) / 3 for m in mean),
    }
    assert out.parts == pytest.approx(expected, abs=1e-9)
    total = expected["labelled"] + 25 * 1.5 / 4 * expected["unlabelled"] + 0.7 * expected["balance"]
    assert out.total.item() == pytest.approx(total, abs=1e-9), "epoch 3.5, a warm-up of 2 and a ramp of 4"
    torch.testing.assert_close(trainer.guess[k, rows], torch.tensor(targets, dtype=torch.float64))
    assert torch.equal(trainer.guess[1 - k], F.one_hot(LABELS, 3).double())
    own = torch.tensor(said[k], dtype=torch.float64).softmax(2).mean(0)
    torch.testing.assert_close(out.logits.exp(), own)


class TestLimits:
    def test_all_believed_is_mixup_with_the_labels(self):
        trainer, views = told(balance=0.0), some(8)
        out = trainer.step(0, seat(views, torch.arange(8), LABELS, 3))
        assert torch.equal(trainer.guess[0], F.one_hot(LABELS, 3).double())
        mix = draw_mix(16, 4.0, torch.Generator().manual_seed(7))
        expected = F.cross_entropy(mix(views.flatten(0, 1)), mix(F.one_hot(LABELS, 3).double().repeat(2, 1)))
        torch.testing.assert_close(out.total, expected)
        assert out.parts["unlabelled"] == 0

    def test_nothing_believed_counts_as_labelled(self):
        trainer = told()
        trainer.clean.fill_(0.25)
        assert trainer.labelled(0).all()
        assert sorted(trainer.visit(0, 5, torch.Generator()).tolist()) == list(range(8))
        assert trainer.step(0, seat(some(8), torch.arange(8), LABELS, 5)).total.isfinite()
        assert 0 < trainer.guess[0].max() < 1, "the labels have little say"

    def test_a_batch_of_either_part_alone(self):
        trainer = told()
        trainer.clean[1] = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
        for rows in (torch.arange(4), torch.arange(4, 8)):
            out = trainer.step(0, seat(some(4), rows, LABELS[rows], 5))
            assert out.total.isfinite()
            assert (out.parts["labelled"] == 0) == (rows[0] == 4)
            assert (out.parts["unlabelled"] == 0) == (rows[0] == 0)

    def test_squared_error(self):
        assert squared_error(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0
        assert squared_error(torch.zeros(2, 2), torch.eye(2)).item() == pytest.approx(0.25)

    def test_the_other_network_only_watches(self):
        """Its running statistics stay as they are; the trained one's move."""
        trainer = told()
        trainer.build([nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)).double() for _ in range(2)])
        trainer.clean[0, :4] = 0
        trainer.train()
        before = trainer.nets[0][1].running_mean.clone()
        trainer.step(1, seat(some(8), torch.arange(8), LABELS, 5))
        assert torch.equal(trainer.nets[0][1].running_mean, before)
        assert not torch.equal(trainer.nets[1][1].running_mean, before)


class TestVisits:
    def test_half_of_any_stretch_is_of_either_part(self):
        first = torch.arange(100) < 90
        order = in_turns(first, torch.Generator().manual_seed(0))
        assert torch.equal(first[order], torch.arange(100) % 2 == 0)
        often = Counter(order.tolist())
        assert max(often[i] for i in range(90)) == 1
        assert {often[i] for i in range(90, 100)} == {5}
        odd = in_turns(torch.arange(7) == 3, torch.Generator().manual_seed(0))
        assert odd.tolist()[::2] == [3] * 4
        assert set(odd.tolist()[1::2]) <= {0, 1, 2, 4, 5, 6}

    @pytest.mark.parametrize("value", [True, False])
    def test_an_empty_part(self, value):
        order = in_turns(torch.full((9,), value), torch.Generator().manual_seed(0))
        assert sorted(order.tolist()) == list(range(9))

    def test_the_other_network_divides_and_the_warm_up_sees_all(self):
        trainer = told()
        trainer.clean[0, :2] = 0.5  # not above the threshold
        assert trainer.labelled(0).all()
        assert trainer.labelled(1).tolist() == [False] * 2 + [True] * 6
        assert sorted(trainer.visit(1, 1, torch.Generator()).tolist()) == list(range(8))
        assert (trainer.visit(1, 2, torch.Generator())[1::2] < 2).all()

    def test_write_keeps_the_last(self):
        memory, rows = torch.zeros(5, 2), torch.tensor([3, 1, 3, 0, 3])
        write(memory, rows, torch.arange(10.0).view(5, 2))
        assert memory.tolist() == [[6, 7], [2, 3], [0, 0], [8, 9], [0, 0]]


class TestDivide:
    def logits(self, wrong, n=60, seed=0):
        """Logits that believe the labels 0, 1, 2, 0, ... except those of the rows in ``wrong``, and their labels."""
        labels = torch.arange(n) % 3
        z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3
        z[torch.arange(n), labels] += torch.where(torch.isin(torch.arange(n), torch.tensor(wrong)), -4.0, 4.0)
        return z, labels

    def test_flagged_by_both_scored_by_the_mean(self):
        (one, labels), (two, _) = self.logits([0, 1, 2, 3]), self.logits([2, 3, 4], seed=1)
        trainer = told(labels)
        found = trainer.divide([{"logits": one}, {"logits": two}], 1)
        assert found.flags.nonzero()[:, 0].tolist() == [2, 3]
        assert (trainer.clean[0] <= 0.5).nonzero()[:, 0].tolist() == [0, 1, 2, 3]
        assert (trainer.clean[1] <= 0.5).nonzero()[:, 0].tolist() == [2, 3, 4]
        torch.testing.assert_close(found.scores, 1 - trainer.clean.mean(0))
        assert (found.detector, found.note, found.weights) == ("small-loss", "", None)
        assert torch.equal(found.targets, F.one_hot(labels, 3).double())
        losses = F.cross_entropy(one, labels, reduction="none")
        assert (trainer.clean[0][losses.argsort()].diff() <= 0).all(), "larger losses are never believed more"

    def test_nothing_before_the_warm_up_ends(self):
        z, labels = self.logits([0])
        trainer = told(labels)
        found = trainer.divide([{"logits": z}] * 2, 0)
        assert not found.flags.any()
        assert found.scores is None
        assert (trainer.clean == 1).all()

    def test_known_labels_are_believed(self):
        z, labels = self.logits([0, 1, 2])
        trusted = torch.arange(60) < 2
        trainer = told(labels, trusted=trusted)
        found = trainer.divide([{"logits": z}] * 2, 1)
        assert (trainer.clean[:, :2] == 1).all()
        assert found.flags.nonzero()[:, 0].tolist() == [2]

    def test_equal_losses_leave_all_believed(self):
        trainer = told()
        trainer.clean.fill_(0.1)
        found = trainer.divide([{"logits": torch.zeros(8, 3).double()}] * 2, 1)
        assert not found.flags.any()
        assert (trainer.clean == 1).all()
        assert "all 8 losses are equal" in found.note

    def test_a_huge_loss_does_not_hide_the_others(self):
        z, labels = self.logits(list(range(10)))
        z[9, labels[9]] -= 1e4
        found = told(labels).divide([{"logits": z}] * 2, 1)
        assert found.flags.nonzero()[:, 0].tolist() == list(range(10))

    def test_remembered_losses_are_averaged(self):
        """Sample 0 was hard to believe in two of three epochs; without memory only the last one counts."""
        bad, labels = self.logits([0, 1, 2])
        good, _ = self.logits([1, 2], seed=1)
        for remember, flagged in ((1, [1, 2]), (5, [0, 1, 2])):
            trainer = told(labels, remember=remember)
            for epoch, z in enumerate((bad, bad, good)):
                found = trainer.divide([{"logits": z}] * 2, epoch + 1)
            assert found.flags.nonzero()[:, 0].tolist() == flagged
        losses = F.cross_entropy(good, labels, reduction="none").numpy()
        np.testing.assert_allclose(trainer.past[0, -1], fit_mixture(losses).scaled(losses))
        assert trainer.past[0, :2].isnan().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": 0}, "warmup must be at least 1 epoch, got 0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"threshold": float("nan")}, "threshold must lie"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"lambda_u": float("inf")}, "lambda_u must be 0 or more and finite"),
        ({"ramp": -1}, "ramp must be 0 or more"),
        ({"balance": -1.0}, "balance must be"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"remember": 0}, "remember must be at least 1 epoch"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        DivideMix(**parameters)


def test_a_training_from_scratch(stripes, trained):
    dataset = stripes(121)  # a sample is left out of each pass: a batch of one has no variance
    run = trained(dataset, trainer="dividemix", parameters={"warmup": 1, "ramp": 1}, batch=40, epochs=2)
    first, last = run.epoch(0), run.epoch(1)
    assert first.detector == last.detector == "small-loss"
    assert set(run.epochs[0]["parts"]) == set()
    assert set(run.epochs[1]["parts"]) == {"labelled", "unlabelled", "balance"}
    assert np.isfinite(last.log_probs).all()
    assert np.isfinite(last.seen).all()
    assert ((last.scores >= 0) & (last.scores <= 1)).all()
    np.testing.assert_allclose(last.targets.astype(float).sum(1), 1, atol=2e-3)
    assert (first.targets.argmax(1) == dataset.observed.labels).all()


def test_half_precision(stripes, trained):
    run = trained(stripes(64), trainer="dividemix", parameters={"warmup": 1}, epochs=2, precision="bfloat16")
    assert np.isfinite(run.epoch(-1).log_probs).all()


def test_resume(stripes, resumes):
    resumes(stripes(120), trainer="dividemix", parameters={"warmup": 1, "remember": 2})


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def test_wrong_labels_are_found_and_guessed_right(stripes, trained, start):
    """Over four seeds all flags were right, and so were all wrong labels found and their guesses."""
    dataset = stripes(180, wrong=0.3, foreign=0.1)
    options = {"warmup": 2, "ramp": 1}
    run = trained(dataset, start=start, trainer="dividemix", parameters=options, epochs=5, learning_rate=0.02)
    last, wrong = run.epoch(-1), dataset.truth.kind == MISLABELLED
    assert (dataset.truth.kind[last.flags] != 0).mean() > 0.9
    assert last.flags[wrong].mean() > 0.9
    assert (last.targets.argmax(1) == dataset.truth.labels)[wrong].mean() > 0.9
    assert run.epochs[-1]["accuracy"] > 0.95
