"""Encoders side by side: figures with known answers, and what is stored of them."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from chaffinch import lineup
from chaffinch.cli import main
from chaffinch.data import Split
from chaffinch.encoders.model_card import ModelCard
from chaffinch.lineup import FIGURES, Figure, better, figures_key, heights, measure, only, over_seeds, reading, table
from chaffinch.study import Study

UP, DOWN, NEITHER = Figure("up", "Up", "", 1), Figure("down", "Down", "", -1), Figure("at.x.y", "Neither", "", 0)


def test_a_figure_is_read_by_its_path():
    row = {"up": 2, "at": {"x": {"y": 0.5, "z": None}}}
    assert reading(row, UP) == 2.0
    assert reading(row, NEITHER) == 0.5
    assert reading(row, DOWN) is None
    assert reading(row, replace(NEITHER, key="at.x.z")) is None
    assert reading(row, replace(NEITHER, key="up.x")) is None


@pytest.mark.parametrize(
    ("figure", "one", "other", "which"),
    [(UP, 1, 2, 1), (UP, 2, 1, -1), (DOWN, 1, 2, -1), (DOWN, 2, 1, 1), (UP, 1, 1, 0), (NEITHER, 1, 2, 0),
     (UP, None, 2, 0), (DOWN, 1, None, 0)],
)  # fmt: skip
def test_the_better_of_two(figure, one, other, which):
    assert better(figure, one, other) == which


def test_heights_turn_each_axis_so_that_up_is_better():
    values = np.array([[1, 10, 5], [2, 30, 5], [np.nan, 20, 5]])
    found = heights(values, [UP, DOWN, UP])
    np.testing.assert_array_equal(found, [[0, 1, 0.5], [1, 0, 0.5], [np.nan, 0.5, 0.5]])


def test_detectors_become_figures_for_what_they_look_for():
    *first, lsa, both = lineup.with_detectors(["lsa", "small-loss"])
    assert tuple(first) == FIGURES
    assert lsa.key == "detectors.lsa.auroc_ood"
    assert lineup.sought("knn-distance") == "ood"
    assert both.key == f"detectors.small-loss.auroc_{lineup.sought('small-loss')}"
    assert lsa.better == 1


def test_encoders_that_were_trained_elsewhere_are_measured_where_they_are_the_usual_choice():
    ours, other, broken = {"outputs": ["text"]}, {"about": {"name": "of timm"}}, {"error": "it is damaged"}
    cards = {"ours": ours, "photos": other, "timm-x": other, "broken": broken}
    assert lineup.at_hand(cards, "ours") == ["ours", "ours:text", "broken"]
    assert lineup.at_hand(cards, "photos") == ["ours", "ours:text", "photos", "broken"]


def test_the_table_has_a_row_an_encoder_and_no_empty_columns():
    rows = {"a": {"up": 1, "at": {"x": {"y": 3}}}, "b:joint": {"up": None, "seeds": 2}}
    found = table(rows, {"a": {"loss": "ce", "epochs": 3}, "b": {"loss": "dcl"}}, [UP, DOWN, NEITHER])
    assert found.columns.tolist() == ["encoder", "loss", "epochs", "seeds", "up", "at.x.y"]
    assert found["encoder"].tolist() == ["a", "b:joint"]
    assert found["loss"].tolist() == ["ce", "dcl"]
    assert found["seeds"].tolist() == [1, 2]
    assert found["up"].tolist()[0] == 1
    assert np.isnan(found["up"][1])
    assert table({}, {}).empty


def test_flagged_by_one_only_the_widest_gap_first():
    one, other = np.array([1, 1, 1, 0, 1], bool), np.array([0, 1, 0, 1, 0], bool)
    gap = np.array([0.1, 0.9, 0.7, 0.8, 0.4])
    assert only(one, other, gap, None).tolist() == [2, 4, 0]
    assert only(other, one, -gap, None).tolist() == [3]
    assert only(one, other, gap, np.array([1, 1, 0, 1, 0], bool)).tolist() == [0]


def test_together_counts_selected_neighbours(blobs, workspace):
    study = Study(blobs, workspace=workspace)
    own = blobs.truth.labels == 0
    assert lineup.together(study, own) > 0.95  # a blob keeps to itself
    scattered = np.arange(len(study)) % 2 == 0
    near = study.evidence.neighbors.indices[:, :10]
    expected = np.mean([np.mean([scattered[j] for j in near[i]]) for i in np.flatnonzero(scattered)])
    assert lineup.together(study, scattered) == pytest.approx(expected)
    assert np.isnan(lineup.together(study, np.zeros(len(study), bool)))


def test_encoders_that_differ_in_the_seed_become_one():
    card = dict.fromkeys(lineup.SAME, 1)
    cards = {"a": card | {"seed": 1}, "b": card | {"seed": 0}, "c": card | {"loss": "other", "seed": 0}}
    rows = {name: {"uniformity": value} for name, value in {"a": 1.0, "b": 3.0, "c": 7.0}.items()}
    found = over_seeds(rows, cards)
    assert list(found) == ["b", "c"]
    assert (found["b"]["uniformity"], found["b"]["seeds"]) == (2.0, 2)
    assert found["b"]["sd"]["uniformity"] == pytest.approx(np.std([1, 3], ddof=1))
    assert found["c"]["seeds"] == 1
    assert [row["encoders"] for row in found.values()] == [["b", "a"], ["c"]]


def test_encoders_of_one_recipe_and_one_seed_are_no_further_seed():
    """Somebody trains again what is shipped: his encoder has a row of its own."""
    card = dict.fromkeys(lineup.SAME, 1)
    cards = {name: card | {"seed": seed} for name, seed in {"a": 0, "a-s1": 1, "mine": 0, "mine-s1": 1}.items()}
    rows = {name: {"uniformity": float(i)} for i, name in enumerate(cards)}
    found = over_seeds(rows, cards)
    assert {name: row["encoders"] for name, row in found.items()} == {"a": ["a", "a-s1"], "mine": ["mine", "mine-s1"]}
    assert [row["uniformity"] for row in found.values()] == [0.5, 2.5]


@pytest.mark.parametrize("key", ["augment", "sizes", "weight_decay", "loss_parameters"])
def test_encoders_of_another_recipe_are_not_averaged(key):
    card = asdict(ModelCard("a", "n", 1, 8, "ce", "d", 0, 1, 2, 0.1, "float32", "CPU", 1.0))
    cards = {"a": card, "b": card | {"seed": 1}, "c": card | {"seed": 2, key: {"flip": 0.0}}}
    found = over_seeds({name: {"uniformity": 0.0} for name in cards}, cards)
    assert [row["encoders"] for row in found.values()] == [["a", "b"], ["c"]]


def test_the_seconds_of_an_epoch_are_those_of_the_card(few, tmp_path, pictures, save_encoder, workspace):
    name = pictures_file(tmp_path, pictures)
    save_encoder("timed", epochs=2, seconds=99.0, seconds_per_epoch=2.5)
    save_encoder("old", epochs=2, seconds=99.0, seed=1)
    assert measure(Study(name, "timed", workspace=workspace))["seconds_per_epoch"] == 2.5
    assert "seconds_per_epoch" not in measure(Study(name, "old", workspace=workspace))


def test_accuracy_is_measured_on_the_test_split(few, pictures, save_encoder, workspace):
    save_encoder("tiny")
    o, found = pictures.observed, []
    for labels in (o.labels, 1 - o.labels):  # the very pictures, under their own and under the other label
        test = Split(images=o.images[:40], labels=labels[:40])
        found.append(measure(Study(replace(pictures, test=test), "tiny", workspace=workspace)))
    for key in ("knn_accuracy", "linear_accuracy"):
        assert found[0][key] + found[1][key] == pytest.approx(1)
        assert found[0][key] > 0.5
    assert "knn_accuracy" not in measure(Study(pictures, "tiny", workspace=workspace))


@pytest.fixture
def few(monkeypatch):
    """Measuring runs two detectors only."""
    real = lineup.registry.methods
    kept = {slug: real("detector")[slug] for slug in ("knn-distance", "knn-label")}
    monkeypatch.setattr(lineup.registry, "methods", lambda kind: kept if kind == "detector" else real(kind))


def pictures_file(tmp_path, pictures):
    path, o = tmp_path / "pictures.npz", pictures.observed
    np.savez(path, images=o.images, labels=o.labels, ids=o.ids, true_labels=pictures.truth.labels)
    return f"arrays:{path}"


def test_what_was_measured_is_stored(few, tmp_path, pictures, save_encoder, workspace):
    save_encoder("tiny", epochs=2)
    study = Study(pictures_file(tmp_path, pictures), "tiny", workspace=workspace)
    assert not lineup.known(study)
    assert lineup.stored(workspace, figures_key(study)) is None
    row = measure(study)
    assert lineup.known(study)
    assert lineup.stored(workspace, figures_key(study)) == row
    assert set(row["detectors"]) == {"knn-label", "knn-distance"}
    assert 0 <= row["auroc_ood_linear"] <= 1


def test_the_command_tells_the_job_how_far_it_is(few, tmp_path, pictures, save_encoder, workspace, capsys, monkeypatch):
    save_encoder("tiny", epochs=2)
    save_encoder("broken", channels=3, epochs=2, seed=1)
    name, notes = pictures_file(tmp_path, pictures), []
    real = type(workspace).note
    monkeypatch.setattr(type(workspace), "note", lambda self, job, value: (notes.append(value), real(self, job, value)))
    assert main(["compare-encoders", name, "--encoder", "tiny", "--job", "m", "--quiet"]) == 0
    assert workspace.noted("m") == {"done": True, "skipped": {}}
    shares = [note["share"] for note in notes[:-1]]
    assert any(note["what"].startswith("tiny: ") for note in notes[:-1])
    assert shares == sorted(shares)

    assert main(["compare-encoders", name, "--encoder", "nobody", "--job", "m", "--quiet"]) == 2
    assert "no encoder called 'nobody'" in workspace.noted("m")["error"]

    assert main(["compare-encoders", name, "--job", "m", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(["{\n", ""]))
    assert "tiny" in document["encoders"]
    assert set(workspace.noted("m")["skipped"]) == set(document["skipped"]) >= {"broken"}


def test_a_training_tells_the_job_and_keeps_its_course(tmp_path, pictures, workspace, monkeypatch):
    name = pictures_file(tmp_path, pictures)
    argv = ["train-encoder", name, "--loss", "ce", "--epochs", "2", "--batch", "30", "--architecture",
            "preact-resnet-8-16-32", "--device", "cpu", "--name", "mine", "--job", "training", "--quiet"]  # fmt: skip
    workspace.note("training", {"what": "starting", "share": 0.0, "pid": 1, "history": [9.0], "speed": 3.0})
    notes = []
    real = type(workspace).note
    monkeypatch.setattr(type(workspace), "note", lambda self, job, value: (notes.append(value), real(self, job, value)))
    assert main(argv) == 0
    assert notes[0]["history"] == [9.0]  # what was there before it was resumed, until there is news
    assert len(notes[-2]["history"]) == 2
    end = workspace.noted("training")
    assert (end["done"], end["encoder"], len(end["history"])) == (True, "mine", 2)
    live = workspace.find("live", "training")
    assert live["xy"].shape == (len(live["rows"]), 2)

    assert main(argv) == 2  # it is trained already
    failed = workspace.noted("training")
    assert "is trained already" in failed["error"]
    assert failed["history"] == end["history"]


def test_a_workspace_that_cannot_be_written_is_no_traceback(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["compare-encoders", "nothing", "--workspace", str(tmp_path / "file"), "--job", "m"]) == 2
    assert "unknown dataset 'nothing'" in capsys.readouterr().err


def test_reports_need_no_meter(tmp_path):
    from chaffinch.cli import _reporter

    meter = SimpleNamespace()
    assert _reporter(None, None, meter) is meter
