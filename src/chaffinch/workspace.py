"""Results on disk, found by what they depend on; shared by the app, the command line and notebooks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from .base.errors import InputError
from .base.files import assets_dir, read_json, replacing, write_json

Arrays = dict[str, NDArray[Any]]

LIVE = ("history", "parts", "speed")
"""What the note of a training says of its course; it stays there when the training is stopped or goes on."""

PARTS = {
    "results": ("results", "thumbnails", "shards"),
    "encoders": ("encoders",),
    "trainings": ("runs", "experiments"),
    "archives": ("archives",),
    "notes": ("notes",),
    "decisions": ("reviews.sqlite", "reviews.sqlite-wal", "reviews.sqlite-shm"),
}
"""What a workspace holds: results can be computed again, encoders and trainings in a long time, archives can be dropped
on the page again, decisions cannot be had again."""

CLEARED = {
    "results": ("results",),
    "encoders": ("encoders",),
    "archives": ("archives",),
    "all": ("results", "encoders", "trainings", "archives", "notes"),
    "decisions": ("decisions",),
}
"""What can be cleared, and the parts that go. Decisions go only when they are named."""


class Workspace:
    """A folder of results. The name of each is a hash of everything it depends on.

    What the package ships (``assets/results``) is looked up first and never written to. A damaged file counts as
    missing: it is computed again and replaced.

    Args:
        root: the folder; default ``CHAFFINCH_HOME``, or the user's cache folder.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root or os.environ.get("CHAFFINCH_HOME") or user_cache_path("chaffinch")
        self.root = Path(chosen).expanduser()

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    def folder(self, name: str) -> Path:
        """A sub-folder, made if need be.

        Raises:
            InputError: it cannot be made.
        """
        path = self.root / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(path, error) from error
        return path

    @property
    def decisions(self) -> Path:
        """The file of what people decided (see `chaffinch.reviews`)."""
        return self.root / PARTS["decisions"][0]

    def sizes(self) -> dict[str, int]:
        """Bytes on disk, by part (see `PARTS`)."""
        return {part: sum(_size(self.root / name) for name in names) for part, names in PARTS.items()}

    def clear(self, what: str) -> int:
        """Remove what `CLEARED` names; returns the bytes that this freed.

        Raises:
            InputError: nothing is called so, something is at work there, or it cannot be removed.
        """
        if what not in CLEARED:
            raise InputError(f"{what!r} cannot be cleared; choose {', '.join(CLEARED)}")
        for path in sorted((self.root / "notes").glob("*.json")) if what in ("encoders", "all") else ():
            state = self.noted(path.stem)
            if isinstance(state, dict) and "pid" in state and alive(int(state["pid"])):
                raise InputError(f"{path.stem} is at work in {self.root}; stop it first, or let it end")
        freed = 0
        for path in (self.root / name for part in CLEARED[what] for name in PARTS[part]):
            freed += _size(path)
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{path} cannot be removed: {error.strerror or error}") from error
        return freed

    @staticmethod
    def _unwritable(path: Path, error: OSError) -> InputError:
        reason = error.strerror or error
        return InputError(f"the workspace folder {path} cannot be written ({reason}); set CHAFFINCH_HOME to another")

    def _places(self, step: str, key: str) -> list[Path]:
        """Where a result may lie; shipped ones come first."""
        return [folder / "results" / f"{step}-{key}.npz" for folder in (assets_dir(), self.root)]

    def has(self, step: str, key: str) -> bool:
        """Is a result stored? Looks at the archive's directory only, so it costs nothing to ask at every run."""
        return any(zipfile.is_zipfile(path) for path in self._places(step, key))

    def find(self, step: str, key: str) -> Arrays | None:
        """The stored arrays of one step, or None. Shipped results come first."""
        for path in self._places(step, key):
            try:
                # opened here, because numpy leaves the file open if the archive is damaged
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
            except Exception:  # zip, header, checksum and read errors all mean: not there
                continue
        return None

    def store(self, step: str, key: str, arrays: Arrays, *, folder: Path | None = None) -> Path:
        """Write the arrays of one step, whole or not at all; compressed if ``folder`` is given (to ship them).

        Raises:
            InputError: the folder cannot be written, or is full.
        """
        path = (folder or self.folder("results")) / f"{step}-{key}.npz"
        try:
            with replacing(path) as temporary:
                (np.savez_compressed if folder else np.savez)(temporary, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise self._unwritable(path.parent, error) from error
        return path

    def remember(self, step: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The stored arrays of one step; computed and stored first if they are not there."""
        found = self.find(step, key)
        if found is None:
            found = make()
            self.store(step, key, found)
        return found

    def note(self, name: str, value: Any) -> None:
        """Keep a small JSON document, such as the progress of a job."""
        folder = self.folder("notes")
        try:
            write_json(folder / f"{name}.json", value)
        except OSError as error:
            raise self._unwritable(folder, error) from error

    def noted(self, name: str) -> Any:
        """A document kept by `note`, or None if there is none or it is damaged."""
        try:
            return read_json(self.root / "notes" / f"{name}.json")
        except InputError:
            return None


def _size(path: Path) -> int:
    """Bytes of a file or of all files under a folder; those that vanish meanwhile count nothing."""
    total = 0
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if file.is_symlink() or file.is_file() else 0
    return total


def readable(size: float) -> str:
    """Bytes for people, such as 3.1 MB."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def alive(pid: int) -> bool:
    """Is there a process of this number?"""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def pack(info: dict[str, Any]) -> NDArray[np.str_]:
    """A dictionary of plain values as a JSON text array, to lie beside arrays."""
    return np.array(json.dumps(info))


def unpack(text: NDArray[np.str_]) -> dict[str, Any]:
    """The dictionary that `pack` made into text."""
    found: dict[str, Any] = json.loads(str(text))
    return found
