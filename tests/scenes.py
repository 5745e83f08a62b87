"""Made pictures that look like something: light and dark patches with edges, and fine grain; and folders of them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE = 48


def scene(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """A picture of some rectangles on a slope, no two alike."""
    rng = np.random.default_rng([5, seed])
    y, x = np.mgrid[:height, :width] / max(height, width)
    values = 70 + 60 * rng.uniform(-1, 1) * y + 60 * rng.uniform(-1, 1) * x
    for _ in range(7):
        top, left = rng.integers(0, height - 6), rng.integers(0, width - 6)
        values[top : top + rng.integers(5, height // 2), left : left + rng.integers(5, width // 2)] = rng.integers(
            20, 240
        )
    values += rng.normal(0, 6, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, quality: int = 85) -> Image.Image:
    """The same after a JPEG."""
    picture.save(stream := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(stream).convert("L")


def darker(picture: Image.Image, factor: float = 0.8) -> Image.Image:
    return picture.point(lambda value: value * factor)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blank": lambda p: Image.new("L", p.size, 93),
    "dark": lambda p: p.point(lambda value: value // 12),
    "bright": lambda p: p.point(lambda value: 225 + value // 9),
    "flat": lambda p: p.point(lambda value: 110 + value // 14),
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(4)),
    "odd-size": lambda p: scene(900, 4 * SIDE, 4 * SIDE),
    "odd-shape": lambda p: scene(901, 16, 160),
}
"""What makes a picture look odd, by the check that lists it."""


def put(root: Path, pictures: dict[str, Image.Image]) -> str:
    """Save pictures under their relative names; returns the name of the dataset."""
    for name, picture in pictures.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return f"folder:{root}"


def plain(count: int = 40, *, test: int = 0) -> dict[str, Image.Image]:
    """Pictures of two classes, nothing planted; with test pictures they lie below train and test."""
    above = "train/" if test else ""
    found = {f"{above}{'ab'[i % 2]}/{i:03d}.png": scene(i) for i in range(count)}
    return found | {f"test/{'ab'[i % 2]}/t{i}.png": scene(500 + i) for i in range(test)}


def planted(count: int = 40) -> dict[str, Image.Image]:
    """The same with copies, leaks and odd pictures among them."""
    found = plain(count, test=8)
    found |= {
        "train/a/same.png": scene(0),
        "train/b/other.png": scene(2),
        "train/a/jpeg.jpg": jpeg(scene(4)),
        "train/b/darker.png": darker(scene(5)),
        "test/a/leak.png": scene(6),
        "test/b/leak.jpg": jpeg(scene(8)),
    }
    return found | {f"train/a/{check}.png": change(scene(600 + i)) for i, (check, change) in enumerate(CHANGES.items())}
