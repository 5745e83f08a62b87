"""A folder of real pictures with planted noise: what somebody has crawled, except that here the truth is known."""

from pathlib import Path

import numpy as np
from PIL import Image

from chaffinch.data import NoisyDataset, Observed, Truth, open_dataset
from chaffinch.study import Study


def plant(root: Path, count: int, tests: int = 0) -> NoisyDataset:
    """Write pictures of the bundled draw as PNG, each into the folder of its given label; gives the draw.

    Args:
        root: where; with a test split, ``train`` and ``test`` lie in it.
        count: pictures, whose names are the ids of the draw.
        tests: pictures of a clean test split.
    """
    draw = open_dataset("fashion-web")
    rng = np.random.default_rng(0)
    rows = rng.choice(len(draw.observed), count, replace=False)
    train = root / "train" if tests else root
    _write(train, draw.observed.images[rows], draw.observed.labels[rows], draw.observed.ids[rows], draw)
    if tests:
        aside = np.setdiff1d(np.arange(len(draw.test)), draw.trusted)
        rows = rng.choice(aside, tests, replace=False)
        _write(root / "test", draw.test.images[rows], draw.test.labels[rows], rows, draw)
    return draw


def _write(root: Path, images, labels, names, draw: NoisyDataset) -> None:
    folders = [root / name.replace("/", "-") for name in draw.observed.classes]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for image, label, name in zip(images, labels, names, strict=True):
        Image.fromarray(image).save(folders[label] / f"{name}.png")


def original(study: Study, draw: NoisyDataset) -> NoisyDataset:
    """The very pictures of the folder, in its order, with their truth, from memory."""
    place = {name: i for i, name in enumerate(draw.observed.ids.tolist())}
    rows = np.array([place[Path(name).stem] for name in study.observed.ids.tolist()])
    names = [name.replace("/", "-") for name in draw.observed.classes]
    code = np.array([study.observed.classes.index(name) for name in names] + [-1])  # of OOD: -1
    given, true = code[draw.observed.labels[rows]], code[draw.truth.labels[rows]]
    observed = Observed(
        labels=given, classes=study.observed.classes, ids=study.observed.ids, images=draw.observed.images[rows]
    )
    return NoisyDataset("planted", observed, Truth.of(given, true))
