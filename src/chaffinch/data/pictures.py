"""Pictures in files, decoded when they are asked for: a list of names to hold, an array to whoever indexes it.

All pictures of a set are given at one size, grey or RGB; a look at headers decides which:

- Where all headers looked at name one size of at most `SIDE` pixels a side, that is the size. Otherwise it is a square
  of `SIDE` pixels (less, where no picture is that large), in which each picture lies whole, shrunk or grown to fit, on
  black.
- Where all of them are grey, so is the set. A picture that differs from what was decided is converted.

Transparent pixels are laid on white, the EXIF orientation is obeyed, of an animation the first frame counts, 16 bits
become 8 by their upper half, and floating-point or 32-bit pictures are stretched over their own range.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import digest
from ..base.text import shown

if TYPE_CHECKING:
    from PIL import Image

Source = str | bytes
"""A path, or the bytes of a picture file."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Other formats that Pillow knows are left out: some of them start programs."""

SIDE = 112
MOST_PIXELS = 2**26
"""Of one picture; a file that claims more is refused before it is decoded."""

CHECKED, CHECKED_BYTES, CHECKED_PIXELS = 5_000, 64 * 2**20, 2**30
"""A set of at most so many pictures, bytes and pixels is decoded once when it is opened, to find what is damaged."""

HEADERS = 256
"""Headers looked at in a larger set."""

GREY = 128
"""Value of the picture that stands in for one that cannot be decoded."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Pictures that are decoded when they are asked for, with as much of an array's manners as callers use.

    Indexing by a number gives (H, W[, 3]) uint8; by a slice, positions or a mask (M, H, W[, 3]), all in memory at
    once. A picture that turns out not to be decodable is grey, and listed in ``undecoded``.

    Attributes:
        sources: where each is.
        names: what each is called in messages; relative to the folder of the data.
        stamps: (S, any) int64, size in bytes and what else changes when the picture does.
        rows: (N,) positions in ``sources``.
        tile: shape of one picture.
    """

    sources: Sequence[Source] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    stamps: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    tile: tuple[int, ...]
    _failed: dict[int, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W) or (N, H, W, 3)."""
        return (len(self.rows), *self.tile)

    @property
    def ndim(self) -> int:
        """3 of grey, 4 of colour pictures."""
        return 1 + len(self.tile)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Of what is given: uint8."""
        return np.dtype(np.uint8)

    @property
    def paths(self) -> tuple[str, ...] | None:
        """N paths; None where some came as bytes."""
        found = [self.sources[row] for row in self.rows.tolist()]
        return tuple(map(str, found)) if all(isinstance(source, str) for source in found) else None

    @cached_property
    def digest(self) -> str:
        """A key that changes with any name, size or time of change; no picture is read for it."""
        names = np.array([self.names[row] for row in self.rows.tolist()])
        return digest(names, self.stamps[self.rows], list(self.tile))

    @property
    def undecoded(self) -> dict[int, str]:
        """Position -> reason of those that could not be decoded so far."""
        failed = self._failed.copy()
        return {place: failed[row] for place, row in enumerate(self.rows.tolist()) if row in failed} if failed else {}

    def recall(self, places: NDArray[np.int64]) -> None:
        """Be told which could not be decoded when this was done before."""
        for row in self.rows[places].tolist():
            self._failed.setdefault(row, "cannot be decoded")

    def sizes(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M, 2) height and width of the original pictures, from their headers; 0 where one cannot be read."""
        found = np.zeros((len(places), 2), np.int64)
        for i, row in enumerate(self.rows[places].tolist()):
            with suppress(Exception):  # see _decode
                found[i] = look(self.sources[row])[:2]
        return found

    def only(self, rows: NDArray[Any]) -> PictureFiles:
        """Some of them (positions or mask), still not decoded."""
        return PictureFiles(self.sources, self.names, self.stamps, self.rows[rows], self.tile, self._failed)

    def at(self, size: tuple[int, int]) -> PictureFiles:
        """The same pictures at another size (h, w), still not decoded."""
        tile = (*size, *self.tile[2:])
        return PictureFiles(self.sources, self.names, self.stamps, self.rows, tile, self._failed)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        chosen = self.rows[key]
        if chosen.ndim == 0:
            return self._decode(int(chosen))
        found = np.empty((len(chosen), *self.tile), np.uint8)
        for place, row in enumerate(chosen.tolist()):
            found[place] = self._decode(row)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("pictures in files have no array to share; they are decoded into a new one")
        return self[:].astype(dtype or np.uint8, copy=False)

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode(self.sources[row], self.tile)
        except Exception as error:  # decoders raise of every kind, and one bad file must not end the work on the rest
            self._failed[row] = reason(error)
            return np.full(self.tile, GREY, np.uint8)


Images = NDArray[np.uint8] | PictureFiles
"""Pictures (N, H, W) or (N, H, W, 3), in memory or in files."""


def some(images: Images, rows: NDArray[Any]) -> Images:
    """Some of the pictures; those in files stay there."""
    return images.only(rows) if isinstance(images, PictureFiles) else images[rows]


def key_of(images: Images) -> NDArray[np.uint8] | str:
    """What stands for pictures in a digest."""
    return images.digest if isinstance(images, PictureFiles) else images


@dataclass(frozen=True)
class Found:
    """What `open_pictures` found.

    Attributes:
        pictures: those that can be used.
        kept: (N,) their positions among the sources.
        warnings: one line on each that cannot, by name.
        note: sizes of the files in words.
    """

    pictures: PictureFiles
    kept: NDArray[np.int64]
    warnings: tuple[str, ...]
    note: str


def open_pictures(sources: Sequence[Source], names: Sequence[str], stamps: NDArray[np.int64]) -> Found:
    """Decide on size and colour from headers, and leave out what cannot be read.

    A small set (see `CHECKED`) is decoded once, so that its unreadable files are left out; of a large one only
    `HEADERS` headers are read, and what cannot be decoded shows later (`PictureFiles.undecoded`).

    Args:
        sources: S paths or bytes; paths have been checked to lie where they may.
        names: what each is called in messages.
        stamps: (S, any) int64, the first column its size in bytes.

    Raises:
        InputError: none of those looked at can be read.
    """
    n, sizes = len(sources), stamps[:, 0]
    small = n <= CHECKED and sizes.sum() <= CHECKED_BYTES
    bad = dict.fromkeys(np.flatnonzero(sizes == 0).tolist(), "is empty (0 bytes)")
    looked: dict[int, tuple[int, int, bool]] = {}
    for row in range(n) if small else np.unique(np.linspace(0, n - 1, HEADERS).astype(int)).tolist():
        if row not in bad:
            try:
                looked[row] = look(sources[row])
            except Exception as error:  # see PictureFiles._decode
                bad[row] = reason(error)
    if small and sum(height * width for height, width, _ in looked.values()) <= CHECKED_PIXELS:
        check = PictureFiles(sources, names, stamps, np.arange(n), (1, 1))
        for row in looked:
            check[row]
        bad |= check.undecoded
    good = [found for row, found in looked.items() if row not in bad]
    if not good:
        first = min(bad, default=None)
        why = "" if first is None else f"; the first: {shown(names[first])} {bad[first]}"
        raise InputError(f"none of {len(bad)} pictures looked at can be read{why}")
    shapes = {(height, width) for height, width, _ in good}
    kept = np.setdiff1d(np.arange(n), list(bad))
    store = PictureFiles(sources, names, stamps, kept, _tile(shapes, all(grey for *_, grey in good)))
    lost = tuple(f"{shown(names[row])} {why}; it is left out" for row, why in sorted(bad.items()))
    return Found(store, kept, lost, _in_words(shapes, store.tile))


def _tile(shapes: set[tuple[int, int]], grey: bool) -> tuple[int, ...]:
    longest = min(SIDE, max(max(shape) for shape in shapes))
    size = next(iter(shapes)) if len(shapes) == 1 else (longest, longest)
    size = size if max(size) <= SIDE else (SIDE, SIDE)
    return size if grey else (*size, 3)


def _in_words(shapes: set[tuple[int, int]], tile: tuple[int, ...]) -> str:
    (low, high), seen = (min(shapes, key=np.prod), max(shapes, key=np.prod)), tile[:2]
    found = f"{low[1]} × {low[0]}" + (f" to {high[1]} × {high[0]}" if len(shapes) > 1 else "")
    used = "" if shapes == {seen} else f", used at {seen[1]} × {seen[0]}"
    return f"{found} pixels, {'colour' if len(tile) == 3 else 'grey'}{used}"


def look(source: Source) -> tuple[int, int, bool]:
    """Height, width (as it is to be seen) and whether it is grey, from the header alone."""
    with _opened(source) as picture:
        height, width = picture.height, picture.width
        if _orientation(picture) >= 5:
            height, width = width, height
        return height, width, picture.mode in _GREY_MODES or picture.mode.startswith("I;16")


def decode(source: Source, tile: tuple[int, ...]) -> NDArray[np.uint8]:
    """A picture as (H, W) or (H, W, 3) uint8; see the top of the module for what is done to it.

    Raises:
        Exception: of any kind, where it cannot be decoded; `reason` puts it in words.
    """
    from PIL import Image, ImageOps

    with _opened(source) as picture:
        mode = "L" if len(tile) == 2 else "RGB"
        if picture.format == "JPEG":  # its decoder shrinks by 2, 4 or 8 for nothing; twice the size is left to do well
            picture.draft(mode, (2 * max(tile[:2]), 2 * max(tile[:2])))
        picture.load()
        turned = _orientation(picture) > 1
        plain = _in_mode(ImageOps.exif_transpose(picture) if turned else picture, mode)
    height, width = tile[:2]
    if plain.size != (width, height):
        rows, columns = inner((plain.height, plain.width), (height, width))
        canvas = Image.new(mode, (width, height))
        small = plain.resize((columns.stop - columns.start, rows.stop - rows.start), Image.Resampling.BILINEAR)
        canvas.paste(small, (columns.start, rows.start))
        plain = canvas
    return np.asarray(plain, np.uint8)


def inner(size: tuple[int, int], tile: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a tile in which a picture of another size lies; all of it where that is not known (0)."""
    (height, width), (tall, wide) = size, tile
    if not height or not width:
        return slice(0, tall), slice(0, wide)
    scale = min(wide / width, tall / height)
    down, across = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (tall - down) // 2, (wide - across) // 2
    return slice(top, top + down), slice(left, left + across)


def reason(error: Exception) -> str:
    """Why a picture cannot be read, to stand behind its name."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"is no picture that is read here ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError | InputError):
        return f"is refused: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"is damaged: {shown(str(error)) or type(error).__name__}"


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    from PIL import Image

    stream = io.BytesIO(source) if isinstance(source, bytes) else plain_file(source)
    with stream, Image.open(stream, formats=FORMATS) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise InputError(f"{picture.width} × {picture.height} pixels are more than the {MOST_PIXELS:,} allowed")
        yield picture


def plain_file(path: str) -> Any:
    """A file opened for reading, in bytes; a link that was put there after the folder was listed is not followed."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb")


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # a picture with a damaged note on how it was taken is still a picture
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Any picture as 8-bit grey (L) or RGB."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, np.float64))
        low, span = values.min(), np.ptp(values)
        picture = Image.fromarray(np.round((values - low) * (255 / span if span else 0)).astype(np.uint8))
    elif picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return picture if picture.mode == mode else picture.convert(mode)
