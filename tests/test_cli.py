"""The command: what it prints, the codes it ends with, and what it leaves behind when it cannot go on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scenes import CHANGES, planted, put

from chaffinch import __version__, registry
from chaffinch.base.files import asset
from chaffinch.cli import Meter, clock, main
from chaffinch.encoders.model_card import load_card
from chaffinch.exports import read_table
from chaffinch.spec import Spec

DETECTORS = {"lsa", "small-loss", "knn-label", "knn-distance", "confident-learning"}
FIGURES = {
    "auroc_ood", "auroc_mislabelled", "auroc_any", "auroc_ood_vs_mislabelled", "ap_ood", "ap_mislabelled", "ap_any",
    "precision", "recall", "f1", "balanced_accuracy", "clean_kept", "flagged", "seconds",
}  # fmt: skip
TRAIN = [
    "--epochs",
    "2",
    "--batch",
    "16",
    "--architecture",
    "preact-resnet-8-16-32",
    "--device",
    "cpu",
    "--name",
    "toy",
]


@pytest.fixture
def run(capsys):
    """A function that runs the command and returns exit code, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def document(run):
    """A function that runs the command with --json and returns the one document it prints."""

    def call(*argv):
        code, out, _ = run(*argv, "--json")
        assert code == 0
        return json.loads(out)

    return call


@pytest.fixture
def pictures_file(tmp_path, pictures):
    o = pictures.observed
    path = tmp_path / "pictures.npz"
    np.savez(path, images=o.images, labels=o.labels, ids=o.ids, true_labels=pictures.truth.labels)
    return path


def command(*argv):
    return subprocess.run(
        [sys.executable, "-m", "chaffinch.cli", *map(str, argv)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "CHAFFINCH_THREADS": "1"},
    )  # fmt: skip


class TestUsage:
    def test_version(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"chaffinch {__version__}\n"

    @pytest.mark.parametrize(
        "argv", [[], ["fly"], ["detect"], ["detect", "x", "--seed", "one"], ["embed", "x", "--map", "tsne"]]
    )
    def test_bad_usage(self, capsys, argv):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("usage: chaffinch")

    def test_as_a_process(self, arrays_file):
        """Standard output is the document and nothing else, whatever libraries print."""
        done = command("detect", f"arrays:{arrays_file()}", "--detector", "knn-label", "--json")
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)["detectors"]) == {"knn-label"}
        assert "Warning" not in done.stderr

    def test_bad_input_as_a_process(self, tmp_path):
        done = command("detect", f"arrays:{tmp_path / 'none.npz'}")
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == f"chaffinch: {tmp_path / 'none.npz'} does not exist\n"


class TestMethods:
    def test_json(self, document, save_encoder):
        save_encoder("mine")
        rows = document("methods")
        assert isinstance(rows, list)
        for row in rows:
            assert list(row) == ["slug", "kind", "name", "paper", "arxiv", "year", "needs", "finds"]
            assert isinstance(row["needs"], list)
        found = {kind: {row["slug"] for row in rows if row["kind"] == kind} for kind in ("detector", "loss", "encoder")}
        assert found["detector"] >= DETECTORS
        assert found["loss"] == set(registry.methods("loss"))
        assert found["encoder"] >= {"mine"}
        by_slug = {(row["kind"], row["slug"]): row for row in rows}
        assert len(by_slug) == len(rows)
        assert by_slug["detector", "lsa"]["arxiv"] == "2407.05528"
        assert by_slug["detector", "lsa"]["needs"] == ["features", "pred_probs"]
        assert by_slug["detector", "lsa"]["finds"] == ["ood"]
        assert by_slug["detector", "knn-label"]["needs"] == ["neighbors"]
        more = {slug: set(row["needs"]) - {"images"} for (kind, slug), row in by_slug.items() if kind == "loss"}
        labels = {"bootstrap", "ce", "elr", "gce", "hydra", "listwise", "sbcl", "sce", "supcon", "symile"}
        assert {slug for slug, needs in more.items() if needs == {"labels"}} == labels
        assert (more["sepclr"], more["supremix"], more["simclr"]) == ({"trusted"}, {"numbers"}, set())
        assert by_slug["encoder", "mine"]["arxiv"] == by_slug["loss", "simclr"]["arxiv"]

    def test_for_people(self, run):
        code, out, err = run("methods")
        assert (code, err) == (0, "")
        assert "detector  lsa" in out
        assert "[mislabelled, ood]" in out


class TestDetect:
    def test_json(self, document, arrays_file):
        name = f"arrays:{arrays_file()}"
        found = document("detect", name, "--detector", "all")
        assert list(found) == ["dataset", "n", "detectors", "skipped"]
        assert (found["dataset"], found["n"], found["skipped"]) == (name, 180, found["skipped"])
        assert list(found["skipped"]) == ["symile-fit", "tacred-extrinsic"]
        assert "mark rows known to be clean with 'trusted'" in found["skipped"]["tacred-extrinsic"]
        assert set(found["detectors"]) >= DETECTORS
        for figures in found["detectors"].values():
            assert set(figures) == FIGURES
        assert found["detectors"]["small-loss"]["auroc_mislabelled"] > 0.9
        assert found["detectors"]["lsa"]["auroc_ood"] > 0.9

    def test_the_command_says_what_the_study_says(self, document, blobs, tmp_path, arrays_file):
        from chaffinch.study import Study
        from chaffinch.workspace import Workspace

        found = document("detect", f"arrays:{arrays_file()}", "--detector", "small-loss")["detectors"]["small-loss"]
        study = Study(blobs, workspace=Workspace(tmp_path / "other"))
        d = study.detect("small-loss")
        expected = study.figures(d, d.flags())
        assert {k: v for k, v in found.items() if k != "seconds"} == {
            k: v for k, v in expected.items() if k != "seconds"
        }

    def test_without_truth(self, document, arrays_file):
        found = document("detect", f"arrays:{arrays_file(truth=False)}", "--detector", "all")
        assert {frozenset(figures) for figures in found["detectors"].values()} == {frozenset({"flagged", "seconds"})}

    def test_truth_changes_no_flag(self, document, arrays_file):
        one, other = (
            document("detect", f"arrays:{arrays_file(f'{t}.npz', truth=t)}", "--detector", "all", "--workspace", w)
            for t, w in ((True, arrays_file().parent / "w1"), (False, arrays_file().parent / "w2"))
        )
        for slug in DETECTORS:
            assert one["detectors"][slug]["flagged"] == other["detectors"][slug]["flagged"]

    def test_what_lacks_evidence_is_skipped(self, document, arrays_file):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        found = document("detect", f"arrays:{arrays_file(features=None, pred_probs=p)}", "--detector", "all")
        assert {"small-loss", "confident-learning"} <= set(found["detectors"])
        assert {"lsa", "knn-label", "knn-distance"} <= set(found["skipped"])
        assert found["skipped"]["lsa"].startswith("lsa needs features, which is not there")

    @pytest.mark.parametrize(
        ("evidence", "usual"),
        [("features", ["lsa", "small-loss"]), ("pictures", ["lsa", "small-loss"]), ("pred_probs", ["small-loss"])],
    )
    def test_the_default_is_what_can_run(
        self, document, arrays_file, pictures_file, save_encoder, tmp_path, evidence, usual
    ):
        save_encoder("simclr")
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        path = {
            "features": lambda: arrays_file(),
            "pictures": lambda: pictures_file,
            "pred_probs": lambda: arrays_file(features=None, pred_probs=p),
        }[evidence]()
        found = document("detect", f"arrays:{path}")
        assert (list(found["detectors"]), found["skipped"]) == (usual, {})
        manifest = document("export", f"arrays:{path}", "--out", tmp_path / "o")
        assert [told["cut"] for told in manifest["detectors"]] == usual

    def test_default_detectors_and_table(self, run, arrays_file):
        code, out, err = run("detect", f"arrays:{arrays_file()}")
        assert code == 0
        lines = out.splitlines()
        assert lines[0].endswith("blobs.npz: 180 samples, encoder features")
        assert lines[1].split()[:2] == ["detector", "auroc_ood"]
        assert [line.split()[0] for line in lines[2:4]] == ["lsa", "small-loss"]
        assert "detectors 100.0%" in err

    def test_quiet(self, run, arrays_file):
        code, out, err = run("detect", f"arrays:{arrays_file(truth=False)}", "--quiet")
        assert (code, err) == (0, "")
        assert out.splitlines()[1].split() == ["detector", "flagged"]

    def test_cuts(self, document, arrays_file):
        name = f"arrays:{arrays_file()}"
        found = document("detect", name, "--detector", "lsa@budget=0.2", "--detector", "knn-label@score=0.35")[
            "detectors"
        ]
        assert found["lsa"]["flagged"] == 36
        table = document("detect", name, "--detector", "knn-label@score=0.95")["detectors"]
        assert table["knn-label"]["flagged"] < found["knn-label"]["flagged"]
        assert document("detect", name, "--detector", "lsa")["detectors"]["lsa"]["flagged"] != 36
        everything = document("detect", name, "--detector", "all", "--detector", "lsa@budget=0.2")["detectors"]
        assert set(everything) >= DETECTORS
        assert everything["lsa"]["flagged"] == 36

    @pytest.mark.parametrize("ending", [".parquet", ".csv"])
    def test_out(self, document, arrays_file, blobs, tmp_path, ending):
        ids = np.array([*(f"b{i:03d}" for i in range(177)), "=SUM(A1)", "-1", "naïve\n雀"])
        path = arrays_file(ids=ids)
        out = tmp_path / f"deep/flags{ending}"
        found = document(
            "detect", f"arrays:{path}", "--detector", "small-loss@budget=0.1", "--detector", "lsa", "--out", out
        )
        table = read_table(out)
        assert list(table) == [
            "id", "label", "true_label", "kind",
            "small-loss_score", "small-loss_flag", "small-loss_suggestion", "lsa_score", "lsa_flag",
        ]  # fmt: skip
        assert table["id"].tolist() == ids.tolist()
        assert table["label"].tolist() == [blobs.observed.classes[y] for y in blobs.observed.labels]
        assert table["small-loss_flag"].sum() == found["detectors"]["small-loss"]["flagged"] == 18
        assert table["lsa_flag"].sum() == found["detectors"]["lsa"]["flagged"]
        assert table["small-loss_score"][table["small-loss_flag"]].min() >= table["small-loss_score"].nlargest(18).min()
        if ending == ".parquet":
            assert pd.read_parquet(out)["id"].tolist() == ids.tolist()
        else:
            assert "'=SUM(A1)" in out.read_text(encoding="utf-8")

    def test_second_run_takes_the_stored_result(self, document, arrays_file, home):
        name = f"arrays:{arrays_file()}"
        first = document("detect", name, "--detector", "all")
        stored = {p: p.stat().st_mtime_ns for p in home.rglob("*.npz")}
        assert len(stored) >= 7
        assert document("detect", name, "--detector", "all") == first, "to the second that it took"
        assert {p: p.stat().st_mtime_ns for p in home.rglob("*.npz")} == stored

    def test_workspace_option(self, document, arrays_file, home, tmp_path):
        document("detect", f"arrays:{arrays_file()}", "--workspace", tmp_path / "w")
        assert list((tmp_path / "w" / "results").iterdir())
        assert not list(home.iterdir())

    def test_pictures_through_an_encoder(self, document, pictures_file, save_encoder):
        save_encoder()
        found = document("detect", f"arrays:{pictures_file}", "--encoder", "tiny", "--detector", "all")
        assert set(found["detectors"]) >= DETECTORS


class TestRules:
    """Cuts without a number."""

    def flagged(self, document, name, *cuts):
        rows = document("detect", name, *(part for cut in cuts for part in ("--detector", cut)))["detectors"]
        return {slug: figures["flagged"] for slug, figures in rows.items()}

    def test_each_rule(self, document, arrays_file, blobs, home):
        from chaffinch.spec import RULES, Cut
        from chaffinch.study import Study

        study = Study(blobs)
        for rule in RULES:
            found = self.flagged(document, f"arrays:{arrays_file()}", f"small-loss@{rule}", f"knn-label@{rule}")
            for slug, count in found.items():
                assert count == study.detect(slug).flags(Cut(slug, rule=rule)).sum()

    def test_the_default_flags_what_the_verdict_counts(self, document, arrays_file):
        name = f"arrays:{arrays_file()}"
        assert self.flagged(document, name, "knn-label") == self.flagged(document, name, "knn-label@rate")
        assert self.flagged(document, name, "knn-label") != self.flagged(document, name, "knn-label@own")

    def test_contradiction_without_suggestions(self, run, document, arrays_file):
        name = f"arrays:{arrays_file()}"
        code, out, err = run("detect", name, "--detector", "lsa@contradiction", "--json")
        assert (code, out) == (2, "")
        assert "chaffinch: lsa: it suggests no labels, so there is nothing to contradict" in err
        found = document("detect", name, "--detector", "all", "--detector", "lsa@contradiction")
        assert found["skipped"]["lsa"].startswith("it suggests no labels")
        assert set(found["detectors"]) >= DETECTORS - {"lsa"}


class TestVerdict:
    KEYS = {"macro_f1", "f1", "rates", "ceiling_macro_f1", "seconds"}

    def test_json(self, document, arrays_file, blobs):
        name = f"arrays:{arrays_file()}"
        found = document("detect", name, "--verdict")
        assert list(found) == ["dataset", "n", "detectors", "skipped", "verdict"]
        verdict = found["verdict"]
        assert set(verdict) == self.KEYS
        assert set(verdict["f1"]) == {"clean", "mislabelled", "ood"}
        assert set(verdict["rates"]) == {"mislabelled", "ood"}
        assert verdict["f1"]["mislabelled"] > 0.7
        assert verdict["macro_f1"] == pytest.approx(np.mean(list(verdict["f1"].values())))
        assert 0.9 < verdict["ceiling_macro_f1"] <= 1
        assert document("detect", name, "--verdict") == found, "stored, to the second that it took"
        assert "verdict" not in document("detect", name)

    def test_without_truth(self, document, arrays_file):
        found = document("detect", f"arrays:{arrays_file(truth=False)}", "--verdict")
        assert set(found["verdict"]) == {"rates", "seconds"}

    def test_where_only_kinds_are_known(self, run, document, arrays_file, blobs):
        name = f"arrays:{arrays_file(truth=False, kind=blobs.truth.kind)}"
        assert set(document("detect", name, "--verdict")["verdict"]) == self.KEYS - {"ceiling_macro_f1"}
        assert "at best" not in run("detect", name, "--verdict")[1]

    @pytest.mark.parametrize("truth", [True, False])
    def test_rates_that_are_known(self, document, arrays_file, truth):
        name = f"arrays:{arrays_file(truth=truth)}"
        both = document("detect", name, "--mislabelled", "0.2", "--ood", "0.1")["verdict"]
        assert both["rates"] == pytest.approx({"mislabelled": 0.2, "ood": 0.1}, abs=1e-4)
        one = document("detect", name, "--ood", "0.3")["verdict"]
        assert one["rates"]["ood"] == pytest.approx(0.3, abs=1e-4)
        none = document("detect", name, "--verdict", "--ood", "0")["verdict"]
        assert none["rates"]["ood"] == pytest.approx(0, abs=1e-4)
        assert document("detect", name, "--verdict")["verdict"]["rates"] != one["rates"]

    def test_for_people(self, run, arrays_file):
        code, out, err = run("detect", f"arrays:{arrays_file()}", "--verdict")
        assert code == 0
        assert "judging 100.0%" in err
        [counts, figures] = [line for line in out.splitlines() if line.startswith("verdict: ")][:2]
        assert re.fullmatch(r"verdict: (\d+) clean, (\d+) mislabelled, (\d+) ood", counts)
        assert sum(map(int, re.findall(r"\d+", counts))) == 180
        assert re.fullmatch(r"verdict: macro-F1 0\.\d{3} \(at best 0\.\d{3}\)", figures)

    def test_a_weak_verdict_says_so(self, run, arrays_file):
        noise = np.random.default_rng(0).normal(size=(180, 12)).astype(np.float32)
        out = run("detect", f"arrays:{arrays_file(features=noise)}", "--detector", "knn-label", "--verdict")[1]
        assert re.search(r"^verdict: .* so there is little to judge by", out, re.MULTILINE)

    def test_table(self, document, arrays_file, tmp_path):
        out = tmp_path / "flags.parquet"
        found = document("detect", f"arrays:{arrays_file()}", "--detector", "small-loss", "--verdict", "--out", out)
        table = read_table(out)
        assert list(table) == [
            "id", "label", "true_label", "kind", "verdict", "probable_label", "p_clean", "p_mislabelled", "p_ood",
            "small-loss_score", "small-loss_chance", "small-loss_flag", "small-loss_suggestion",
        ]  # fmt: skip
        assert table["small-loss_flag"].sum() == np.sum(table["verdict"] != "clean")
        for kind, rate in found["verdict"]["rates"].items():
            assert table[f"p_{kind}"].mean() == pytest.approx(rate)
        np.testing.assert_allclose(table[["p_clean", "p_mislabelled", "p_ood"]].sum(axis=1), 1)
        assert table["small-loss_chance"].between(0, 1).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--mislabelled", "1.5"], "verdict: mislabelled must be a share from 0 to below 1, got 1.5"),
            (["--ood", "nan"], "verdict: ood must be a share from 0 to below 1, got nan"),
            (["--mislabelled", "0.5", "--ood", "0.5"], "the two rates must leave something clean"),
        ],
    )
    def test_bad_rates(self, run, arrays_file, options, message):
        code, out, err = run("detect", f"arrays:{arrays_file()}", *options, "--json")
        assert (code, out) == (2, "")
        assert message in err

    CANNOT = {
        "few samples": (lambda f: f(rows=slice(0, 19)), "knn-label", "19 samples are too few to judge"),
        "one class": (lambda f: f(labels=np.zeros(180, int)), "knn-distance", "all samples carry the same label"),
        "no features": (
            lambda f: f(features=None, pred_probs=np.random.default_rng(0).dirichlet(np.ones(3), 180)),
            "small-loss", "verdict needs features, which is not there",
        ),
    }  # fmt: skip

    @pytest.mark.parametrize("case", CANNOT)
    def test_where_there_is_none_the_detectors_still_work(self, run, document, arrays_file, case):
        make, slug, message = self.CANNOT[case]
        name = f"arrays:{make(arrays_file)}"
        by_default = document("detect", name, "--detector", slug)["detectors"][slug]
        assert by_default == document("detect", name, "--detector", f"{slug}@own")["detectors"][slug]
        assert document("detect", name, "--detector", f"{slug}@budget=0.1")["detectors"][slug]["flagged"] in (2, 18)
        code, out, err = run("detect", name, "--detector", slug, "--verdict", "--json")
        assert (code, out) == (2, "")
        assert message in err

    def test_ten_thousand_classes(self, tmp_path):
        """Detectors and the map go on without a verdict, and in little memory."""
        rng, path, classes = np.random.default_rng(0), tmp_path / "many.npz", [f"k{i}" for i in range(10_000)]
        labels = rng.permutation(10_000)[:100]
        np.savez(path, features=rng.normal(size=(100, 16)).astype(np.float32), labels=labels, classes=classes)
        bounded = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2_500_000_000,) * 2);"
            "from chaffinch.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        for argv, status, message in (
            (["detect"], 0, "small-loss"),
            (["embed", "--map", "pca"], 0, "features and pca map are in"),
            (["detect", "--verdict"], 2, "verdict: 10,000 classes are too many to judge; it takes at most 1,000"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", bounded, argv[0], f"arrays:{path}", *argv[1:], "--quiet"],
                capture_output=True, text=True, timeout=60, env={**os.environ, "CHAFFINCH_THREADS": "1"},
            )  # fmt: skip
            assert done.returncode == status, done.stderr
            assert message in done.stdout + done.stderr


def nan_features(arrays_file, blobs):
    return arrays_file(features=np.full_like(blobs.observed.features, np.nan))


def truncated(arrays_file, blobs):
    path = arrays_file()
    path.write_bytes(path.read_bytes()[:-500])
    return path


BAD = {
    "missing file": (lambda f, b: f().parent / "none.npz", [], "none.npz does not exist"),
    "not an archive": (lambda f, b: __file__, [], "test_cli.py cannot be read as an .npz archive"),
    "truncated": (truncated, [], "blobs.npz cannot be read as an .npz archive"),
    "NaN": (nan_features, [], "blobs.npz: no row can be used (180 of 180 rows hold NaN or infinity in features"),
    "no labels": (lambda f, b: f(labels=None), [], "blobs.npz: key 'labels' is missing"),
    "empty": (lambda f, b: f(rows=slice(0, 0)), [], "the dataset is empty"),
    "one class": (lambda f, b: f(labels=np.zeros(180, int)), [], "only one class is present"),
    "few samples": (
        lambda f, b: f(rows=slice(0, 8)), ["--detector", "knn-label"],
        "knn-label needs 10 neighbours of each sample, there are 7 (the dataset has 8 samples)",
    ),
    "constant losses": (
        lambda f, b: f(pred_probs=np.full((180, 3), 1 / 3)), ["--detector", "small-loss"],
        "all 180 losses are equal",
    ),
    "no evidence": (
        lambda f, b: f(features=None, pred_probs=np.full((180, 3), 1 / 3)), ["--detector", "lsa"],
        "lsa needs features, which is not there",
    ),
    "nothing to look at": (
        lambda f, b: f(features=None, images=np.zeros((180, 8, 8), np.uint8)),
        ["--encoder", "features", "--detector", "all"], "features",
    ),
    "cut flags all": (lambda f, b: f(), ["--detector", "lsa@budget=1"], "this cut flags all 180 samples"),
    "score flags all": (lambda f, b: f(), ["--detector", "lsa@score=-1e9"], "this cut flags all 180 samples"),
    "budget": (lambda f, b: f(), ["--detector", "lsa@budget=1.2"], "budget must be a share between 0 and 1, got 1.2"),
    "cut": (lambda f, b: f(), ["--detector", "lsa@share=1"], "'lsa@share=1': write DETECTOR"),
    "detector": (lambda f, b: f(), ["--detector", "smalloss"], "called 'smalloss'; did you mean small-loss"),
    "seed": (lambda f, b: f(), ["--seed", "-1"], "seed must be 0 to 4294967295, got -1"),
    "encoder": (
        lambda f, b: f(images=np.zeros((180, 8, 8), np.uint8)), ["--encoder", "simklr"],
        "there is no encoder called 'simklr'",
    ),
}  # fmt: skip


class TestBadInput:
    def refused(self, result, message, out):
        code, stdout, stderr = result
        assert code == 2
        assert stdout == ""
        assert message in stderr
        assert stderr.splitlines()[-1].startswith("chaffinch: ")
        assert "Traceback" not in stderr
        assert not out.exists()

    @pytest.mark.parametrize("case", BAD)
    def test_dataset_and_options(self, run, arrays_file, blobs, tmp_path, case):
        make, options, message = BAD[case]
        out = tmp_path / "out" / "flags.csv"
        result = run("detect", f"arrays:{make(arrays_file, blobs)}", *options, "--json", "--out", out)
        self.refused(result, message, out.parent)

    @pytest.mark.parametrize("name", ["flags.xlsx", "flags", "flags.json"])
    def test_out_ending_is_refused_before_any_work(self, run, arrays_file, tmp_path, home, name):
        result = run("detect", f"arrays:{arrays_file()}", "--out", tmp_path / name)
        self.refused(result, f"{name}: the file name must end in .parquet or .csv", tmp_path / name)
        assert not list(home.iterdir())

    def test_out_that_cannot_be_written(self, run, arrays_file, tmp_path):
        out = arrays_file() / "flags.csv"
        self.refused(run("detect", f"arrays:{arrays_file()}", "--out", out), "flags.csv cannot be written", out)

    def test_workspace_that_cannot_be_written(self, run, arrays_file, monkeypatch, tmp_path):
        monkeypatch.setenv("CHAFFINCH_HOME", str(arrays_file()))
        result = run("detect", f"arrays:{arrays_file()}", "--out", tmp_path / "flags.csv")
        self.refused(result, "set CHAFFINCH_HOME to another", tmp_path / "flags.csv")

    def test_unknown_dataset(self, run, tmp_path):
        self.refused(run("detect", "cifar"), "unknown dataset 'cifar'", tmp_path / "x")
        self.refused(run("embed", "fashion-web:noise=2"), "fashion-web: noise", tmp_path / "x")

    def test_damaged_encoder(self, run, pictures_file, save_encoder, tmp_path):
        path = save_encoder()
        path.write_bytes(path.read_bytes()[:-9])
        result = run("detect", f"arrays:{pictures_file}", "--encoder", "tiny", "--out", tmp_path / "f.csv")
        self.refused(result, "tiny.safetensors is damaged", tmp_path / "f.csv")

    @pytest.fixture
    def pool(self, tmp_path, monkeypatch):
        """A copy of the bundled pool to damage."""
        copy = tmp_path / "assets" / "fashion-web"
        shutil.copytree(asset("fashion-web"), copy)
        monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path / "assets"))
        return copy

    def test_damaged_pool(self, run, pool, tmp_path):
        raw = bytearray((pool / "pool.npz").read_bytes())
        raw[len(raw) // 2] ^= 1
        (pool / "pool.npz").write_bytes(raw)
        result = run("detect", "fashion-web", "--json", "--out", tmp_path / "flags.csv")
        self.refused(result, "pool.npz is damaged: its SHA-256 is", tmp_path / "flags.csv")

    @pytest.mark.parametrize("name", ["pool.npz", "pool.json"])
    def test_missing_pool(self, run, pool, tmp_path, name):
        (pool / name).unlink()
        self.refused(run("detect", "fashion-web", "--json"), f"{name} is missing", tmp_path / "x")

    def test_failure_that_is_nobodys_fault(self, run, arrays_file, monkeypatch):
        def fail(*args, **options):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("chaffinch.study.run_detectors", fail)
        code, out, err = run("detect", f"arrays:{arrays_file()}", "--quiet")
        assert (code, out, err) == (1, "", "chaffinch: [Errno 5] Input/output error\n")


class TestEmbed:
    def test_features_of_the_data(self, run, arrays_file, home):
        code, out, err = run("embed", f"arrays:{arrays_file()}", "--map", "pca")
        assert code == 0
        assert f"features and pca map are in {home} (trustworthiness 0." in out
        assert [p.name.partition("-")[0] for p in sorted((home / "results").iterdir())] == ["map", "verdict"]

    def test_json(self, document, arrays_file, home):
        found = document("embed", f"arrays:{arrays_file()}", "--map", "pca")
        about = {"dataset": f"arrays:{arrays_file()}", "n": 180, "encoder": "features", "map": "pca"}
        assert {key: found.pop(key) for key in about} == about
        assert (found.pop("workspace"), found.pop("shards")) == (str(home), None)
        assert set(found) == {"trustworthiness", "continuity", "preservation"}

    def test_the_verdict_is_there_afterwards(self, run, arrays_file, blobs, workspace):
        from chaffinch.study import Study

        run("embed", f"arrays:{arrays_file()}", "--map", "pca")
        assert Study(blobs, workspace=workspace).knows_verdict()

    def test_without_a_verdict(self, run, arrays_file, home):
        assert run("embed", f"arrays:{arrays_file(rows=slice(0, 19))}", "--map", "pca")[0] == 0
        assert [p.name.partition("-")[0] for p in (home / "results").iterdir()] == ["map"]

    def test_few_samples(self, run, arrays_file):
        assert run("embed", f"arrays:{arrays_file(rows=slice(0, 40))}")[0] == 0

    def test_pictures(self, run, pictures_file, save_encoder, home, tmp_path):
        save_encoder()
        options = ("--encoder", "tiny", "--map", "pca", "--ship", tmp_path / "ship", "--job", "j1")
        assert run("embed", f"arrays:{pictures_file}", *options)[0] == 0
        steps = [p.name.partition("-")[0] for p in sorted((home / "results").iterdir())]
        assert steps == ["features", "map", "verdict"]
        shipped = sorted(p.name for p in (tmp_path / "ship").iterdir())
        assert shipped == sorted(p.name for p in (home / "results").iterdir())
        for name in shipped:
            with np.load(tmp_path / "ship" / name) as one, np.load(home / "results" / name) as other:
                assert one.files == other.files
                np.testing.assert_array_equal(one[one.files[0]], other[one.files[0]])
        assert json.loads((home / "notes" / "j1.json").read_text()) == {"done": True}

    def test_a_job_that_fails_says_why(self, run, arrays_file, home):
        path = arrays_file(features=None, pred_probs=np.full((180, 3), 1 / 3))
        code, out, err = run("embed", f"arrays:{path}", "--map", "pca", "--job", "j2")
        assert (code, out) == (2, "")
        error = json.loads((home / "notes" / "j2.json").read_text())["error"]
        assert "has neither pictures nor features" in error
        assert error in err


class TestTrainEncoder:
    def test_train_and_use(self, run, document, pictures_file, home):
        code, out, err = run("train-encoder", f"arrays:{pictures_file}", *TRAIN)
        assert code == 0
        weights = home / "encoders" / "toy.safetensors"
        assert out == f"trained: {weights}\n"
        assert weights.is_file()
        assert "epoch 1 of 2 100.0%" in err
        assert "epoch 2 of 2 100.0%" in err
        card = json.loads(weights.with_suffix(".json").read_text())
        assert (card["epochs"], card["batch"], card["dataset"]) == (2, 16, f"arrays:{pictures_file}")
        found = document("detect", f"arrays:{pictures_file}", "--encoder", "toy", "--detector", "knn-label")
        assert found["n"] == 60

    def test_stopped_and_resumed(self, run, pictures_file, tmp_path, monkeypatch):
        from chaffinch.encoders import train as module

        real, unbroken, broken = module.train_encoder, tmp_path / "unbroken", tmp_path / "broken"
        argv = ("train-encoder", f"arrays:{pictures_file}", *TRAIN, "--out")
        assert run(*argv, unbroken)[0] == 0

        def stopped(*args):
            for step, progress in enumerate(real(*args)):
                if step == 4:  # three steps an epoch: in the middle of the second
                    raise KeyboardInterrupt
                yield progress

        monkeypatch.setattr(module, "train_encoder", stopped)
        code, out, err = run(*argv, broken)
        assert (code, out) == (1, "")
        assert f"stopped; the same command goes on from the last whole epoch in {broken}" in err
        assert [p.name for p in broken.iterdir()] == ["toy.partial.safetensors"]

        monkeypatch.setattr(module, "train_encoder", real)
        code, out, err = run(*argv, broken)
        assert (code, out) == (0, f"trained: {broken / 'toy'}.safetensors\n")
        assert "epoch 2 of 2" in err
        assert "epoch 1 of 2" not in err
        assert sorted(p.name for p in broken.iterdir()) == ["toy.json", "toy.record.safetensors", "toy.safetensors"]
        assert (broken / "toy.safetensors").read_bytes() == (unbroken / "toy.safetensors").read_bytes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--loss", "simclrr"], "no loss called 'simclrr'; did you mean simclr"),
            (["--architecture", "resnet-50"], "unknown architecture 'resnet-50'"),
            (["--epochs", "0"], "at least one epoch, got 0"),
            (["--batch", "1"], "at least two pictures in a batch, got 1"),
            (["--seed", "-1"], "seed must be 0 to 4294967295, got -1"),
            (["--device", "abacus"], "device 'abacus' is not available"),
            (["--temperature", "0"], "temperature must be above 0 and finite, got 0.0"),
            (["--set", "temperature"], "--set temperature: write NAME=VALUE"),
            (["--set", "warmth=1"], "simclr has no parameter 'warmth'"),
            (["--set", "temperature=hot"], "simclr: temperature must be float, got 'hot'"),
            (["--loss", "all"], "--name, --temperature and --set are for one loss"),
            (["--loss", "sepclr"], "sepclr needs samples known to be clean"),
        ],
    )
    def test_bad_options(self, run, pictures_file, tmp_path, options, message):
        argv = ("train-encoder", f"arrays:{pictures_file}", *TRAIN, *options, "--out", tmp_path / "e")
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert message in err
        assert not list((tmp_path / "e").glob("*"))

    def test_labels_of_one_class_train_no_loss_that_compares_classes(self, run, document, tmp_path):
        np.savez(tmp_path / "one.npz", images=np.zeros((8, 12, 12), np.uint8), labels=np.zeros(8, int))
        argv = ("train-encoder", f"arrays:{tmp_path / 'one.npz'}", *TRAIN, "--out", tmp_path / "e")
        code, out, err = run(*argv, "--loss", "supcon")
        assert (code, out) == (2, "")
        assert "supcon needs labels of at least two classes" in err
        assert run(*argv, "--loss", "dcl")[0] == 0

    def test_parameters_of_the_loss_are_on_the_card(self, run, pictures_file, tmp_path):
        options = ("--loss", "gce", "--set", "q=0.5", "--out", tmp_path)
        assert run("train-encoder", f"arrays:{pictures_file}", *TRAIN, *options)[0] == 0
        card = json.loads((tmp_path / "toy.json").read_text())
        assert card["loss"] == "gce"
        assert card["loss_parameters"]["q"] == 0.5

    def test_every_loss_that_applies(self, run, pictures_file, tmp_path):
        """One command trains them all, says what it leaves out, and does nothing twice."""
        options = ["--epochs", "1", "--batch", "30", "--architecture", "preact-resnet-8-16-32", "--device", "cpu"]
        argv = ("train-encoder", f"arrays:{pictures_file}", *options, "--loss", "all", "--out", tmp_path)
        code, out, err = run(*argv)
        assert code == 0
        trained = {Path(line.removeprefix("trained: ")).stem for line in out.splitlines()}
        lacks = {line.split()[1].rstrip(":") for line in err.splitlines() if line.startswith("skipped")}
        assert trained | lacks == set(registry.methods("loss"))
        assert lacks == {"sepclr", "supremix"}
        before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        code, out, err = run(*argv)
        assert (code, out) == (0, "")
        assert err.count("is trained already") == len(trained)
        assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before

    def test_a_job_says_how_far_it_is(self, run, pictures_file, home):
        assert run("train-encoder", f"arrays:{pictures_file}", *TRAIN, "--job", "t1")[0] == 0
        note = json.loads((home / "notes" / "t1.json").read_text())
        assert (note["done"], note["encoder"], len(note["history"])) == (True, "toy", 2)
        with np.load(home / "results" / "live-t1.npz") as live:
            assert live["xy"].shape == (60, 2)

    def test_no_pictures(self, run, arrays_file):
        code, out, err = run("train-encoder", f"arrays:{arrays_file()}", *TRAIN)
        assert (code, out) == (2, "")
        assert "blobs.npz has no pictures to train an encoder on" in err

    def test_out_that_cannot_be_written(self, run, pictures_file):
        code, out, err = run("train-encoder", f"arrays:{pictures_file}", *TRAIN, "--out", pictures_file / "e")
        assert (code, out) == (2, "")
        assert "pictures.npz/e cannot be written" in err


ROBUST = ["--epochs", "2", "--batch", "16", "--architecture", "preact-resnet-8-16-32", "--device", "cpu"]


class TestTrain:
    def test_train_and_read_its_record(self, run, document, pictures_file, save_encoder, home):
        name = f"arrays:{pictures_file}"
        code, out, err = run("train", name, "--trainer", "small-loss", *ROBUST, "--name", "mine")
        assert code == 0
        assert out.endswith(f"trained: {home / 'runs' / 'mine'}\n")
        assert "small-loss: epoch 2 of 2 100.0%" in err
        save_encoder()
        options = ("detect", name, "--encoder", "tiny", "--detector", "aum")
        assert document(*options, "--run", "mine") != document(*options)
        code, out, err = run(*options, "--run", "yours")
        assert (code, out) == (2, "")
        assert "no readable run called 'yours'" in err
        assert "on this dataset: mine" in err
        (home / "runs" / "mine").rename(home / "elsewhere")
        assert document(*options, "--run", home / "elsewhere") != document(*options)

    def test_json(self, document, pictures_file, tmp_path):
        options = ("--trainer", "pls", "--set", "warmup=2", "--seed", "3", "--out", tmp_path)
        found = document("train", f"arrays:{pictures_file}", *ROBUST, *options)
        assert (found["trainer"], found["seed"], found["parameters"]["warmup"]) == ("pls", 3, 2)
        assert len(found["epochs"]) == 2
        assert Path(found["run"]).name.startswith("pls-s3-")

    def test_from_an_encoder(self, run, document, pictures_file, save_encoder):
        save_encoder()
        options = ("train", f"arrays:{pictures_file}", "--trainer", "ce", "--epochs", "1", "--start", "tiny")
        assert document(*options)["start"] == "tiny"
        code, out, err = run(*options)
        assert (code, out) == (2, "")
        assert "is trained already; give it another --name, or --overwrite it" in err
        assert run(*options, "--overwrite")[0] == 0

    def test_stopped_and_resumed(self, run, pictures_file, tmp_path, monkeypatch):
        from chaffinch.trainers import train as module

        real, whole, broken = module.train, tmp_path / "whole", tmp_path / "broken"
        argv = ("train", f"arrays:{pictures_file}", "--trainer", "mixup", *ROBUST, "--name", "m", "--out")
        assert run(*argv, whole)[0] == 0

        def stopped(*args):
            for step, progress in enumerate(real(*args)):
                if step == 5:  # four steps an epoch: in the middle of the second
                    raise KeyboardInterrupt
                yield progress

        monkeypatch.setattr(module, "train", stopped)
        code, out, err = run(*argv, broken)
        assert (code, out) == (1, "")
        assert f"stopped; the same command goes on from the last whole epoch in {broken / 'm'}" in err
        monkeypatch.setattr(module, "train", real)
        code, _, err = run(*argv, broken)
        assert code == 0
        assert "epoch 1 of 2" not in err
        one, other = (folder / "m" / "model.safetensors" for folder in (whole, broken))
        assert one.read_bytes() == other.read_bytes()

    def test_a_job_says_how_far_it_is(self, run, pictures_file, home):
        options = ("--trainer", "mixup", *ROBUST, "--name", "mine", "--job", "t2")
        assert run("train", f"arrays:{pictures_file}", *options)[0] == 0
        note = json.loads((home / "notes" / "t2.json").read_text())
        assert (note["done"], note["run"], len(note["history"])) == (True, "mine", 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--trainer", "mixedup"], "no trainer called 'mixedup'; did you mean mixup"),
            (["--set", "warmth=1"], "pls-lsa has no parameter 'warmth'"),
            (["--set", "warmup=0"], "warmup must be at least 1 epoch, got 0"),
            (["--trainer", "sncf"], "choose one with --start"),
            (["--start", "nobody"], "there is no encoder called 'nobody'"),
            (["--learning-rate", "0"], "the learning rate must be a number above 0, got 0.0"),
            (["--name", "../away"], "--name '../away': use letters"),
            (["--seed", "-1"], "seed must be 0 to 4294967295, got -1"),
        ],
    )
    def test_bad_options(self, run, pictures_file, tmp_path, options, message):
        code, out, err = run("train", f"arrays:{pictures_file}", *ROBUST, "--out", tmp_path / "r", *options)
        assert (code, out) == (2, "")
        assert message in err
        assert not list((tmp_path / "r").rglob("*.safetensors"))


class TestExperiment:
    def test_a_tiny_one(self, run, document, tmp_path):
        """As a first-time user would try it; the whole takes hours."""
        options = ["--noise", "0.6", "--trainer", "mixup", "--trainer", "pls-lsa", "--seeds", "1", "--samples", "120"]
        argv = ("experiment", "lesson", *options, "--epochs", "2", "--start-epochs", "1", "--out", tmp_path / "x")
        found = document(*argv, "--ship", tmp_path / "shipped")
        assert [(row["trainer"], row["noise"], row["seed"]) for row in found["rows"]] == [
            ("mixup", 0.6, 0),
            ("pls-lsa", 0.6, 0),
        ]
        assert all(0 <= row["accuracy_last"] <= row["accuracy_best"] <= 1 for row in found["rows"])
        assert {p.name for p in (tmp_path / "shipped").iterdir()} == {"lesson.json", "lesson-0.6.npz"}
        assert json.loads((tmp_path / "shipped" / "lesson.json").read_text()) == found
        code, out, err = run(*argv)
        assert code == 0
        assert "mixup            60%     1" in out
        assert out.endswith(f"written: {tmp_path / 'x' / 'lesson.json'}\n")
        assert "SimCLR start" not in err, "nothing is done again"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["lessons"], "no experiment called 'lessons'; there are lesson"),
            (["lesson", "--share", "3/2"], "--share 3/2: write I/N"),
            (["lesson", "--share", "half"], "--share half: write I/N"),
            (["lesson", "--trainer", "pls-lsb"], "no trainer called 'pls-lsb'"),
            (["lesson", "--noise", "2"], "noise"),
            (["lesson", "--epochs", "-1"], "at least one epoch"),
        ],
    )
    def test_bad_options(self, run, tmp_path, options, message):
        code, out, err = run("experiment", *options, "--out", tmp_path / "x")
        assert (code, out) == (2, "")
        assert message in err


class TestCompareEncoders:
    def test_json_and_table(self, run, document, pictures_file, save_encoder, home, tmp_path):
        save_encoder()
        found = document(
            "compare-encoders", f"arrays:{pictures_file}", "--encoder", "tiny", "--ship", tmp_path / "ship"
        )
        assert list(found) == ["encoders", "skipped"]
        row = found["encoders"]["tiny"]
        assert {"alignment", "uniformity", "effective_rank", "isotropy", "seeds", "sd", "detectors"} <= set(row)
        assert {"auroc_ood", "auroc_mislabelled"} <= set(row["detectors"]["small-loss"])
        shipped = {p.name.partition("-")[0] for p in (tmp_path / "ship").iterdir()}
        assert shipped == {"encoder", "map", "verdict"}
        code, out, _ = run("compare-encoders", f"arrays:{pictures_file}", "--encoder", "tiny")
        assert code == 0
        assert f"{row['uniformity']:.3f}" in out

    def test_of_further_seeds_only_the_figures_are_shipped(self, document, pictures_file, save_encoder, tmp_path):
        for seed in (0, 1):
            save_encoder(f"tiny-s{seed}", seed=seed)
        both = ("--encoder", "tiny-s0", "--encoder", "tiny-s1")
        found = document("compare-encoders", f"arrays:{pictures_file}", *both, "--ship", tmp_path)
        assert {name: row["encoders"] for name, row in found["encoders"].items()} == {"tiny-s0": ["tiny-s0", "tiny-s1"]}
        shipped = sorted(p.name.partition("-")[0] for p in tmp_path.glob("*-*"))
        assert shipped == ["encoder", "encoder", "map", "verdict"]

    def test_shipped_beside_the_encoders_their_cards_carry_the_figures(
        self, run, document, pictures_file, save_encoder, workspace, tmp_path
    ):
        path = save_encoder(seconds_per_epoch=1.5).with_suffix(".json")
        dataset = f"arrays:{pictures_file}"
        run("compare-encoders", dataset, "--encoder", "tiny", "--ship", tmp_path / "results")
        assert json.loads(path.read_text())["metrics"] == {}, "that folder is not beside the encoders"
        found = document("compare-encoders", dataset, "--encoder", "tiny", "--ship", workspace.root / "results")
        row = found["encoders"]["tiny"]
        card = load_card(path)
        assert card.metrics.pop("command") == f"chaffinch compare-encoders {dataset} --encoder tiny --seed 0 --json"
        for slug, figures in card.metrics.pop("detectors").items():
            assert figures == pytest.approx(row["detectors"][slug], abs=5e-5)
        assert card.metrics.pop("called") == row["called"]
        assert card.metrics == pytest.approx({key: row[key] for key in card.metrics}, abs=5e-5)
        assert {"verdict_macro_f1", "alignment"} <= set(card.metrics)
        assert card.seconds_per_epoch == row["seconds_per_epoch"] == 1.5

    def test_unknown(self, run, pictures_file):
        code, out, err = run("compare-encoders", f"arrays:{pictures_file}", "--encoder", "nobody")
        assert (code, out) == (2, "")
        assert "there is no encoder called 'nobody'" in err


class TestCheck:
    def test_json(self, document, tmp_path):
        told = document("check", put(tmp_path / "planted", planted()), "--show", "1")
        assert set(told) == {"dataset", "n", "checks", "skipped"}
        assert {check: found["flagged"] for check, found in told["checks"].items()} == {
            "duplicates": 8, "leaks": 2, **dict.fromkeys(CHANGES, 1),
        }  # fmt: skip
        assert told["checks"]["dark"]["samples"][0]["id"] == "train/a/dark.png"
        assert set(told["checks"]["leaks"]) == {"flagged", "samples", "test_samples", "of"}
        assert (told["n"], told["skipped"]) == (51, {})

    def test_words(self, run, tmp_path):
        name = put(tmp_path / "planted", planted())
        code, out, _ = run("check", name, "--identical", "--encoder", "none", "--quiet")
        assert code == 0
        assert "(duplicates): 4, 2 groups (1 of them under different labels), 2 could go" in out
        assert "(leaks): 1, copies of 1 of 10 test samples" in out
        assert "  train/a/006.png: also in the test set: test/a/leak.png, identical" in out
        assert "\nblank: 1\n" in out

    def test_what_cannot_be_checked(self, run, arrays_file):
        code, out, _ = run("check", f"arrays:{arrays_file()}", "--encoder", "features", "--quiet")
        assert code == 0
        assert "skipped leaks: there is no test split" in out
        assert "skipped dark: there are no pictures" in out

    def test_as_a_job_of_the_app(self, run, workspace, arrays_file):
        assert run("check", f"arrays:{arrays_file()}", "--encoder", "features", "--job", "j")[0] == 0
        assert workspace.noted("j") == {"done": True}


class TestWorkspace:
    def test_sizes(self, document, workspace):
        workspace.store("step", "k", {"x": np.zeros(1000)})
        told = document("workspace")
        assert told["workspace"] == str(workspace.root)
        assert told["bytes"]["results"] > 8000
        assert (told["bytes"]["decisions"], told["freed"]) == (0, 0)

    def test_clearing_asks_and_never_takes_decisions_unnamed(self, run, workspace):
        path = workspace.store("step", "k", {"x": np.zeros(1000)})
        workspace.decisions.write_bytes(b"decided")
        code, out, err = run("workspace", "--clear", "all")
        assert (code, out) == (2, "")
        assert re.search(r"this would remove results \(8\.\d kB\), .*; add --yes to do it", err)
        assert path.exists()
        code, out, _ = run("workspace", "--clear", "all", "--yes")
        assert code == 0
        assert "freed: 8." in out
        assert not path.exists()
        assert workspace.decisions.read_bytes() == b"decided"
        assert run("workspace", "--clear", "decisions", "--yes")[0] == 0
        assert not workspace.decisions.exists()


def test_stopped_anywhere(run, arrays_file, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("chaffinch.study.run_detectors", stop)
    assert run("detect", f"arrays:{arrays_file()}", "--quiet") == (1, "", "\nchaffinch: stopped\n")


def test_meter_says_each_tenth_once(capsys):
    meter = Meter()
    for i in range(1001):
        meter("counting", i / 1000)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1] == "counting 100.0%"
    meter("again", 0.05, left=187, detail=", loss 1")
    assert capsys.readouterr().err == "again   5.0%, loss 1, 3:07 left\n"
    assert clock(59.9) == "0:59"


def test_no_verdict_is_told_where_everything_was_asked_for(document, arrays_file):
    name = f"arrays:{arrays_file(rows=slice(12))}"
    found = document("detect", name, "--detector", "all", "--verdict")
    assert "verdict" not in found
    assert "too few" in found["skipped"]["verdict"]


class TestApp:
    @pytest.fixture
    def served(self, run, monkeypatch):
        """A function that runs ``app`` and returns the dataset that the server would open."""

        def call(name):
            given = []
            monkeypatch.setattr(os, "execve", lambda path, argv, environment: given.append(environment))
            monkeypatch.setattr(subprocess, "call", lambda argv, env: given.append(env) or 0)
            run("app", name)
            return Spec.from_toml(given[0]["CHAFFINCH_SPEC"]).dataset

        return call

    @pytest.mark.parametrize("kind", ["folder", "hf", "table", "arrays"])
    def test_the_server_changes_its_folder_so_paths_are_made_absolute(self, served, kind, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        (tmp_path / "data.csv").touch()
        path = "data.csv" if kind in ("table", "arrays") else "data"
        assert served(f"{kind}:./{path}") == f"{kind}:{tmp_path / path}"

    @pytest.mark.parametrize("kind", ["folder", "hf", "table", "arrays"])
    def test_a_path_that_is_not_there_is_an_error_now(self, run, kind, tmp_path):
        code, out, err = run("app", f"{kind}:{tmp_path / 'none'}")
        assert (code, out) == (2, "")
        assert "none" in err
