"""`fashion-web`: Fashion-MNIST made web-noisy, bundled with the package.

Pictures 28 x 28 grey (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747, MIT licence). Seven classes are
in-distribution; Trouser, Bag and Ankle boot are out-of-distribution and come under random labels.

Rebuild the pool from the original files:

    chaffinch build-pool /usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import asset, digest, read_json, replacing, sha256_file, verify, write_json
from . import noise
from .dataset import NoisyDataset, Observed, Split, Truth

ORIGINAL = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
ID_CLASSES = (0, 2, 3, 4, 5, 6, 7)
OOD_CLASSES = (1, 8, 9)
CLASSES = tuple(ORIGINAL[c] for c in ID_CLASSES)
CONFUSED_WITH = (5, 3, 0, 1, 6, 0, 4)
"""What a wrong label of each class becomes under asymmetric flips: the class people confuse it with."""

POOL_ID_PER_CLASS, POOL_OOD_PER_CLASS = 2_200, 3_200
TRUSTED = 500
FLIPS = ("symmetric", "asymmetric", "instance")
TASKS = ("garment", "angle")
ANGLES = tuple(range(-75, 76, 15))
"""Degrees (counter-clockwise) by which the pictures of the task ``angle`` are turned; its classes, in order."""


@dataclass(frozen=True)
class Draw:
    """One draw from the pool.

    Attributes:
        noise: share of all training pictures that are noisy, 0 to 1.
        ood: share of the noisy ones that are out-of-distribution; the rest carry a wrong label.
        flips: how wrong labels arise: symmetric, asymmetric or instance.
        seed: seed of the draw.
        n: number of training pictures; with ``imbalance`` at most so many.
        imbalance: how many times as many pictures the largest class has as the smallest, 1 or more; the classes
            between them fall off geometrically.
        task: ``garment``, or ``angle``: every picture is turned, and its label says by how much.
    """

    noise: float = 0.4
    ood: float = 0.625
    flips: str = "symmetric"
    seed: int = 0
    n: int = 12_000
    imbalance: float = 1.0
    task: str = "garment"

    @classmethod
    def parse(cls, text: str) -> Draw:
        """From ``"noise=0.6,ood=0.5,flips=asymmetric,seed=3"``; an empty text is the default draw.

        Raises:
            InputError: an unknown option or a value out of range, by name.
        """
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = item.partition("=")
            if key not in kinds:
                raise InputError(f"fashion-web has no option {key!r}; it has {', '.join(kinds)}")
            try:
                values[key] = kinds[key](value)
            except ValueError as error:
                raise InputError(f"fashion-web: {key} must be {kinds[key].__name__}, got {value!r}") from error
        draw = cls(**values)
        noise.check_rate(draw.noise, "fashion-web: noise")
        noise.check_rate(draw.ood, "fashion-web: ood")
        if draw.flips not in FLIPS:
            raise InputError(f"fashion-web: flips must be one of {', '.join(FLIPS)}, got {draw.flips!r}")
        if draw.seed < 0:
            raise InputError(f"fashion-web: seed must not be negative, got {draw.seed}")
        if draw.n < 1:
            raise InputError(f"fashion-web: n must be at least 1, got {draw.n}")
        if not 1 <= draw.imbalance < float("inf"):
            raise InputError(f"fashion-web: imbalance must be 1 or more, got {draw.imbalance}")
        if draw.task not in TASKS:
            raise InputError(f"fashion-web: task must be one of {', '.join(TASKS)}, got {draw.task!r}")
        if draw.task == "angle" and draw.imbalance != 1:
            raise InputError("fashion-web: imbalance is between garments; leave it out with task=angle")
        return draw

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return "fashion-web" + (f":{','.join(changed)}" if changed else "")


def load(options: str = "") -> NoisyDataset:
    """Open a draw of the bundled dataset.

    Raises:
        InputError: bad options, or the bundled pool is missing or damaged.
    """
    draw = Draw.parse(options)
    pool = read_pool()
    id_images, id_labels, ood_images = pool["id_images"], pool["id_labels"], pool["ood_images"]
    rng = np.random.default_rng([draw.seed, 2024])
    if draw.n > len(id_images):
        raise InputError(
            f"fashion-web: n must be at most {len(id_images)} (the pool's in-distribution pictures), got {draw.n}"
        )
    picks = rng.permutation(len(id_images))
    if draw.imbalance > 1:
        picks = picks[_long_tail(id_labels[picks], draw.imbalance)]
    picks = picks[: draw.n]
    true = id_labels[picks].astype(np.int64)
    images = id_images[picks]
    ids = np.char.add("id-", picks.astype(str)).astype("U12")

    places, foreign = noise.ood_replacement(len(picks), draw.noise * draw.ood, len(ood_images), rng)
    images[places] = ood_images[foreign]
    test_images, test_labels = pool["test_images"], pool["test_labels"].astype(np.int64)
    classes, becomes = CLASSES, CONFUSED_WITH
    if draw.task == "angle":
        classes = tuple(f"{angle}°" for angle in ANGLES)
        becomes = (*range(1, len(ANGLES)), len(ANGLES) - 2)  # the next angle; of the last, the one before
        true, test_labels = (rng.integers(0, len(ANGLES), len(rows)) for rows in (images, test_images))
        images, test_images = _turned(images, true), _turned(test_images, test_labels)
    true[places] = -1
    ids[places] = np.char.add("ood-", foreign.astype(str))

    given = np.where(true < 0, rng.integers(0, len(classes), len(true)), true)
    rest = np.flatnonzero(true >= 0)
    if len(rest):
        wrong_rate = min(1.0, round(draw.noise * (1 - draw.ood) * len(true)) / len(rest))
        given[rest] = _flip(draw.flips, images[rest], true[rest], wrong_rate, len(classes), becomes, rng)
    # Ids tell nothing about the kind, which must not leak into what a method may see.
    ids = np.array([f"fw-{digest(name)[:10]}" for name in ids.tolist()])
    return NoisyDataset(
        name=str(draw),
        observed=Observed(labels=given, classes=classes, ids=ids, images=images),
        truth=Truth.of(given, true),
        test=Split(test_images, test_labels),
        trusted=np.arange(TRUSTED, dtype=np.int64),
        note="Fashion-MNIST pictures (Zalando, MIT) with made label noise and foreign classes",
    )


def _long_tail(labels: NDArray[Any], imbalance: float) -> NDArray[np.int64]:
    """Rows to keep, in order, so that class sizes fall off geometrically; the first class keeps all."""
    counts = np.bincount(labels)
    sizes = counts.max() * imbalance ** -np.linspace(0, 1, len(counts))
    keep = [np.flatnonzero(labels == c)[: max(1, round(size))] for c, size in enumerate(sizes)]
    return np.sort(np.concatenate(keep))


def _turned(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each picture turned by the angle of its label, about its middle."""
    from scipy.ndimage import rotate

    turned = np.empty_like(images)
    for c, angle in enumerate(ANGLES):
        rows = labels == c
        turned[rows] = rotate(images[rows], angle, axes=(2, 1), reshape=False, order=1)
    return turned


def _flip(
    flips: str,
    images: NDArray[np.uint8],
    true: NDArray[np.int64],
    rate: float,
    classes: int,
    becomes: tuple[int, ...],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Given labels of the in-distribution rows, a share ``rate`` of them wrong."""
    if flips == "asymmetric":
        return noise.asymmetric(true, rate, classes, rng, becomes)
    if flips == "instance":
        return noise.instance_dependent(images, true, rate, classes, rng)
    return noise.symmetric(true, rate, classes, rng)


def read_pool() -> dict[str, NDArray[Any]]:
    """The bundled pictures: id_images, id_labels, ood_images, ood_labels, test_images, test_labels.

    Raises:
        InputError: a file is missing or its checksum is wrong.
    """
    card = read_json(asset("fashion-web", "pool.json"))
    path = verify(asset("fashion-web", "pool.npz"), str(card.get("sha256")))
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of bytes (big-endian header: magic, sizes)."""
    with gzip.open(path, "rb") as stream:
        raw = stream.read()
    dims = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
    if raw[:3] != b"\0\0\x08" or len(data) != np.prod(shape):
        raise InputError(f"{path} is not a complete IDX file of bytes")
    return data.reshape(shape)


def build(original: Path, target: Path) -> None:
    """Make the pool from the four original files, deterministically (seed 0)."""
    names = [f"{part}-{what}-idx{dim}-ubyte.gz" for part in ("train", "t10k")
             for what, dim in (("images", 3), ("labels", 1))]  # fmt: skip
    missing = [name for name in names if not (original / name).is_file()]
    if missing:
        raise InputError(f"{original} lacks {', '.join(missing)}")
    images, labels, test_images, test_labels = (_read_idx(original / name) for name in names)
    rng = np.random.default_rng(0)

    def take(classes: tuple[int, ...], count: int) -> NDArray[np.int64]:
        per_class = [rng.permutation(np.flatnonzero(labels == c))[:count] for c in classes]
        return np.sort(np.concatenate(per_class))

    code = np.full(10, 255, np.uint8)
    code[list(ID_CLASSES)] = np.arange(len(ID_CLASSES))
    id_rows, ood_rows = take(ID_CLASSES, POOL_ID_PER_CLASS), take(OOD_CLASSES, POOL_OOD_PER_CLASS)
    test_rows = rng.permutation(np.flatnonzero(np.isin(test_labels, ID_CLASSES)))
    pool = {
        "id_images": images[id_rows], "id_labels": code[labels[id_rows]],
        "ood_images": images[ood_rows], "ood_labels": labels[ood_rows],
        "test_images": test_images[test_rows], "test_labels": code[test_labels[test_rows]],
    }  # fmt: skip
    with replacing(target / "pool.npz") as temporary:
        np.savez_compressed(temporary, **pool)
    write_json(
        target / "pool.json",
        {
            "name": "fashion-web pool",
            "source": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist "
            "(Debian package dataset-fashion-mnist carries the original files)",
            "licence": "MIT, Copyright (c) 2017 Zalando SE",
            "original_sha256": {name: sha256_file(original / name) for name in names},
            "command": "chaffinch build-pool /usr/share/datasets/fashion-mnist",
            "id_classes": list(CLASSES),
            "ood_classes": [ORIGINAL[c] for c in OOD_CLASSES],
            "counts": {name: len(value) for name, value in pool.items() if name.endswith("images")},
            "content": digest(*pool.values()),
            "sha256": sha256_file(target / "pool.npz"),
        },
    )
