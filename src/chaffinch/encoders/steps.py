"""What one training step takes and does: views of pictures in, the loss of a batch out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import Images, NoisyDataset
from ..data.pictures import some
from ..losses.base import Batch, ContrastiveLoss, LossOut
from .augment import Augment
from .decoded import Decoded
from .network import PreActResNet, at_a_time, to_tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BACKGROUND = 0.25
"""Share of a batch that is drawn from the samples known to be clean, for losses that contrast the two groups."""


def lacking(loss: type[ContrastiveLoss], dataset: NoisyDataset) -> str | None:
    """Why a loss cannot train an encoder on a dataset, in words for its user; None if it can."""
    slug, observed = loss.card.slug, dataset.observed
    if observed.images is None:
        return f"{dataset.name} has no pictures to train an encoder on"
    there = len(np.unique(observed.labels))
    if loss.needs & {"y", "target"} and there < 2:
        return f"{slug} needs labels of at least two classes; {dataset.name} has {there}"
    if "group" in loss.needs and _background(dataset) is None:
        return f"{slug} needs samples known to be clean; mark rows with 'trusted' (N,) in the arrays"
    if "group" in loss.needs and observed.trusted is not None and observed.trusted.all():
        return f"{slug} compares samples known to be clean with others; in {dataset.name} all are marked as 'trusted'"
    if "target" in loss.needs and class_numbers(observed.classes) is None:
        return (
            f"{slug} needs classes that are numbers (such as '0', '15', '30'), "
            f"and {dataset.name} has {observed.classes[0]!r}; try fashion-web:task=angle"
        )
    return None


def class_numbers(classes: tuple[str, ...]) -> list[float] | None:
    """The classes as numbers, a degree sign aside, in units of their smallest distance; None if they are none."""
    try:
        numbers = [float(name.removesuffix("°")) for name in classes]
    except ValueError:
        return None
    unit = min((b - a for a, b in pairwise(sorted(numbers))), default=0.0)
    return [number / unit for number in numbers] if 0 < unit < float("inf") else None


def _background(dataset: NoisyDataset) -> tuple[Images, NDArray[np.int64]] | None:
    """Pictures and labels of the samples known to be clean."""
    rows, test, images = dataset.observed.trusted, dataset.test, dataset.observed.images
    if rows is not None and rows.any() and images is not None:
        return some(images, rows), dataset.observed.labels[rows]
    if test is not None and len(dataset.trusted):
        return some(test.images, dataset.trusted), test.labels[dataset.trusted]
    return None


def by_sample(rows: Tensor, views: int) -> Tensor:
    """(V*B, ...) rows, all first views first, as (B, V, ...)."""
    return rows.reshape(views, -1, *rows.shape[1:]).transpose(0, 1)


def gathered(fabric: Fabric, rows: Tensor) -> Tensor:
    """Rows (B, ...) of every process, one after the other (W*B, ...); gradients find their way back."""
    found = fabric.all_gather(rows, sync_grads=rows.requires_grad)
    assert isinstance(found, Tensor)
    if found.requires_grad:  # on the way back the engine would send what is not contiguous in the order of its memory
        found.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
    return found.flatten(0, 1)


class Learner(nn.Module):
    """Network and loss as one module, so that an engine that spreads it over processes sees all of it."""

    def __init__(self, network: PreActResNet, loss: ContrastiveLoss, classes: int) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.classify = nn.Linear(network.dim, classes) if "logits" in loss.needs else None
        self.gather: Callable[[Tensor], Tensor] = lambda rows: rows
        self.h: Tensor = torch.empty(0)

    def forward(self, x: Tensor, y: Tensor, index: Tensor, aux: dict[str, Tensor], rng: torch.Generator) -> Any:
        """Views (V*B, channels, H, W) -> total, per_sample, parts; keeps the features (V*B, F) for the record."""
        self.h = self.network.features(x)
        if self.h.requires_grad:
            self.h.retain_grad()
        batch = self.batch(x, self.h, y, index, aux, rng)
        with torch.autocast(x.device.type, enabled=False):  # sums of exponentials do not fit half precision
            out: LossOut = self.loss(batch)
        return out.total, out.per_sample, out.parts

    def features_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Of the last step, (B, V, F) each; the gradient is of what was minimised, times the number of processes."""
        assert self.h.grad is not None
        return by_sample(self.h.detach(), self.loss.views), by_sample(self.h.grad, self.loss.views)

    def batch(
        self, x: Tensor, h: Tensor, y: Tensor, index: Tensor, aux: dict[str, Tensor], rng: torch.Generator
    ) -> Batch:
        """What the loss asks for, of all processes together."""
        needs, views = self.loss.needs, self.loss.views

        def together(rows: Tensor) -> Tensor:
            return self.gather(by_sample(rows.float(), views))

        return Batch(
            z=together(self.network.head(h) if self.classify is None else self.classify(h)),
            y=self.gather(y) if "y" in needs else None,
            index=self.gather(index) if "index" in needs else None,
            h=together(h) if "h" in needs else None,
            x=together(x) if "x" in needs else None,
            rng=rng if "rng" in needs else None,
            aux={name: self.gather(values) for name, values in aux.items()},
        )


class Pictures:
    """The pictures of a training, and what a step takes of them. They are there once `decode` has ended.

    Args:
        dataset, loss, batch, augment, fabric: of the training.
        size: (h, w) at which the network sees them.
        folder: for a temporary file, where they are too many for the memory.

    Attributes:
        batch: samples in a step, of all processes together.
        steps: of an epoch; the rest of the last batch is left out.
    """

    def __init__(
        self,
        dataset: NoisyDataset,
        loss: ContrastiveLoss,
        batch: int,
        augment: Augment,
        fabric: Fabric,
        size: tuple[int, int],
        folder: Path,
    ) -> None:
        observed, device = dataset.observed, fabric.device
        assert observed.images is not None
        self.loss, self.augment, self.rank, self.world = loss, augment, fabric.global_rank, fabric.world_size
        parts: list[Images] = [observed.images]
        self.labels = torch.as_tensor(observed.labels).to(device)
        self.index = torch.arange(len(observed), device=device)
        batch -= batch % self.world
        self.extra, self.target = 0, torch.empty(0)
        if "group" in loss.needs and (background := _background(dataset)):
            images, labels = background
            self.extra = min(max(1, round(BACKGROUND * batch)), batch - 1)
            parts.append(images)
            self.labels = torch.cat([self.labels, torch.as_tensor(labels).to(device)])
            self.index = torch.cat([self.index, torch.full((len(images),), -1, device=device)])
        if "target" in loss.needs:
            self.target = torch.tensor(class_numbers(observed.classes), device=device, dtype=torch.float32)
        self.n = len(observed)
        self.pool = torch.arange(self.n, device=device)
        if self.extra and observed.trusted is not None and observed.trusted.any():
            self.pool = self.pool[torch.as_tensor(~observed.trusted).to(device)]  # a group of their own
        self.size = min(batch - self.extra, len(self.pool))
        self.batch, self.steps = self.size + self.extra, len(self.pool) // self.size
        self.device, self._decoded = device, Decoded(parts, size, folder)
        self.images = self._decoded.images

    def decode(self) -> Iterator[float]:
        """Decode the pictures; yields the share that is done, 0 to 1."""
        yield from self._decoded.work()
        if not self._decoded.mapped:
            self.images = self.images.to(self.device)

    def _tensor(self, rows: Tensor | slice) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] on the device."""
        rows = rows.to(self.images.device) if isinstance(rows, Tensor) else rows
        return to_tensor(self.images[rows].to(self.device))

    def order(self, rng: torch.Generator) -> Tensor:
        """(steps, B) rows of every step of an epoch, the background last."""
        rows = self.pool[torch.randperm(len(self.pool), generator=rng, device=rng.device)]
        rows = rows[: self.steps * self.size].view(self.steps, self.size)
        if not self.extra:
            return rows
        many = len(self.images) - self.n
        clean = torch.randint(self.n, self.n + many, (self.steps, self.extra), generator=rng, device=rng.device)
        return torch.cat([rows, clean], dim=1)

    def step(self, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Views, labels, positions and what else the loss needs, of this process's share of the rows."""
        rows = rows[self.rank :: self.world]
        x = self._tensor(rows)
        views = [self.augment(x, rng) if self.loss.augmented else x for _ in range(self.loss.views)]
        stacked = torch.cat(views).contiguous(memory_format=torch.channels_last)
        y, index, aux = self.labels[rows], self.index[rows], {}
        if self.extra:
            aux["group"] = (index >= 0).long()
        if "target" in self.loss.needs:
            aux["target"] = self.target[y]
        return stacked, y, index, aux

    @torch.no_grad()
    def features(self, network: PreActResNet) -> Tensor:
        """(N, F) features of the plain pictures of the dataset."""
        network.eval()
        many = 2 * at_a_time(self.images.shape[1:3])
        found = [network.features(self._tensor(slice(i, min(i + many, self.n)))) for i in range(0, self.n, many)]
        network.train()
        return torch.cat(found).float()
