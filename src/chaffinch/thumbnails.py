"""Sprite sheets: many small pictures in one PNG, so that a page of thumbnails costs a few requests.

A sheet is a grid of tiles in reading order; picture ``i`` is tile ``i % per_sheet`` of sheet ``i // per_sheet``.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import read_json, replacing, write_json
from .data import Images

COLUMNS = 25
PER_SHEET = 500
_filling: set[Path] = set()
_filling_lock = threading.Lock()


@dataclass(frozen=True)
class Sheets:
    """The plan of a folder of sprite sheets, and the pictures to make them from.

    Attributes:
        folder: where the sheets are.
        width, height: size of one tile in pixels.
        columns: tiles in a row of a sheet.
        per_sheet: tiles on a sheet.
        count: number of pictures, N.
        images: (N, H, W) or (N, H, W, 3) uint8; those in files are decoded a sheet at a time.
    """

    folder: Path
    width: int
    height: int
    columns: int
    per_sheet: int
    count: int
    images: Images = field(repr=False, compare=False)

    def plan(self) -> dict[str, int]:
        """The numbers a browser needs to find a tile."""
        names = ("width", "height", "columns", "per_sheet", "count")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Number of sheets."""
        return -(-self.count // self.per_sheet)

    def path(self, number: int) -> Path:
        """File of sheet ``number``."""
        return self.folder / f"sheet-{number:04d}.png"

    def ensure(self, indices: Iterable[int] | NDArray[np.integer[Any]] | None = None) -> None:
        """Make the sheets that show these pictures (all, if None), where they are missing.

        Raises:
            InputError: an index is outside 0..N-1.
        """
        if indices is None:
            numbers = range(self.total)
        else:
            wanted = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
            if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
                raise InputError(f"picture {wanted.min()}..{wanted.max()} asked for, there are {self.count}")
            numbers = np.unique(wanted // self.per_sheet).tolist()
        for number in numbers:
            if not self.path(number).exists():
                _write_sheet(self, number)

    def strip(self, indices: Iterable[int]) -> bytes:
        """A PNG of these pictures side by side, in this order: a page of a gallery in one piece."""
        return _strip(self, tuple(int(i) for i in indices))

    def fill(self) -> None:
        """Make the missing sheets in a daemon thread; one thread a folder, whoever asks."""
        with _filling_lock:
            if self.folder in _filling or all(self.path(n).exists() for n in range(self.total)):
                return
            _filling.add(self.folder)

        def work() -> None:
            try:
                self.ensure()
            finally:
                with _filling_lock:
                    _filling.discard(self.folder)

        threading.Thread(target=work, name="thumbnails", daemon=True).start()


def make_sheets(images: Images, folder: Path, *, size: int = 64, wait: bool = True) -> Sheets:
    """Turn pictures into sprite sheets in ``folder``; sheets that are there are kept.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8.
        folder: one folder a set of pictures (name it by their digest).
        size: pictures up to this many pixels on the long side keep their size, larger ones are shrunk to it.
        wait: True makes every sheet now; False only writes the plan: call ``ensure`` for the pictures on
            the screen and ``fill`` for the rest.

    Raises:
        InputError: the array is not a stack of uint8 pictures.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise InputError(f"pictures must be (N, H, W) or (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
    count, height, width = images.shape[:3]
    scale = min(1.0, size / max(height, width, 1))
    tile_w, tile_h = max(1, round(width * scale)), max(1, round(height * scale))
    sheets = Sheets(folder, tile_w, tile_h, COLUMNS, PER_SHEET, count, images)
    if _plan_on_disk(folder) != sheets.plan():  # another size or another number: start afresh
        for old in folder.glob("sheet-*.png"):
            old.unlink(missing_ok=True)
        write_json(folder / "sheets.json", sheets.plan())
    if wait:
        sheets.ensure()
    return sheets


def picture_png(image: NDArray[np.uint8], size: int) -> bytes:
    """One picture (H, W) or (H, W, 3) uint8 as PNG, its long side about ``size`` pixels.

    Small pictures grow by a whole factor without smoothing, so that their pixels stay visible.
    """
    from PIL import Image

    height, width = image.shape[:2]
    picture = _as_image(image)
    if max(height, width) <= size:
        factor = size // max(height, width)
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _png(picture)


def _plan_on_disk(folder: Path) -> Any:
    try:
        return read_json(folder / "sheets.json")
    except InputError:
        return None


@lru_cache(maxsize=16)
def _strip(sheets: Sheets, indices: tuple[int, ...]) -> bytes:
    """See `Sheets.strip`; kept, since a page is drawn again at every click, and large files take long to decode."""
    tiles = _tiles(sheets, sheets.images[np.array(indices, np.int64)])
    return _png(_as_image(np.concatenate(list(tiles), axis=1)))


def _tiles(sheets: Sheets, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (B, H, W[, 3]) at the size of a tile."""
    if block.shape[1:3] == (sheets.height, sheets.width):
        return block
    from PIL import Image

    shape = (sheets.width, sheets.height)
    return np.stack([np.asarray(_as_image(picture).resize(shape, Image.Resampling.BOX)) for picture in block])


def _as_image(picture: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(picture))


def _write_sheet(sheets: Sheets, number: int) -> None:
    """Draw sheet ``number`` and put it in its place, whole or not at all."""
    start = number * sheets.per_sheet
    block = _tiles(sheets, np.asarray(sheets.images[start : start + sheets.per_sheet]))
    rows = -(-len(block) // sheets.columns)
    tiles = np.zeros((rows * sheets.columns, *block.shape[1:]), dtype=np.uint8)
    tiles[: len(block)] = block
    grid = tiles.reshape(rows, sheets.columns, *block.shape[1:]).swapaxes(1, 2)  # (rows, h, columns, w[, 3])
    sheet = grid.reshape(rows * sheets.height, sheets.columns * sheets.width, *block.shape[3:])
    with replacing(sheets.path(number)) as temporary:
        temporary.write_bytes(_png(_as_image(sheet)))


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
