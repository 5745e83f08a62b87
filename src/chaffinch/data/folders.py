"""`folder:` one sub-folder a class, as ImageFolder has it; with ``train`` and ``test`` above them where both exist."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import digest
from ..base.text import listed, shown
from .assemble import assemble
from .dataset import NoisyDataset, Split
from .pictures import CHECKED, SUFFIXES, Found, open_pictures

SPLITS = ("train", "test")

MOST_FILES = 1_000_000
"""What is listed of a folder before it is taken for the wrong one, such as the root of a disk."""


class _File(NamedTuple):
    """A file below a folder: its relative path, where it really is, and its state."""

    path: str
    place: str
    state: os.stat_result


def load(name: str, root: Path) -> NoisyDataset:
    """Open a folder of class folders; an id is a picture's path relative to it, with ``/`` on every system.

    Only names, sizes and times are read of a large folder, and some headers (see `open_pictures`). What is hidden is
    passed over; what lies in no class folder, leaves the folder by a link, or is no picture by its name is left out
    with a warning.

    Raises:
        InputError: there is no such folder, or nothing usable in it.
    """
    refused = list[str]()
    listed = list(_files(root, refused))
    named = [file for file in listed if _suffix(file.path) in SUFFIXES]
    split = {file.path.split("/")[0] for file in named if file.path.count("/") > 1}.issuperset(SPLITS)
    depth = 1 if split else 0  # of the class in the path
    files = [f for f in named if f.path.count("/") > depth and (not split or f.path.split("/")[0] in SPLITS)]
    others = [file.path for file in listed if _suffix(file.path) not in SUFFIXES]
    refused += several(others, "is no picture by its name", "are no pictures by their names")
    if len(files) < len(named):
        used = {file.path for file in files}
        room = "class folder of train and test" if split else "class folder"
        refused += several([f.path for f in named if f.path not in used], f"lies in no {room}", f"lie in no {room}")
    if not files:
        why = f" ({refused[0]})" if refused else ""
        raise InputError(f"{root} holds no pictures in class folders, such as {root.name}/cat/1.png{why}")
    paths = [file.path for file in files]
    stamps = np.array([(file.state.st_size, file.state.st_mtime_ns) for file in files], np.int64)
    try:
        found = open_pictures([file.place for file in files], paths, stamps)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error
    parts = [paths[row].split("/") for row in found.kept.tolist()]
    tests = np.array([split and part[0] == "test" for part in parts])
    given = np.array([part[depth] for part in parts])
    classes, labels = np.unique(given[~tests], return_inverse=True)
    if not len(classes):
        raise InputError(f"{root}/train holds no picture that can be read")
    test, strange = test_split(found, tests, given, classes.tolist())
    refused += several(strange, "is of a class that train has not", "are of classes that train has not")
    data = {"labels": labels, "classes": classes, "ids": np.array(paths)[found.kept[~tests]]}
    train = found.pictures.only(~tests)
    return assemble(name, data, train, test, warnings=(*refused, *found.warnings), note=about(len(train), test, found))


def fingerprint(root: Path) -> str:
    """A text that changes when a file comes, goes or gets another name; up to `CHECKED` files, also when one changes.

    Raises:
        InputError: there is no such folder.
    """
    paths = [path for path, _ in walk(root, [])]
    if len(paths) > CHECKED:
        return digest(paths)
    return digest([(file.path, file.state.st_size, file.state.st_mtime_ns) for file in _files(root, [])])


def about(count: int, test: Split | None, found: Found) -> str:
    """One line on what was found: so many pictures to train on, and others."""
    apart = f" and {len(test):,} for the test" if test else ""
    return f"{count:,} pictures{apart}; {found.note}"


def test_split(
    found: Found, tests: NDArray[np.bool_], given: NDArray[Any], classes: Sequence[str]
) -> tuple[Split | None, list[str]]:
    """The test pictures of classes that are known, and the names of the others.

    Args:
        found: all pictures, N of them.
        tests: (N,) bool, which belong to the test split.
        given: (N,) names of their classes.
        classes: those of the training samples.
    """
    position = {name: i for i, name in enumerate(classes)}
    codes = np.array([position.get(name, -1) for name in given.tolist()])
    strange = [found.pictures.names[found.pictures.rows[row]] for row in np.flatnonzero(tests & (codes < 0)).tolist()]
    rows = np.flatnonzero(tests & (codes >= 0))
    return Split(found.pictures.only(rows), codes[rows]) if len(rows) else None, strange


def several(names: Sequence[str], one: str, more: str) -> list[str]:
    """No line, or one that counts and names the files with the same fault."""
    if not names:
        return []
    if len(names) == 1:
        return [f"{shown(names[0])} {one}; it is left out"]
    return [f"{len(names):,} files {more}; they are left out ({listed(names)})"]


def within(path: str, root: str) -> bool:
    """Does a resolved path lie in a resolved folder?"""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def walk(root: Path, refused: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files that are not hidden, with their paths relative to the folder, in the order of their names.

    Args:
        root: the folder.
        refused: receives one line on each thing that is passed over.

    Raises:
        InputError: there is no such folder, or it holds more than `MOST_FILES` files and folders.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder" if root.exists() else f"{root} does not exist")
    real = os.path.realpath(root)
    waiting, listed = [("", real)], 0
    while waiting:
        above, folder = waiting.pop()
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            refused.append(f"{shown(above) or root} cannot be listed: {error.strerror}; it is left out")
            continue
        listed += len(entries)
        if listed > MOST_FILES:
            raise InputError(f"{root} holds more than {MOST_FILES:,} files; name a folder closer to the pictures")
        below = []
        for entry in entries:
            path = above + entry.name
            if why := _unusable(entry, real):
                refused.append(f"{shown(path)} {why}; it is left out")
            elif entry.is_dir(follow_symlinks=False):
                below.append((f"{path}/", entry.path))
            else:
                yield path, entry
        waiting += reversed(below)


def _unusable(entry: os.DirEntry[str], root: str) -> str:
    if not entry.name.isprintable() and entry.name.encode("utf-8", "replace").decode() != entry.name:
        return "has a name that is not UTF-8"
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not within(target, root):
            return "is a link that leaves the folder"
        if entry.is_dir():
            return "is a link to a folder"
    return "" if entry.is_file() or entry.is_dir() else "is neither a file nor a folder"


def _files(root: Path, refused: list[str]) -> Iterator[_File]:
    """What `walk` finds, with its state."""
    for path, entry in walk(root, refused):
        try:
            yield _File(path, os.path.realpath(entry.path) if entry.is_symlink() else entry.path, entry.stat())
        except OSError as error:
            refused.append(f"{shown(path)} cannot be read: {error.strerror}; it is left out")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()
