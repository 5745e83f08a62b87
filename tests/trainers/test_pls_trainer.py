"""PLS: the numbers of its sheet, a step in loops, when its stages begin, limits, bad parameters, a training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, batch_of, known, ready, views

from chaffinch.base.errors import InputError
from chaffinch.trainers.base import Division
from chaffinch.trainers.mixing import Mix, targeted_contrast
from chaffinch.trainers.pls import PROJECTION, PseudoLossSelection, faded_targets
from chaffinch.trainers.train import train

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0, 2, 0])
FLAGS = torch.tensor([True, False, False, True, False, True, False, False, True, False])
WEIGHTS = torch.tensor([0.2, 1, 1, 0.9, 1, 0.0, 1, 1, 0.5, 1])
ROWS, MIX = torch.tensor([3, 0, 5, 6, 8, 1]), Mix(0.7, torch.tensor([2, 0, 3, 1, 5, 4]))


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def standing(**options):
    """A trainer in whose third epoch four of ten samples are flagged."""
    trainer = ready(PseudoLossSelection(**options), LABELS)
    trainer.accept(Division(FLAGS, weights=WEIGHTS))
    return trainer


def step(trainer, monkeypatch, epoch=2):
    monkeypatch.setattr("chaffinch.trainers.pls.draw_mix", lambda *_: MIX)
    one, two, contrast = views(6)
    return trainer.step(0, batch_of(ROWS, LABELS[ROWS], epoch, [one, two], one, contrast))


class TestTargets:
    def test_pls_1(self):
        found = faded_targets(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0.5, 0.2]))
        expected = [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 0.5, 0], [0, 0, 0, 0.68]]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(found.sum(1), [2.5, 2.5, 1.5, 0.68], atol=1e-6)

    def test_pls_3_limits(self):
        classes = torch.tensor([0, 1, 0, 2])
        assert torch.equal(faded_targets(classes, torch.zeros(4)), torch.eye(4))
        same = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
        assert torch.equal(faded_targets(classes, torch.ones(4)), same)

    def test_no_trust_at_all_is_infonce(self):
        g = torch.Generator().manual_seed(0)
        a, k = torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)
        targets = faded_targets(torch.zeros(5, dtype=torch.long), torch.zeros(5))
        cosines = torch.nn.functional.cosine_similarity(a[:, None], k[None], dim=2) / 0.2
        expected = torch.nn.functional.cross_entropy(cosines, torch.arange(5))
        torch.testing.assert_close(targeted_contrast(a, k, targets, 0.2), expected)

    def test_mixed_by_rows(self):
        trainer, classes, w = PseudoLossSelection(), torch.tensor([0, 0, 1]), torch.tensor([1, 0.5, 0.2])
        plain, order = faded_targets(classes, w), torch.tensor([2, 0, 1])
        found = trainer.contrast_targets(classes, w, Mix(0.6, order))
        for i, o in enumerate(order.tolist()):
            torch.testing.assert_close(found[i], 0.6 * plain[i] + 0.4 * plain[o])


class TestStep:
    def test_loops(self, monkeypatch):
        """Guess, classification, balance and contrast, each sample by itself."""
        trainer = standing()
        out = step(trainer, monkeypatch)
        net, (one, two, contrast) = trainer.nets[0], views(6)
        with torch.no_grad():
            p = (net(one).softmax(1) + net(two).softmax(1)).double() / 2
            mixed = torch.stack([0.7 * one[i] + 0.3 * one[o] for i, o in enumerate(MIX.order)])
            h = net.body.features(mixed)
            logits = net.classify(h).double()
            anchors, keys = (net.heads["contrast"](f).double() for f in (h, net.body.features(contrast)))
        targets, w = [], []
        for i, row in enumerate(ROWS.tolist()):
            powers = [v**2 for v in p[i].tolist()]
            q = [v / sum(powers) for v in powers]
            np.testing.assert_allclose(trainer.guess[row], q, atol=1e-6)
            targets.append(q if FLAGS[row] else [float(c == LABELS[row]) for c in range(3)])
            w.append(float(WEIGHTS[row]))
        log_p = logits.log_softmax(1).tolist()

        def half(partner):
            total = 0.0
            for i in range(6):
                j = int(MIX.order[i]) if partner else i
                total -= w[j] * sum(t * v for t, v in zip(targets[j], log_p[i], strict=True))
            return total / sum(w)

        classification = 0.7 * half(False) + 0.3 * half(True)
        means = [np.mean([math.exp(row[c]) for row in log_p]) for c in range(3)]
        balance = sum(1 / 3 * math.log(1 / 3 / m) for m in means)
        top = [int(np.argmax(t)) for t in targets]

        def pull(i, j):
            return w[i] * w[j] * (top[i] == top[j]) + (1 - w[i]) * (1 - w[j]) * (i == j)

        contrastive = 0.0
        for i, o in enumerate(MIX.order.tolist()):
            s = [float(anchors[i] @ keys[j] / anchors[i].norm() / keys[j].norm()) / 0.2 for j in range(6)]
            log_sum = math.log(sum(math.exp(v) for v in s))
            t = [0.7 * pull(i, j) + 0.3 * pull(o, j) for j in range(6)]
            contrastive += sum(a * (log_sum - b) for a, b in zip(t, s, strict=True)) / sum(t) / 6
        assert out.parts["classification"] == pytest.approx(classification, abs=1e-4)
        assert out.parts["balance"] == pytest.approx(balance, abs=1e-5)
        assert out.parts["contrast"] == pytest.approx(contrastive, abs=1e-4)
        assert out.total.item() == pytest.approx(classification + balance + contrastive, abs=2e-4)
        np.testing.assert_allclose(out.logits.exp(), p, atol=1e-6)

    def test_every_sample_of_the_batch_is_guessed_and_no_other(self, monkeypatch):
        trainer = standing()
        before = trainer.guess.clone()
        step(trainer, monkeypatch)
        changed = (trainer.guess != before).any(1)
        assert changed[ROWS].all()
        assert changed.sum() == len(ROWS)
        torch.testing.assert_close(trainer.guess.sum(1), torch.ones(10))

    def test_warm_up_is_plain_mixup(self, monkeypatch):
        trainer = standing(warmup=3)
        before = trainer.guess.clone()
        out = step(trainer, monkeypatch, epoch=2)
        assert out.parts == {}
        assert torch.equal(trainer.guess, before)
        logits = trainer.nets[0](MIX(views(6)[0]))
        soft = MIX(torch.nn.functional.one_hot(LABELS[ROWS], 3).float())
        torch.testing.assert_close(out.total, torch.nn.functional.cross_entropy(logits, soft))

    def test_terms_can_be_left_out(self, monkeypatch):
        trainer = standing(contrast=0, balance=0)
        out = step(trainer, monkeypatch)
        assert set(out.parts) == {"classification"}
        assert out.total.item() == pytest.approx(out.parts["classification"])
        assert "contrast" not in trainer.nets[0].heads
        full = step(standing(contrast=0.5, balance=3), monkeypatch)
        parts = full.parts
        assert full.total.item() == pytest.approx(
            parts["classification"] + 3 * parts["balance"] + 0.5 * parts["contrast"], abs=1e-4
        )

    def test_head_is_one_linear_layer(self):
        head = standing().nets[0].heads["contrast"]
        assert isinstance(head, torch.nn.Linear)
        assert (head.in_features, head.out_features) == (32, PROJECTION) == (32, 128)

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_all_flagged_is_finite(self, monkeypatch, weight):
        trainer = standing()
        trainer.accept(Division(torch.ones(10, dtype=torch.bool), weights=torch.full((10,), weight)))
        out = step(trainer, monkeypatch)
        out.total.backward()
        assert torch.isfinite(out.total)
        assert all(torch.isfinite(p.grad).all() for p in trainer.parameters() if p.grad is not None)


class TestStages:
    LOOK = [{"logits": torch.randn(10, 3, generator=torch.Generator().manual_seed(5)) * 2}]

    def test_detection_from_the_end_of_the_warm_up_trust_an_epoch_later(self):
        """Both act in the next epoch: T - 1 and T, so in T and T + 1."""
        trainer = ready(PseudoLossSelection(warmup=3), LABELS)
        for epoch in (0, 1):
            division = trainer.divide(self.LOOK, epoch)
            assert division.detector == ""
            assert not division.flags.any()
        first = trainer.divide(self.LOOK, 2)
        assert first.detector == "small-loss"
        assert first.weights is first.targets is first.pseudo_losses is None
        trainer.accept(first)
        assert (trainer.weights == 1).all()
        second = trainer.divide(self.LOOK, 3)
        assert second.weights.shape == second.pseudo_losses.shape == (10,)
        assert second.targets.shape == (10, 3)

    def test_pseudo_loss_in_loops(self):
        """Stored guess against the plain look; w = 1 wherever nothing is flagged."""
        trainer = standing()
        trainer.guess.copy_(torch.rand(10, 3, generator=torch.Generator().manual_seed(2)).softmax(1))
        found = trainer.divide(self.LOOK, 4)
        for i, z in enumerate(self.LOOK[0]["logits"].tolist()):
            log_sum = math.log(sum(math.exp(v) for v in z))
            expected = sum(float(q) * (log_sum - v) for q, v in zip(trainer.guess[i], z, strict=True))
            assert found.pseudo_losses[i].item() == pytest.approx(expected, abs=1e-5)
        assert (found.weights[~found.flags] == 1).all()
        torch.testing.assert_close(found.targets, trainer.guess)

    def test_the_division_does_not_change_with_later_guesses(self, monkeypatch):
        trainer = standing()
        found = trainer.divide(self.LOOK, 4)
        before = found.targets.clone()
        step(trainer, monkeypatch)
        assert torch.equal(found.targets, before)

    def test_without_weighing_all_guesses_count_fully(self):
        trainer = standing(weigh=False)
        found = trainer.divide(self.LOOK, 4)
        assert (found.weights == 1).all()
        assert found.pseudo_losses is not None

    def test_learning_rate(self):
        trainer = ready(PseudoLossSelection(warmup=3), LABELS, epochs=20)
        rates = [trainer.rate(e) for e in range(20)]
        assert rates[:3] == [1, 1, 1]
        assert rates[3:] == [(1 + math.cos((t - 3 + 1) * math.pi / (20 - 3 + 1))) / 2 for t in range(3, 20)]

    @pytest.mark.parametrize("warmup", [4, 5, 6, 9])
    def test_a_warm_up_that_never_ends(self, warmup):
        trainer = ready(PseudoLossSelection(warmup=warmup), LABELS, epochs=4)
        assert [trainer.rate(e) for e in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 0}, "warmup must be at least 1 epoch, got 0"),
        ({"threshold": 1}, "threshold must lie between 0 and 1, got 1"),
        ({"threshold": float("nan")}, "threshold must lie between 0 and 1, got nan"),
        ({"gamma": -1}, "gamma must be 0 or more"),
        ({"contrast": float("inf")}, "contrast must be 0 or more and finite"),
        ({"balance": -0.1}, "balance must be 0 or more"),
        ({"alpha": -1}, "alpha must be 0 or more"),
        ({"temperature": 0}, "temperature must be above 0"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(InputError, match=message):
        PseudoLossSelection(**options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_wrong_labels_and_guesses_right(stripes, start, tmp_path, seed):
    """From a start that tells the classes apart, 40 % wrong labels."""
    data = stripes(n=240, wrong=0.4, foreign=0, seed=seed)
    recipe = replace(RECIPE, trainer="pls", epochs=3, batch=16, learning_rate=0.03, seed=seed)
    records = [p.record for p in train(data, recipe, tmp_path, start) if p.record]
    last, wrong = records[-1], data.truth.kind == 1
    assert wrong[last.flags].mean() > 0.9
    assert last.flags[wrong].mean() > 0.2
    right = last.targets.argmax(1) == data.truth.labels
    assert right[last.flags].mean() > 0.9
    assert records[-1].accuracy > 0.9
    assert [r.detector for r in records] == ["small-loss"] * 3
    assert [r.weights is None for r in records] == [True, False, False]


def test_resume(resumes, stripes):
    resumes(stripes(n=130), trainer="pls")
