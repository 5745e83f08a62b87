"""The small-loss rule alone: it finds wrong labels, leaves them out, and gains by it."""

from dataclasses import replace

import pytest
import torch
from by_hand import RECIPE, known, ready

from chaffinch.base.errors import InputError
from chaffinch.trainers.small_loss import SmallLossOnly
from chaffinch.trainers.train import train


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_wrong_labels(stripes, start, tmp_path, seed):
    """From a start that tells the classes apart, 40 % wrong labels; what is found is not learnt."""
    data = stripes(n=240, wrong=0.4, foreign=0, seed=seed)
    recipe = replace(RECIPE, trainer="small-loss", epochs=4, batch=16, learning_rate=0.03, seed=seed)
    last = [p.record for p in train(data, recipe, tmp_path, start) if p.record][-1]
    wrong = data.truth.kind == 1
    assert wrong[last.flags].mean() > 0.95
    assert last.flags[wrong].mean() > 0.4
    assert last.accuracy > 0.95
    assert (last.scores[wrong].mean() - last.scores[~wrong].mean()) > 1
    assert (last.losses(data.observed.labels)[wrong & last.flags] > 1).mean() > 0.9


def test_every_epoch_is_its_turn():
    trainer = ready(SmallLossOnly(), torch.arange(9) % 3)
    look = {"logits": torch.randn(9, 3), "layer2": torch.rand(9, 16)}
    assert [trainer.divide([look], e).detector for e in range(3)] == ["small-loss"] * 3


def test_bad_parameters():
    with pytest.raises(InputError, match="threshold must lie between 0 and 1"):
        SmallLossOnly(threshold=1.5)
    with pytest.raises(TypeError, match="layer"):
        SmallLossOnly(layer="layer1")


def test_resume(resumes, stripes):
    resumes(stripes(n=100), trainer="small-loss", epochs=2)
