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
        assert d.warnings == ("2 of 4 rows have no label (row 1, row 3); they are left out",)
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
            ({"image": FOUR, "label": ["a"] * 4, "id": [""] * 4}, "no row can be used .4 of 4 rows have no id .row 0"),
            ({"image": FOUR, "label": ["a"] * 4, "x": [1] * 4, "y": ["up"] * 4}, "no row .*have no finite number in y"),
            ({"label": ["a"] * 2, "embedding": ["[1, 2]", "[1]"]}, "embedding: row 1 has 1 numbers, row 0 has 2"),
            ({"label": ["a"] * 2, "embedding": ["", "cat"]}, "embedding: no row is a list of numbers"),
            ({"label": ["a"] * 2, "embedding": ["[[1]]", "[[1]]"]}, "embedding: no row is a list of numbers"),
            ({"label": ["a"] * 2, "embedding": ["[Infinity]", "[NaN]"]}, "no row can be used .2 of 2 rows hold NaN, "),
            ({"label": ["a", "b"], "pred_probs": ["[2, 1]", "[1, 1]"]}, "no row can be .*that are no distribution"),
            ({"label": ["a", "b"], "pred_probs": ["[1]", "[1]"]}, "pred_probs has 1 columns but there are 2 classes"),
            ({"label": ["a"] * 2, "embedding": ["[1]", "x"], "id": ["", "1"]}, "have no list .*; 1 of 2 rows have no"),
            ({"image": ["no.png"], "label": ["a"]}, "no row names a picture that can be used .row 0: no.png cannot"),
            ({"image": FOUR, "label": ["a"] * 4, "split": ["test"] * 4}, "no row can be used"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_used(self, table, suffix, columns, message):
        with pytest.raises(InputError, match=rf"t\{suffix}: .*{message}"):
            table(suffix, **columns)

    @pytest.mark.parametrize(
        ("columns", "warning"),
        [
            ({"id": ["p", "q", "p", "r"]}, "1 of 4 rows have the id of an earlier row (row 2: p)"),
            ({"id": ["p", "q", "", "r"]}, "1 of 4 rows have no id (row 2)"),
            ({"x": [1] * 4, "y": ["1", "2", "up", "3"]}, "1 of 4 rows have no finite number in y (row 2: sub/c.png)"),
            (
                {"embedding": ["[1, 2]", "[3, 4]", "", "[5, 6]"]},
                "1 of 4 rows have no list of numbers, such as [0.5, 1.25], in embedding (row 2: sub/c.png)",
            ),
            (
                {"embedding": ["[1, 2]", "[3, 4]", "[1]", "[5, 6]"]},
                "1 of 4 rows have not 2 numbers in embedding, as most have (row 2: sub/c.png)",
            ),
            (
                {"embedding": ["[1, 2]", "[3, 4]", "[1, NaN]", "[5, 6]"], "id": list("pqrs")},
                "1 of 4 rows hold NaN, infinity or nothing in embedding (row 2: r)",
            ),
            (
                {"pred_probs": ["[1, 0]", "[0.5, 0.5]", "[0.5, 0.6]", "[0, 1]"]},
                "1 of 4 rows have pred_probs that are no distribution (no negatives, sum 1) (row 2: sub/c.png)",
            ),
        ],
    )
    def test_a_bad_row_is_left_out_by_name(self, table, suffix, columns, warning):
        d = table(suffix, image=FOUR, label=["a", "b", "b", "a"], true_label=["a", "a", "b", "x"], **columns)
        assert d.warnings == (f"{warning}; they are left out",)
        assert d.observed.labels.tolist() == [0, 1, 0]
        assert d.truth.kind.tolist() == [CLEAN, MISLABELLED, OOD]
        assert [int(one[0, 0]) for one in d.observed.images] == [0, 10, 30]
        assert d.note.startswith("3 pictures; ")

    def test_every_reason_is_named_once_a_row(self, table, suffix):
        embedding = ["[1, 2]", "[NaN, 1]", "cat", "[3, 4]", "[3]", "[5, 6]", "[7, 8]"]
        d = table(suffix, label=["a", "", "a", "b", "b", "a", "b"], id=list("ppqrspr"), embedding=embedding)
        assert d.observed.ids.tolist() == ["p", "r"]
        assert d.observed.features.tolist() == [[1, 2], [3, 4]]
        assert [line.split(" rows ")[1].removesuffix("; they are left out") for line in d.warnings] == [
            "have no label (row 1)",
            "have no list of numbers, such as [0.5, 1.25], in embedding (row 2: q)",
            "have not 2 numbers in embedding, as most have (row 4: s)",
            "have the id of an earlier row (row 5: p, row 6: r)",
        ]
        assert d.note == "2 rows without pictures"

    def test_the_first_row_of_an_id_that_can_be_used_stays(self, table, suffix):
        d = table(suffix, label=["a", "b", "a"], id=["p", "p", "p"], embedding=["", "[1]", "[2]"])
        assert d.observed.features.tolist() == [[1]]

    def test_twenty_rows_are_named(self, table, suffix):
        d = table(suffix, label=["a"] + [""] * 21 + ["a"] * 22, id=["p"] * 44, embedding=["[1]"] * 44)
        assert d.observed.ids.tolist() == ["p"]
        assert d.warnings[0].endswith("row 19, row 20 and 1 more); they are left out")
        assert d.warnings[1].endswith("row 40: p, row 41: p and 2 more); they are left out")

    def test_one_strange_kind_costs_the_column(self, table, suffix):
        d = table(suffix, image=FOUR, label=["a"] * 4, kind=["clean", "0", "ood", "dirty"])
        assert (len(d), d.truth) == (4, None)
        assert d.warnings == (
            "1 of 4 rows have a kind that is not clean, mislabelled, ood (row 3: dirty), so the column is not used",
        )

    def test_a_row_without_a_picture_has_its_number_in_the_table(self, table, suffix):
        d = table(suffix, image=["a.png", "b.png", "", "sub/c.png"], label=["a", "", "a", "a"])
        assert d.warnings[1] == "1 of 3 rows have no image (row 2); they are left out"


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

    def test_a_row_with_too_many_values_is_left_out_and_counted(self, tmp_path):
        d = self.write(tmp_path, "image,label\na.png,one\n\na.png,x,y\n,,,,\na.png,\na.png,two\n")
        assert d.observed.ids.tolist() == ["0", "4"]
        assert d.warnings == (
            "2 of 5 rows have more values than the header has names (row 1: line 4, row 2: line 5); they are left out",
            "1 of 5 rows have no label (row 3); they are left out",
        )

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"\na.png,x\n", "column 'label' is missing; its columns are none"),
            (b"", "column 'label' is missing; its columns are none"),
            (b"image,label\n", "no row can be used"),
            (b"image;label\na.png;x\n", "column 'label' is missing; its columns are 'image;label'"),
            (b"image,label\na.png,x,y\n", "no row can be used .1 of 1 rows have more values .*line 2"),
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
        assert d.warnings[0] == "2 of 6 rows have no picture (row 2, row 3); they are left out"
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
        "kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64()), pa.list_(pa.int8())]
    )
    def test_gaps_in_lists_of_every_type(self, table, kind, monkeypatch):
        monkeypatch.setattr("chaffinch.data.tables._list", None)  # one gap does not make each row a Python list
        d = table(".parquet", label=["a"] * 4, embedding=pa.array([[1, 2], None, [3, 4], [None, 5]], kind))
        assert d.observed.features.tolist() == [[1, 2], [3, 4]]
        assert d.warnings == (
            "2 of 4 rows hold NaN, infinity or nothing in embedding (row 1, row 3); they are left out",
        )

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            ({"embedding": [None, None]}, "embedding: no row is a list"),
            ({"embedding": [[], []]}, "embedding: no row is a list"),
            ({"embedding": [[None], [None]]}, "no row .*2 of 2 rows hold NaN|no row is a list"),
            ({"embedding": [["a"], ["b"]]}, "embedding: no row is a list"),
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
    matrix[[3, 30]] = np.nan
    table(".parquet", label=["a", "b"] * 20, embedding=matrix.tolist(), id=[f"n{i}" for i in range(40)])
    assert main(["detect", name, "--detector", "knn-label", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 38
    line = "2 of 40 rows hold NaN, infinity or nothing in embedding (row 3: n3, row 30: n30); they are left out"
    assert err == f"chaffinch: warning: {line}\n"


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
