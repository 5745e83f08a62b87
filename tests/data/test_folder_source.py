"""`folder:` reads class folders, leaves out what it must not or cannot use, by name, and goes through the whole."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.cli import main
from chaffinch.data import folders, open_dataset, pictures
from chaffinch.data.sources import fingerprint, recognise, resolved
from chaffinch.study import Study


def png(value=90, size=(12, 12)):
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A function that writes files (relative path -> bytes; default a picture) and returns the folder."""

    def write(*names, **files):
        root = tmp_path / "birds"
        for name, raw in {**dict.fromkeys(names, png()), **files}.items():
            path = root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        return root

    return write


def opened(root):
    return open_dataset(f"folder:{root}")


class TestClasses:
    def test_each_sub_folder_is_one(self, folder):
        root = folder("owl/1.png", "cat/b.png", "cat/a.JPG", "cat/deep/er/c.png")
        d = opened(root)
        assert d.observed.classes == ("cat", "owl")
        assert d.observed.ids.tolist() == ["cat/a.JPG", "cat/b.png", "cat/deep/er/c.png", "owl/1.png"]
        assert d.observed.labels.tolist() == [0, 0, 0, 1]
        assert d.observed.images.shape == (4, 12, 12)
        assert (d.name, d.truth, d.test, d.warnings) == (f"folder:{root}", None, None, ())
        assert d.note == "4 pictures; 12 × 12 pixels, grey"

    def test_train_and_test(self, folder):
        root = folder("train/cat/1.png", "train/owl/2.png", "test/owl/3.png", "test/fox/4.png", "val/cat/5.png")
        (root / "test/owl/3.png").write_bytes(png(7))
        d = opened(root)
        assert d.observed.ids.tolist() == ["train/cat/1.png", "train/owl/2.png"]
        assert d.observed.classes == ("cat", "owl")
        assert d.test.labels.tolist() == [1]
        assert (d.test.images[0] == 7).all()
        assert d.warnings == (
            "val/cat/5.png lies in no class folder of train and test; it is left out",
            "test/fox/4.png is of a class that train has not; it is left out",
        )
        assert d.note.startswith("2 pictures and 1 for the test; ")

    @pytest.mark.parametrize("names", [("train/1.png", "test/2.png"), ("train/cat/1.png", "owl/2.png")])
    def test_train_and_test_are_classes_like_others_where_they_hold_none(self, folder, names):
        assert set(opened(folder(*names)).observed.classes) == {name.split("/")[0] for name in names}

    def test_ten_thousand_classes(self, folder):
        root, raw = folder("c/0.png"), png(size=(2, 2))
        for i in range(10_000):
            (root / f"k{i:05d}").mkdir()
            (root / f"k{i:05d}" / "1.png").write_bytes(raw)
        d = opened(root)
        assert len(d.observed.classes) == len(d) == 10_001
        assert d.observed.labels.tolist() == list(range(10_001))

    def test_names_of_every_kind(self, folder):
        names = ["naïve 雀/🐦.png", "two\nlines/a\tb.png", "=1+1/@x.png", " spaced /1.png", "%41/#1?.png"]
        d = opened(folder(*names))
        assert sorted(d.observed.ids.tolist()) == sorted(names)
        assert set(d.observed.classes) == {name.split("/")[0] for name in names}
        assert len(d.digest) == 20

    def test_what_is_not_a_picture_is_counted(self, folder):
        root = folder("cat/1.png", "cat/notes.txt", "a.csv", "loose.png", ".hidden/x.png", "cat/.DS_Store")
        d = opened(root)
        assert d.observed.ids.tolist() == ["cat/1.png"]
        assert d.warnings == (
            "2 files are no pictures by their names; they are left out (a.csv, cat/notes.txt)",
            "loose.png lies in no class folder; it is left out",
        )

    def test_twenty_of_those_are_named(self, folder):
        (line,) = opened(folder("cat/1.png", *(f"cat/{i:04d}.txt" for i in range(1_022)))).warnings
        assert line.startswith(
            "1,022 files are no pictures by their names; they are left out (cat/0000.txt, cat/0001.txt"
        )
        assert line.endswith("cat/0018.txt, cat/0019.txt and 1,002 more)")


class TestUnreadable:
    def test_the_rest_is_used_and_each_is_named(self, folder):
        files = {"cat/0.png": b"", "cat/1.png": b"text", "cat/2.png": png()[:50], "owl/a\nb.png": b"x"}
        d = opened(folder("cat/9.png", "owl/9.png", **files))
        assert d.observed.ids.tolist() == ["cat/9.png", "owl/9.png"]
        assert [line.split(" is ")[0] for line in d.warnings] == [
            "cat/0.png",
            "cat/1.png",
            "cat/2.png",
            "owl/a\\nb.png",
        ]

    def test_a_class_without_a_readable_picture_is_none(self, folder):
        assert opened(folder("cat/9.png", **{"owl/1.png": b""})).observed.classes == ("cat",)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "holds no pictures in class folders"),
            ({"loose.png": png()}, "holds no pictures in class folders.*loose.png lies in no class folder"),
            ({"cat/1.txt": b"x"}, r"holds no pictures in class folders.*cat/1\.txt is no picture by its name"),
            ({"cat/1.png": b"x"}, r"none of 1 pictures looked at can be read; the first: cat/1\.png is no picture"),
            ({"train/cat/1.png": b"", "test/cat/1.png": png()}, "train holds no picture that can be read"),
        ],
    )
    def test_nothing_usable(self, folder, files, message):
        root = folder(**files)
        root.mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            opened(root)

    def test_no_folder(self, tmp_path, folder):
        with pytest.raises(InputError, match="nowhere does not exist"):
            opened(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"1\.png is no folder"):
            opened(folder("cat/1.png") / "cat" / "1.png")
        with pytest.raises(InputError, match="unknown dataset 'folder:'"):
            open_dataset("folder:")
        with pytest.raises(InputError, match="no path can have"):
            open_dataset("folder:a\0b")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
class TestSafety:
    def test_links_that_leave_the_folder_are_refused(self, folder, tmp_path):
        root = folder("cat/1.png", "cat/2.png")
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "s.png").write_bytes(png(1))
        (root / "cat" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
        (root / "dog").symlink_to(tmp_path / "secret")
        (root / "cat" / "in.png").symlink_to(root / "cat" / "1.png")
        (root / "cat" / "loop").symlink_to(root)
        (root / "cat" / "broken.png").symlink_to(root / "cat" / "none.png")
        d = opened(root)
        assert d.observed.ids.tolist() == ["cat/1.png", "cat/2.png", "cat/in.png"]
        assert (d.observed.images[2] == 90).all()
        assert d.warnings == (
            "dog is a link that leaves the folder; it is left out",
            "cat/broken.png is neither a file nor a folder; it is left out",
            "cat/loop is a link to a folder; it is left out",
            "cat/out.png is a link that leaves the folder; it is left out",
        )

    def test_a_folder_beside_with_the_same_beginning_is_outside(self, folder, tmp_path):
        root = folder("cat/1.png")
        (tmp_path / "birds-secret").mkdir()
        (tmp_path / "birds-secret" / "s.png").write_bytes(png(1))
        (root / "cat" / "out.png").symlink_to(tmp_path / "birds-secret" / "s.png")
        assert opened(root).observed.ids.tolist() == ["cat/1.png"]

    def test_the_folder_itself_may_be_a_link(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder("cat/1.png"))
        assert (opened(tmp_path / "link").observed.images[0] == 90).all()

    def test_a_folder_of_everything_is_not_listed_to_its_end(self, folder, monkeypatch):
        monkeypatch.setattr(folders, "MOST_FILES", 3)
        root = folder("cat/1.png", "cat/2.png")
        assert len(opened(root)) == 2
        folder("cat/3.png")
        for open_ in (opened, lambda root: fingerprint(f"folder:{root}")):
            with pytest.raises(InputError, match="more than 3 files; name a folder closer to the pictures"):
                open_(root)

    def test_a_pipe_does_not_stop_it(self, folder):
        root = folder("cat/1.png")
        os.mkfifo(root / "cat" / "pipe.png")
        assert opened(root).warnings == ("cat/pipe.png is neither a file nor a folder; it is left out",)

    @pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
    def test_a_name_that_is_no_text_is_left_out(self, folder):
        root = folder("cat/1.png")
        (root / "cat" / os.fsdecode(b"\xff.png")).write_bytes(png())
        assert opened(root).warnings == ("cat/\\udcff.png has a name that is not UTF-8; it is left out",)


class TestLazy:
    def test_of_a_large_folder_only_some_headers_are_read(self, folder, monkeypatch):
        root = folder(*(f"cat/{i}.png" for i in range(30)))
        monkeypatch.setattr(pictures, "CHECKED", 10)
        monkeypatch.setattr(pictures, "HEADERS", 4)
        monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded"))
        looked = []
        look = pictures.look
        monkeypatch.setattr(pictures, "look", lambda source: looked.append(source) or look(source))
        d = opened(root)
        assert len(d) == 30
        assert len(looked) == 4
        assert d.digest

    def test_the_digest_and_the_fingerprint_follow_the_files(self, folder):
        root = folder("cat/1.png", "owl/2.png")
        name = f"folder:{root}"
        seen = {(opened(root).digest, fingerprint(name))}
        assert {(opened(root).digest, fingerprint(name))} == seen
        changes = [
            lambda: (root / "owl" / "3.png").write_bytes(png()),
            lambda: (root / "owl" / "3.png").rename(root / "owl" / "4.png"),
            lambda: (root / "owl" / "4.png").write_bytes(png(size=(12, 13))),
            lambda: os.utime(root / "owl" / "4.png", ns=(1, 1)),
        ]
        for change in changes:
            change()
            seen.add((opened(root).digest, fingerprint(name)))
        assert len({a for a, _ in seen}) == len({b for _, b in seen}) == 5

    def test_the_fingerprint_of_many_files_follows_their_names(self, folder, monkeypatch):
        monkeypatch.setattr(folders, "CHECKED", 1)
        root = folder("cat/1.png", "owl/2.png")
        before = fingerprint(f"folder:{root}")
        assert fingerprint(f"folder:{root}") == before
        folder("cat/3.png")
        assert fingerprint(f"folder:{root}") != before


@pytest.fixture
def striped(tmp_path, pictures):
    """A folder of the pictures of stripes, and one that is damaged."""
    o = pictures.observed
    for picture, label, name in zip(o.images, o.labels, o.ids, strict=True):
        path = tmp_path / "striped" / o.classes[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    (tmp_path / "striped" / "rows" / "broken.png").write_bytes(b"oh")
    return tmp_path / "striped"


class TestThroughTheWhole:
    def test_features_are_those_of_the_same_pictures_in_memory(self, striped, pictures, save_encoder):
        save_encoder()
        study = Study(f"folder:{striped}", "tiny")
        places = [study.position(f"{pictures.observed.classes[y]}/{i}.png")
                  for i, y in zip(pictures.observed.ids, pictures.observed.labels, strict=True)]  # fmt: skip
        np.testing.assert_allclose(study.embed()[places], Study(pictures, "tiny").embed(), atol=1e-6)

    def test_what_cannot_be_decoded_is_remembered_with_the_features(self, striped, save_encoder, monkeypatch):
        save_encoder()
        monkeypatch.setattr("chaffinch.data.pictures.CHECKED", 1)
        monkeypatch.setattr("chaffinch.data.pictures.HEADERS", 2)
        for reason in ("is no picture that is read here", "cannot be decoded"):  # the second time features are there
            study = Study(f"folder:{striped}", "tiny")
            assert study.dataset.undecoded == ()
            assert study.embed().shape == (61, 32)
            assert len(study.dataset.undecoded) == 1
            assert study.dataset.undecoded[0].startswith(f"rows/broken.png {reason}")
            assert study.dataset.undecoded[0].endswith("; a grey picture stands in its place")

    def test_the_command_uses_the_rest_and_warns(self, striped, save_encoder, capsys):
        save_encoder()
        code = main(
            ["detect", f"folder:{striped}", "--encoder", "tiny", "--detector", "knn-label", "--json", "--quiet"]
        )
        out, err = capsys.readouterr()
        assert code == 0
        assert json.loads(out)["n"] == 60
        assert json.loads(out)["dataset"] == f"folder:{striped}"
        assert [line.split(" is ")[0] for line in err.splitlines()] == ["chaffinch: warning: rows/broken.png"]

    def test_the_command_ends_with_2_where_nothing_is_usable(self, folder, capsys):
        assert main(["detect", f"folder:{folder(**{'cat/1.png': b''})}", "--json"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("chaffinch: ")
        assert "cat/1.png is empty" in err

    def test_a_shipped_encoder_takes_colour_pictures_of_any_size(self, folder):
        rng = np.random.default_rng(1)
        for i in range(4):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (30 + i, 60, 3), dtype=np.uint8)).save(stream, "PNG")
            root = folder(**{f"c{i % 2}/{i}.png": stream.getvalue()})
        found = Study(f"folder:{root}", "simclr").embed()
        assert found.shape == (4, 128)
        assert np.isfinite(found).all()

    def test_training_reads_them(self, striped, workspace, capsys):
        options = ["--epochs", "1", "--batch", "16", "--architecture", "preact-resnet-8-16-32", "--device", "cpu"]
        assert main(["train-encoder", f"folder:{striped}", *options, "--name", "own", "--quiet"]) == 0
        assert "rows/broken.png" in capsys.readouterr().err
        options[-3] = "half-preact-resnet-32-64-128"
        assert main(["train", f"folder:{striped}", "--trainer", "ce", *options, "--quiet"]) == 0
        assert (workspace.root / "encoders" / "own.safetensors").exists()


class TestNames:
    def test_a_bare_path_is_recognised(self, folder, tmp_path):
        root = folder("cat/1.png")
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "dataset_info.json").write_text("{}")
        expected = {
            str(root): f"folder:{root}", str(saved): f"hf:{saved}", "a.csv": "table:a.csv",
            "b.PARQUET": "table:b.PARQUET", "c.npz": "arrays:c.npz", "folder:x": "folder:x",
            "fashion-web:seed=1": "fashion-web:seed=1", "": "",
            "nothing:x": "nothing:x", "/no/where": "/no/where", "a\0b": "a\0b",
        }  # fmt: skip
        assert {path: recognise(path) for path in expected} == expected

    def test_a_relative_path_means_the_same_from_elsewhere(self, folder, monkeypatch):
        root = folder("cat/1.png")
        monkeypatch.chdir(root.parent)
        assert resolved("folder:birds") == f"folder:{root}"
        assert resolved("table:x/../t.csv") == f"table:{root.parent / 't.csv'}"
        assert resolved("fashion-web:seed=3") == "fashion-web:seed=3"


def test_opening_needs_no_heavy_library(folder):
    name = f"folder:{folder('cat/1.png')}"
    code = f"""
import sys
from chaffinch.data import open_dataset
open_dataset({name!r}).digest
print(*{{name.split(".")[0] for name in sys.modules}})"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "pyarrow", "sklearn", "streamlit"} & set(answer.stdout.split())


def test_many_files_are_listed_quickly(tmp_path):
    """Names and states only: far below the time that reading 20,000 files takes."""
    raw = png(size=(4, 4))
    for c in range(20):
        (tmp_path / f"c{c}").mkdir()
        for i in range(1000):
            (tmp_path / f"c{c}" / f"{i}.png").write_bytes(raw)
    started = time.process_time()
    d = opened(tmp_path)
    assert d.digest
    assert len(d) == 20_000
    assert time.process_time() - started < 3
