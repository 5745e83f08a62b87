"""Alternating detectors: whose turn it is, when flags act, what is visited, a training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, known, ready

from chaffinch.base.errors import InputError
from chaffinch.base.training_run import TrainingRun
from chaffinch.trainers.alternate import Alternate
from chaffinch.trainers.base import Division, kept_only
from chaffinch.trainers.train import train

LABELS = torch.arange(12) % 3


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


class Watched(Alternate):
    """Notes who is visited."""

    def __init__(self) -> None:
        super().__init__()
        self.visited = []

    def visit(self, k, epoch, rng):
        found = super().visit(k, epoch, rng)
        self.visited.append(found)
        return found


def test_flags_after_an_epoch_act_in_the_next(stripes, start, tmp_path, monkeypatch):
    """And in no other: linear after 0, 2 and so in 1, 3; small loss after 1 and so in 2."""
    monkeypatch.setattr("chaffinch.trainers.train.find_method", lambda kind, slug: Watched)
    kept = []
    monkeypatch.setattr(Watched, "accept", lambda self, d: (kept.append(self.visited[-1]), Alternate.accept(self, d)))
    data = stripes(n=240, wrong=0.1, foreign=0.2, seed=1)
    recipe = replace(RECIPE, trainer="alternate", epochs=4, batch=16, learning_rate=0.03)
    for _ in train(data, recipe, tmp_path, start):
        pass
    run = TrainingRun(tmp_path)
    assert [e["detector"] for e in run.epochs] == ["lsa", "small-loss", "lsa", "small-loss"]
    assert [run.in_force(e)[1] for e in range(4)] == ["", "lsa", "small-loss", "lsa"]
    for epoch, visited in enumerate(kept):
        flags, _ = run.in_force(epoch)
        assert len(visited) == 240, "an epoch has as many steps whatever is left out"
        assert set(visited.tolist()) == set(np.flatnonzero(~flags).tolist())
    assert len({run.epoch(e).flags.tobytes() for e in range(4)}) > 1


def test_turns(monkeypatch):
    asked = []

    def spy(detector, logits, labels, features, threshold):
        asked.append((detector, labels, features, threshold))
        return Division(torch.zeros(12, dtype=torch.bool))

    monkeypatch.setattr("chaffinch.trainers.alternate.flagged_by", spy)
    trainer = ready(Alternate(threshold=0.7, layer="layer1"), LABELS)
    look = {"logits": torch.rand(12, 3), "layer1": torch.rand(12, 8)}
    for epoch in range(4):
        trainer.divide([look], epoch)
    assert [a[0] for a in asked] == ["lsa", "small-loss"] * 2
    for _, labels, features, threshold in asked:
        assert torch.equal(labels, LABELS), "the given labels, whatever has been guessed"
        assert features is look["layer1"]
        assert threshold == 0.7


def test_a_look_has_the_layer_it_wants():
    trainer = ready(Alternate(layer="layer1"), LABELS).eval()
    x = torch.rand(5, 1, 12, 12)
    look = trainer.look(0, x)
    assert set(look) == {"logits", "layer1"}
    torch.testing.assert_close(look["logits"], trainer.nets[0](x))
    torch.testing.assert_close(look["layer1"], trainer.nets[0].body.features(x, "layer1"))
    final = ready(Alternate(layer="final"), LABELS).eval().look(0, x)
    assert set(final) == {"logits", "final"}


class TestKeptOnly:
    def rng(self):
        return torch.Generator().manual_seed(0)

    def test_again_and_again_until_there_are_n(self):
        flags = torch.tensor([True] * 7 + [False] * 3)
        found = kept_only(flags, self.rng())
        assert len(found) == 10
        for part in (found[:3], found[3:6], found[6:9]):
            assert sorted(part.tolist()) == [7, 8, 9], "each round in its own order"
        assert int(found[9]) in (7, 8, 9)

    def test_none_flagged_is_a_permutation(self):
        found = kept_only(torch.zeros(10, dtype=torch.bool), self.rng())
        assert sorted(found.tolist()) == list(range(10))

    def test_all_flagged_drops_nothing(self):
        found = kept_only(torch.ones(10, dtype=torch.bool), self.rng())
        assert sorted(found.tolist()) == list(range(10))

    def test_one_left(self):
        flags = torch.ones(5, dtype=torch.bool)
        flags[2] = False
        assert kept_only(flags, self.rng()).tolist() == [2] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold must lie between 0 and 1, got 0"),
        ({"threshold": float("nan")}, "threshold must lie between 0 and 1, got nan"),
        ({"alpha": -1}, "alpha must be 0 or more"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(InputError, match=message):
        Alternate(**options)


def test_resume(resumes, stripes):
    resumes(stripes(n=130), trainer="alternate")
