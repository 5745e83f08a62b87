"""Tables: what is written reads back, and no cell of a CSV is run by a spreadsheet."""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.exports import escape, read_table, to_csv, unescape, write_table

RUNNABLE = tuple("=+-@\t\r")
NASTY = [
    "=1+1", "+49 1", "-2", "@SUM(A1)", "\tx", "\rx", "'=1", "''-2", "'plain", "'", "plain", "naïve", "雀", "🐦",
    "two\nlines", "two\r\nlines", "old\rmac", 'say "hi", twice', " spaced ", "007", "1e5", "nan", "NA", "None",
    "True", "", "0", "-", "a=b",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
leading = st.builds(str.__add__, st.text("'=+-@\t\r", max_size=4), texts)


@given(texts | leading)
def test_escape_is_undone(text):
    assert unescape(escape(text)) == text
    assert not escape(text).startswith(RUNNABLE)


@given(texts | leading, texts | leading)
def test_escape_keeps_texts_apart(one, other):
    assert (escape(one) == escape(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "safe"),
    [("=1", "'=1"), ("-2", "'-2"), ("\tx", "'\tx"), ("'=1", "''=1"), ("'plain", "'plain"), ("a=1", "a=1"), ("", "")],
)
def test_escape_by_hand(text, safe):
    assert escape(text) == safe
    assert unescape(safe) == text


def table(ids):
    n = len(ids)
    return pd.DataFrame(
        {
            "id": ids,
            "label": [["-ant", "bee", "7"][i % 3] for i in range(n)],
            "lsa_score": np.linspace(-1, 1, n) / 3,
            "lsa_flag": np.arange(n) % 2 == 0,
            "lsa_suggestion": [["bee", "7", "-ant"][i % 3] for i in range(n)],
        }
    )


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("ids", [NASTY, [str(i) for i in range(5)], ["1", "-1", "01"], ["only"]])
def test_round_trip(tmp_path, ending, ids):
    before = table(ids)
    write_table(before, tmp_path / f"t{ending}")
    after = read_table(tmp_path / f"t{ending}")
    pd.testing.assert_frame_equal(after, before, check_exact=True)
    assert [p.name for p in tmp_path.iterdir()] == [f"t{ending}"]


@given(
    st.lists(texts.filter(lambda t: "\0" not in t) | leading.filter(lambda t: "\0" not in t), min_size=1, max_size=5)
)
@example(["\r"])
@example(["\n", ""])
def test_csv_round_trip_of_any_ids(ids):
    before = table(ids)
    with tempfile.TemporaryDirectory() as folder:
        write_table(before, Path(folder) / "t.csv")
        pd.testing.assert_frame_equal(read_table(Path(folder) / "t.csv"), before, check_exact=True)


def test_column_names_are_escaped_too(tmp_path):
    before = pd.DataFrame({"=id": ["a"], "@label": ["b"]})
    assert to_csv(before).splitlines()[0].replace('"', "") == "'=id,'@label"
    write_table(before, tmp_path / "t.csv")
    assert list(read_table(tmp_path / "t.csv")) == ["=id", "@label"]


def test_no_cell_runs():
    rows = list(csv.reader(io.StringIO(to_csv(table(NASTY)), newline="")))
    assert len(rows) == len(NASTY) + 1
    texts = [cell for row in rows for cell in (row[0], row[1], row[4])]
    assert not [cell for cell in texts if cell.startswith(RUNNABLE)]
    assert float(rows[1][2]) < 0, "numbers stay numbers"


def test_parquet_carries_the_text_as_it_is(tmp_path):
    write_table(table(NASTY), tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["id"].tolist() == NASTY


def test_the_table_is_left_as_it_was():
    before = table(["=1", "b"])
    to_csv(before)
    pd.testing.assert_frame_equal(before, table(["=1", "b"]))


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz", "t.CSV"])
def test_wrong_ending(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: the file name must end in \.parquet or \.csv"):
        write_table(table(["a"]), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_unwritable_folder(tmp_path, ending):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"file/t\{ending} cannot be written: "):
        write_table(table(["a"]), tmp_path / "file" / f"t{ending}")
    (tmp_path / f"dir{ending}").mkdir()
    with pytest.raises(InputError, match=rf"dir\{ending} cannot be written: Is a directory"):
        write_table(table(["a"]), tmp_path / f"dir{ending}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"dir{ending}", "file"]


def test_old_file_stays_when_writing_fails(tmp_path, monkeypatch):
    write_table(table(["a"]), tmp_path / "t.csv")
    old = (tmp_path / "t.csv").read_bytes()

    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"t\.csv cannot be written: No space left on device"):
        write_table(table(["b"]), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_unreadable(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} cannot be read as a table"):
        read_table(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00" * 30 if name == "t.parquet" else b"")
    with pytest.raises(InputError, match=rf"{name} cannot be read as a table"):
        read_table(tmp_path / name)
