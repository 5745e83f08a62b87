"""The pictures that a training sees again and again: decoded once, at the size the network sees, in bounded memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base.errors import InputError
from ..base.threads import cores
from ..data import Images, PictureFiles
from .network import fitted, to_tensor

MOST = 2**30
"""Bytes of decoded pictures that are held in memory; more lie in a temporary file."""

PART = 64
"""Pictures that a thread decodes at a time."""


def seen_at(shape: Sequence[int], side: int) -> tuple[int, int]:
    """Height and width of pictures (N, H, W, …) in a training: shrunk to at most ``side`` pixels, never grown."""
    height, width = shape[1:3]
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Decoded:
    """Sets of pictures as one tensor.

    Args:
        parts: the sets, one after the other; all grey, or all colour.
        size: (h, w) of what is wanted.
        folder: where there is room for a temporary file; it goes with the process, however that ends.

    Attributes:
        images: (N, h, w) or (N, h, w, 3) uint8, on the CPU; complete when `work` has ended.
        mapped: does it lie in a file?

    Raises:
        InputError: it would need more room than there is in the folder.
    """

    def __init__(self, parts: Sequence[Images], size: tuple[int, int], folder: Path) -> None:
        self._parts, self._size = parts, size
        shape = (sum(map(len, parts)), *size, *parts[0].shape[3:])
        self.mapped = int(np.prod(shape)) > MOST
        self._ready = len(parts) == 1 and not isinstance(parts[0], PictureFiles) and parts[0].shape[1:3] == size
        if self._ready:  # nothing to decode, and nothing to copy
            self.mapped, self._room = False, np.asarray(parts[0])
        else:
            self._room = _mapped(shape, folder) if self.mapped else np.empty(shape, np.uint8)
        self.images: Tensor = torch.as_tensor(self._room)

    def work(self) -> Iterator[float]:
        """Decode, a few at a time; yields the share that is done, 0 to 1."""
        if self._ready:
            return
        done = 0
        with ThreadPoolExecutor(cores()) as pool:
            for part in self._parts:
                source = part.at(self._size) if isinstance(part, PictureFiles) else part
                for start in range(0, len(part), PART * cores()):
                    rows = [slice(i, i + PART) for i in range(start, min(len(part), start + PART * cores()), PART)]
                    for found in pool.map(lambda at, source=source: _sized(source[at], self._size), rows):
                        self._room[done : done + len(found)] = found
                        done += len(found)
                    yield done / len(self._room)


def _sized(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pictures (N, H, W[, 3]) at another size, whole, the rest black."""
    if images.shape[1:3] == size:
        return images
    x = fitted(to_tensor(images), 1 if images.ndim == 3 else 3, size).mul(255).round().to(torch.uint8)
    return (x[:, 0] if images.ndim == 3 else x.movedim(1, -1)).numpy()


def _mapped(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{shape[0]:,} pictures of {shape[2]} × {shape[1]} pixels need {needed / 2**30:.1f} GiB for the training, "
            f"and {folder} has {free / 2**30:.1f}; make room there, or lower --side"
        )
    with tempfile.TemporaryFile(dir=folder) as room:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without a word
            os.posix_fallocate(room.fileno(), 0, needed)
        return np.memmap(room, np.uint8, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
