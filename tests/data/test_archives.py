"""Zip archives: what is in them opens, and what must not be unpacked is refused by name before anything is written."""

import io
import os
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.data import archives, open_dataset
from chaffinch.data.archives import unpack


def png(value=90):
    stream = io.BytesIO()
    Image.new("L", (6, 6), value).save(stream, "PNG")
    return stream.getvalue()


def archive(members, compression=zipfile.ZIP_DEFLATED):
    """An archive of (name or ZipInfo, bytes) pairs."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, raw in members.items() if isinstance(members, dict) else members:
            file.writestr(name, raw)
    return stream


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


CLASSES = {"cat/1.png": png(1), "owl/2.png": png(2)}


class TestWhatIsInIt:
    @pytest.mark.parametrize("above", ["", "birds/", "a/b/c/"])
    def test_class_folders(self, tmp_path, above):
        name = unpack(archive({above + path: raw for path, raw in CLASSES.items()}), tmp_path)
        assert name.startswith("folder:")
        assert open_dataset(name).observed.ids.tolist() == list(CLASSES)

    def test_one_class_alone_is_still_a_class(self, tmp_path):
        assert open_dataset(unpack(archive({"cat/1.png": png()}), tmp_path)).observed.classes == ("cat",)

    def test_a_table_beside_its_pictures(self, tmp_path):
        members = {"d/t.csv": b"image,label\np/1.png,a\np/2.png,b\n", "d/p/1.png": png(), "d/p/2.png": png()}
        name = unpack(archive(members), tmp_path)
        assert name.startswith("table:")
        assert name.endswith("/d/t.csv")
        assert open_dataset(name).observed.classes == ("a", "b")

    def test_what_a_mac_adds_and_what_is_hidden_is_passed_over(self, tmp_path):
        extra = {"__MACOSX/cat/._1.png": b"x", ".DS_Store": b"x", "cat/.hidden.png": b"x"}
        unpack(archive(CLASSES | extra), tmp_path)
        assert [path for path in listing(tmp_path) if "." in path.replace(".png", "")] == []
        assert "MACOSX" not in " ".join(listing(tmp_path))

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({}, "neither class folders with pictures nor a table"),
            ({"1.png": png()}, "neither class folders with pictures nor a table"),
            ({"cat/notes.txt": b"x"}, "neither class folders with pictures nor a table"),
            ({"a.csv": b"x", "b.csv": b"x"}, r"more than one table \(a\.csv, b\.csv\)"),
        ],
    )
    def test_nothing_usable_leaves_nothing_behind(self, tmp_path, members, message):
        with pytest.raises(InputError, match=message):
            unpack(archive(members), tmp_path)
        assert listing(tmp_path) == []


class TestOnceForAll:
    def test_the_same_archive_is_unpacked_once(self, tmp_path, monkeypatch):
        first = unpack(archive(CLASSES), tmp_path)
        monkeypatch.setattr(archives, "_extract", lambda *_: pytest.fail("unpacked again"))
        assert unpack(archive(CLASSES), tmp_path) == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_unpacked_elsewhere_it_is_the_same_dataset(self, tmp_path):
        found = []
        for place in ("a", "b"):
            (tmp_path / place).mkdir()
            found.append(open_dataset(unpack(archive(CLASSES), tmp_path / place)))
        assert found[0].digest == found[1].digest
        assert found[0].name != found[1].name

    def test_another_session_that_was_quicker_is_no_error(self, tmp_path, monkeypatch):
        extract = archives._extract

        def late(stream, folder):
            extract(stream, folder)
            monkeypatch.setattr(archives, "_extract", extract)
            unpack(archive(CLASSES), tmp_path)

        monkeypatch.setattr(archives, "_extract", late)
        assert len(open_dataset(unpack(archive(CLASSES), tmp_path))) == 2
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_date_that_does_not_exist(self, tmp_path):
        info = zipfile.ZipInfo("cat/1.png", (1980, 0, 0, 0, 0, 0))
        assert len(open_dataset(unpack(archive([(info, png())]), tmp_path))) == 1


def linked():
    info = zipfile.ZipInfo("cat/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [*CLASSES.items(), (info, b"/etc/passwd")]


def encrypted():
    raw = archive(CLASSES).getvalue()
    first = raw.index(b"PK\x01\x02")
    return io.BytesIO(raw[: first + 8] + bytes([raw[first + 8] | 1]) + raw[first + 9 :])


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return archive([*CLASSES.items(), ("cat/1.png", png(9))])


class TestRefused:
    @pytest.mark.parametrize(
        "name",
        ["../evil.png", "cat/../../evil.png", "/evil.png", "//host/evil.png", "C:/evil.png", "C:evil.png", "cat//1.png",
         "cat\\..\\evil.png", "./../x.png", "..", "cat/./1.png"],
    )  # fmt: skip
    def test_a_path_out_of_the_folder(self, tmp_path, name):
        info = zipfile.ZipInfo("x")
        info.filename = name  # the constructor would mend some of them
        (tmp_path / "in").mkdir()
        with pytest.raises(InputError, match=r"the archive is refused: .* has a path that could leave its folder"):
            unpack(archive([*CLASSES.items(), (info, png())]), tmp_path / "in")
        assert listing(tmp_path) == ["in"]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: archive(linked()), r"cat/link\.png is a link"),
            (encrypted, r"cat/1\.png is encrypted"),
            (twice, r"cat/1\.png is there twice"),
            (lambda: archive({**CLASSES, "owl/b.png": bytes(5 * 2**20)}), r"owl/b\.png unpacks to .* times its size"),
            (lambda: archive(CLASSES, zipfile.ZIP_LZMA), r"cat/1\.png is compressed in another way than deflate"),
        ],
    )  # fmt: skip
    def test_a_member_is_named(self, tmp_path, make, message):
        with pytest.raises(InputError, match=f"the archive is refused: {message}"):
            unpack(make(), tmp_path)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize(
        ("limit", "value", "message"), [("MOST_FILES", 1, "holds 2 files"), ("MOST_BYTES", 100, "unpacks to .* bytes")]
    )
    def test_too_much(self, tmp_path, monkeypatch, limit, value, message):
        monkeypatch.setattr(archives, limit, value)
        with pytest.raises(InputError, match=message):
            unpack(archive(CLASSES), tmp_path)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize(
        "raw", [b"", b"no zip", archive(CLASSES).getvalue()[:-30], archive(CLASSES).getvalue()[30:]]
    )
    def test_no_archive(self, tmp_path, raw):
        with pytest.raises(InputError, match="the archive cannot be read as a zip file"):
            unpack(io.BytesIO(raw), tmp_path)
        assert listing(tmp_path) == []

    def test_a_size_that_lies(self, tmp_path):
        """A member that says it is small gives no more than it says, and its checksum is wrong."""
        raw = bytearray(archive({"cat/1.png": os.urandom(3000)}, zipfile.ZIP_STORED).getvalue())
        at = raw.index(b"PK\x01\x02") + 24
        raw[at : at + 4] = (10).to_bytes(4, "little")
        with pytest.raises(InputError, match="cannot be read as a zip file"):
            unpack(io.BytesIO(bytes(raw)), tmp_path)
        assert listing(tmp_path) == []

    def test_a_file_in_the_place_of_a_folder(self, tmp_path):
        with pytest.raises(InputError, match="the archive cannot be unpacked"):
            unpack(archive({"cat": b"x", "cat/1.png": png()}), tmp_path)
        assert listing(tmp_path) == []


def test_mutated_bytes_give_a_dataset_or_an_input_error(tmp_path):
    rng, good, usable = np.random.default_rng(3), archive(CLASSES).getvalue(), 0
    (tmp_path / "in").mkdir()
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(rng.integers(5)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        try:
            open_dataset(unpack(io.BytesIO(bytes(raw)), tmp_path / "in"))
            usable += 1
        except InputError:
            continue
    assert 0 < usable < 300
    assert listing(tmp_path)[0] == "in"
    assert not [path for path in listing(tmp_path) if "unpacking" in path]
    assert all(path.startswith("in") for path in listing(tmp_path))
