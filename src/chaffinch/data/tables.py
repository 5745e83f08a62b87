"""`table:` one row a sample, in CSV, Parquet or a folder of Parquet files; pictures are named in it, or are in it."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import digest
from ..base.text import listed, shown, unescape
from .assemble import assemble, left_out
from .dataset import KIND_CODES, NoisyDataset, not_finite
from .folders import about, several, test_split, within
from .pictures import Found, Source, open_pictures

COLUMNS = ("image", "label", "id", "split", "true_label", "kind", "x", "y", "embedding", "pred_probs")
SUFFIXES = (".csv", ".parquet")

ANY_KIND = {**KIND_CODES, **{str(code): code for code in KIND_CODES.values()}}
"""What the column ``kind`` may hold, as its code."""

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
    Rows without a label, whose picture or numbers cannot be used, with an empty id, that of an earlier row or more
    values than the header has names, are left out with a warning that names them. The Parquet files in a folder are
    one table, in the order of their names.

    Raises:
        InputError: the file cannot be read, or nothing in it can be used; the message names file, column and row.
    """
    parts = shards(path)
    if not parts:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path}: a table must end in {' or '.join(SUFFIXES)}, or be a folder of Parquet files")
        if not path.is_file():
            raise InputError(f"{path} is no file" if path.exists() else f"{path} does not exist")
    warnings, refused = list[str](), list[int]()
    try:
        columns = _read_parquet(parts) if parts else _read_csv(path, refused, warnings)
        if unused := [column for column in columns if column not in COLUMNS]:
            warnings.insert(0, f"columns that are not used: {shown(', '.join(unused))}")
        state = max((part.stat() for part in parts), key=lambda state: state.st_mtime_ns) if parts else path.stat()
        root = path if path.is_dir() else path.parent
        return from_columns(name, columns, root, state, refused=refused, warnings=warnings)
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
    refused: Sequence[int] = (),
    warnings: Sequence[str] = (),
) -> NoisyDataset:
    """Make a dataset of columns.

    Args:
        name: the text that opens it.
        columns: see `load`.
        root: the folder that named pictures have to lie in.
        state: of the file that the columns come from.
        classes: names of the classes in their order; default: those that occur.
        refused: rows that are left out already.
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
    lost += _without("label", np.setdiff1d(np.flatnonzero(~use), refused), len(use))
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
    faults = dict[str, NDArray[np.bool_]]()
    data |= _matrices(columns, train, faults) | _truth(columns, train, lost)
    made = assemble(name, data, images, test, rows=train, faults=faults, warnings=tuple(lost))
    note = about(len(made), test, found) if found else f"{len(made):,} rows without pictures"
    return dataclasses.replace(made, note=note)


def _read_csv(path: Path, refused: list[int], warnings: list[str]) -> Mapping[str, list[Any]]:
    """Columns of a CSV, every value a text; rows with too many are empty, ``refused`` and ``warnings`` receive them."""
    rows, lines = list[list[str]](), list[str]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [unescape(name.strip()) for name in next(reader, [])]
            for row in filter(None, reader):
                if len(row) > len(header):
                    refused.append(len(rows))
                    lines.append(f"row {len(rows)}: line {reader.line_num}")
                    row = []
                rows.append([unescape(cell) for cell in row] + [""] * (len(header) - len(row)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV in UTF-8: {error}") from error
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise InputError(f"column {twice!r} occurs more than once")
    warnings += left_out(lines, len(rows), "have more values than the header has names")
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
    """An Arrow column as plain values, a matrix (NaN where there is nothing), or `Cells`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if name == "image" and pa.types.is_struct(kind) and "bytes" in {part.name for part in kind}:
        column = pc.struct_field(column, "bytes")  # as Hugging Face keeps pictures
        kind = column.type
    if name == "image" and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return Cells(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
        flat = pc.list_flatten(column)
        numbers = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
        if len(lengths) == 1 and lengths[0] and numbers:
            if not column.null_count and not flat.null_count:
                return np.asarray(flat.to_numpy()).reshape(len(column), lengths[0])
            matrix = np.full((len(column), lengths[0]), np.nan)
            filled = pc.fill_null(flat.cast(pa.float64(), safe=False), math.nan)
            matrix[column.is_valid().to_numpy()] = filled.to_numpy().reshape(-1, lengths[0])
            return matrix
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


def _without(column: str, rows: NDArray[np.int64], total: int) -> list[str]:
    """No line, or one that counts and names the rows that lack a value, of so many."""
    return left_out([f"row {row}" for row in rows.tolist()], total, f"have no {column}")


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
        lost += _without("picture", rows[sizes == 0], len(rows))
        rows = rows[sizes > 0]
        if not len(rows):
            raise InputError("no row has the bytes of a picture")
        same = np.array([state.st_size, state.st_mtime_ns])
        stamps = np.column_stack([sizes[sizes > 0], rows, np.tile(same, (len(rows), 1))])
        return rows, Cells(column.column, rows), [f"row {row}" for row in rows.tolist()], stamps
    texts = _texts([column[row] for row in rows.tolist()], "image")
    missing = np.array([not text for text in texts])
    lost += _without("image", rows[missing], len(rows))
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
        return np.array(_texts(columns["id"], "id"), object)[rows].astype(str)
    if "image" in columns and not isinstance(columns["image"], Cells):
        names = np.array(_texts(columns["image"], "image"), object)[rows]
        if len(set(names.tolist())) == len(names):
            return names.astype(str)
    return rows.astype(str)


def _matrices(
    columns: Columns, rows: NDArray[np.int64], faults: dict[str, NDArray[np.bool_]]
) -> dict[str, NDArray[Any]]:
    """Features, class probabilities and map coordinates, where they are there; ``faults`` receives rows without."""
    found = {}
    for column, key in (("embedding", "features"), ("pred_probs", "pred_probs")):
        if column in columns:
            found[key] = _matrix(columns[column], column, rows, faults)
            faults[f"hold NaN, infinity or nothing in {column}"] = not_finite(found[key])
    if {"x", "y"} <= set(columns):
        found["xy"] = np.column_stack([_numbers(columns[axis], rows) for axis in "xy"])
        for place, axis in enumerate("xy"):
            faults[f"have no finite number in {axis}"] = not_finite(found["xy"][:, place])
    return found


def _matrix(values: Any, name: str, rows: NDArray[np.int64], faults: dict[str, NDArray[np.bool_]]) -> NDArray[Any]:
    """Lists of the same length, one a row, as (N, D); NaN in rows that have none, which ``faults`` receives."""
    if isinstance(values, np.ndarray):
        return values[rows]
    lists = [_list(values[row]) for row in rows.tolist()]
    lengths = np.array(list(map(len, lists)))
    read = np.flatnonzero(lengths)
    if not len(read):
        raise InputError(f"{name}: no row is a list of numbers, such as [0.5, 1.25]")
    ((usual, count),) = Counter(lengths[read].tolist()).most_common(1)
    if 2 * count <= len(read):
        one, other = read[0], read[lengths[read] != lengths[read[0]]][0]
        raise InputError(f"{name}: row {rows[other]} has {lengths[other]} numbers, row {rows[one]} has {lengths[one]}")
    faults[f"have no list of numbers, such as [0.5, 1.25], in {name}"] = lengths == 0
    faults[f"have not {usual} numbers in {name}, as most have"] = lengths != usual
    found = np.full((len(rows), usual), np.nan)
    fits = lengths == usual
    found[fits] = [one for one in lists if len(one) == usual]
    return found


def _list(value: Any) -> NDArray[np.float64]:
    """A list of numbers, or its JSON; empty where it is none."""
    try:
        found = np.array(json.loads(value) if isinstance(value, str) else value, np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError):
        return np.empty(0)
    return found if found.ndim == 1 else np.empty(0)


def _numbers(values: Any, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) numbers, NaN in place of what is none."""
    found = np.full(len(rows), np.nan)
    for place, row in enumerate(rows.tolist()):
        with suppress(ValueError, TypeError, OverflowError):
            found[place] = float(values[row])
    return found


def _truth(columns: Columns, rows: NDArray[np.int64], lost: list[str]) -> dict[str, NDArray[Any]]:
    """``true_labels`` and ``kind`` as far as every row has them."""
    found = dict[str, NDArray[Any]]()
    for column, key in (("true_label", "true_labels"), ("kind", "kind")):
        if column in columns:
            texts = np.array(_texts(columns[column], column), object)[rows]
            missing = int((texts == "").sum())
            if missing:
                lost.append(f"{missing:,} of {len(rows):,} rows have no {column}, so the column is not used")
            else:
                found[key] = texts.astype(str)
    if "kind" in found:
        kinds = found.pop("kind").tolist()
        strange = [f"row {row}: {kind}" for row, kind in zip(rows.tolist(), kinds, strict=True) if kind not in ANY_KIND]
        if strange:
            which = f"{len(strange):,} of {len(rows):,} rows have a kind that is not {', '.join(KIND_CODES)}"
            lost.append(f"{which} ({listed(strange)}), so the column is not used")
        else:
            found["kind"] = np.array([ANY_KIND[kind] for kind in kinds])
    return found
