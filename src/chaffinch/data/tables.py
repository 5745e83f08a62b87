"""`table:` one row a sample, in CSV, Parquet or a folder of Parquet files; pictures are named in it, or are in it."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import digest
from ..base.text import shown, unescape
from .assemble import assemble
from .dataset import NoisyDataset
from .folders import about, several, test_split, within
from .pictures import Found, Source, open_pictures

COLUMNS = ("image", "label", "id", "split", "true_label", "kind", "x", "y", "embedding", "pred_probs")
SUFFIXES = (".csv", ".parquet")

Columns = Mapping[str, Sequence[Any] | NDArray[Any]]
"""Column -> one value a row: plain values (None where there is none), a matrix, or `Cells`."""


class Cells(Sequence[bytes]):
    """The bytes of pictures in rows of an Arrow column (default: all), taken out one at a time."""

    def __init__(self, column: Any, rows: NDArray[np.int64] | None = None) -> None:
        self.column, self.rows = column, np.arange(len(column)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.column[int(self.rows[place])].as_py() or b""

    def sizes(self) -> NDArray[np.int64]:
        """(N,) bytes of each; 0 where there is none."""
        import pyarrow.compute as pc

        return np.asarray(pc.fill_null(pc.binary_length(self.column), 0).to_numpy(), np.int64)[self.rows]


def load(name: str, path: Path) -> NoisyDataset:
    """Open a table with the columns of `COLUMNS`: ``label``, and ``image``, ``embedding`` or ``pred_probs``.

    A picture is named by its path relative to the table, and has to lie in the table's folder; in Parquet it may be
    the bytes of the file. Labels are names, whatever type they have; the columns of ``pred_probs`` are in the order of
    the names (of their numbers, where all are numbers). A ``true_label`` that is no class means out-of-distribution.
    Rows without a label, or whose picture cannot be used, are left out with a warning. The Parquet files in a folder
    are one table, in the order of their names.

    Raises:
        InputError: the file cannot be read, or nothing in it can be used; the message names file, column and row.
    """
    parts = shards(path)
    if not parts:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path}: a table must end in {' or '.join(SUFFIXES)}, or be a folder of Parquet files")
        if not path.is_file():
            raise InputError(f"{path} is no file" if path.exists() else f"{path} does not exist")
    warnings = list[str]()
    try:
        columns = _read_parquet(parts) if parts else _read_csv(path)
        if unused := [column for column in columns if column not in COLUMNS]:
            warnings.append(f"columns that are not used: {shown(', '.join(unused))}")
        state = max((part.stat() for part in parts), key=lambda state: state.st_mtime_ns) if parts else path.stat()
        return from_columns(name, columns, path if path.is_dir() else path.parent, state, warnings=warnings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def shards(path: Path) -> list[Path]:
    """The Parquet files of a table: the file itself, or those in a folder, by name; none of anything else.

    In a folder, what is hidden or a link that leaves it is passed over.
    """
    if path.is_dir():
        home = os.path.realpath(path)
        return sorted(part for part in path.glob("[!.]*.parquet") if within(os.path.realpath(part), home))
    return [path] if path.suffix.lower() == ".parquet" and path.is_file() else []


def fingerprint(path: Path) -> str:
    """A text that changes when a file of the table does."""
    states = [(part.name, part.stat()) for part in shards(path) or [path]]
    return digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def from_columns(
    name: str,
    columns: Columns,
    root: Path,
    state: os.stat_result,
    *,
    classes: Sequence[str] | None = None,
    warnings: Sequence[str] = (),
) -> NoisyDataset:
    """Make a dataset of columns.

    Args:
        name: the text that opens it.
        columns: see `load`.
        root: the folder that named pictures have to lie in.
        state: of the file that the columns come from.
        classes: names of the classes in their order; default: those that occur.
        warnings: what was left out so far.

    Raises:
        InputError: see `load`.
    """
    if "label" not in columns:
        there = shown(", ".join(map(repr, columns))) or "none"
        raise InputError(f"column 'label' is missing; its columns are {there}")
    if not {"image", "embedding", "pred_probs"} & set(columns):
        raise InputError("one of the columns image, embedding, pred_probs must be there")
    lost, labels = list(warnings), _texts(columns["label"], "label")
    use = np.array([bool(label) for label in labels], bool)
    lost += _without("label", ~use)
    splits = np.array(_texts(columns["split"], "split") if "split" in columns else [""] * len(labels), object)
    other = use & ~np.isin(splits, ["", "train", "test"])
    if other.any():
        first = splits[np.argmax(other)]
        lost.append(f"{other.sum():,} rows are of another split than train and test ({shown(first)}); left out")
    use &= ~other
    found: Found | None = None
    if "image" in columns and use.any():
        rows, sources, names, stamps = _pictures(columns["image"], np.flatnonzero(use), root, state, lost)
        found = open_pictures(sources, names, stamps)
        lost += found.warnings
        use = np.isin(np.arange(len(use)), rows[found.kept])
    tests = (splits == "test")[use]
    if found is None and tests.any():
        lost.append(f"{tests.sum():,} rows of the test split have no pictures, so they are of no use; left out")
    if tests.all():
        raise InputError("no row can be used" + (f" ({lost[-1]})" if lost else ""))
    given = np.array(labels, object)[use]
    ordered = list(classes) if classes is not None else _ordered(set(given[~tests].tolist()))
    train = np.flatnonzero(use)[~tests]
    images = test = None
    if found is not None:
        images = found.pictures.only(~tests)
        test, strange = test_split(found, tests, given, ordered)
        lost += several(strange, "is of a class that train has not", "are of classes that train has not")
    data = {"labels": given[~tests].astype(str), "classes": np.array(ordered, str)}
    data["ids"] = _ids(columns, train)
    data |= _matrices(columns, train) | _truth(columns, train, lost)
    note = about(images, test, found) if found and images is not None else f"{len(train):,} rows without pictures"
    return assemble(name, data, images, test, warnings=tuple(lost), note=note)


def _read_csv(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV, every value a text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [unescape(name.strip()) for name in next(reader, [])]
            rows = []
            for row in reader:
                if len(row) > len(header):
                    raise InputError(
                        f"line {reader.line_num} has {len(row)} values, the header names {len(header)} columns"
                    )
                if row:
                    rows.append([unescape(cell) for cell in row] + [""] * (len(header) - len(row)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV in UTF-8: {error}") from error
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise InputError(f"column {twice!r} occurs more than once")
    return {name: [row[i] for row in rows] for i, name in enumerate(header) if name}


def _read_parquet(parts: Sequence[Path]) -> dict[str, Any]:
    """Columns of Parquet files, one below the other; what is not used stays unread, and stands there empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, names = [], list[str]()
    for part in parts:
        which = f"{part.name} " if len(parts) > 1 else ""
        try:
            with part.open("rb") as stream:
                table = pq.ParquetFile(stream)
                names = table.schema_arrow.names
                if twice := next((name for name in COLUMNS if names.count(name) > 1), None):
                    raise InputError(f"{which}column {twice!r} occurs more than once")
                read = table.read(columns=[name for name in names if name in COLUMNS])
                read.validate(full=True)
                tables.append(read)
        except InputError:
            raise
        except Exception as error:  # Arrow raises of every kind where a file is damaged
            raise InputError(f"{which}cannot be read as Parquet: {error}") from error
    try:
        whole = pa.concat_tables(tables)
        return {name: from_arrow(whole[name], name) if name in COLUMNS else [] for name in names}
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"its files have not the same columns: {error}") from error


def from_arrow(column: Any, name: str) -> Sequence[Any] | NDArray[Any]:
    """An Arrow column as plain values, a matrix, or `Cells`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if name == "image" and pa.types.is_struct(kind) and "bytes" in {part.name for part in kind}:
        column = pc.struct_field(column, "bytes")  # as Hugging Face keeps pictures
        kind = column.type
    if name == "image" and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return Cells(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        flat = pc.list_flatten(column)
        numbers = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
        if len(lengths) == 1 and lengths[0] and numbers and not flat.null_count:
            return np.asarray(flat.to_numpy()).reshape(len(column), lengths[0])
    values: list[Any] = column.to_pylist()
    return values


def _texts(values: Sequence[Any] | NDArray[Any], name: str) -> list[str]:
    """Values as text, empty where there is none; whole numbers without a point, as pandas makes them of gaps."""
    found = []
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            found.append("")
        elif isinstance(value, float) and value.is_integer():
            found.append(str(int(value)))
        elif isinstance(value, str | int | float):
            found.append(str(value))
        else:
            raise InputError(f"{name}: row {row} must be text or a number, got {type(value).__name__}")
    return found


def _without(column: str, missing: NDArray[np.bool_]) -> list[str]:
    """No line, or one that counts the rows that lack a value and names the first."""
    rows = np.flatnonzero(missing)
    if not len(rows):
        return []
    first = ", ".join(map(str, rows[:5].tolist())) + (", …" if len(rows) > 5 else "")
    return [f"{len(rows):,} of {len(missing):,} rows have no {column} (row {first}); they are left out"]


def _ordered(names: set[str]) -> list[str]:
    """Names in their order; by size, where all of them are numbers."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def _pictures(
    column: Any, rows: NDArray[np.int64], root: Path, state: os.stat_result, lost: list[str]
) -> tuple[NDArray[np.int64], Sequence[Source], list[str], NDArray[np.int64]]:
    """Rows with a picture, where it is, what it is called, and its stamp (size in bytes first)."""
    if isinstance(column, Cells):
        sizes = column.sizes()[rows]
        lost += _without("picture", sizes == 0)
        rows = rows[sizes > 0]
        if not len(rows):
            raise InputError("no row has the bytes of a picture")
        same = np.array([state.st_size, state.st_mtime_ns])
        stamps = np.column_stack([sizes[sizes > 0], rows, np.tile(same, (len(rows), 1))])
        return rows, Cells(column.column, rows), [f"row {row}" for row in rows.tolist()], stamps
    texts = _texts([column[row] for row in rows.tolist()], "image")
    missing = np.array([not text for text in texts])
    lost += _without("image", missing)
    find, kept, sources, names = _finder(root), list[int](), list[Source](), list[str]()
    states = list[tuple[int, int]]()
    for row, text in zip(rows[~missing].tolist(), filter(None, texts), strict=True):
        try:
            path, found = find(text)
        except (InputError, OSError, ValueError) as error:
            why = str(error) if isinstance(error, InputError) else "cannot be read as the name of a file"
            lost.append(f"row {row}: {shown(text)} {why}; it is left out")
            continue
        kept.append(row)
        sources.append(path)
        names.append(text)
        states.append((found.st_size, found.st_mtime_ns))
    if not kept:
        raise InputError(f"no row names a picture that can be used ({lost[-1] if lost else 'there are no rows'})")
    return np.array(kept), sources, names, np.array(states, np.int64)


def _finder(root: Path) -> Callable[[str], tuple[str, os.stat_result]]:
    """A function that gives the real path and the state of a named file, and refuses what lies outside a folder."""
    home = os.path.realpath(root)
    resolve = functools.lru_cache(maxsize=4096)(os.path.realpath)

    def find(text: str) -> tuple[str, os.stat_result]:
        spelt = os.path.normpath(os.path.join(home, text))
        if not within(spelt, home):  # before anything outside is even looked at
            raise InputError("lies outside the folder of the table")
        folder, file = os.path.split(spelt)
        path = os.path.join(resolve(folder), file)
        if not within(path, home):
            raise InputError("goes by a link that leaves the folder of the table")
        try:
            state = os.lstat(path)
            if stat.S_ISLNK(state.st_mode):
                path = os.path.realpath(path)
                if not within(path, home):
                    raise InputError("is a link that leaves the folder of the table")
                state = os.lstat(path)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(state.st_mode):
            raise InputError("is no file")
        return path, state

    return find


def _ids(columns: Columns, rows: NDArray[np.int64]) -> NDArray[np.str_]:
    """The column ``id``; without it names of pictures, where all differ, or else numbers of rows."""
    if "id" in columns:
        texts = np.array(_texts(columns["id"], "id"), object)[rows]
        if len(gaps := np.flatnonzero(texts == "")):
            raise InputError(f"id: row {rows[gaps[0]]} is empty; give every row an id, or leave the column out")
        return texts.astype(str)
    if "image" in columns and not isinstance(columns["image"], Cells):
        names = np.array(_texts(columns["image"], "image"), object)[rows]
        if len(set(names.tolist())) == len(names):
            return names.astype(str)
    return rows.astype(str)


def _matrices(columns: Columns, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Features, class probabilities and map coordinates, where they are there."""
    found = {}
    for column, key in (("embedding", "features"), ("pred_probs", "pred_probs")):
        if column in columns:
            found[key] = _matrix(columns[column], column, rows)
    if {"x", "y"} <= set(columns):
        found["xy"] = np.column_stack([_numbers(columns[axis], axis, rows) for axis in "xy"])
    return found


def _matrix(values: Any, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Lists of the same length, one a row, as (N, D)."""
    if isinstance(values, np.ndarray):
        return values[rows]
    lists = list[NDArray[np.float64]]()
    for row in rows.tolist():
        try:
            one = np.array(json.loads(values[row]) if isinstance(values[row], str) else values[row], np.float64)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise InputError(f"{name}: row {row} is no list of numbers, such as [0.5, 1.25]") from error
        if one.ndim != 1 or not len(one):
            raise InputError(f"{name}: row {row} is no list of numbers, such as [0.5, 1.25]")
        if lists and len(one) != len(lists[0]):
            raise InputError(f"{name}: row {row} has {len(one)} numbers, row {rows[0]} has {len(lists[0])}")
        lists.append(one)
    return np.array(lists)


def _numbers(values: Any, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.empty(len(rows))
    for place, row in enumerate(rows.tolist()):
        try:
            found[place] = float(values[row])
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{name}: row {row} must be a number, got {shown(repr(values[row]))}") from error
    return found


def _truth(columns: Columns, rows: NDArray[np.int64], lost: list[str]) -> dict[str, NDArray[Any]]:
    """``true_labels`` and ``kind`` as far as every row has them."""
    found = {}
    for column, key in (("true_label", "true_labels"), ("kind", "kind")):
        if column in columns:
            texts = np.array(_texts(columns[column], column), object)[rows]
            missing = int((texts == "").sum())
            if missing:
                lost.append(f"{missing:,} of {len(rows):,} rows have no {column}, so the column is not used")
            else:
                found[key] = texts.astype(str)
    if "kind" in found and set(found["kind"].tolist()) <= {"0", "1", "2"}:
        found["kind"] = found["kind"].astype(np.int64)
    return found
