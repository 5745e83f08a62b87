"""What can be read off pictures alone, in one pass over them: light, contrast, blur, size, and what tells copies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pictures import Images, PictureFiles, inner

SIDE = 16
"""A sketch has so many pixels a side. Of Fashion-MNIST's pictures those of 16 told JPEG copies and brighter or noisier
ones from other pictures as well as whole ones did, and shrunk copies better."""

BATCH = 256
"""Pictures that are decoded at a time."""

WINDOW = 3
"""Pixels that the blur of `blurriness` averages over. Of 3, 5, 7 and 9, three told pictures of 28 x 28 blurred by a
bell of 1 pixel best from others."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Progress = Callable[[float], None]
Single = NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """What was read off N pictures; a picture that could not be decoded has NaN for light and blur.

    Attributes:
        dark, light: (N,) grey value 0 to 255 that one pixel in a hundred falls below, or exceeds.
        contrast: (N,) standard deviation of the grey values.
        blur: (N,) 0 = sharp to 1, see `blurriness`; NaN where all pixels are alike.
        size: (N, 2) int64, height and width of the original, before it was shrunk or grown; 0 if not known.
        mark: (N,) int64, equal where all pixels (as they are used) and the original's size are; a hash.
        sketch: (N, SIDE * SIDE) uint8, the picture in grey, very small.
    """

    dark: Single
    light: Single
    contrast: Single
    blur: Single
    size: NDArray[np.int64]
    mark: NDArray[np.int64]
    sketch: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.mark)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(N,) could it be decoded?"""
        return np.isfinite(self.contrast)


def measure(images: Images, progress: Progress | None = None) -> Measures:
    """Look at every picture once, `BATCH` of them in memory at a time.

    Light, contrast and blur are those of the picture as it is used, at most 112 pixels a side, but not of one that had
    to grow for that, nor of the black beside one that is not square.

    Args:
        images: N pictures.
        progress: called with the share done, 0 to 1.
    """
    n = len(images)
    floats = {name: np.full(n, np.nan, np.float32) for name in ("dark", "light", "contrast", "blur")}
    found = Measures(
        **floats, size=np.zeros((n, 2), np.int64), mark=np.zeros(n, np.int64), sketch=np.zeros((n, SIDE**2), np.uint8)
    )
    for start in range(0, n, BATCH):
        rows = np.arange(start, min(start + BATCH, n))
        block = images[rows]
        if isinstance(images, PictureFiles):
            undecoded = images.undecoded
            found.size[rows] = images.sizes(rows)
            rows = np.array([row for row in rows.tolist() if row not in undecoded], np.int64)
        else:
            found.size[rows] = images.shape[1:3]
        _look(found, rows, block[rows - start])
        if progress:
            progress(min(1.0, (start + BATCH) / n))
    return found


def _look(found: Measures, rows: NDArray[np.int64], block: NDArray[np.uint8]) -> None:
    """Fill in some rows from their pictures (B, H, W[, 3])."""
    from PIL import Image

    shape = (int(block.shape[1]), int(block.shape[2]))
    grey = grey_of(block)
    sizes = np.unique(found.size[rows], axis=0).tolist()
    boxes = {(height, width): inner((height, width), shape) for height, width in sizes}
    for i, row in enumerate(rows.tolist()):
        whole = block[i].tobytes() + found.size[row].tobytes()
        found.mark[row] = np.frombuffer(hashlib.blake2b(whole, digest_size=8).digest(), np.int64)[0]
        picture = grey[i][boxes[tuple(found.size[row].tolist())]]
        small = Image.fromarray(np.round(picture).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BOX)
        found.sketch[row] = np.asarray(small).ravel()
    for size, box in boxes.items():
        alike = (found.size[rows] == size).all(axis=1)
        some = grey[alike][:, box[0], box[1]]
        if 0 < size[0] < some.shape[1]:  # one that was grown is no sharper for it
            some = np.stack(
                [np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR)) for one in some]
            )
        flat = some.reshape(len(some), -1)
        k = flat.shape[1] // 100
        ordered = np.partition(flat, (k, flat.shape[1] - 1 - k), axis=1)
        here = rows[alike]
        found.dark[here], found.light[here] = ordered[:, k], ordered[:, -1 - k]
        found.contrast[here] = flat.std(axis=1)
        found.blur[here] = blurriness(some)


def grey_of(block: NDArray[np.uint8]) -> Single:
    """Pictures (B, H, W[, 3]) as grey values (B, H, W), 0 to 255."""
    return block.astype(np.float32) if block.ndim == 3 else block.astype(np.float32) @ _LUMA


def blurriness(grey: Single) -> Single:
    r"""How blurred pictures are: how little of their variation a further blur takes away.

    .. math:: \max_{\text{axis}} 1 - \frac{\sum \max(0, |\Delta F| - |\Delta B|)}{\sum |\Delta F|}

    B is F averaged over `WINDOW` pixels along the axis, Δ the difference of neighbouring pixels along it. The whole
    contrast of a picture cancels. Crété-Roffet, Dolmiere, Ladret and Nicolas, The blur effect: perception and
    estimation with a new no-reference perceptual blur metric, SPIE 2007; they average over more pixels, of larger
    pictures.

    Args:
        grey: (B, H, W).

    Returns:
        (B,) 0 = sharp to 1; NaN where all pixels are alike, or a side is shorter than `WINDOW`.
    """
    found = np.full(len(grey), np.nan, np.float32)
    for axis in (1, 2):
        if grey.shape[axis] < WINDOW:
            continue
        F = np.moveaxis(grey, axis, 2)
        pad = np.pad(F, ((0, 0), (0, 0), (WINDOW // 2 + 1, WINDOW // 2)), mode="edge")
        sums = np.cumsum(pad, axis=2, dtype=np.float64)
        B = (sums[..., WINDOW:] - sums[..., :-WINDOW]) / WINDOW
        change, rest = np.abs(np.diff(F, axis=2)), np.abs(np.diff(B, axis=2))
        total, lost = change.sum(axis=(1, 2)), np.maximum(change - rest, 0).sum(axis=(1, 2))
        blur = np.where(total > 0, 1 - lost / np.where(total > 0, total, 1), np.nan)
        found = np.fmax(found, blur.astype(np.float32))
    return found
