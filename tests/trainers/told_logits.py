"""What the tests of ce, gce, elr and elr-plus share: steps on pictures that are logits, and noisy digits."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from chaffinch.base.training_run import TrainingRun
from chaffinch.data import NoisyDataset
from chaffinch.data.dataset import MISLABELLED, Observed, Split, Truth
from chaffinch.encoders.augment import Shift
from chaffinch.trainers.base import Batch, Site, Trainer

SHEET = (2.0, 0.5, -1.0)
"""The logits whose losses and gradients are known."""
P = (0.785597, 0.175290, 0.039113)
"""Their probabilities."""
LONG = {"epochs": 20, "weak": Shift(0, 0.0)}
"""Changes to the tiny recipe after which cross-entropy knows 400 noisy digits by heart."""


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ready(trainer: Trainer, labels: Any, classes: int, nets: Any = None, steps: int = 10) -> Any:
    """A trainer in float64 whose networks say what the picture is: (B, 1, 1, C) pictures are logits."""
    trainer.build(nets or [nn.Flatten() for _ in range(trainer.networks)])
    y = torch.as_tensor(labels)
    trainer.setup(Site(y, classes, 8, 3, steps, torch.Generator(), lambda: torch.zeros(len(y), 8)))
    return trainer.double()


def seat(logits: Any, y: Any, rows: Any = None, step: int = 0, seed: int = 0) -> Batch:
    """A step on pictures whose weak view is these logits (B, C); there is no other view."""
    z, y = torch.as_tensor(logits), torch.as_tensor(y)
    rows = torch.arange(len(y)) if rows is None else torch.as_tensor(rows)

    def absent() -> Tensor:
        raise AssertionError("this view is not needed")

    rng = torch.Generator().manual_seed(seed)
    return Batch(rows, y, 0, step, rng, lambda: z[:, None, None], absent, absent, absent)


def one(trainer: Trainer, y: int) -> tuple[float, Tensor]:
    """Value and gradient (C,) of a step on the logits of the sheets alone."""
    z = tensor([SHEET]).requires_grad_()
    total = trainer.step(0, seat(z, [y])).total
    return total.item(), torch.autograd.grad(total, z)[0][0]


def some(b: int = 6, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, C), some of them sure, labels and positions."""
    g = torch.Generator().manual_seed(seed)
    z = 4 * torch.randn(b, c, generator=g, dtype=torch.float64)
    return z, torch.randint(c, (b,), generator=g), torch.randperm(b, generator=g)


def digits(n: int = 400, wrong: float = 0.4, seed: int = 0) -> NoisyDataset:
    """Handwritten digits, 8 x 8, a share of them with a wrong label; 300 test samples."""
    found, rng = load_digits(), np.random.default_rng(seed)
    order = rng.permutation(len(found.target))
    images = np.round(found.images * 255 / 16).astype(np.uint8)[order]
    true = found.target[order].astype(np.int64)
    flips = rng.integers(1, 10, n) * (rng.random(n) < wrong)
    given = (true[:n] + flips) % 10
    names, ids = tuple("0123456789"), np.array([f"d{i}" for i in range(n)])
    observed = Observed(given, names, ids, images[:n])
    return NoisyDataset("digits", observed, Truth.of(given, true[:n]), Split(images[n : n + 300], true[n : n + 300]))


def learnt(dataset: NoisyDataset, run: TrainingRun) -> tuple[float, float]:
    """Accuracy after the last epoch, and the share of wrong labels that the network predicts."""
    assert dataset.truth is not None
    wrong = dataset.truth.kind == MISLABELLED
    said = run.epoch(-1).log_probs.argmax(1)
    return run.epochs[-1]["accuracy"], float((said == dataset.observed.labels)[wrong].mean())


def caught(dataset: NoisyDataset, run: TrainingRun) -> tuple[float, float]:
    """Share of the flagged that are mislabelled, and of the mislabelled that are flagged, after the last epoch."""
    assert dataset.truth is not None
    wrong, flags = dataset.truth.kind == MISLABELLED, run.epoch(-1).flags
    return float(wrong[flags].mean()), float(flags[wrong].mean())
