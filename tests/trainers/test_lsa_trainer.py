"""The linear detector alone: it finds foreign pictures, and in-class noise fools it."""

from dataclasses import replace

import numpy as np
import pytest
from by_hand import RECIPE, known

from chaffinch.trainers.lsa import LinearOnly
from chaffinch.trainers.train import train


@pytest.fixture(scope="module")
def start(stripes, tmp_path_factory):
    return known(stripes, tmp_path_factory.mktemp("known"))


def flags_of(slug, data, start, folder, seed):
    recipe = replace(RECIPE, trainer=slug, batch=16, learning_rate=0.03, seed=seed)
    records = [p.record for p in train(data, recipe, folder, start) if p.record]
    assert {r.detector for r in records} == {slug}
    return np.array([r.flags for r in records])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_what_is_foreign(stripes, start, tmp_path, seed):
    """A third of the pictures is foreign: the plane finds more of it than the seeds' own rule does."""
    data = stripes(n=240, wrong=0, foreign=0.3, seed=seed)
    foreign = data.truth.kind == 2
    linear, loss = (flags_of(slug, data, start, tmp_path / slug, seed)[-1] for slug in ("lsa", "small-loss"))
    assert foreign[linear].mean() > 0.9
    assert linear[foreign].mean() > 0.85
    assert linear[foreign].mean() >= loss[foreign].mean() - 0.1


def test_wrong_labels_mislead_it(stripes, start, tmp_path):
    """As its card says: with mostly wrong labels there is no foreign side, and clean pictures are thrown away."""
    data = stripes(n=240, wrong=0.3, foreign=0.1, seed=1)
    linear = flags_of("lsa", data, start, tmp_path, 1)[-1]
    assert linear[data.truth.kind == 0].mean() > 0.1


def test_every_turn_is_its_own():
    assert LinearOnly.turns == ("lsa",)
    assert LinearOnly().layers == ("layer2",)


def test_resume(resumes, stripes):
    resumes(stripes(n=100), trainer="lsa", epochs=2)
