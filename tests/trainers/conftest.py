"""A tiny noisy dataset, and what every trainer's tests ask of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaffinch.base.training_run import TrainingRun
from chaffinch.data import NoisyDataset
from chaffinch.data.dataset import Observed, Split, Truth
from chaffinch.trainers.train import STATE, Recipe, train

TINY = Recipe(epochs=3, batch=32, architecture="preact-resnet-8-16-32", device="cpu", precision="float32")


def pictures(true: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, 12, 12) stripes that go across (class 0), down (1) or both ways (2); noise alone for -1."""
    images = rng.integers(0, 90, (len(true), 12, 12), dtype=np.uint8)
    images[(true == 0) | (true == 2), ::3] += 130
    down = (true == 1) | (true == 2)
    images[down, :, ::3] = np.maximum(images[down, :, ::3], 130 + images[down, :, ::3] // 4)
    return images


@pytest.fixture(scope="session")
def stripes() -> Callable[..., NoisyDataset]:
    """Makes a dataset of three classes: n samples, shares of wrong labels and of foreign pictures, 150 test samples."""

    def make(n: int = 240, wrong: float = 0.2, foreign: float = 0.1, seed: int = 0) -> NoisyDataset:
        rng = np.random.default_rng(seed)
        true = np.arange(n) % 3
        order = rng.permutation(n)
        flipped, out = np.split(order[: int(n * wrong) + int(n * foreign)], [int(n * wrong)])
        given = true.copy()
        given[flipped] = (true[flipped] + rng.integers(1, 3, len(flipped))) % 3
        true[out] = -1
        observed = Observed(
            given, ("across", "down", "both"), np.array([f"s{i}" for i in range(n)]), pictures(true, rng)
        )
        check = np.arange(150) % 3
        return NoisyDataset("stripes", observed, Truth.of(given, true), Split(pictures(check, rng), check))

    return make


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., TrainingRun]:
    """Runs a training of `TINY` with changes (trainer="mixup", parameters={...}, epochs=2, ...) and gives its run."""

    def run(dataset: NoisyDataset, folder: str = "run", start: Any = None, **changes: Any) -> TrainingRun:
        for _ in train(dataset, replace(TINY, **changes), tmp_path / folder, start):
            pass
        return TrainingRun(tmp_path / folder)

    return run


@pytest.fixture
def resumes(tmp_path: Path) -> Callable[..., None]:
    """Checks that a training cut off in its second epoch ends in the same bits as an unbroken one."""

    def check(dataset: NoisyDataset, start: Any = None, **changes: Any) -> None:
        recipe = replace(TINY, **changes)
        for _ in train(dataset, recipe, tmp_path / "whole", start):
            pass
        broken = train(dataset, recipe, tmp_path / "broken", start)
        for progress in broken:
            if progress.epoch == 1 and progress.share > 0.3:
                break
        broken.close()
        assert (tmp_path / "broken" / STATE).exists()
        for _ in train(dataset, recipe, tmp_path / "broken", start):
            pass
        for path in sorted((tmp_path / "whole").glob("*.safetensors")):
            assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes(), path.name

    return check
