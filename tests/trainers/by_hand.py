"""What the tests of single trainers share: a trainer set up without a training, a batch with known views, a start."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.network import build
from chaffinch.trainers.base import Batch, Net, Site, Trainer
from chaffinch.trainers.train import MODEL, Recipe, train

SMALL = "preact-resnet-8-16-32"
RECIPE = Recipe(epochs=3, batch=32, architecture=SMALL, device="cpu", precision="float32")


def ready(trainer: Trainer, labels: Tensor, classes: int = 3, epochs: int = 5, kind: Tensor | None = None) -> Trainer:
    """A trainer with small networks on grey pictures, set up for these labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer.build([Net(build(SMALL, 1), classes, trainer.make_heads(32)) for _ in range(trainer.networks)])
        trainer.setup(
            Site(
                labels,
                classes,
                32,
                epochs,
                2,
                torch.Generator().manual_seed(0),
                lambda: torch.ones(len(labels), 32),
                kind,
            )
        )
    return trainer.train()


def views(b: int, count: int = 3, seed: int = 1) -> list[Tensor]:
    """Pictures (B, 1, 12, 12), as often as asked for."""
    return list(torch.rand(count, b, 1, 12, 12, generator=torch.Generator().manual_seed(seed)))


def batch_of(rows: Tensor, y: Tensor, epoch: int, weak: list[Tensor], strong: Tensor, contrast: Tensor) -> Batch:
    """A batch whose weak views are these, one after the other."""
    left = iter(weak)
    return Batch(
        rows, y, epoch, 0, torch.Generator().manual_seed(0),
        weak=lambda: next(left), strong=lambda: strong, contrast=lambda: contrast, plain=lambda: weak[0],
    )  # fmt: skip


def start_of(run: Path) -> Encoder:
    """The encoder inside a trained classifier."""
    network = build(SMALL, 1)
    body = {k.removeprefix("0.body."): v for k, v in load_file(run / MODEL).items() if k.startswith("0.body.")}
    network.load_state_dict({**network.state_dict(), **body})
    card = ModelCard(
        "known", SMALL, 1, 32, "mixup", "stripes", seed=0, epochs=3, batch=32, learning_rate=0.1, precision="float32",
        device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


def known(stripes: Callable, folder: Path) -> Encoder:
    """An encoder that tells the classes apart, trained on clean stripes."""
    for _ in train(stripes(n=240, wrong=0, foreign=0, seed=99), replace(RECIPE, trainer="mixup", epochs=4), folder):
        pass
    return start_of(folder)
