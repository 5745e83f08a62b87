"""PC²: the numbers of its sheet, hinges in plain loops, who trusts whom, borrowed captions, limits, what it finds."""

import math

import numpy as np
import pytest
import torch
from by_hand import known, views
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.base.mixture import fit_mixture
from chaffinch.data.dataset import MISLABELLED
from chaffinch.detectors.pc2 import divergence
from chaffinch.encoders.network import build
from chaffinch.trainers.base import Batch, Net, Site, kept_only
from chaffinch.trainers.pc2 import (
    PseudoCaptioning,
    donors,
    hinges,
    pair_losses,
    pseudo_classes,
    soft_margin,
    sort,
    spread,
    triplets,
)

S = torch.tensor([[0.8, 0.5, 0.1], [0.7, 0.6, 0.2], [0.3, 0.4, 0.9]], dtype=torch.float64)
THREE = torch.arange(3)
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


def told(labels=LABELS, classes=3, epochs=8, trusted=None, **parameters):
    """A trainer with small networks on grey pictures, set up for these labels."""
    trainer = PseudoCaptioning(**{"warmup": 2, "pseudo_classes": 8, **parameters})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bodies = [build("preact-resnet-8-16-32", 1) for _ in range(2)]
        trainer.build([Net(body, classes, trainer.make_heads(32)) for body in bodies])
    rng, n = torch.Generator().manual_seed(0), len(labels)
    trainer.setup(Site(labels, classes, 32, epochs, 10, rng, lambda: torch.zeros(n, 32), trusted=trusted))
    return trainer


def seat(rows, epoch, labels=LABELS):
    x = views(len(rows), 1)[0]
    rng = torch.Generator().manual_seed(0)
    return Batch(rows, labels[rows], epoch, 10 * epoch, rng, lambda: x, *[lambda: None] * 3), x


class TestSheet:
    def test_1_soft_margin(self):
        y = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
        expected = torch.tensor([0, 0.017295, 0.048051, 0.102743, 0.2], dtype=torch.float64)
        torch.testing.assert_close(soft_margin(y, 0.2), expected, atol=1e-6, rtol=0)
        assert soft_margin(torch.tensor([1.0 + 1e-6, 7.0, -1.0]), 0.2).tolist() == pytest.approx([0.2, 0.2, 0])

    def test_2_hinges(self):
        margin = torch.full((3,), 0.2, dtype=torch.float64)
        captions, pictures = hinges(S, THREE, margin)
        assert (captions.amax(1) + pictures.amax(0)).sum().item() == pytest.approx(0.5, abs=1e-12)
        per_pair = captions.mean(1) + pictures.mean(0)
        expected = [0.033333, 0.133333, 0]
        assert per_pair.tolist() == pytest.approx(expected, abs=1e-6)
        assert per_pair.sum().item() == pytest.approx(0.166667, abs=1e-6)
        assert pair_losses(S, THREE, 0.2).tolist() == pytest.approx(expected, abs=1e-6)
        assert triplets(S, THREE, margin, hardest=True).item() == pytest.approx(0.5 / 3)
        assert triplets(S, THREE, margin, hardest=False).item() == pytest.approx(0.166667 / 3, abs=1e-6)

    def test_2_hinges_with_soft_margins(self):
        """The sheet has a row's margin in both hinges; each pair's own margin gives the same number here."""
        margin = soft_margin(torch.tensor([1, 0.5, 0], dtype=torch.float64), 0.2)
        assert 3 * triplets(S, THREE, margin, hardest=True).item() == pytest.approx(0.248051, abs=1e-6)

    def test_3_direction_of_the_oscillation(self):
        """As the trainer measures it: what is said now against the bank."""
        trainer = told(torch.tensor([0, 1, 0, 1]), 2, pseudo_classes=3)
        bank, current = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
        trainer.bank[0] = bank
        moved = divergence(current[None].double().numpy(), trainer.bank[0, :1].double().numpy())
        assert moved[0] == pytest.approx(0.421968, abs=1e-6)
        assert divergence(bank[None].numpy(), current[None].numpy())[0] == pytest.approx(0.373386, abs=1e-6)

    def test_4_match(self, monkeypatch):
        """w = (.9, .6, .55), u = (.95, .7, .1): the last is not stable, so only its loss counts."""
        w, u = np.array([0.9, 0.6, 0.55]), np.array([0.95, 0.7, 0.1])
        left = iter([1 - w, 1 - u])

        class Given:
            def monotone_posterior(self, values):
                return next(left)

        monkeypatch.setattr("chaffinch.trainers.pc2.fit_mixture", lambda values: Given())
        trainer = told(THREE, threshold=0.56)
        log_p = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).log_softmax(1)
        trainer.bank[0] = log_p.flip(0)
        found = trainer.judge(0, S, log_p)
        assert found.flags.tolist() == [False, False, True]
        assert trainer.match[0].tolist() == pytest.approx([0.995, 0.88, 0.55], abs=1e-6)
        assert found.scores.tolist() == pytest.approx([0.005, 0.12, 0.45], abs=1e-6)

    def test_5_limits(self):
        one, none = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        hard = triplets(S, THREE, soft_margin(one, 0.2), hardest=True)
        torch.testing.assert_close(hard, triplets(S, THREE, 0.2 * one, hardest=True))
        assert 3 * triplets(S, THREE, soft_margin(none, 0.2), hardest=True).item() == pytest.approx(0.1), ".7 above .6"

    def test_6_donors(self):
        """Ten clusters, 30 % of the captions permuted: the donor is of the picture's own cluster."""
        rng = np.random.default_rng(0)
        cluster = rng.integers(0, 10, 600)
        centres = 3 * rng.normal(size=(10, 16))
        p = torch.as_tensor(centres[cluster] + rng.normal(size=(600, 16))).softmax(1)
        noisy = torch.as_tensor(rng.random(600) < 0.3)
        likeness, donor = donors(p[noisy], p[~noisy])
        own, given = torch.as_tensor(cluster)[noisy], torch.as_tensor(cluster)[~noisy][donor]
        assert (own == given).double().mean() > 0.9
        assert likeness.max() <= 1 + 1e-12


class TestHinges:
    def problem(self, n=12, c=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        s = 2 * torch.rand(n, c, generator=g, dtype=torch.float64) - 1
        return s, torch.randint(c, (n,), generator=g), torch.rand(n, generator=g, dtype=torch.float64)

    @pytest.mark.parametrize("seed", range(4))
    def test_in_plain_loops(self, seed):
        s, y, margin = self.problem(seed=seed)
        hard, mean, losses = 0.0, 0.0, []
        for i in range(12):
            captions, pictures = [0.0], [0.0]
            for j in range(12):
                if y[i] != y[j]:
                    captions.append(max(0.0, float(margin[i] + s[i, y[j]] - s[i, y[i]])))
                    pictures.append(max(0.0, float(margin[i] + s[j, y[i]] - s[i, y[i]])))
            hard += (max(captions) + max(pictures)) / 12
            mean += (sum(captions) + sum(pictures)) / 12 / 12
            negatives = [j for j in range(12) if y[i] != y[j]]
            cost = sum(max(0.0, float(0.3 + s[i, y[j]] - s[i, y[i]])) for j in negatives)
            cost += sum(max(0.0, float(0.3 + s[j, y[i]] - s[i, y[i]])) for j in negatives)
            losses.append(cost / len(negatives) * 11 / 12)
        assert triplets(s, y, margin, hardest=True).item() == pytest.approx(hard)
        assert triplets(s, y, margin, hardest=False).item() == pytest.approx(mean)
        assert pair_losses(s, y, 0.3).tolist() == pytest.approx(losses)

    def test_order_does_not_matter(self):
        s, y, margin = self.problem(40)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(pair_losses(s, y, 0.2)[order], pair_losses(s[order], y[order], 0.2))
        one, other = (triplets(s[o], y[o], margin[o], hardest=True) for o in (order, torch.arange(40)))
        torch.testing.assert_close(one, other)

    def test_a_class_alone_has_no_negatives(self):
        s, y = self.problem()[0], torch.full((12,), 2)
        for hardest in (True, False):
            assert triplets(s, y, torch.ones(12).double(), hardest=hardest).item() == 0
        assert pair_losses(s, y, 0.2).tolist() == [0] * 12
        assert triplets(s[:1], y[:1], torch.ones(1).double(), hardest=True).item() == 0


class TestPseudoClasses:
    def test_captions_that_are_nearly_alike_are_told_apart(self):
        """Class 0 is the largest for all captions, which would teach nothing."""
        p = torch.tensor([[0.9, 0.06, 0.04], [0.9, 0.04, 0.06], [0.92, 0.04, 0.04]])
        assert p.argmax(1).tolist() == [0, 0, 0]
        assert pseudo_classes(p.log()).tolist() == [1, 2, 0]

    def test_both_entropies(self):
        """Sure and different distributions: the mean is even, each is not; even ones are both."""
        sure, even = torch.eye(4) * 1e3, torch.zeros(3, 4)
        assert spread(sure.log_softmax(1), diverse=True).item() == pytest.approx(math.log(4))
        assert spread(sure.log_softmax(1), diverse=False).item() == pytest.approx(0)
        for diverse in (True, False):
            assert spread(even.log_softmax(1), diverse=diverse).item() == pytest.approx(math.log(4))
        p = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
        mean = p.mean(0)
        torch.testing.assert_close(spread(p.log(), diverse=True), -(mean * mean.log()).sum())
        torch.testing.assert_close(spread(p.log(), diverse=False), -(p * p.log()).sum(1).mean())


class TestStep:
    def test_logits_are_cosines_with_captions(self):
        trainer = told(temperature=0.1).eval()
        batch, x = seat(torch.arange(8), 0)
        net = trainer.nets[0]
        h, captions = net.body.features(x), net.classify.weight
        cosines = torch.stack([F.cosine_similarity(h, caption[None]) for caption in captions], 1)
        for logits in (trainer.step(0, batch).logits, trainer.look(0, x)["logits"], net(x)):
            torch.testing.assert_close(logits, cosines / 0.1, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("diverse", [True, False])
    def test_the_warm_up_learns_from_all(self, diverse):
        trainer = told(diverse=diverse, pseudo=0.3, entropy=2.0).eval()
        rows = torch.tensor([4, 1, 2, 7, 3])
        batch, x = seat(rows, 1)
        out, net = trainer.step(1, batch), trainer.nets[1]
        h = net.body.features(x)
        s, log_p = net.classify(h) * trainer.temperature, sort(net, h)
        classes = pseudo_classes(sort(net, net.classify.weight))
        triplet = triplets(s, batch.y, torch.full((5,), 0.2), hardest=False)
        fit = -log_p[torch.arange(5), classes[batch.y]].mean()
        total = triplet / 0.2 + 0.3 * (fit - 2 * spread(log_p, diverse=diverse))
        torch.testing.assert_close(out.total, total)
        torch.testing.assert_close(trainer.bank[1, rows], log_p.detach())
        assert trainer.bank[1, [0, 5, 6]].isnan().all(), "written under global positions"
        assert trainer.bank[0].isnan().all()

    def divided(self, epoch, **parameters):
        """Network 0 on a batch whose third and fourth pair network 1 doubts."""
        trainer = told(**parameters).eval()
        rows = torch.tensor([6, 2, 5, 0, 3, 1])
        trainer.doubted[1, [5, 0]] = True
        trainer.match[1] = torch.linspace(0.3, 1, 8)
        batch, x = seat(rows, epoch)
        h = trainer.nets[0].body.features(x)
        s, log_p = trainer.nets[0].classify(h) * trainer.temperature, sort(trainer.nets[0], h)
        return trainer, rows, batch, s.detach(), log_p.detach()

    def test_mismatched_pairs_borrow(self):
        trainer, rows, batch, s, log_p = self.divided(4, pseudo=0.0)
        out = trainer.step(0, batch)
        kept, wrong = torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3])
        margin = soft_margin(trainer.match[1, rows[kept]], 0.2)
        own = triplets(s[kept], batch.y[kept], margin, hardest=True)
        cosines = F.cosine_similarity(log_p[wrong].exp()[:, None], log_p[kept].exp()[None], dim=2)
        given = batch.y[kept][cosines.argmax(1)]
        term = triplets(s[wrong], given, soft_margin(cosines.amax(1), 0.2), hardest=True)
        torch.testing.assert_close(out.total, (own + term) / 0.2)
        assert trainer.borrowed[0, [5, 0]].tolist() == given.tolist()
        torch.testing.assert_close(trainer.likeness[0, [5, 0]], cosines.amax(1))
        others = [i for i in range(8) if i not in (0, 5)]
        assert torch.equal(trainer.borrowed[0, others], LABELS[others])
        assert not trainer.bank[0, rows].isnan().any(), "renewed"

    def test_a_donor_that_is_too_unlike_gives_no_margin(self):
        trainer, _, batch, s, log_p = self.divided(4, pseudo=0.0, similarity=1.0)
        kept, wrong = torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3])
        term = trainer.step(0, batch).parts["borrowed"]
        assert (trainer.likeness == 0).all()
        given = batch.y[kept][donors(log_p[wrong].exp(), log_p[kept].exp())[1]]
        assert term == pytest.approx(triplets(s[wrong], given, torch.zeros(2), hardest=True).item(), abs=1e-6)

    def test_before_that_they_are_left_out(self):
        trainer = told(epochs=8)
        assert [trainer.borrows(e) for e in range(6)] == [False] * 4 + [True] * 2
        assert not any(told(borrow=1.0).borrows(e) for e in range(8))
        assert [told(warmup=3, borrow=0.0).borrows(e) for e in range(4)] == [False] * 3 + [True]
        trainer.doubted[1, [5, 0]] = True
        assert not set(trainer.visit(0, 3, torch.Generator()).tolist()) & {0, 5}
        assert set(trainer.visit(1, 3, torch.Generator()).tolist()) == set(range(8)), "its own doubts are for the other"
        turns = trainer.visit(0, 4, torch.Generator()).tolist()
        assert set(turns[1::2]) == {0, 5}
        assert not set(turns[::2]) & {0, 5}

    def test_where_all_are_doubted_none_is(self):
        trainer = told()
        trainer.doubted[1] = True
        assert not trainer.mismatched(0).any()
        assert sorted(trainer.visit(0, 6, torch.Generator()).tolist()) == list(range(8))
        assert torch.equal(kept_only(trainer.mismatched(0), torch.Generator()).sort().values, torch.arange(8))


class TestDivide:
    def said(self, wrong, n=120, seed=0):
        """Similarities that fit the labels 0, 1, 2, 0, ... but for the rows in ``wrong``; and the labels."""
        g = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % 3
        s = 0.1 * torch.randn(n, 3, generator=g)
        s[torch.arange(n), labels] += torch.where(torch.isin(torch.arange(n), torch.tensor(wrong)), -0.5, 0.5)
        return s, labels

    def looks(self, trainer, *similarities, p=None):
        n = len(trainer.labels)
        log_p = torch.randn(n, 8, generator=torch.Generator().manual_seed(5)).log_softmax(1) if p is None else p
        return [{"logits": s / trainer.temperature, "pseudo": log_p} for s in similarities]

    def test_flagged_by_both(self):
        (one, labels), (two, _) = self.said([0, 1, 2, 3]), self.said([2, 3, 4], seed=1)
        trainer = told(labels)
        trainer.borrowed[:, 2] = 1
        trainer.likeness[:, 2] = torch.tensor([0.6, 0.8])
        trainer.bank.copy_(self.looks(trainer, one)[0]["pseudo"])
        found = trainer.divide(self.looks(trainer, one, two), 1)
        assert found.flags.nonzero()[:, 0].tolist() == [2, 3]
        assert trainer.doubted[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
        assert trainer.doubted[1].nonzero()[:, 0].tolist() == [2, 3, 4]
        torch.testing.assert_close(found.scores, 1 - trainer.match.mean(0))
        assert found.weights[2].item() == pytest.approx(0.7)
        assert found.weights[3].item() == 0, "nothing was borrowed yet"
        assert found.targets.argmax(1)[[2, 3]].tolist() == [1, 0]
        assert (found.weights[~found.flags] == 1).all()
        assert (found.detector, found.note) == ("pc2", "")

    def test_what_moved_matches_less(self):
        s, labels = self.said(list(range(30)))
        trainer = told(labels)
        still = self.looks(trainer, s)[0]["pseudo"]
        trainer.bank.copy_(still)
        trainer.bank[:, 60:90] = still.flip(1)[60:90]
        trainer.bank[:, 90:92] = torch.nan
        found = trainer.divide(self.looks(trainer, s, s), 1)
        losses = pair_losses(s, labels, 0.2).float().numpy()
        noisy = fit_mixture(losses).monotone_posterior(losses)
        moved = np.zeros(120)
        moved[60:90] = [sum(math.exp(p) * (p - b) for p, b in zip(q, q.flip(0), strict=True)) for q in still[60:90]]
        moved[90:92] = moved.max()  # missing from the bank
        unstable = fit_mixture(moved).monotone_posterior(moved)
        assert 15 < (unstable > 0.5).sum() <= 32
        for i in range(120):
            helped = noisy[i] < 0.5 and unstable[i] < 0.5
            expected = noisy[i] * (unstable[i] if helped else 1.0)
            assert found.scores[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-30)
        assert trainer.doubted[0].nonzero()[:, 0].tolist() == list(range(30))

    def test_where_all_are_believed_the_hundredth_is_doubted(self):
        s, labels = self.said([], n=300)
        trainer = told(labels)
        trainer.threshold = -0.1
        found = trainer.divide(self.looks(trainer, s, s), 1)
        losses = pair_losses(s, labels, 0.2)
        worst = losses.argsort(descending=True)[:3].sort().values
        assert found.flags.nonzero()[:, 0].tolist() == worst.tolist()
        assert "no pair was hard to believe" in found.note

    def test_known_labels_are_trusted(self):
        s, labels = self.said([0, 1, 2])
        trainer = told(labels, trusted=torch.arange(120) < 2)
        found = trainer.divide(self.looks(trainer, s, s), 1)
        assert found.flags.nonzero()[:, 0].tolist() == [2]
        assert (trainer.match[:, :2] == 1).all()

    def test_equal_losses_leave_all_trusted(self):
        trainer = told()
        trainer.doubted[:] = True
        found = trainer.divide(self.looks(trainer, torch.zeros(8, 3), torch.zeros(8, 3)), 1)
        assert not found.flags.any()
        assert not trainer.doubted.any()
        assert (trainer.match == 1).all()
        assert "all 8 losses are equal" in found.note

    def test_nothing_before_the_warm_up_ends(self):
        trainer = told()
        found = trainer.divide(self.looks(trainer, torch.rand(8, 3), torch.rand(8, 3)), 0)
        assert not found.flags.any()
        assert found.scores is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": 0}, "warmup must be at least 1 epoch, got 0"),
        ({"borrow": 1.1}, "borrow must lie from 0 to 1"),
        ({"borrow": float("nan")}, "borrow must lie"),
        ({"similarity": -0.1}, "similarity must lie from 0 to 1"),
        ({"margin": 0.0}, "margin must be above 0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"pseudo_classes": 1}, "pseudo_classes must be at least 2"),
        ({"pseudo": -1.0}, "pseudo must be 0 or more"),
        ({"entropy": float("inf")}, "entropy must be 0 or more and finite"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        PseudoCaptioning(**parameters)


def test_a_training_from_scratch(stripes, trained):
    dataset = stripes(121)  # a sample is left out of each pass: a batch of one has no variance
    run = trained(dataset, trainer="pc2", parameters={"warmup": 1, "borrow": 0.5}, batch=40)
    records = [run.epoch(e) for e in range(3)]
    assert [r.detector for r in records] == ["pc2"] * 3
    assert set(run.epochs[1]["parts"]) == {"triplet", "pseudo-class", "entropy"}
    assert set(run.epochs[2]["parts"]) == {"triplet", "pseudo-class", "entropy", "borrowed"}
    for record in records:
        assert np.isfinite(record.log_probs).all()
        assert ((record.scores >= 0) & (record.scores <= 1)).all()
        assert (record.weights[~record.flags] == 1).all()
    assert (records[0].targets.argmax(1) == dataset.observed.labels).all(), "nothing is borrowed yet"
    assert (records[0].weights[records[0].flags] == 0).all()


def test_half_precision(stripes, trained):
    """Cosines are taken in single precision, so nothing ties."""
    p = torch.tensor([[0.5, 0.3, 0.2]])
    trusted = torch.tensor([[0.5, 0.3, 0.201], [0.5, 0.3, 0.2005], [0.5, 0.3, 0.2002], [0.5, 0.3, 0.2004]])
    with torch.autocast("cpu", torch.bfloat16):
        assert donors(p, trusted)[1].item() == 2
    run = trained(stripes(64), trainer="pc2", parameters={"warmup": 1, "borrow": 0.0}, epochs=2, precision="bfloat16")
    assert np.isfinite(run.epoch(-1).log_probs).all()


@pytest.mark.parametrize("diverse", [True, False])
def test_resume(stripes, resumes, diverse):
    resumes(stripes(120), trainer="pc2", parameters={"warmup": 1, "borrow": 0.0, "diverse": diverse})


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def test_wrong_labels_are_found_and_right_ones_borrowed(stripes, trained, start):
    """Over five seeds all flags were right, and so were all wrong labels found and right ones borrowed."""
    dataset = stripes(180, wrong=0.3, foreign=0.1)
    run = trained(dataset, start=start, trainer="pc2", parameters={"warmup": 3}, epochs=7, learning_rate=0.02)
    last, wrong = run.epoch(-1), dataset.truth.kind == MISLABELLED
    assert (dataset.truth.kind[last.flags] != 0).mean() > 0.9
    assert last.flags[wrong].mean() > 0.9
    assert (last.targets.argmax(1) == dataset.truth.labels)[wrong].mean() > 0.9
    assert run.epochs[-1]["accuracy"] > 0.95
