"""Mixup: the loss in loops, its limits, bad parameters, a training."""

import math

import pytest
import torch
from by_hand import batch_of, ready, views
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.trainers.base import Trainer
from chaffinch.trainers.mixing import Mix
from chaffinch.trainers.mixup import Mixup

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


def step(trainer, rows, mix, monkeypatch, epoch=0):
    """Its loss on two weak views of which only the first may be used, and the batch."""
    monkeypatch.setattr("chaffinch.trainers.mixup.draw_mix", lambda *_: mix)
    weak, strong, contrast = views(len(rows))
    batch = batch_of(rows, LABELS[rows], epoch, [weak], strong, contrast)
    return trainer.step(0, batch), weak


def test_loops(monkeypatch):
    trainer, rows, mix = ready(Mixup(), LABELS), torch.tensor([3, 0, 5, 6]), Mix(0.8, torch.tensor([2, 0, 3, 1]))
    out, x = step(trainer, rows, mix, monkeypatch)
    mixed = torch.stack([0.8 * x[i] + 0.2 * x[o] for i, o in enumerate(mix.order)])
    logits = trainer.nets[0](mixed)
    total = 0.0
    for i, o in enumerate(mix.order.tolist()):
        log_p = logits[i].double().log_softmax(0)
        total += (-0.8 * log_p[LABELS[rows[i]]] - 0.2 * log_p[LABELS[rows[o]]]).item() / 4
    assert out.total.item() == pytest.approx(total, abs=1e-5)
    torch.testing.assert_close(out.logits, logits)
    out.total.backward()
    assert all(p.grad is not None for p in trainer.nets[0].parameters())


def test_no_mixing_is_cross_entropy(monkeypatch):
    trainer, rows = ready(Mixup(alpha=0), LABELS), torch.arange(8)
    out, x = step(trainer, rows, Mix(1.0, torch.arange(8).flip(0)), monkeypatch)
    torch.testing.assert_close(out.total, F.cross_entropy(trainer.nets[0](x), LABELS))


def test_cosine():
    """LSA sheet 6: 200 epochs from 0.1."""
    trainer = ready(Mixup(), LABELS, epochs=200)
    assert 0.1 * trainer.rate(0) == pytest.approx(0.0999939, abs=1e-7)
    assert 0.1 * trainer.rate(199) == pytest.approx(6.107e-6, abs=1e-9)
    rates = [trainer.rate(e) for e in range(200)]
    assert rates == sorted(rates, reverse=True)
    assert rates == [(1 + math.cos((e + 1) * math.pi / 201)) / 2 for e in range(200)]
    assert 0 < ready(Mixup(), LABELS, epochs=1).rate(0) < 1


def test_every_sample_is_visited_once_and_nothing_is_flagged():
    trainer = ready(Mixup(), LABELS)
    rng = torch.Generator().manual_seed(0)
    first, second = trainer.visit(0, 0, rng), trainer.visit(0, 0, rng)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8))
    assert not torch.equal(first, second)
    assert not trainer.divide([{"logits": torch.rand(8, 3)}], 0).flags.any()


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_bad_parameters(alpha):
    with pytest.raises(InputError, match="alpha must be 0 or more and finite"):
        Mixup(alpha=alpha)


def test_a_trainer_without_a_step_says_so():
    with pytest.raises(TypeError, match="Trainer does not define step"):
        Trainer().step(0, None)


def test_training(trained, stripes):
    """It learns the classes through a fifth of wrong labels, and leaves no detection."""
    run = trained(stripes(), trainer="mixup", epochs=5)
    record = run.epoch(-1)
    assert run.epochs[-1]["accuracy"] > 0.85
    assert run.epochs[-1]["loss"] < run.epochs[0]["loss"]
    assert record.detector == record.note == ""
    assert record.scores is record.weights is record.pseudo_losses is record.targets is None
    assert not record.flags.any()


def test_resume(resumes, stripes):
    resumes(stripes(), trainer="mixup")
