"""`open_dataset`: one text, such as ``fashion-web:noise=0.6`` or ``folder:birds``, opens one dataset."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import InputError
from . import arrays, fashion_web, folders, huggingface, tables
from .dataset import NoisyDataset

PATHS = {"folder": folders.load, "table": tables.load, "arrays": arrays.load, "hf": huggingface.load}
"""Kinds of data that lie in a path, and what opens them."""


def open_dataset(name: str) -> NoisyDataset:
    """Open a dataset.

    Args:
        name: ``fashion-web`` or ``fashion-web:noise=0.6,ood=0.5,flips=asymmetric,seed=3``; ``folder:PATH`` of class
            folders; ``table:PATH.csv`` or ``.parquet`` (or a folder of them); ``arrays:PATH.npz``; or ``hf:PATH``
            of a folder written by ``save_to_disk``. The function that opens each kind (see `PATHS`) says what it takes.

    Raises:
        InputError: the name is unknown, or what it names cannot be used.
    """
    source, _, rest = name.partition(":")
    if source == "fashion-web":
        return fashion_web.load(rest)
    path = path_of(name)
    return PATHS[source](name, path)


def path_of(name: str) -> Path:
    """The path in the name of a dataset that lies in one.

    Raises:
        InputError: the name is of no such kind, or has no path.
    """
    source, _, rest = name.partition(":")
    if source not in PATHS or not rest:
        raise InputError(
            f"unknown dataset {name!r}; use fashion-web[:OPTIONS], folder:PATH, table:PATH.csv or .parquet, "
            "arrays:PATH.npz, or hf:PATH"
        )
    if "\0" in rest:
        raise InputError(f"{name!r} has a character that no path can have")
    return Path(rest).expanduser()


def resolved(name: str) -> str:
    """The same name with a path that means the same from any folder."""
    source = name.partition(":")[0]
    return f"{source}:{path_of(name).resolve()}" if source in PATHS else name


def recognise(path: str) -> str:
    """The name of the dataset that lies in a path; what has a kind already, or none known, stays as it is."""
    place = Path(path).expanduser()
    if path.partition(":")[0] in (*PATHS, "fashion-web") or "\0" in path or not path:
        return path
    if place.is_dir():
        flat = bool(tables.shards(place)) and not any(child.is_dir() for child in place.iterdir())
        return f"{'hf' if huggingface.is_saved(place) else 'table' if flat else 'folder'}:{path}"
    suffix = place.suffix.lower()
    return f"table:{path}" if suffix in tables.SUFFIXES else f"arrays:{path}" if suffix == ".npz" else path


def fingerprint(name: str) -> str:
    """A cheap text that changes whenever ``open_dataset(name)`` would give something else.

    Caches use it as their key: for a file, its path, size and time of change (of the pictures that a table names,
    nothing); for a folder the names of its files, and unless they are many also their sizes and times; for the bundled
    data, the draw.

    Raises:
        InputError: the name is unknown, its options are bad, or its file is not there.
    """
    source, _, rest = name.partition(":")
    if source == "fashion-web":
        fashion_web.Draw.parse(rest)
        return name
    path = path_of(name)
    if source == "folder":
        return f"{name}@{folders.fingerprint(path)}"
    if source == "hf":
        return f"{name}@{huggingface.fingerprint(path)}"
    try:
        if source == "table":
            return f"{name}@{tables.fingerprint(path)}"
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return f"{name}@{state.st_size}-{state.st_mtime_ns}"
