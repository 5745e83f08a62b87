"""PLS-LSA: a step in loops, detectors in turn, what it takes from PLS and what not, a training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, batch_of, known, ready, views
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.trainers.base import Division
from chaffinch.trainers.mixing import Mix, targeted_contrast
from chaffinch.trainers.pls_lsa import PlsLsa
from chaffinch.trainers.train import train

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0, 2, 0])
FLAGS = torch.tensor([True, False, False, True, False, True, False, False, True, False])
WEIGHTS = torch.tensor([0.2, 1, 1, 0.9, 1, 0.0, 1, 1, 0.5, 1])
ROWS, MIX = torch.tensor([3, 0, 5, 6, 8, 1]), Mix(0.7, torch.tensor([2, 0, 3, 1, 5, 4]))


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def standing(**options):
    trainer = ready(PlsLsa(**options), LABELS)
    trainer.accept(Division(FLAGS, weights=WEIGHTS))
    return trainer


def step(trainer, monkeypatch, epoch=2):
    monkeypatch.setattr("chaffinch.trainers.pls_lsa.draw_mix", lambda *_: MIX)
    one, two, strong, contrast = views(6, 4)
    return trainer.step(0, batch_of(ROWS, LABELS[ROWS], epoch, [one, two], strong, contrast))


def test_a_step_in_loops(monkeypatch):
    trainer = standing()
    out = step(trainer, monkeypatch)
    net, (one, two, strong, contrast) = trainer.nets[0], views(6, 4)
    with torch.no_grad():
        p = net(two).softmax(1).double()  # one view, not the one that is learnt from
        x = torch.stack([strong[i] if FLAGS[row] else one[i] for i, row in enumerate(ROWS)])
        h = net.body.features(torch.stack([0.7 * x[i] + 0.3 * x[o] for i, o in enumerate(MIX.order)]))
        log_p = net.classify(h).double().log_softmax(1).tolist()
        anchors, keys = (net.heads["contrast"](f).double() for f in (h, net.body.features(contrast)))
    targets, w = [], []
    for i, row in enumerate(ROWS.tolist()):
        powers = [v**2 for v in p[i].tolist()]
        q = [v / sum(powers) for v in powers]
        np.testing.assert_allclose(trainer.guess[row], q, atol=1e-6)
        targets.append(q if FLAGS[row] else [float(c == LABELS[row]) for c in range(3)])
        w.append(float(WEIGHTS[row]))
    top, order = [int(np.argmax(t)) for t in targets], MIX.order.tolist()
    classification = contrastive = 0.0
    for i, o in enumerate(order):
        for share, j in ((0.7, i), (0.3, o)):
            classification -= share * w[j] * sum(t * v for t, v in zip(targets[j], log_p[i], strict=True)) / sum(w)
        s = [float(anchors[i] @ keys[j] / anchors[i].norm() / keys[j].norm()) / 0.2 for j in range(6)]
        log_sum = math.log(sum(math.exp(v) for v in s))
        for share, j in ((0.7, i), (0.3, o)):  # the classes of both its pictures; trust plays no part
            alike = [m for m in range(6) if top[m] == top[j]]
            contrastive += share * sum(log_sum - s[m] for m in alike) / len(alike) / 6
    assert set(out.parts) == {"classification", "contrast"}
    assert out.parts["classification"] == pytest.approx(classification, abs=1e-4)
    assert out.parts["contrast"] == pytest.approx(contrastive, abs=1e-4)
    assert out.total.item() == pytest.approx(classification + contrastive, abs=2e-4)
    np.testing.assert_allclose(out.logits.exp(), p, atol=1e-6)


def test_pls_2_the_lsa_form():
    """Without mixing the targets are the class matrix, whatever the trust."""
    classes, z = torch.tensor([0, 0, 0, 1]), torch.tensor([(1, 0), (0.8, 0.6), (0.6, 0.8), (0, 1)])
    targets = PlsLsa().contrast_targets(classes, torch.tensor([1, 1, 0.5, 0.2]), Mix(1.0, torch.arange(4)))
    assert targeted_contrast(z, z, targets, 0.2).item() == pytest.approx(1.1606, abs=5e-5)


def test_contrast_targets_are_averages_over_each_class():
    targets = PlsLsa().contrast_targets(torch.tensor([0, 0, 1]), torch.zeros(3), Mix(0.75, torch.tensor([2, 1, 0])))
    expected = [[0.375, 0.375, 0.25], [0.5, 0.5, 0], [0.125, 0.125, 0.75]]
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_the_first_epoch_is_plain_mixup_but_guesses(monkeypatch):
    trainer = ready(PlsLsa(), LABELS)
    out = step(trainer, monkeypatch, epoch=0)
    net, (one, two, *_) = trainer.nets[0], views(6, 4)
    soft = MIX(F.one_hot(LABELS[ROWS], 3).float())
    torch.testing.assert_close(out.total, F.cross_entropy(net(MIX(one)), soft))
    assert out.parts == {}
    q = net(two).softmax(1) ** 2
    torch.testing.assert_close(trainer.guess[ROWS], (q / q.sum(1, keepdim=True)).detach())


def test_balance_on_request(monkeypatch):
    assert "balance" in step(standing(balance=1.0), monkeypatch).parts


def test_no_constant_learning_rate():
    trainer = ready(PlsLsa(), LABELS, epochs=200)
    assert 0.1 * trainer.rate(0) == pytest.approx(0.0999939, abs=1e-7)
    assert 0.1 * trainer.rate(199) == pytest.approx(6.107e-6, abs=1e-9)


def test_turns(monkeypatch):
    """After even epochs the linear detector, after odd ones the small-loss rule, by original labels and plain looks."""
    asked = []

    def spy(detector, logits, labels, features, threshold):
        asked.append((detector, logits, labels, features, threshold))
        return Division(FLAGS, torch.rand(10), detector)

    monkeypatch.setattr("chaffinch.trainers.pls_lsa.flagged_by", spy)
    trainer = standing(threshold=0.8)
    look = {"logits": torch.randn(10, 3), "layer2": torch.rand(10, 16)}
    divisions = [trainer.divide([look], epoch) for epoch in range(5)]
    assert [a[0] for a in asked] == ["lsa", "small-loss"] * 2 + ["lsa"]
    for _, logits, labels, features, threshold in asked:
        assert logits is look["logits"]
        assert torch.equal(labels, LABELS)
        assert features is look["layer2"]
        assert threshold == 0.8
    expected = -(trainer.guess * look["logits"].log_softmax(1)).sum(1)
    for division in divisions:  # already after the first epoch
        torch.testing.assert_close(division.pseudo_losses, expected)
        assert (division.weights[~FLAGS] == 1).all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_all_flagged_is_finite(monkeypatch, weight):
    trainer = standing()
    trainer.accept(Division(torch.ones(10, dtype=torch.bool), weights=torch.full((10,), weight)))
    out = step(trainer, monkeypatch)
    out.total.backward()
    assert torch.isfinite(out.total)


def test_none_flagged_asks_for_no_strong_view(monkeypatch):
    trainer = ready(PlsLsa(), LABELS)
    monkeypatch.setattr("chaffinch.trainers.pls_lsa.draw_mix", lambda *_: MIX)
    one, two, _, contrast = views(6, 4)
    assert torch.isfinite(trainer.step(0, batch_of(ROWS, LABELS[ROWS], 1, [one, two], None, contrast)).total)


def test_bad_parameters():
    with pytest.raises(InputError, match="threshold must lie between 0 and 1"):
        PlsLsa(threshold=0)
    with pytest.raises(InputError, match="temperature must be above 0"):
        PlsLsa(temperature=float("nan"))


def test_unknown_layer_is_said_before_the_training(trained, stripes, tmp_path):
    with pytest.raises(InputError, match=r"pls-lsa: unknown layer 'layer9'; this network has layer1, .*final"):
        trained(stripes(n=60), trainer="pls-lsa", parameters={"layer": "layer9"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_what_is_foreign(stripes, start, tmp_path, seed):
    """From a start that tells the classes apart, 30 % foreign pictures; the linear detector has the first word."""
    data = stripes(n=240, wrong=0, foreign=0.3, seed=seed)
    recipe = replace(RECIPE, trainer="pls-lsa", batch=16, learning_rate=0.03, seed=seed)
    records = [p.record for p in train(data, recipe, tmp_path, start) if p.record]
    foreign = data.truth.kind == 2
    assert [r.detector for r in records] == ["lsa", "small-loss", "lsa"]
    for record in records[::2]:
        assert foreign[record.flags].mean() > 0.9
        assert record.flags[foreign].mean() > 0.8
    assert records[-1].accuracy > 0.9
    assert all((r.weights[~r.flags] == 1).all() for r in records)


def test_resume(resumes, stripes):
    resumes(stripes(n=130), trainer="pls-lsa")
