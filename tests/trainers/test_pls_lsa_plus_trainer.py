"""PLS-LSA+: two networks that guess together, must agree, and keep their own memories; limits, a training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, batch_of, known, ready, views

from chaffinch.trainers.base import Division
from chaffinch.trainers.mixing import Mix
from chaffinch.trainers.pls_lsa_plus import PlsLsaPlus, merged
from chaffinch.trainers.train import train

LABELS = torch.tensor([0, 1, 2, 1, 0, 2])
ROWS, MIX = torch.tensor([3, 0, 5, 1]), Mix(0.7, torch.tensor([2, 0, 3, 1]))


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def step(trainer, monkeypatch, k, epoch=2):
    monkeypatch.setattr("chaffinch.trainers.pls_lsa.draw_mix", lambda *_: MIX)
    one, two, strong, contrast = views(4, 4)
    return trainer.step(k, batch_of(ROWS, LABELS[ROWS], epoch, [one, two], strong, contrast)), two


class TestMerge:
    def test_lsa_5(self):
        one = Division(torch.tensor([True, True, False, False]), weights=torch.tensor([0.8, 0.2, 1, 1]))
        two = Division(torch.tensor([True, False, True, False]), weights=torch.tensor([0.4, 1, 0.9, 1]))
        found = merged(one, two)
        assert found.flags.tolist() == [True, False, False, False]
        torch.testing.assert_close(found.weights, torch.tensor([0.6, 1, 1, 1]))

    def test_everything_else_is_the_mean(self):
        flags = torch.tensor([True, False])
        one = Division(flags, torch.tensor([1.0, 2]), "lsa", flags * 0.5, torch.tensor([0.0, 2]), torch.eye(2), "one")
        two = Division(flags, torch.tensor([3.0, 0]), "lsa", flags * 0.1, torch.tensor([1.0, 0]), torch.eye(2).flip(0))
        found = merged(one, two)
        assert found.scores.tolist() == [2, 1]
        assert found.pseudo_losses.tolist() == [0.5, 1]
        assert found.targets.tolist() == [[0.5, 0.5]] * 2
        torch.testing.assert_close(found.weights, torch.tensor([0.3, 1.0]))
        assert (found.detector, found.note) == ("lsa", "one")

    def test_what_one_lacks_is_left_out_and_notes_are_not_repeated(self):
        flags = torch.tensor([True])
        one, two = Division(flags, torch.ones(1), note="equal"), Division(flags, note="equal")
        assert merged(one, two).scores is None
        assert merged(one, two).note == "equal"
        assert merged(one, replace(two, note="other")).note == "equal; other"


class TestGuess:
    @pytest.mark.parametrize("k", [0, 1])
    def test_is_the_mean_of_both(self, monkeypatch, k):
        trainer = ready(PlsLsaPlus(), LABELS)
        before = trainer.guess.clone()
        out, view = step(trainer, monkeypatch, k)
        with torch.no_grad():
            p = (trainer.nets[0](view).softmax(1) + trainer.nets[1](view).softmax(1)) / 2
        torch.testing.assert_close(out.logits.exp(), p)
        torch.testing.assert_close(trainer.guess[k, ROWS], p**2 / (p**2).sum(1, keepdim=True))
        assert torch.equal(trainer.guess[1 - k], before[1 - k]), "each keeps its own"

    def test_is_its_own_in_the_first_epoch(self, monkeypatch):
        """The second network has learnt nothing yet when the first is trained."""
        trainer = ready(PlsLsaPlus(), LABELS)
        out, view = step(trainer, monkeypatch, 0, epoch=0)
        torch.testing.assert_close(out.logits.exp(), trainer.nets[0](view).softmax(1).detach())
        assert out.parts == {}

    def test_memory(self):
        trainer = ready(PlsLsaPlus(), LABELS)
        assert trainer.guess.shape == (2, 6, 3)
        assert torch.equal(trainer.guess.argmax(2), LABELS.expand(2, 6))
        assert trainer.guess.data_ptr() == trainer.state_dict()["guess"].data_ptr()
        assert not any("guesses" in name for name in trainer.state_dict())


class TestNetworks:
    def test_only_the_one_whose_turn_it_is_learns(self, monkeypatch):
        trainer = ready(PlsLsaPlus(), LABELS)
        out, _ = step(trainer, monkeypatch, 1)
        out.total.backward()
        assert all(p.grad is None for p in trainer.nets[0].parameters())
        assert any(p.grad is not None for p in trainer.nets[1].parameters())

    def test_each_divides_by_its_own_look_and_guess(self, monkeypatch):
        asked = []

        def spy(detector, logits, labels, features, threshold):
            asked.append((detector, logits, features))
            return Division(torch.ones(6, dtype=torch.bool), torch.rand(6), detector)

        monkeypatch.setattr("chaffinch.trainers.pls_lsa.flagged_by", spy)
        trainer = ready(PlsLsaPlus(), LABELS)
        trainer.guess.copy_(torch.rand(2, 6, 3).softmax(2))
        looks = [{"logits": torch.randn(6, 3), "layer2": torch.rand(6, 16)} for _ in range(2)]
        found = trainer.divide(looks, 1)
        assert [a[0] for a in asked] == ["small-loss"] * 2
        assert all(a[1] is look["logits"] and a[2] is look["layer2"] for a, look in zip(asked, looks, strict=True))
        each = [-(g * v["logits"].log_softmax(1)).sum(1) for g, v in zip(trainer.guess, looks, strict=True)]
        torch.testing.assert_close(found.pseudo_losses, (each[0] + each[1]) / 2)
        torch.testing.assert_close(found.targets, trainer.guess.mean(0))

    def test_prediction_is_the_mean_of_logits(self):
        looks = [{"logits": torch.tensor([[2.0, 0, 0]])}, {"logits": torch.tensor([[0.0, 1, 0]])}]
        assert ready(PlsLsaPlus(), LABELS).predict(looks).tolist() == [[1, 0.5, 0]]


def test_training(stripes, start, tmp_path):
    """30 % foreign: what both flag is foreign; the two networks are not the same; guesses are mostly agreed on."""
    data = stripes(n=240, wrong=0, foreign=0.3, seed=0)
    recipe = replace(RECIPE, trainer="pls-lsa-plus", batch=16, learning_rate=0.03)
    progress = list(train(data, recipe, tmp_path, start))
    assert len([p for p in progress if p.epoch == 0]) == 2 * 15
    assert [p.share for p in progress[:30]] == [(i + 1) / 30 for i in range(30)]
    records = [p.record for p in progress if p.record]
    foreign = data.truth.kind == 2
    assert [r.detector for r in records] == ["lsa", "small-loss", "lsa"]
    assert foreign[records[-1].flags].mean() > 0.9
    assert records[-1].accuracy > 0.9
    assert all((r.weights[~r.flags] == 1).all() for r in records)
    np.testing.assert_allclose(records[-1].targets.sum(1), 1, atol=2e-3)


def test_resume(resumes, stripes):
    resumes(stripes(n=100), trainer="pls-lsa-plus", epochs=2)
