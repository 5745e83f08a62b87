"""Zip archives that someone brings: checked as a whole, unpacked into a folder named by their content, or refused.

An archive with one hostile member is refused whole, by that member's name: whoever made it is not to be trusted, so
nothing else of it is unpacked either.
"""

from __future__ import annotations

import calendar
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..base.errors import InputError
from ..base.text import shown
from . import huggingface, tables
from .folders import walk
from .pictures import SUFFIXES

Stream = io.BytesIO | io.BufferedReader

MOST_FILES, MOST_BYTES = 200_000, 4 * 2**30
"""Members of one archive, and bytes of all of them unpacked."""

MOST_RATIO, SMALL = 200, 2**20
"""A member that unpacks to more than `SMALL` bytes must not grow by more than this; pictures hardly grow at all."""


def unpack(stream: Stream, into: Path) -> str:
    """Unpack an archive, unless one of the same content is there already.

    Args:
        stream: the archive; it is read from its beginning.
        into: an existing folder; the archive gets a folder in it whose name is a hash of its content.

    Returns:
        The name of the dataset in it, for `open_dataset`: a saved dataset or a table if there is one, else its folder.

    Raises:
        InputError: no zip archive, damaged, or one with a member that must not be unpacked (by name): outside its
            folder, a link, encrypted, twice there, or far larger than it looks; or one with nothing usable.
    """
    stream.seek(0)
    target = into / hashlib.file_digest(stream, "sha256").hexdigest()[:20]
    if target.is_dir():
        return dataset_in(target)
    stream.seek(0)
    temporary = Path(tempfile.mkdtemp(dir=into, prefix=".unpacking-"))
    try:
        _extract(stream, temporary)
        dataset_in(temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():  # else another session was quicker, and its folder has the same content
                raise
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"the archive cannot be unpacked into {into}: {error.strerror or error}") from error
    except Exception as error:  # zip, checksum and decompression errors all mean: this file is no use
        raise InputError(f"the archive cannot be read as a zip file: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataset_in(target)


def dataset_in(folder: Path) -> str:
    """The name of the dataset in an unpacked archive, below folders that hold nothing else.

    Raises:
        InputError: there is none, or more than one table.
    """
    while True:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        found = [path for path in entries if path.suffix.lower() in tables.SUFFIXES and path.is_file()]
        if huggingface.is_saved(folder):
            return f"hf:{folder}"
        if len(found) > 1:
            names = ", ".join(shown(path.name) for path in found)
            raise InputError(f"the archive holds more than one table ({names}); leave one in it")
        if found:
            return f"table:{found[0]}"
        below = [path for path in entries if path.is_dir()]
        if len(entries) == 1 and below and not any(p.suffix.lower() in SUFFIXES for p in below[0].iterdir()):
            folder = below[0]
            continue
        if any(path.count("/") and PurePosixPath(path).suffix.lower() in SUFFIXES for path, _ in walk(folder, [])):
            return f"folder:{folder}"
        raise InputError("the archive holds neither class folders with pictures nor a table")


def _extract(stream: Stream, folder: Path) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = [member for member in archive.infolist() if _wanted(member.filename)]
        _check(members)
        for member in members:
            path = folder / member.filename
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("xb") as copy:
                shutil.copyfileobj(source, copy)
            when = _time(member)  # of the member, so that the same archive is the same dataset when unpacked again
            os.utime(path, (when, when))


def _wanted(name: str) -> bool:
    """Not what a Mac adds to every archive, and nothing hidden."""
    return not any(re.match(r"\.[^.]|__MACOSX$", part) for part in name.split("/"))


def _check(members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive for its size, or for any of its members."""
    if len(members) > MOST_FILES:
        raise InputError(f"the archive holds {len(members):,} files, at most {MOST_FILES:,} are unpacked")
    total, seen = 0, set[str]()
    for member in members:
        total += member.file_size
        if why := _fault(member) or ("is there twice" if member.filename.rstrip("/") in seen else ""):
            raise InputError(f"the archive is refused: {shown(member.filename)} {why}")
        seen.add(member.filename.rstrip("/"))
    if total > MOST_BYTES:
        raise InputError(f"the archive unpacks to {total:,} bytes, at most {MOST_BYTES:,} are allowed")


def _fault(member: zipfile.ZipInfo) -> str:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    if "\\" in name or PureWindowsPath(name).anchor or not all(parts) or set(parts) & {".", ".."}:
        return "has a path that could leave its folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if kind == stat.S_IFLNK else "is no plain file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
        return "is compressed in another way than deflate"
    if member.file_size > SMALL and member.file_size > MOST_RATIO * max(member.compress_size, 1):
        return f"unpacks to {member.file_size // max(member.compress_size, 1):,} times its size"
    return ""


def _time(member: zipfile.ZipInfo) -> float:
    try:
        return float(max(0, calendar.timegm((*member.date_time, 0, 0, 0))))
    except (ValueError, OverflowError):  # a date that does not exist
        return 0.0
