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
        z: (B, V, D) projections of V views of each sample; the loss normalises them.
        y: (B,) given labels.
        index: (B,) positions in the dataset, for losses that keep a memory.
        aux: what one loss alone needs.
    """

    z: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
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


class ContrastiveLoss(nn.Module):
    """Base of all losses. A subclass sets ``card`` and ``needs`` and writes ``forward``."""

    card: ClassVar[MethodCard]
    needs: ClassVar[frozenset[str]] = frozenset({"z"})

    def forward(self, batch: Batch) -> LossOut:
        """Compute the loss of one batch."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def on_epoch(self, features: Tensor, y: Tensor | None, epoch: int) -> None:
        """Called before each epoch with the features of all samples, by losses that re-cluster; default: nothing."""


def check_temperature(temperature: float) -> float:
    """Return a usable temperature.

    Raises:
        InputError: it is not a number above zero.
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be above 0 and finite, got {temperature}")
    return float(temperature)


def cosine_rows(z: Tensor) -> Tensor:
    """(B, V, D) projections as (V*B, D) unit rows in float32 or wider; row v*B + b is view v of sample b."""
    rows = z.transpose(0, 1).reshape(-1, z.shape[-1])
    return nn.functional.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)
