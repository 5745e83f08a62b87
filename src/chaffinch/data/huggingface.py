"""`hf:` a folder that the ``datasets`` library has written with ``save_to_disk``; its Arrow files are read directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.files import digest, read_json
from ..base.text import shown
from .dataset import NoisyDataset
from .tables import COLUMNS, from_arrow, from_columns

INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def is_saved(root: Path) -> bool:
    """Does a folder look like one that was written by ``save_to_disk``?"""
    return any((root / name).is_file() for name in (INFO, SPLITS))


def load(name: str, root: Path) -> NoisyDataset:
    """Open a saved dataset, or one with splits: ``train`` (else the first) is observed, ``test`` the test split.

    The picture is the first column of type Image, the label the first of type ClassLabel (or one named ``label``); the
    other columns of `COLUMNS` are used where they are there.

    Raises:
        InputError: it was not saved by ``save_to_disk``, is damaged, or holds nothing usable.
    """
    try:
        return _load(name, root)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error


def _load(name: str, root: Path) -> NoisyDataset:
    import pyarrow as pa

    warnings, splits = list[str](), {"train": root}
    if (root / SPLITS).is_file():
        splits = {split: _inside(root, split) for split in _strings(read_json(_inside(root, SPLITS)), "splits")}
        if not splits:
            raise InputError(f"{SPLITS} names no splits")
        first = "train" if "train" in splits else next(iter(splits))
        if rest := [split for split in splits if split not in (first, "test")]:
            warnings.append(f"splits that are not used: {shown(', '.join(rest))}")
        roles = {"train": first, "test": "test" if first != "test" else ""}
        splits = {role: splits[split] for role, split in roles.items() if split in splits}
    elif not (root / STATE).is_file():
        raise InputError(f"this is no folder written by save_to_disk ({STATE} is missing)")
    info = read_json(_inside(splits["train"], INFO))
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict):
        raise InputError(f"{INFO} describes no features")
    picture, label, names = _roles(features)
    tables = {split: _table(folder) for split, folder in splits.items()}
    named = {picture: "image", label: "label"}
    others = set(COLUMNS) - {"image", "label"}
    wanted: dict[str, str] = {c: str(named.get(c, c)) for c in features if c in {*named, *others}}
    if unused := [column for column in features if column not in wanted]:
        warnings.append(f"columns that are not used: {shown(', '.join(unused))}")
    columns: dict[str, Any] = {}
    for column, role in wanted.items():
        try:
            chunks = [chunk for table in tables.values() for chunk in table[column].chunks]
            whole = pa.chunked_array(chunks, type=None if chunks else pa.null())
            columns[role] = from_arrow(whole, role)
        except (KeyError, pa.ArrowException, TypeError) as error:
            raise InputError(f"column {column!r} cannot be read: {error}") from error
    if names is not None:
        columns["label"] = _named(columns["label"], names)
    columns["split"] = [split for split, table in tables.items() for _ in range(len(table))]
    state = (splits["train"] / STATE).stat()
    return from_columns(name, columns, root, state, classes=names, warnings=warnings)


def fingerprint(root: Path) -> str:
    """A text that changes when any of its files does.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder" if root.exists() else f"{root} does not exist")
    found = sorted(path for pattern in ("*.json", "*.arrow", "*/*.json", "*/*.arrow") for path in root.glob(pattern))
    states = [(str(path), path.stat()) for path in found]
    return digest([(path, state.st_size, state.st_mtime_ns) for path, state in states])


def _roles(features: dict[str, Any]) -> tuple[str, str, list[str] | None]:
    """Which columns are picture and label, and the names of the classes."""

    def kind(column: str) -> Any:
        return features[column].get("_type") if isinstance(features[column], dict) else None

    picture = next((column for column in features if kind(column) == "Image"), "image")
    coded = [column for column in features if kind(column) == "ClassLabel"]
    label = next(iter(coded), "label") if "label" not in features else "label"
    names = _strings(features[label], "names") if label in coded else None
    return picture, label, names


def _named(codes: Any, names: list[str]) -> list[str | None]:
    """Codes of classes as their names; -1 means none."""
    found = list[str | None]()
    for row, code in enumerate(codes):
        if code is not None and not (isinstance(code, int) and -1 <= code < len(names)):
            raise InputError(f"label: row {row} is {code!r}, there are {len(names)} classes")
        found.append(None if code in (None, -1) else names[code])
    return found


def _table(folder: Path) -> Any:
    """The rows of one split, mapped from its Arrow files."""
    import pyarrow as pa

    state = read_json(_inside(folder, STATE))
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [_strings(file, "filename", one=True)[0] for file in files] if isinstance(files, list) else []
    if not names:
        raise InputError(f"{folder.name}/{STATE} names no data files")
    tables = []
    for file in names:
        path = _inside(folder, file)
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            table.validate(full=True)
            tables.append(table)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{shown(file)} cannot be read as Arrow: {error}") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise InputError(f"the files of {folder.name} do not fit each other: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """The path of a file or folder that lies in a folder itself, and not behind a link to elsewhere."""
    if name in ("", ".", "..") or set(name) & set("/\\\0") or Path(name).drive:
        raise InputError(f"{name!r} is no name of a file in this folder")
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise InputError(f"{shown(name)} is a link that leaves the folder")
    return path


def _strings(value: Any, key: str, *, one: bool = False) -> list[str]:
    found = value.get(key) if isinstance(value, dict) else None
    found = [found] if one else found
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"its description is damaged: {key!r} is missing or no text")
    return found
