"""The cleaned dataset: decisions first, then the policy; safe names; whole or not at all; the same again."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scenes import planted, put

from chaffinch import checks, cleaned
from chaffinch.base.errors import InputError
from chaffinch.cleaned import Policy, decided, make, safe_names, settle, write
from chaffinch.cli import main
from chaffinch.exports import read_table
from chaffinch.reviews import Choice, Decision, Reviews
from chaffinch.spec import Cut
from chaffinch.study import Study

CUTS = (Cut("small-loss"), Cut("knn-label", budget=0.1))


@pytest.fixture
def study(blobs, workspace) -> Study:
    return Study(blobs, "features", workspace=workspace)


def decision(sample: str, choice: str, label: str = "", **changes) -> Decision:
    values = {"revision": 1, "who": "ann", "at": "2026-01-02T03:04:05+00:00", "reason": "", "batch": 1}
    return Decision(sample=sample, choice=choice, label=label, **values | changes)


@pytest.fixture
def reviewed(arrays_file, blobs, workspace) -> str:
    """A dataset on disk with five decisions; the reason of one would run in a spreadsheet."""
    name = f"arrays:{arrays_file()}"
    digest = Study(name, "features", workspace=workspace).dataset.digest
    store, other = Reviews(workspace.decisions), blobs.observed.classes[(blobs.observed.labels[2] + 1) % 3]
    store.decide(digest, [Choice("b000", "keep"), Choice("b001", "drop")], "ann", '=HYPERLINK("evil")')
    store.decide(digest, [Choice("b002", "relabel", other)], "bob")
    store.decide(digest, [Choice("b003", "unsure")], "bob")
    store.decide(digest, [Choice("b004", "drop")], "bob")
    store.undo(digest, "bob")
    return name


@pytest.fixture
def run(capsys):
    def call(*argv):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return (code, *capsys.readouterr())

    return call


class TestPolicy:
    def test_decisions_come_first_and_then_nothing_by_default(self, study):
        y = study.observed.labels
        other = study.observed.classes[(y[2] + 1) % 3]
        made = [decision("b000", "keep"), decision("b001", "drop"), decision("b002", "relabel", other)]
        found = settle(study, [], study.verdict(), made, Policy())
        expected = y.copy()
        expected[1], expected[2] = -1, (y[2] + 1) % 3
        assert found.labels.tolist() == expected.tolist()
        assert [found.by[i] for i in range(4)] == ["decision", "decision", "decision", ""]
        assert found.counts(y) == {"kept": 178, "relabelled": 1, "dropped": 1}

    @pytest.mark.parametrize("above", [0.5, 0.95])
    def test_the_verdict_acts_where_it_is_sure(self, study, above):
        verdict, y = study.verdict(), study.observed.labels
        found = settle(study, [], verdict, [], Policy(drop=("ood",), relabel=True, above=above))
        for i in range(len(y)):
            kind, sure = verdict.proba[i].argmax(), verdict.proba[i].max() >= above
            if kind == 2 and sure:
                assert (found.labels[i], found.by[i]) == (-1, "verdict")
            elif kind == 1 and sure and verdict.labels[i] != y[i]:
                assert (found.labels[i], found.by[i]) == (verdict.labels[i], "verdict")
            else:
                assert (found.labels[i], found.by[i]) == (y[i], "")
        assert (found.labels < 0).any()

    def test_a_decision_overrules_the_verdict(self, study):
        verdict = study.verdict()
        i = int(np.argmax(verdict.proba[:, 2]))
        name = study.name_of(i)
        policy = Policy(drop=("ood", "mislabelled"), above=0.5)
        assert settle(study, [], verdict, [], policy).labels[i] == -1
        for choice in ("keep", "unsure"):
            assert settle(study, [], verdict, [decision(name, choice)], policy).labels[i] == study.observed.labels[i]
        strict = Policy(drop=("ood",), unsure="drop")
        assert settle(study, [], verdict, [decision(name, "unsure")], strict).labels[i] == -1

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"drop": ("clean",)}, "drop: 'clean' is no kind of noise"),
            ({"drop": ("mislabelled",), "relabel": True}, "dropped or relabelled, not both"),
            ({"above": 1.5}, "above must be a probability between 0 and 1, got 1.5"),
            ({"unsure": "burn"}, "unsure must be keep or drop, got 'burn'"),
        ],
    )
    def test_bad_policies(self, values, message):
        with pytest.raises(InputError, match=message):
            Policy(**values)

    def test_decisions_that_do_not_fit(self, study):
        with pytest.raises(InputError, match="decision 7 is about sample 'gone', which blobs has not"):
            settle(study, [], None, [decision("gone", "keep", revision=7)], Policy())
        with pytest.raises(InputError, match=r"decision 7 \(b000\): 'dog' is not one of the classes"):
            settle(study, [], None, [decision("b000", "relabel", "dog", revision=7)], Policy())

    def test_without_a_verdict_no_policy_can_use_it(self, study):
        with pytest.raises(InputError, match="there is no verdict that could drop or relabel"):
            settle(study, [], None, [], Policy(drop=("ood",)))


class TestTable:
    def test_every_column_says_what_it_should(self, study):
        made = [decision("b001", "drop", reason="a dog"), decision("b002", "unsure")]
        table = make(study, CUTS, made, Policy(drop=("ood",))).table.set_index("id")
        verdict, y, names = study.verdict(), study.observed.labels, np.array(study.observed.classes)
        assert table["given_label"].tolist() == names[y].tolist()
        row = table.loc["b001", ["action", "action_by", "final_label", "decision", "who", "when", "reason"]]
        assert row.tolist() == ["drop", "decision", "", "drop", "ann", "2026-01-02T03:04:05+00:00", "a dog"]
        assert table.loc["b002", ["action", "action_by", "decision"]].tolist() == ["keep", "decision", "unsure"]
        np.testing.assert_array_equal(table["is_label_issue"], verdict.kinds > 0)
        np.testing.assert_array_equal(table["is_outlier_issue"], verdict.kinds == 2)
        np.testing.assert_array_equal(table["label_quality"], verdict.proba[:, 0])
        assert table["predicted_label"].tolist() == names[verdict.labels].tolist()
        assert (table["suggestion"] != table["given_label"]).all()
        assert (table["ground_truth"] == table["final_label"]).all()
        kept = table["action"] == "keep"
        assert (table["final_label"][kept] == table["given_label"][kept]).all()
        np.testing.assert_array_equal(table[["x", "y"]].to_numpy(), study.map("pca"))
        for cut in CUTS:
            found = study.detect(cut.detector)
            np.testing.assert_array_equal(table[f"{cut.detector}_score"], found.scores)
            np.testing.assert_array_equal(table[f"{cut.detector}_flag"], found.flags(cut))
        noise = np.array(["", ",mislabelled", ",ood"])[verdict.kinds]
        assert table["tags"].tolist() == [a + n for a, n in zip(table["action"], noise, strict=True)]
        assert table["true_label"].eq(names[y]).sum() == (study.truth.kind == 0).sum()

    def test_other_maps(self, study):
        assert "x" not in make(study, CUTS[:1], layout="none").table
        assert make(study, CUTS[:1]).manifest["map"] == "pca", "nobody waits for UMAP"

    def test_without_features_there_are_fewer_columns(self, arrays_file, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), len(blobs))
        study = Study(f"arrays:{arrays_file(features=None, pred_probs=p)}", workspace=workspace)
        table = make(study, [Cut("small-loss")], [decision("b001", "drop")]).table
        assert not {"verdict", "p_clean", "label_quality", "x"} & set(table)
        assert table["tags"].tolist().count("drop") == 1
        with pytest.raises(InputError, match="there is no verdict"):
            make(study, [], policy=Policy(drop=("ood",)))

    @pytest.mark.parametrize("format", ["csv", "parquet"])
    def test_written_tables_read_back(self, study, tmp_path, format):
        made = [decision("b001", "relabel", study.observed.classes[0], reason="=1+1", who="@ann")]
        export = make(study, CUTS, made, format=format)
        write(export, tmp_path / "out")
        back = read_table(tmp_path / "out" / f"table.{format}")
        pd.testing.assert_frame_equal(back, export.table, rtol=1e-6, check_dtype=False)
        assert back["reason"][1] == "=1+1"
        if format == "csv":
            cells = list(csv.DictReader((tmp_path / "out" / "table.csv").open(newline="")))[1]
            assert (cells["reason"], cells["who"]) == ("'=1+1", "'@ann")


class TestNames:
    @given(st.lists(st.text(max_size=100), max_size=8, unique=True))
    def test_names_are_safe_and_different(self, texts):
        names = safe_names(texts)
        assert len({name.lower() for name in names}) == len(texts)
        for name in names:
            assert Path(name).name == name, "one part of a path"
            assert name not in (".", "..", "")
            assert not name.startswith((".", "-"))
            assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
            assert len(name) < 100

    def test_plain_names_stay(self):
        assert safe_names(["fw-1a", "b.c", "x_y"]) == ["fw-1a", "b.c", "x_y"]
        assert safe_names(["A", "a"])[0] != "A", "a file system may not tell them apart"


class TestPictures:
    @pytest.fixture
    def study(self, pictures, workspace, save_encoder) -> Study:
        save_encoder()
        return Study(pictures, "tiny", workspace=workspace)

    def test_copies_lie_under_their_final_class(self, study, tmp_path):
        export = make(study, [], [decision("p0", "drop"), decision("p1", "relabel", "rows")], pictures="copies")
        write(export, tmp_path / "out")
        root = tmp_path / "out"
        there = {str(p.relative_to(root)) for p in root.rglob("*.png")}
        assert len(there) == 59
        assert "pictures/rows/p1.png" in there
        assert not any(name.endswith("/p0.png") for name in there)
        table = read_table(root / "table.csv").set_index("id")
        assert set(table["filepath"]) - {""} == there
        assert table.loc["p0", "filepath"] == ""
        for i in (1, 7):
            with Image.open(root / table.loc[f"p{i}", "filepath"]) as picture:
                np.testing.assert_array_equal(np.asarray(picture), study.observed.images[i])

    def test_ids_and_classes_cannot_leave_the_folder(self, pictures, workspace, save_encoder, tmp_path):
        save_encoder()
        ids = pictures.observed.ids.astype("<U40")
        ids[0], ids[1], ids[2] = "../../evil", "/etc/evil", "C:\\evil"
        observed = replace(pictures.observed, ids=ids, classes=("../up", "columns"))
        study = Study(replace(pictures, observed=observed), "tiny", workspace=workspace)
        write(make(study, [], pictures="copies"), tmp_path / "a" / "out")
        files = list(tmp_path.rglob("*.png"))
        assert len(files) == 60
        assert all(p.resolve().is_relative_to(tmp_path / "a" / "out" / "pictures") for p in files)

    def test_links_and_copies_of_files(self, pictures, workspace, save_encoder, tmp_path):
        save_encoder()
        for i, (image, label) in enumerate(zip(pictures.observed.images, pictures.observed.labels, strict=True)):
            path = tmp_path / "files" / pictures.observed.classes[label] / f"{i:02d}.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        study = Study(f"folder:{tmp_path / 'files'}", "tiny", workspace=workspace)
        originals = [str(tmp_path / "files" / name) for name in study.observed.ids]
        for way in ("links", "copies"):
            export = make(study, [], pictures=way)
            write(export, tmp_path / way)
            first = tmp_path / way / export.names[0]
            assert first.suffix == ".png"
            assert first.is_symlink() == (way == "links")
            assert first.read_bytes() == Path(originals[0]).read_bytes()
        assert make(study, []).table["filepath"].tolist() == originals

    def test_pictures_inside_a_table_are_copied_but_not_linked(self, pictures, workspace, save_encoder, tmp_path):
        save_encoder()
        cells = []
        for image in pictures.observed.images:
            Image.fromarray(image).save(buffer := io.BytesIO(), format="PNG")
            cells.append(buffer.getvalue())
        names = np.array(pictures.observed.classes)[pictures.observed.labels]
        pd.DataFrame({"image": cells, "label": names}).to_parquet(tmp_path / "table.parquet")
        study = Study(f"table:{tmp_path / 'table.parquet'}", "tiny", workspace=workspace)
        with pytest.raises(InputError, match="not made of files to link to; use --pictures copies"):
            make(study, [], pictures="links")
        export = make(study, [], pictures="copies")
        write(export, tmp_path / "out")
        with Image.open(tmp_path / "out" / export.names[3]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pictures.observed.images[3])

    def test_what_is_not_there_is_told(self, study, blobs, workspace):
        with pytest.raises(InputError, match="not made of files to link to; use --pictures copies"):
            make(study, [], pictures="links")
        with pytest.raises(InputError, match="has no pictures to copy"):
            make(Study(blobs, "features", workspace=workspace), [], pictures="copies")


class TestFolder:
    def test_a_folder_that_holds_something_is_left_alone(self, study, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match="not an empty folder; name another, nothing was written"):
            write(make(study, []), tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="not an empty folder"):
            write(make(study, []), tmp_path / "file")

    def test_an_empty_one_is_used(self, study, tmp_path):
        (tmp_path / "out").mkdir()
        write(make(study, []), tmp_path / "out")
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"table.csv", "manifest.json"}
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def test_nothing_half_written_stays(self, study, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cleaned, "write_json", full)
        with pytest.raises(InputError, match="out cannot be written: No space left on device"):
            write(make(study, []), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


class TestReplay:
    ARGUMENTS = ("--encoder", "features", "--detector", "small-loss", "--detector", "knn-label@budget=0.1",
                 "--drop", "ood", "--relabel", "--above", "0.8")  # fmt: skip

    @pytest.fixture
    def first(self, run, reviewed, tmp_path) -> Path:
        code, out, err = run("export", reviewed, "--out", tmp_path / "one", *self.ARGUMENTS, "--quiet")
        assert (code, err) == (0, "")
        assert "(4 decisions)" in out
        return tmp_path / "one"

    def test_the_same_bytes_again_whatever_was_decided_since(self, run, first, reviewed, workspace, tmp_path):
        store = Reviews(workspace.decisions)
        digest = Study(reviewed, "features", workspace=workspace).dataset.digest
        store.decide(digest, [Choice("b010", "drop")], "cat")
        workspace.clear("results")
        code, _, err = run("export", "--replay", first / "manifest.json", "--out", tmp_path / "two", "--quiet")
        assert (code, err) == (0, "")
        for name in ("table.csv", "manifest.json"):
            assert (tmp_path / "two" / name).read_bytes() == (first / name).read_bytes()
        run("export", reviewed, "--out", tmp_path / "three", *self.ARGUMENTS, "--quiet")
        assert (tmp_path / "three" / "table.csv").read_bytes() != (first / "table.csv").read_bytes()

    def test_the_manifest_says_everything(self, first):
        told = json.loads((first / "manifest.json").read_text())
        assert told["policy"] == {"drop": ["ood"], "relabel": True, "above": 0.8, "unsure": "keep"}
        assert [d["cut"] for d in told["detectors"]] == ["small-loss", "knn-label@budget=0.1"]
        assert told["detectors"][0]["parameters"] == {"seed": 0, "threshold": 0.5}
        assert [(d["sample"], d["choice"], d["who"]) for d in told["decisions"]] == [
            ("b000", "keep", "ann"), ("b001", "drop", "ann"), ("b002", "relabel", "bob"), ("b003", "unsure", "bob"),
        ]  # fmt: skip
        assert sum(told["counts"].values()) == told["dataset"]["samples"] == 180

    def test_other_data_are_refused(self, run, first, arrays_file, tmp_path):
        arrays_file(labels=np.roll(np.load(tmp_path / "blobs.npz")["labels"], 1), true_labels=None)
        code, _, err = run("export", "--replay", first / "manifest.json", "--out", tmp_path / "two", "--quiet")
        assert code == 2
        assert "the data have changed; name the ones it was made from as DATASET" in err
        assert not (tmp_path / "two").exists()

    def test_the_data_may_have_moved(self, run, first, arrays_file, tmp_path):
        moved = (tmp_path / "blobs.npz").rename(tmp_path / "moved.npz")
        again = ("--replay", first / "manifest.json", "--out", tmp_path / "two", "--quiet")
        assert run("export", *again)[0] == 2
        assert run("export", f"arrays:{moved}", *again)[0] == 0
        assert (tmp_path / "two" / "table.csv").read_bytes() == (first / "table.csv").read_bytes()

    def test_another_encoder_of_the_same_name_is_refused(self, run, pictures, save_encoder, tmp_path):
        o, path = pictures.observed, tmp_path / "pictures.npz"
        np.savez(path, images=o.images, labels=o.labels, ids=o.ids, classes=np.array(o.classes))
        save_encoder("mine")
        arguments = ("--encoder", "mine", "--detector", "knn-label", "--pictures", "copies", "--quiet")
        assert run("export", f"arrays:{path}", "--out", tmp_path / "one", *arguments)[0] == 0
        replay = ("export", "--replay", tmp_path / "one" / "manifest.json", "--quiet", "--out")
        assert run(*replay, tmp_path / "two")[0] == 0
        one, two = (
            {str(p.relative_to(tmp_path / f)): p.read_bytes() for p in (tmp_path / f).rglob("*.*")}
            for f in ("one", "two")
        )
        assert one == two
        save_encoder("mine", seed=1)
        code, _, err = run(*replay, tmp_path / "three")
        assert code == 2
        assert "made with encoder 'mine' of SHA-256" in err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": {"verdict": 99}}, "whose step 'verdict' gave other results"),
            ({"manifest": 2}, "is a manifest of layout 2"),
            ({"policy": {"drop": [], "fry": 1}}, "a field is not as 'chaffinch export' writes it"),
            ({"map": "globe"}, "map 'globe'"),
            ({"detectors": [{"cut": "lsa@nothing", "parameters": {}}]}, "write DETECTOR"),
            ({"detectors": [{"cut": "nothing", "parameters": {}}]}, "nothing"),
            ({"policy": None}, "a field is not as"),
            ({"dataset": "blobs"}, "a field is not as"),
            ({"encoder": {}}, "a field is not as"),
            ({"decisions": [{"sample": "b000"}]}, "a field is not as"),
            ({"seed": "one"}, "a field is not as"),
        ],
    )
    def test_manifests_that_cannot_be_replayed(self, run, first, tmp_path, change, message):
        told = json.loads((first / "manifest.json").read_text()) | change
        (tmp_path / "m.json").write_text(json.dumps(told))
        code, _, err = run("export", "--replay", tmp_path / "m.json", "--out", tmp_path / "two", "--quiet")
        assert code == 2
        assert message in err
        assert not (tmp_path / "two").exists()

    def test_no_manifest_at_all(self, run, tmp_path):
        (tmp_path / "m.json").write_text("[1]")
        for name, message in (("m.json", "is not a manifest"), ("none.json", "cannot be read as JSON")):
            code, _, err = run("export", "--replay", tmp_path / name, "--out", tmp_path / "two")
            assert code == 2
            assert message in err


class TestChecks:
    @pytest.fixture
    def study(self, tmp_path, workspace) -> Study:
        """A folder of 51 training pictures with four pairs of copies, two leaks and seven odd ones."""
        return Study(put(tmp_path / "planted", planted()), workspace=workspace)

    def test_columns_say_what_was_found_and_why(self, study):
        table = make(study, [], checked=True).table.set_index("id")
        found = checks.find(study)
        assert table["is_near_duplicate_issue"].sum() == 8
        assert table.index[table["is_leak_issue"]].tolist() == ["train/a/006.png", "train/a/008.png"]
        for name, made_of in cleaned.ISSUES.items():
            flags = np.any([found.flags(check) for check in made_of], axis=0)
            np.testing.assert_array_equal(table[f"is_{name}_issue"], flags)
        same = table.loc["train/a/same.png"]
        assert (same["issues"], same["duplicate_of"]) == ("duplicates", "train/a/000.png")
        assert same["why"] == "identical to train/a/000.png"
        assert same["duplicate_set"] == table.loc["train/a/000.png", "duplicate_set"] >= 0
        assert table.loc["train/a/flat.png", "tags"].endswith(",flat")
        plain = table.loc["train/b/001.png", ["issues", "why", "duplicate_of", "duplicate_set"]]
        assert plain.tolist() == ["", "", "", -1]

    def test_they_come_where_they_are_at_hand(self, study, blobs, workspace):
        assert "issues" not in make(study, []).table
        checks.find(study)
        assert "issues" in make(study, []).table
        assert "issues" not in make(study, [], checked=False).table
        table = make(Study(blobs, "features", workspace=workspace), [], checked=True).table
        assert "is_near_duplicate_issue" in table
        assert not {"is_leak_issue", "is_dark_issue"} & set(table)

    def test_one_of_each_group_stays(self, study):
        verdict, found = study.verdict(), checks.find(study)
        table = make(study, [], policy=Policy(drop=("duplicates", "leaks", "blank"))).table.set_index("id")
        gone = table["action"] == "drop"
        assert gone.sum() == 4 + 2 + 1
        assert set(table["action_by"][gone]) == {"check"}
        for group in range(4):
            rows = np.flatnonzero(found.group == group)
            (stays,) = rows[~gone.to_numpy()[rows]]
            assert verdict.proba[stays, 0] == verdict.proba[rows, 0].max()

    def test_what_a_person_decided_counts_first(self, study):
        places = {name: study.position(f"train/{name}") for name in ("a/000.png", "a/same.png", "b/other.png")}
        made = [decision("train/b/other.png", "keep"), decision("train/a/006.png", "keep", revision=2)]
        found = settle(study, [], None, made, Policy(drop=("duplicates", "leaks")), checks.find(study))
        assert found.labels[study.position("train/a/002.png")] == -1, "its copy is the one that was chosen"
        assert found.labels[places["b/other.png"]] >= 0
        assert found.labels[study.position("train/a/006.png")] >= 0
        assert (found.labels[places["a/000.png"]] < 0) != (found.labels[places["a/same.png"]] < 0)
        made = [decision("train/a/000.png", "drop")]
        found = settle(study, [], None, made, Policy(drop=("duplicates",)), checks.find(study))
        assert found.labels[places["a/same.png"]] >= 0, "the other one is gone already"
        made = [decision("train/a/000.png", "keep"), decision("train/a/same.png", "keep", revision=2)]
        found = settle(study, [], None, made, Policy(drop=("duplicates",)), checks.find(study))
        assert (found.labels[[places["a/000.png"], places["a/same.png"]]] >= 0).all()

    def test_what_was_not_checked_cannot_be_dropped(self, study, blobs, workspace):
        with pytest.raises(InputError, match="duplicates were not looked for here"):
            settle(study, [], None, [], Policy(drop=("duplicates",)))
        with pytest.raises(InputError, match="leaks cannot be dropped: there is no test split"):
            make(Study(blobs, "features", workspace=workspace), [], policy=Policy(drop=("leaks",)))

    @pytest.fixture
    def first(self, run, tmp_path) -> Path:
        name = put(tmp_path / "planted", planted())
        arguments = ("--drop", "duplicates,leaks,dark", "--detector", "knn-label", "--map", "none")
        code, out, _ = run("export", name, "--out", tmp_path / "one", *arguments, "--quiet")
        assert code == 0
        assert "44 kept, 0 relabelled, 7 dropped" in out
        assert re.search(r"accuracy: a linear classifier .* of 10 test samples before and ", out)
        return tmp_path / "one"

    def test_a_replay_gives_the_same_rows(self, run, first, workspace, tmp_path):
        told = json.loads((first / "manifest.json").read_text())
        assert told["policy"]["drop"] == ["duplicates", "leaks", "dark"]
        assert (told["checks"], told["accuracy"]["test"], told["accuracy"]["train_after"]) == (True, 10, 44)
        workspace.clear("results")
        code, _, err = run("export", "--replay", first / "manifest.json", "--out", tmp_path / "two", "--quiet")
        assert (code, err) == (0, "")
        for name in ("table.csv", "manifest.json"):
            assert (tmp_path / "two" / name).read_bytes() == (first / name).read_bytes()
        back = read_table(first / "table.csv")
        assert (back["issues"] != "").sum() == 8 + 2 + 7
        assert back["duplicate_of"].dtype == back["id"].dtype

    def test_another_test_split_is_refused(self, run, first, tmp_path):
        (tmp_path / "planted" / "test" / "a" / "leak.png").unlink()
        code, _, err = run("export", "--replay", first / "manifest.json", "--out", tmp_path / "two", "--quiet")
        assert code == 2
        assert "was made with another test split than" in err

    def test_manifests_from_before_the_checks_are_replayed_without(self, run, first, tmp_path):
        told = json.loads((first / "manifest.json").read_text())
        old = {key: value for key, value in told.items() if key not in ("checks", "accuracy", "table")}
        old["dataset"].pop("test")
        old["policy"]["drop"] = []
        (tmp_path / "old.json").write_text(json.dumps(old))
        code, out, _ = run("export", "--replay", tmp_path / "old.json", "--out", tmp_path / "two", "--quiet")
        assert code == 0
        assert "accuracy" not in out
        assert "issues" not in read_table(tmp_path / "two" / "table.csv")


class TestCommand:
    def test_json_is_the_manifest(self, run, reviewed, tmp_path):
        code, out, _ = run("export", reviewed, "--encoder", "features", "--out", tmp_path / "o", "--json", "--quiet")
        document = json.loads(out)
        assert code == 0
        assert document.pop("out") == str(tmp_path / "o")
        assert document == json.loads((tmp_path / "o" / "manifest.json").read_text())

    def test_what_was_left_out_is_named(self, run, pictures, save_encoder, tmp_path, monkeypatch):
        monkeypatch.setattr("chaffinch.data.pictures.CHECKED", 5)  # as in a large set: damage shows only later
        monkeypatch.setattr("chaffinch.data.pictures.HEADERS", 100)
        save_encoder()
        for i, (image, label) in enumerate(zip(pictures.observed.images, pictures.observed.labels, strict=True)):
            path = tmp_path / "stripes" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        path.with_name("empty.png").write_bytes(b"")
        made = ("export", f"folder:{tmp_path / 'stripes'}", "--encoder", "tiny", "--out", tmp_path / "o", "--quiet",
                "--pictures", "copies")  # fmt: skip
        again = ("export", "--replay", tmp_path / "o" / "manifest.json", "--out", tmp_path / "again", "--quiet")
        for argv in (made, again):
            code, _, err = run(*argv)
            assert code == 0
            assert err.count("empty.png") == 1
            lines = [line for line in err.splitlines() if path.name in line]
            assert [line.endswith("; a grey picture stands in its place") for line in lines] == [True]
        table = read_table(tmp_path / "o" / "table.csv").set_index("id")
        row = table.loc[f"{path.parent.name}/{path.name}"]
        assert (row["action"], row["action_by"], row["final_label"], row["filepath"]) == ("drop", "check", "", "")
        assert (row["issues"].split(",")[0], row["why"].split("; ")[0]) == (
            "unreadable",
            "its picture cannot be decoded",
        )
        assert (table["action"] == "drop").sum() == 1
        assert len(list((tmp_path / "o").rglob("*.png"))) == len(table) - 1
        assert (tmp_path / "again" / "table.csv").read_bytes() == (tmp_path / "o" / "table.csv").read_bytes()

    def test_a_link_that_takes_the_place_of_a_picture_is_not_followed(self, pictures, save_encoder, tmp_path):
        save_encoder()
        (tmp_path / "secret").write_text("nobody's business")
        for i, (image, label) in enumerate(zip(pictures.observed.images, pictures.observed.labels, strict=True)):
            path = tmp_path / "stripes" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        export = make(Study(f"folder:{tmp_path / 'stripes'}", "tiny"), (), pictures="copies")
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match=f"{path.name} has gone or become a link"):
            write(export, tmp_path / "o")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["secret", "stripes"]

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ((), "name a DATASET, or a manifest to --replay"),
            (("fashion-web:n=60", "--drop", "weeds"), "drop: 'weeds' is no kind of noise"),
            (("fashion-web:n=60", "--detector", "weeds"), "weeds"),
        ],
    )
    def test_bad_usage(self, run, tmp_path, argv, message):
        code, out, err = run("export", *argv, "--out", tmp_path / "o", "--quiet")
        assert (code, out) == (2, "")
        assert message in err
        assert not (tmp_path / "o").exists()

    def test_decisions_of_other_data_do_not_count(self, run, reviewed, arrays_file, tmp_path):
        path = arrays_file("other.npz", rows=slice(0, 100))
        code, out, _ = run("export", f"arrays:{path}", "--encoder", "features", "--out", tmp_path / "o", "--quiet")
        assert code == 0
        assert "(0 decisions)" in out


def test_decided_is_in_the_order_of_time(reviewed, workspace):
    digest = Study(reviewed, "features", workspace=workspace).dataset.digest
    made = decided(Reviews(workspace.decisions).states(digest))
    assert [d.sample for d in made] == ["b000", "b001", "b002", "b003"]
