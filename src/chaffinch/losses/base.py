"""The one signature of every loss: a Batch goes in, a LossOut comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard


@dataclass
class Batch:
    """What a training step knows. Every field but ``z`` is optional; a loss names what it needs.

    Attributes:
        z: (B, V, D) projections of V views of each sample, which the loss normalises; or, for losses of
            classification heads, (B, V, C) logits.
        y: (B,) given labels.
        index: (B,) positions in the dataset, for losses that keep a memory; -1 for a sample that is not in it.
        h: (B, V, F) features that the projections are made from.
        x: (B, V, channels, height, width) the views, in [0, 1].
        rng: where a loss that draws takes its random numbers from, on the device of ``z``.
        aux: what one loss alone needs: ``group`` (B,) int64, 0 = known to be clean, 1 = of the dataset;
            ``target`` (B,) float, the class as a number, 1 = the smallest distance of two classes.
    """

    z: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
    h: Tensor | None = None
    x: Tensor | None = None
    rng: torch.Generator | None = None
    aux: dict[str, Any] = field(default_factory=dict)


@dataclass
class LossOut:
    """What a loss says.

    Attributes:
        total: scalar to minimise, the mean over samples.
        per_sample: (B,) detached; the loss of each sample, evidence for detectors.
        parts: named scalars worth plotting.
    """

    total: Tensor
    per_sample: Tensor
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """What a loss with modules of its own must know to build them.

    Attributes:
        features: F, length of ``Batch.h``.
        projection: D, length of ``Batch.z``.
        classes: C.
        samples: N, size of the dataset.
        shape: channels, height and width of a picture.
    """

    features: int
    projection: int
    classes: int
    samples: int
    shape: tuple[int, int, int]


NEEDS = frozenset({"z", "logits", "y", "index", "h", "x", "rng", "group", "target"})
"""What a loss may name: fields of a Batch or keys of its ``aux``; ``logits``: class logits in place of ``z``."""


class ContrastiveLoss(nn.Module):
    """Base of all losses. A subclass sets ``card`` and ``needs`` and writes ``forward``.

    Everything a loss learns or remembers is a parameter or a buffer made in `setup` or ``__init__``, so that a
    training that was cut off goes on in the same bits.
    """

    card: ClassVar[MethodCard]
    needs: ClassVar[frozenset[str]] = frozenset({"z"})
    views: ClassVar[int] = 2
    """How many views of each picture a step sees."""
    augmented: ClassVar[bool] = True
    """Are the views random? Otherwise each is the picture itself."""
    outputs: ClassVar[tuple[str, ...]] = ()
    """Further features that `output` gives once training is done; ``joint`` is (B, C): how well each label fits."""

    @classmethod
    def asks(cls) -> tuple[str, ...]:
        """What a dataset must have: ``images``, and ``labels``, ``trusted`` samples or classes that are ``numbers``."""
        wants = {"y": "labels", "logits": "labels", "group": "trusted", "target": "numbers"}
        return ("images", *sorted({wants[name] for name in cls.needs if name in wants}))

    def setup(self, sizes: Sizes) -> None:
        """Build modules and buffers whose sizes depend on the data; default: nothing."""

    def forward(self, batch: Batch) -> LossOut:
        """Compute the loss of one batch."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def wants_epoch(self, epoch: int) -> bool:
        """Shall `on_epoch` be called before this epoch (from 0)? It costs a pass over the data; default: never."""
        return False

    def on_epoch(self, features: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> None:
        """Refresh what is remembered of all samples: (N, F) features of the plain pictures, (N,) given labels."""

    def second_parameters(self) -> list[nn.Parameter]:
        """Parameters that the main step leaves alone and `second` trains; default: none."""
        return []

    def second(self, batch: Batch) -> Tensor:
        """Loss of the second step: the same views through the encoder just updated, without its gradient."""
        raise TypeError(f"{type(self).__name__} has no second step")

    def output(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """One of ``outputs``, (B, ·), from features h (B, F) and plain pictures x (B, channels, height, width)."""
        raise TypeError(f"{type(self).__name__} has no output {name!r}")


def check_temperature(temperature: float, name: str = "temperature") -> float:
    """Return a usable temperature.

    Raises:
        InputError: it is not a number above zero.
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"{name} must be above 0 and finite, got {temperature}")
    return float(temperature)


def check_weights(**weights: float) -> None:
    """Check the weights of a loss's terms, given by name.

    Raises:
        InputError: one is not a finite number from zero.
    """
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise InputError(f"{name} must be 0 or more and finite, got {weight}")


def at_least(count: int, least: int, what: str, slug: str) -> None:
    """Check that a batch has enough of something.

    Raises:
        InputError: it has less; the message names the loss.
    """
    if count < least:
        raise InputError(f"{slug} needs at least {least} {what} in a batch, got {count}")


def wide(z: Tensor) -> Tensor:
    """The same numbers in float32 or wider: sums of exponentials do not fit half precision."""
    return z if z.dtype == torch.float64 else z.float()


SHORT = 1e-6
"""A row shorter than this has no direction."""


def unit(z: Tensor) -> Tensor:
    """Rows of length 1 in float32 or wider.

    A row shorter than `SHORT` becomes zero and gets no gradient: one divided by its length would drown all others, and
    stay in the memory of an adaptive optimiser.
    """
    z = wide(z)
    short = z.detach().norm(dim=-1, keepdim=True) < SHORT
    return nn.functional.normalize(z.masked_fill(short, 0.0), dim=-1)


def cosine_rows(z: Tensor) -> Tensor:
    """(B, V, D) projections as (V*B, D) unit rows in float32 or wider; row v*B + b is view v of sample b."""
    return unit(z.transpose(0, 1).reshape(-1, z.shape[-1]))
