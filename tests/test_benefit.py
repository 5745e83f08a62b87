"""Test accuracy of a linear classifier before and after cleaning, and how far it can be believed."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import plain, put

from chaffinch import benefit as module
from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.benefit import benefit, in_words, known, lacking
from chaffinch.data import NoisyDataset, Observed
from chaffinch.data.dataset import Split
from chaffinch.study import Study


@pytest.fixture
def study(workspace, save_encoder) -> Study:
    """Stripes in two directions, 120 to train on with a third of the labels wrong, and 60 to test."""
    save_encoder()
    rng = np.random.default_rng(3)
    true = np.arange(180) % 2
    images = rng.integers(0, 90, (180, 12, 12), dtype=np.uint8)
    images[true == 0, ::3] += 60
    images[true == 1, :, ::3] += 60
    given = np.where(rng.random(120) < 0.33, 1 - true[:120], true[:120])
    observed = Observed(labels=given, classes=("rows", "columns"), ids=np.arange(120).astype(str), images=images[:120])
    test = Split(images[120:], true[120:])
    return Study(NoisyDataset("stripes", observed, test=test), "tiny", workspace=workspace)


def true_labels(study: Study) -> np.ndarray:
    return np.arange(len(study)) % 2


def test_accuracies_are_those_of_the_probe_on_the_test_split(study):
    final = np.where(study.observed.labels == true_labels(study), study.observed.labels, -1)
    found = benefit(study, final)
    tested, truth = study.test_features()
    for name, rows, labels in (("before", np.ones(120, bool), study.observed.labels), ("after", final >= 0, final)):
        W, b = linear_probe(study.features[rows], labels[rows], 2).head
        assert found[name] == pytest.approx(((tested @ W.T + b).argmax(axis=1) == truth).mean(), abs=1e-4)
    assert found["gain"] == pytest.approx(found["after"] - found["before"], abs=1e-4)
    assert (found["train_before"], found["train_after"], found["test"]) == (120, (final >= 0).sum(), 60)
    assert found["gain"] > found["gain_sd"] > 0
    assert 0.8 <= found["better"] <= 1
    assert in_words(found).endswith(f"a gain in {found['better'] * 10:.0f} of 10 repeats")


def test_relabelling_counts_and_without_any_change_there_is_no_gain(study):
    assert benefit(study, true_labels(study))["gain"] > 0.1
    same = benefit(study, study.observed.labels)
    assert (same["gain"], same["gain_sd"], same["better"]) == (0, 0, 0)


def test_the_repeats_are_draws_of_both_sets(study, monkeypatch):
    """The spread is that of a bootstrap, written out."""
    final = true_labels(study)
    rng, (tested, truth) = np.random.default_rng([0, 47]), study.test_features()
    drawn = []
    for _ in range(4):
        rows, judges = rng.integers(0, 120, 120), rng.integers(0, 60, 60)
        pair = []
        for labels in (study.observed.labels, final):
            penalty = linear_probe(study.features, labels, 2).penalty
            W, b = module.linear_head(study.features[rows], labels[rows], 2, penalty=penalty)
            pair.append(((tested[judges] @ W.T + b).argmax(axis=1) == truth[judges]).mean())
        drawn.append(pair)
    drawn = np.array(drawn)
    found = benefit(study, final, repeats=4)
    assert [found["before_sd"], found["after_sd"]] == pytest.approx(drawn.std(axis=0, ddof=1), abs=1e-4)
    assert found["gain_sd"] == pytest.approx(np.std(drawn[:, 1] - drawn[:, 0], ddof=1), abs=1e-4)


def test_it_is_stored_and_depends_on_what_becomes_of_each_sample(study, monkeypatch):
    final, told = true_labels(study), []
    assert not known(study, final)
    found = benefit(study, final, report=lambda what, share: told.append(share))
    assert told == sorted(told)
    assert known(study, final)
    other = final.copy()
    other[0] = -1
    assert not known(study, other)
    assert not known(Study(study.dataset, "tiny", workspace=study.workspace, seed=1), final)
    fewer = replace(study.dataset, test=Split(study.dataset.test.images[:30], study.dataset.test.labels[:30]))
    assert not known(Study(fewer, "tiny", workspace=study.workspace), final)
    monkeypatch.setattr(module, "_measure", None)
    assert benefit(study, final) == found


def test_where_it_cannot_be_measured_it_says_so(study, blobs, workspace, tmp_path, save_encoder):
    with pytest.raises(InputError, match="blobs has no test split to measure accuracy on"):
        benefit(Study(blobs, "features", workspace=workspace), blobs.observed.labels)
    save_encoder()
    aside = Study(replace(study.dataset, trusted=np.arange(60)), "tiny", workspace=workspace)
    assert "no test split" in lacking(aside), "all of it is set aside as trusted"
    with pytest.raises(InputError, match="fewer than two classes are kept"):
        benefit(study, np.where(study.observed.labels == 0, 0, -1))


def test_folders_of_train_and_test_have_a_test_split(tmp_path, workspace, save_encoder):
    save_encoder()
    study = Study(put(tmp_path / "f", plain(20, test=6)), "tiny", workspace=workspace)
    assert lacking(study) == ""
    assert benefit(study, study.observed.labels, repeats=2)["test"] == 6
