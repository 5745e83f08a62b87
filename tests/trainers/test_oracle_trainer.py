"""The oracle: told the truth, from the first epoch on, and only it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, ready

from chaffinch.base.errors import InputError
from chaffinch.base.training_run import TrainingRun
from chaffinch.data.dataset import Truth
from chaffinch.trainers.oracle import Oracle
from chaffinch.trainers.train import STATE, lacking, train

KIND = torch.tensor([0, 1, 2, 0, 0, 1], dtype=torch.int8)


def test_only_clean_samples_are_visited_from_the_first_epoch_on():
    trainer = ready(Oracle(), torch.tensor([0, 1, 2, 1, 0, 2]), kind=KIND)
    for epoch in range(3):
        visited = trainer.visit(0, epoch, torch.Generator().manual_seed(epoch))
        assert len(visited) == 6
        assert set(visited.tolist()) == {0, 3, 4}
        division = trainer.divide([], epoch)
        assert division.flags.tolist() == [False, True, True, False, False, True]
        assert division.detector == "truth"
        trainer.accept(division)


def test_all_noisy_drops_nothing():
    trainer = ready(Oracle(), torch.tensor([0, 1, 2]), kind=torch.ones(3, dtype=torch.int8))
    assert sorted(trainer.visit(0, 0, torch.Generator().manual_seed(0)).tolist()) == [0, 1, 2]


def test_truth_missing(trained, stripes, tmp_path):
    data = replace(stripes(n=60), truth=None)
    assert lacking(Oracle, data) == "oracle is told which samples are noisy, and of stripes that is not known"
    with pytest.raises(InputError, match="oracle is told which samples are noisy"):
        trained(data, trainer="oracle")
    assert not (tmp_path / "run").exists()


def test_record(trained, stripes):
    data = stripes(n=120)
    run = trained(data, trainer="oracle", epochs=2)
    noisy = data.truth.kind != 0
    for epoch in range(2):
        np.testing.assert_array_equal(run.epoch(epoch).flags, noisy)
        flags, detector = run.in_force(epoch)
        np.testing.assert_array_equal(flags, noisy)
        assert detector == "truth"
    np.testing.assert_array_equal(run.epoch(0).at_start, noisy)
    assert run.epoch(1).at_start is None


def test_trusted_rows_are_never_flagged(trained, stripes):
    """Not even by the truth, and not even before the first epoch."""
    data = stripes(n=120)
    trusted = np.zeros(120, bool)
    trusted[np.flatnonzero(data.truth.kind)[:5]] = True
    run = trained(replace(data, observed=replace(data.observed, trusted=trusted)), trainer="oracle", epochs=2)
    for epoch in range(2):
        for flags in (run.in_force(epoch)[0], run.epoch(epoch).flags):
            np.testing.assert_array_equal(flags, (data.truth.kind != 0) & ~trusted)


def test_a_state_of_another_truth_is_refused(stripes, tmp_path):
    data, recipe = stripes(n=96), replace(RECIPE, trainer="oracle")
    broken = train(data, recipe, tmp_path)
    while next(broken).record is None:
        pass
    broken.close()
    other = replace(data, truth=Truth(data.truth.labels, np.zeros_like(data.truth.kind)))
    with pytest.raises(InputError, match="belongs to another recipe or dataset"):
        next(train(other, recipe, tmp_path))
    assert (tmp_path / STATE).exists()
    assert len(TrainingRun(tmp_path).epochs) == 1


def test_it_does_not_learn_what_is_wrong(trained, stripes):
    """Half of the labels are wrong: what it thinks of the noisy samples is not their label, as it is for mixup."""
    data = stripes(n=240, wrong=0.5, foreign=0)
    wrong = data.truth.kind == 1
    oracle, mixup = (
        trained(data, folder=slug, trainer=slug, epochs=4, batch=16).epoch(-1).losses(data.observed.labels)
        for slug in ("oracle", "mixup")
    )
    assert oracle[wrong].mean() > mixup[wrong].mean() + 0.3
    assert oracle[~wrong].mean() < mixup[~wrong].mean()


def test_resume(resumes, stripes):
    resumes(stripes(n=100), trainer="oracle", epochs=2)
