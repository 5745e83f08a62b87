"""Encoders for photographs: what each finds among crops of photographs, and how fast it embeds them.

python benchmarks/photos.py [--json] [--encoder NAME ...] [--crops 600]

Nine pictures that scikit-learn and scikit-image bring (pip install scikit-image) are the classes, small random crops of
each its samples; 18 % get a wrong label, and 12 % are crops of six other pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data as pictures
from sklearn.datasets import load_sample_image

from chaffinch.data import NoisyDataset, Observed, Truth
from chaffinch.study import Study
from chaffinch.workspace import Workspace

CLASSES = ("china", "flower", "chelsea", "coffee", "astronaut", "immunohistochemistry", "brick", "gravel", "camera")
FOREIGN = ("rocket", "coins", "page", "retina", "hubble_deep_field", "grass")
SIDE = 112
DETECTORS = ("lsa", "knn-distance", "small-loss", "knn-label")


def photograph(name: str) -> Image.Image:
    """One of the pictures, in colour."""
    found = load_sample_image(f"{name}.jpg") if name in CLASSES[:2] else getattr(pictures, name)()
    return Image.fromarray(found).convert("RGB")


def crop(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random square of 16 to 30 % of the shorter side, (SIDE, SIDE, 3) uint8."""
    side = int(rng.uniform(0.16, 0.30) * min(photo.size))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    return np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


def dataset(n: int, seed: int = 0) -> NoisyDataset:
    """n crops with planted noise."""
    rng, c = np.random.default_rng(seed), len(CLASSES)
    own, foreign = ([photograph(name) for name in names] for names in (CLASSES, FOREIGN))
    true = rng.integers(0, c, n)
    given = true.copy()
    draw = rng.random(n)
    wrong = (draw >= 0.12) & (draw < 0.30)
    given[wrong] = (true[wrong] + rng.integers(1, c, wrong.sum())) % c
    true[draw < 0.12] = -1
    images = np.stack([crop(own[t] if t >= 0 else foreign[rng.integers(len(foreign))], rng) for t in true])
    observed = Observed(labels=given, classes=CLASSES, ids=np.arange(n).astype(str), images=images)
    return NoisyDataset("crops of photographs", observed, Truth.of(given, true))


def measure(data: NoisyDataset, encoder: str) -> dict[str, Any]:
    """What is found with one encoder."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(data, encoder, workspace=Workspace(Path(folder)))
        begun = time.perf_counter()
        study.embed(device="cpu")
        seconds = time.perf_counter() - begun
        row: dict[str, Any] = {"what": encoder, "pictures_per_s": round(len(study) / seconds, 1)}
        for slug in DETECTORS:
            figures = study.figures(found := study.detect(slug), found.own)
            row[slug] = {key: round(figures[key], 3) for key in ("auroc_ood", "auroc_mislabelled")}
        return row | {"verdict_macro_f1": round(study.judged(study.verdict())["macro_f1"], 3)}


def main() -> None:
    """Print one line an encoder, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--encoder", action="append", help="which (repeat; default simclr and efficientnet-lite0)")
    parser.add_argument("--crops", type=int, default=600)
    args = parser.parse_args()
    data = dataset(args.crops)
    rows = [measure(data, name) for name in args.encoder or ("simclr", "efficientnet-lite0")]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['what']}: {row['pictures_per_s']} pictures/s, macro-F1 of the verdict {row['verdict_macro_f1']:.3f}"
        )
        for slug in DETECTORS:
            print(
                f"  {slug:14s} AUROC foreign {row[slug]['auroc_ood']:.3f}, label {row[slug]['auroc_mislabelled']:.3f}"
            )


if __name__ == "__main__":
    main()
