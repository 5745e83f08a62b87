"""Files: where the bundled ones are, how results are written whole or not at all, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError


def bundle_dir() -> Path:
    """The folder with ``app.py``, ``pages`` and ``assets``: inside an installed wheel, or the checkout."""
    packaged = Path(__file__).resolve().parents[1] / "_bundle"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3]


def assets_dir() -> Path:
    """The folder of the bundled artefacts; ``CHAFFINCH_ASSETS`` names another one."""
    return Path(os.environ.get("CHAFFINCH_ASSETS") or bundle_dir() / "assets")


def asset(*parts: str) -> Path:
    """Path of a bundled artefact, such as ``asset("fashion-web", "pool.npz")``.

    Raises:
        InputError: the file is not there.
    """
    path = assets_dir().joinpath(*parts)
    if not path.exists():
        raise InputError(f"bundled file {path} is missing; install chaffinch again, or restore it with 'git checkout'")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` if the block ends well.

    Whoever reads ``path`` sees the old file or the whole new one, never a half-written one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people (indented, sorted as given), whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, sha256: str) -> Path:
    """Return ``path`` if its bytes have that checksum.

    Raises:
        InputError: they do not; the message names the file and both sums.
    """
    got = sha256_file(path)
    if got != sha256:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {got[:16]}…, expected {sha256[:16]}…; "
            "restore it with 'git checkout' or install chaffinch again"
        )
    return path


def digest(*parts: Any) -> str:
    """A 20-character key of everything given: arrays by type, shape and bytes; the rest as sorted JSON."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            if part.dtype.kind in "OU":
                part = np.char.encode(part.astype(str), "utf-8")
            h.update(f"{part.dtype.str}{part.shape}".encode())
            h.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"")
        else:
            h.update(json.dumps(part, sort_keys=True, default=str).encode())
        h.update(b"\0")
    return h.hexdigest()[:20]
