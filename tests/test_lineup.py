"""Encoders side by side: the same measurements for each, seeds as one row, stored once."""

from dataclasses import replace

import numpy as np
import pytest

from chaffinch import lineup
from chaffinch.base.errors import InputError
from chaffinch.data import CLEAN, OOD, NoisyDataset, Observed, Split, Truth
from chaffinch.encoders.train import Recipe, train_encoder
from chaffinch.study import Study, embeddings, encoder_cards
from chaffinch.workspace import Workspace

RECIPE = Recipe(epochs=6, batch=50, architecture="preact-resnet-8-16-32", device="cpu", learning_rate=0.01)


def stripes(n, classes, rng):
    """Pictures of horizontal (0), vertical (1) and no stripes (-1)."""
    images = rng.integers(0, 90, (n, 12, 12), dtype=np.uint8)
    images[classes == 0, ::3] += 120
    images[classes == 1, :, ::3] += 120
    return images


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    true = rng.choice([0, 1, -1], 200, p=[0.4, 0.4, 0.2])
    given = np.where(true < 0, rng.integers(0, 2, 200), np.where(rng.random(200) < 0.15, 1 - true, true))
    test = rng.integers(0, 2, 80)
    ids = np.array([f"p{i}" for i in range(200)])
    return NoisyDataset(
        "stripes",
        Observed(labels=given, classes=("lying", "standing"), ids=ids, images=stripes(200, true, rng)),
        truth=Truth.of(given, true),
        test=Split(stripes(80, test, rng), test),
        trusted=np.arange(20),
    )


@pytest.fixture(scope="module")
def workspace(dataset, tmp_path_factory):
    """One loss with two seeds, and one whose modules give further features."""
    workspace = Workspace(tmp_path_factory.mktemp("encoders"))
    folder = workspace.folder("encoders")
    for name, recipe in {
        "one": RECIPE, "one-again": replace(RECIPE, seed=1), "joint": replace(RECIPE, loss="symile", epochs=12),
        "parts": replace(RECIPE, loss="cmim", epochs=1),
    }.items():  # fmt: skip
        list(train_encoder(dataset, recipe, folder, name))
    return workspace


@pytest.fixture(scope="module")
def rows(dataset, workspace):
    told = []
    names = ["one", "one-again", "joint", "nobody"]
    found = lineup.line_up(dataset, names, workspace=workspace, report=lambda what, share: told.append((what, share)))
    assert told[-1] == ("encoders", 1.0)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    return found


def test_every_figure_is_there_and_sensible(rows):
    (row, *_), _ = list(rows[0].values()), rows[1]
    assert {f.key for f in lineup.FIGURES} <= set(row)
    assert row["auroc_ood_linear"] > 0.9
    assert row["knn_accuracy"] > 0.9
    assert row["linear_accuracy"] > 0.9
    assert 0 <= row["alignment"] < 2
    assert row["uniformity"] < 0
    assert 1 < row["effective_rank"] <= 32
    assert 0 < row["isotropy"] < 1
    assert row["seconds_per_epoch"] > 0
    assert row["detectors"]["small-loss"]["auroc_mislabelled"] > 0.8
    assert sum(row["called"].values()) == 200


def test_seeds_are_one_row(rows, dataset, workspace):
    found, failed = rows
    assert list(found) == ["one", "joint"]
    assert list(failed) == ["nobody"]
    assert "there is no encoder called 'nobody'" in failed["nobody"]
    assert (found["one"]["seeds"], found["joint"]["seeds"]) == (2, 1)
    assert found["joint"]["sd"] == {}
    single = [lineup.measure(Study(dataset, name, workspace=workspace)) for name in ("one", "one-again")]
    for key in ("uniformity", "knn_accuracy"):
        values = [row[key] for row in single]
        assert found["one"][key] == pytest.approx(np.mean(values))
        assert found["one"]["sd"][key] == pytest.approx(np.std(values, ddof=1))


def test_joint_scores_are_evidence(rows):
    """Only the encoder that was trained on pictures and labels together can say how well a label fits."""
    found, _ = rows
    assert found["joint"]["detectors"]["symile-fit"]["auroc_mislabelled"] > 0.7
    assert "symile-fit" not in found["one"]["detectors"]
    assert "choose an encoder trained with Symile" in found["one"]["skipped"]["symile-fit"]


def test_measured_once(dataset, workspace, rows, monkeypatch):
    study = Study(dataset, "one", workspace=workspace)
    assert lineup.known(study)
    monkeypatch.setattr(lineup, "_measure", lambda *_: pytest.fail("measured again"))
    assert lineup.measure(study) == lineup.measure(Study(dataset, "one", workspace=workspace))
    assert not lineup.known(Study(dataset, "one", workspace=workspace, seed=5))


def test_without_truth_test_split_or_an_encoder(dataset, workspace, tmp_path):
    rng = np.random.default_rng(1)
    blobs = replace(dataset.observed, images=None, features=rng.standard_normal((200, 6)).astype(np.float32))
    row = lineup.measure(Study(NoisyDataset("blobs", blobs), workspace=Workspace(tmp_path)))
    assert {"uniformity", "effective_rank", "isotropy", "called", "skipped"} <= set(row)
    assert not {"auroc_ood_linear", "knn_accuracy", "alignment", "detectors", "verdict_macro_f1"} & set(row)


def test_nothing_to_measure(dataset, tmp_path):
    bare = replace(dataset.observed, images=None, pred_probs=np.full((200, 2), 0.5))
    with pytest.raises(InputError, match="blank has neither pictures nor features"):
        lineup.measure(Study(NoisyDataset("blank", bare), workspace=Workspace(tmp_path)))
    with pytest.raises(InputError, match="there is no encoder called 'nobody'"):
        lineup.line_up(dataset, ["nobody"], workspace=Workspace(tmp_path), skip=False)


def test_outputs_of_a_loss_are_encoders_of_their_own(dataset, workspace):
    card = encoder_cards(workspace)["parts"][1]
    assert embeddings("parts", card) == ("parts", "parts:mu", "parts:informative")
    assert embeddings("joint", encoder_cards(workspace)["joint"][1]) == ("joint",)
    studies = [Study(dataset, name, workspace=workspace) for name in embeddings("parts", card)]
    assert len({study.key for study in studies}) == 3
    assert [study.features.shape[1] for study in studies] == [32, 64, 3 * 3 * 16]
    with pytest.raises(InputError, match=r"encoder parts has no layer 'nonsense'; it has .*mu, informative"):
        Study(dataset, "parts:nonsense", workspace=workspace).features  # noqa: B018


def test_two_views_are_near_and_not_the_same(dataset, workspace):
    study = Study(dataset, "one", workspace=workspace)
    one, other = study.two_views(50)
    assert one.shape == other.shape == (50, 32)
    near = np.linalg.norm(one - other, axis=1)
    assert (near > 0).all()
    assert near.mean() < np.linalg.norm(one - other[::-1], axis=1).mean()
    np.testing.assert_array_equal(one, Study(dataset, "one", workspace=workspace).two_views(50)[0])


def test_test_samples_set_aside_as_trusted_are_left_out(dataset, workspace):
    features, labels = Study(dataset, "one", workspace=workspace).test_features()
    assert len(features) == len(labels) == 60
    np.testing.assert_array_equal(labels, dataset.test.labels[20:])


def test_figures_are_documented():
    assert len({f.key for f in lineup.FIGURES}) == len(lineup.FIGURES)
    assert all(f.name and f.help.endswith(".") and f.better in (-1, 0, 1) for f in lineup.FIGURES)
    assert (CLEAN, OOD) == (0, 2)
