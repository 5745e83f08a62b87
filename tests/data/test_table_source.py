"""`table:` reads CSV and Parquet, drops rows it cannot use with a warning, and never leaves the table's folder."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.cli import main
from chaffinch.data import CLEAN, MISLABELLED, OOD, open_dataset
from chaffinch.data.sources import fingerprint, recognise
from chaffinch.exports import to_csv


def png(value=90, size=(12, 12)):
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def table(tmp_path):
    """A function that writes columns as a table (``.csv`` or ``.parquet``) beside four pictures and opens it."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "sub/c.png", "sub/naïve\n.png")):
        (folder / name).write_bytes(png(10 * i))

    def write_and_open(suffix=".csv", **columns):
        path = folder / f"t{suffix}"
        if suffix == ".csv":
            path.write_text(to_csv(pd.DataFrame(columns)), encoding="utf-8")
        else:
            pq.write_table(pa.table(columns), path)
        return open_dataset(f"table:{path}")

    return write_and_open


FOUR = ["a.png", "b.png", "sub/c.png", "sub/naïve\n.png"]
BOTH = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


@BOTH
class TestColumns:
    def test_all_of_them(self, table, suffix):
        matrix = [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
        lists = [json.dumps(row) for row in matrix] if suffix == ".csv" else matrix
        d = table(
            suffix, image=FOUR, label=["owl", "cat", "owl", "cat"], id=["=1", "-2", "@x", "y"], split=["train"] * 4,
            true_label=["owl", "owl", "a shoe", "cat"], kind=["clean", "mislabelled", "ood", "clean"],
            x=[0.0, 1.0, 2.0, 3.0], y=[3.0, 2.0, 1.0, 0.5], embedding=lists, pred_probs=lists,
        )  # fmt: skip
        o = d.observed
        assert o.classes == ("cat", "owl")
        assert o.labels.tolist() == [1, 0, 1, 0]
        assert o.ids.tolist() == ["=1", "-2", "@x", "y"]
        assert d.truth.kind.tolist() == [CLEAN, MISLABELLED, OOD, CLEAN]
        assert d.truth.labels.tolist() == [1, 1, -1, 0]
        np.testing.assert_array_equal(o.features, matrix)
        np.testing.assert_array_equal(o.pred_probs, matrix)
        assert o.xy.tolist() == [[0, 3], [1, 2], [2, 1], [3, 0.5]]
        assert [int(one[0, 0]) for one in o.images] == [0, 10, 20, 30]
        assert (d.test, d.warnings, d.note) == (None, (), "4 pictures; 12 × 12 pixels, grey")

    def test_the_smallest(self, table, suffix):
        d = table(suffix, image=FOUR, label=["1", "0", "1", "0"])
        assert d.observed.ids.tolist() == FOUR
        assert d.truth is None
        twice = table(suffix, image=["a.png", "a.png"], label=["1", "0"])
        assert twice.observed.ids.tolist() == ["0", "1"]

    @pytest.mark.parametrize(("column", "attribute"), [("embedding", "features"), ("pred_probs", "pred_probs")])
    def test_without_pictures(self, table, suffix, column, attribute):
        rows = [[0.5, 0.5], [0.1, 0.9]]
        values = [json.dumps(row) for row in rows] if suffix == ".csv" else rows
        d = table(suffix, label=["a", "b"], **{column: values})
        np.testing.assert_allclose(getattr(d.observed, attribute), rows, rtol=1e-6)
        assert d.observed.images is None
        assert d.note == "2 rows without pictures"

    def test_splits(self, table, suffix):
        d = table(suffix, image=FOUR, label=["b", "a", "b", "c"], split=["train", "", "test", "test"])
        assert d.observed.ids.tolist() == FOUR[:2]
        assert d.observed.classes == ("a", "b")
        assert d.test.labels.tolist() == [1]
        assert int(d.test.images[0][0, 0]) == 20
        assert d.warnings == ("sub/naïve\\n.png is of a class that train has not; it is left out",)
        other = table(suffix, image=FOUR, label=["a"] * 4, split=["train", "val", "val", "train"])
        assert other.warnings == ("2 rows are of another split than train and test (val); left out",)
        assert len(other) == 2

    def test_labels_are_names_in_their_order(self, table, suffix):
        d = table(suffix, image=FOUR, label=[10, 9, 100, 9])
        assert d.observed.classes == ("9", "10", "100")
        assert d.observed.labels.tolist() == [1, 0, 2, 0]

    def test_unused_columns_are_named(self, table, suffix):
        d = table(suffix, image=FOUR, label=["a"] * 4, note=["x"] * 4, **{"two\nlines": ["y"] * 4})
        assert d.warnings == ("columns that are not used: note, two\\nlines",)

    def test_rows_without_a_label_are_left_out(self, table, suffix):
        gaps = ["a", "", "b", ""] if suffix == ".csv" else ["a", None, "b", ""]
        d = table(suffix, image=FOUR, label=gaps)
        assert d.observed.ids.tolist() == [FOUR[0], FOUR[2]]
        assert d.warnings == ("2 of 4 rows have no label (row 1, 3); they are left out",)
        with pytest.raises(InputError, match=r"no row can be used .4 of 4 rows have no label"):
            table(suffix, image=FOUR, label=["", "", "", ""])

    def test_half_a_truth_is_none(self, table, suffix):
        d = table(suffix, image=FOUR, label=["a", "b", "a", "b"], true_label=["a", "", "b", "b"])
        assert d.truth is None
        assert d.warnings == ("1 of 4 rows have no true_label, so the column is not used",)

    def test_kind_as_codes(self, table, suffix):
        assert table(suffix, image=FOUR, label=["a"] * 4, kind=[0, 1, 2, 0]).truth.kind.tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"image": FOUR}, r"column 'label' is missing; its columns are 'image'"),
            ({"label": ["a"] * 4}, "one of the columns image, embedding, pred_probs must be there"),
            ({"image": FOUR, "label": ["a"] * 4, "id": ["1", "2", "1", "3"]}, "id '1' occurs more than once"),
            ({"image": FOUR, "label": ["a"] * 4, "id": ["1", "2", "", "3"]}, "id: row 2 is empty"),
            ({"image": FOUR, "label": ["a"] * 4, "x": [1] * 4, "y": ["1", "2", "up", "3"]}, "y: row 2 must be a num"),
            ({"image": FOUR, "label": ["a"] * 4, "kind": ["clean"] * 3 + ["dirty"]}, "kind must be clean, mis"),
            ({"label": ["a"] * 2, "embedding": ["[1, 2]", "[1]"]}, "embedding: row 1 has 1 numbers, row 0 has 2"),
            ({"label": ["a"] * 2, "embedding": ["[1, 2]", "cat"]}, "embedding: row 1 is no list of numbers"),
            ({"label": ["a"] * 2, "embedding": ["[[1]]", "[[1]]"]}, "embedding: row 0 is no list of numbers"),
            ({"label": ["a"] * 2, "embedding": ["[1]", "[NaN]"]}, "features: row 1 holds NaN"),
            ({"label": ["a", "b"], "pred_probs": ["[1, 0]", "[1, 1]"]}, "pred_probs: row 1 is not a probability"),
            ({"image": ["no.png"], "label": ["a"]}, "no row names a picture that can be used .row 0: no.png cannot"),
            ({"image": FOUR, "label": ["a"] * 4, "split": ["test"] * 4}, "no row can be used"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_used(self, table, suffix, columns, message):
        with pytest.raises(InputError, match=rf"t\{suffix}: .*{message}"):
            table(suffix, **columns)


@BOTH
@pytest.mark.skipif(os.name != "posix", reason="paths and links")
class TestSafety:
    @pytest.mark.parametrize(
        "path",
        ["../secret.png", "../../../../../../etc/passwd", "/etc/passwd", "sub/../../secret.png", "{home}/secret.png",
         "../data-secret/s.png", "..", "/", "sub/../.."],
    )  # fmt: skip
    def test_a_path_out_of_the_folder_is_refused_unread(self, table, suffix, path, tmp_path, monkeypatch):
        (tmp_path / "secret.png").write_bytes(png(1))
        (tmp_path / "data-secret").mkdir()
        (tmp_path / "data-secret" / "s.png").write_bytes(png(1))
        path = path.format(home=tmp_path)
        asked = []
        lstat = os.lstat
        monkeypatch.setattr(os, "lstat", lambda place, **k: asked.append(os.fspath(place)) or lstat(place, **k))
        d = table(suffix, image=["a.png", path], label=["a", "b"])
        assert d.observed.ids.tolist() == ["a.png"]
        assert d.warnings == (f"row 1: {path} lies outside the folder of the table; it is left out",)
        assert not [place for place in asked if "secret" in place or "passwd" in place]

    def test_an_absolute_path_inside_the_folder_is_fine(self, table, suffix, tmp_path):
        d = table(suffix, image=[str(tmp_path / "data" / "b.png"), "sub/../a.png"], label=["a", "b"])
        assert [int(one[0, 0]) for one in d.observed.images] == [10, 0]

    def test_links_out_of_the_folder_are_refused(self, table, suffix, tmp_path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "s.png").write_bytes(png(1))
        (tmp_path / "data" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
        (tmp_path / "data" / "dir").symlink_to(tmp_path / "secret")
        (tmp_path / "data" / "in.png").symlink_to(tmp_path / "data" / "b.png")
        d = table(suffix, image=["in.png", "out.png", "dir/s.png"], label=["a"] * 3)
        assert [int(one[0, 0]) for one in d.observed.images] == [10]
        assert d.warnings == (
            "row 1: out.png is a link that leaves the folder of the table; it is left out",
            "row 2: dir/s.png goes by a link that leaves the folder of the table; it is left out",
        )

    def test_what_is_no_picture_is_left_out_by_name(self, table, suffix, tmp_path):
        (tmp_path / "data" / "empty.png").touch()
        (tmp_path / "data" / "text.png").write_bytes(b"x")
        os.mkfifo(tmp_path / "data" / "pipe")
        names = ["a.png", "empty.png", "text.png", "none.png", "sub", "pipe", "n" * 400, ""]
        d = table(suffix, image=names, label=["a"] * 8)
        assert d.observed.ids.tolist() == ["a.png"]
        assert [line.split(";")[0][:47] for line in d.warnings] == [
            "1 of 8 rows have no image (row 7)",
            "row 3: none.png cannot be read: No such file or",
            "row 4: sub is no file",
            "row 5: pipe is no file",
            "row 6: " + "n" * 40,
            "empty.png is empty (0 bytes)",
            "text.png is no picture that is read here (BMP, ",
        ]


class TestCSV:
    def write(self, tmp_path, raw):
        (tmp_path / "t.csv").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        (tmp_path / "a.png").write_bytes(png())
        return open_dataset(f"table:{tmp_path / 't.csv'}")

    def test_byte_order_mark_line_ends_and_blank_lines(self, tmp_path):
        d = self.write(tmp_path, b'\xef\xbb\xbfimage, label\r\n"a.png",one\r\n\r\na.png,two\r\n')
        assert d.observed.classes == ("one", "two")

    def test_a_short_row_lacks_its_last_values(self, tmp_path):
        assert len(self.write(tmp_path, "image,label\na.png,one\na.png\n")) == 1

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"", "column 'label' is missing; its columns are none"),
            (b"image,label\n", "no row can be used"),
            (b"image;label\na.png;x\n", "column 'label' is missing; its columns are 'image;label'"),
            (b"image,label\na.png,x,y\n", "line 2 has 3 values, the header names 2 columns"),
            (b"image,label,label\na.png,x,y\n", "column 'label' occurs more than once"),
            (b"image,label\na.png,\xff\n", "cannot be read as CSV in UTF-8"),
            (b'image,label\n"a.png,x\n', "cannot be read as CSV in UTF-8"),
            (b"image,label\n" + b"a" * 200_000 + b",x\n", "cannot be read as CSV in UTF-8"),
            (b"PK\x03\x04", "is missing|cannot be read"),
        ],
    )
    def test_damaged(self, tmp_path, raw, message):
        with pytest.raises(InputError, match=rf"t\.csv: .*({message})"):
            self.write(tmp_path, raw)


class TestParquet:
    def test_pictures_as_bytes(self, table):
        raws = [png(1), png(2), b"", None, b"x", png(3)]
        d = table(".parquet", image=pa.array(raws, pa.binary()), label=["a", "b", "a", "b", "a", "b"])
        assert [int(one[0, 0]) for one in d.observed.images] == [1, 2, 3]
        assert d.observed.ids.tolist() == ["0", "1", "5"]
        assert d.warnings[0] == "2 of 6 rows have no picture (row 2, 3); they are left out"
        assert d.warnings[1].startswith("row 4 is no picture")

    def test_pictures_as_hugging_face_keeps_them(self, table):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        structs = [{"bytes": png(7), "path": "../x.png"}, {"bytes": None, "path": "/etc/passwd"}]
        d = table(".parquet", image=pa.array(structs, kind), label=["a", "b"])
        assert [int(one[0, 0]) for one in d.observed.images] == [7]
        with pytest.raises(InputError, match="no row has the bytes of a picture"):
            table(".parquet", image=pa.array(structs[1:] * 2, kind), label=["a", "b"])

    def test_numbers_with_gaps_as_pandas_writes_them(self, tmp_path):
        frame = pd.DataFrame({"label": [1, None, 2], "embedding": [[1.0], [2.0], [3.0]]})
        frame.to_parquet(tmp_path / "t.parquet")
        d = open_dataset(f"table:{tmp_path / 't.parquet'}")
        assert d.observed.classes == ("1", "2")
        assert d.observed.features.tolist() == [[1], [3]]

    @pytest.mark.parametrize(
        "kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64()), pa.list_(pa.int8())]
    )
    def test_lists_of_every_type(self, table, kind):
        d = table(".parquet", label=["a", "b", "c"], embedding=pa.array([[1, 2], [3, 4], [5, 6]], kind))
        assert d.observed.features.tolist() == [[1, 2], [3, 4], [5, 6]]

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            ({"embedding": [[1.0], None]}, "embedding: row 1 is no list"),
            ({"embedding": [[1.0], [None]]}, "features: row 1 holds NaN|row 1 is no list"),
            ({"embedding": [["a"], ["b"]]}, "embedding: row 0 is no list"),
            ({"embedding": [[1.0], []]}, "embedding: row 1 is no list"),
            ({"label": [["a"], ["b"]], "embedding": [[1.0], [1.0]]}, "label: row 0 must be text or a number, got list"),
        ],
    )
    def test_lists_that_are_none(self, table, column, message):
        with pytest.raises(InputError, match=message):
            table(".parquet", **{"label": ["a", "b"], **column})

    def test_only_columns_that_are_used_are_read(self, tmp_path, monkeypatch):
        pq.write_table(pa.table({"label": ["a"], "embedding": [[1.0]], "huge": ["x"]}), tmp_path / "t.parquet")
        asked = []
        read = pq.ParquetFile.read
        monkeypatch.setattr(
            pq.ParquetFile, "read", lambda self, columns: asked.append(columns) or read(self, columns=columns)
        )
        assert len(open_dataset(f"table:{tmp_path / 't.parquet'}")) == 1
        assert asked == [["label", "embedding"]]

    def test_names_of_classes_take_ten_thousand(self, table):
        d = table(".parquet", label=[f"k{i:05d}" for i in range(10_000)], embedding=[[1.0]] * 10_000)
        assert len(d.observed.classes) == 10_000


@pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
def test_missing_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} does not exist"):
        open_dataset(f"table:{tmp_path / name}")


class TestFolder:
    """Parquet files in a folder are one table."""

    @pytest.fixture
    def parts(self, tmp_path):
        """A folder of two files, one picture beside them, and what is to be passed over."""
        folder = tmp_path / "parts"
        folder.mkdir()
        (folder / "a.png").write_bytes(png(7))
        rows = {"id": list("rstuv"), "label": ["a", "b", "a", "b", "b"], "embedding": [[float(i)] for i in range(5)]}
        table = pa.table(rows)
        pq.write_table(table.slice(3), folder / "2.parquet")
        pq.write_table(table.slice(0, 3), folder / "1.parquet")
        pq.write_table(table, folder / ".3.parquet")
        pq.write_table(table, tmp_path / "outside.parquet")
        (folder / "4.parquet").symlink_to(tmp_path / "outside.parquet")
        return folder

    def test_one_below_the_other(self, parts):
        o = open_dataset(f"table:{parts}").observed
        assert o.ids.tolist() == list("rstuv")
        assert [o.classes[label] for label in o.labels] == ["a", "b", "a", "b", "b"]
        assert o.features.tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]

    def test_a_picture_is_looked_for_in_the_folder(self, parts):
        pq.write_table(pa.table({"id": ["r"], "label": ["a"], "image": ["a.png"]}), parts / "1.parquet")
        (parts / "2.parquet").unlink()
        assert open_dataset(f"table:{parts}").observed.images[0][0, 0] == 7

    def test_other_columns(self, parts):
        pq.write_table(pa.table({"id": ["r"], "label": ["a"]}), parts / "2.parquet")
        with pytest.raises(InputError, match="parts: its files have not the same columns"):
            open_dataset(f"table:{parts}")

    def test_a_damaged_file_is_named(self, parts):
        path = parts / "2.parquet"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(InputError, match=r"parts: 2\.parquet cannot be read as Parquet"):
            open_dataset(f"table:{parts}")

    def test_names(self, parts):
        assert recognise(str(parts)) == f"table:{parts}"
        (parts / "cat").mkdir()
        assert recognise(str(parts)) == f"folder:{parts}", "a table of pictures beside class folders"

    def test_the_fingerprint_follows_each_file(self, parts):
        name, before = f"table:{parts}", fingerprint(f"table:{parts}")
        assert fingerprint(name) == before
        os.utime(parts / "1.parquet", ns=(1, 1))
        assert fingerprint(name) != before


def test_not_a_table(tmp_path):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InputError, match=r"d\.csv is no file"):
        open_dataset(f"table:{tmp_path / 'd.csv'}")
    with pytest.raises(InputError, match=r"a table must end in \.csv or \.parquet"):
        open_dataset(f"table:{tmp_path / 'd.txt'}")
    with pytest.raises(InputError, match="or be a folder of Parquet files"):
        open_dataset(f"table:{tmp_path}")


def test_the_digest_follows_the_pictures_and_the_fingerprint_the_table(table, tmp_path):
    d = table(image=FOUR, label=["a"] * 4)
    assert table(image=FOUR, label=["a"] * 4).digest == d.digest
    (tmp_path / "data" / "a.png").write_bytes(png(5, (13, 13)))
    other = table(image=FOUR, label=["a"] * 4)
    assert other.digest != d.digest
    before = fingerprint(d.name)
    table(image=FOUR, label=["b"] * 3 + ["ab"])
    assert fingerprint(d.name) != before


def test_a_csv_opens_without_a_heavy_library(table):
    name = table(image=FOUR, label=["a"] * 4).name
    code = f"import sys\nfrom chaffinch.data import open_dataset\nopen_dataset({name!r})\nprint(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "pyarrow", "torch"} & set(answer.stdout.split())


def test_the_command(table, capsys):
    matrix = np.random.default_rng(0).normal(size=(40, 3))
    name = table(".parquet", label=["a", "b"] * 20, embedding=matrix.tolist(), other=[1] * 40).name
    assert main(["detect", name, "--detector", "knn-label", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 40
    assert err == "chaffinch: warning: columns that are not used: other\n"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_mutated_bytes_give_a_dataset_or_an_input_error(tmp_path, kind):
    rng = np.random.default_rng(9)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    columns = {
        "image": ["0.png", "1.png", "2.png"], "label": ["a", "b", "a"], "id": ["x", "y", "z"], "x": [1.0, 2.0, 3.0],
        "y": [0.0, 0.5, 1.0], "kind": ["clean", "ood", "clean"],
    }  # fmt: skip
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text(to_csv(pd.DataFrame({**columns, "embedding": ["[1, 2]", "[2, 3]", "[3, 4]"]})))
    elif kind == "parquet":
        raws = pa.array([png(i) for i in range(3)], pa.binary())
        pq.write_table(pa.table({**columns, "image": raws, "embedding": [[1.0, 2.0]] * 3}), path)
    else:
        np.savez(path, images=np.zeros((3, 4, 4), np.uint8), labels=np.array(columns["label"]), xy=np.ones((3, 2)))
    name, good, usable = f"{'arrays' if kind == 'npz' else 'table'}:{path}", path.read_bytes(), 0
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(rng.integers(6)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw[: rng.choice([len(raw), rng.integers(len(raw))], p=[0.8, 0.2])])
        try:
            d = open_dataset(name)
            assert len(np.asarray(d.observed.images)) == len(d)
            usable += 1
        except InputError:
            continue
    assert 0 < usable < 300


def test_nothing_is_written_beside_the_data(table, tmp_path):
    def listing():
        return sorted(path for path in Path(tmp_path / "data").rglob("*"))

    d = table(image=FOUR, label=["a"] * 4)
    before = listing()
    np.asarray(open_dataset(d.name).observed.images)
    assert listing() == before
