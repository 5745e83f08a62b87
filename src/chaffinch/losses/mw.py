"""The MW loss: the area under the ROC curve of all similarities, made smooth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, at_least, check_temperature, unit

CELL = 1 / 8
"""Width of a cell of negatives in units of the temperature."""
ORDER = 6
"""Order of the Taylor series in a cell: with the width above its error is below 1e-12, its slope's below 1e-10."""
LEAST = 0.005
"""Least temperature: there are 2 / (CELL * temperature) cells."""


class MannWhitney(ContrastiveLoss):
    r"""Every similarity of two views of one picture against every similarity of two different pictures.

    With unit rows z, the P cosines :math:`s^+_i` between views of one picture and the N cosines :math:`s^-_k` between
    views of different pictures, pooled over the whole batch,

    .. math:: L = \frac{1}{PN} \sum_{i,k} \mathrm{softplus}\left(\frac{s^-_k - s^+_i}{\tau}\right)

    Which pictures a negative belongs to does not matter, so one threshold comes to fit all of them; a softmax over
    one picture's row leaves each row its own. With AUC the share of pairs where :math:`s^+_i > s^-_k`, a tie counted
    as wrong, :math:`1 - \mathrm{AUC} \le L / \log 2` for any temperature.

    The paper prints a sum over the negatives; the mean has the same minimiser, a scale that does not depend on the
    batch, and keeps the bound exact. The cosine is symmetric, so each pair of rows is counted once.

    ``per_sample`` is the mean over the pairs of views of a picture; ``parts`` are the AUC of the batch and the mean
    cosines of both kinds.

    Source: Sheikholeslami, Hosseini, Bechard, Daruru, Rajeswar, 2025, arXiv 2510.00137.

    Args:
        temperature: tau >= 0.005, in units of the cosine; the smaller, the closer to the AUC itself and the more only
            the pairs near the threshold matter.
    """

    card = MethodCard(
        slug="mw",
        name="MW (AUC)",
        paper="Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval "
        "(Sheikholeslami, Hosseini, Bechard, Daruru, Rajeswar; preprint 2025)",
        arxiv="2510.00137",
        year=2025,
        formula=r"L = \frac{1}{PN}\sum_{i=1}^{P}\sum_{k=1}^{N}\log\left(1 + e^{(s^-_k - s^+_i)/\tau}\right)",
        summary="Two views of any picture shall be more similar than two different pictures anywhere in the batch, so "
        "that one threshold on the similarity fits all classes. No labels are used, so wrong labels cannot mislead it.",
        fails_when="There are few classes: pictures of one class are negatives of every picture, not only of each "
        "other. It learns more slowly than SimCLR.",
    )

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if temperature < LEAST:
            raise InputError(f"temperature must be at least {LEAST}, got {temperature}")

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, B >= 2, V >= 2; needs no labels."""
        b, v, _ = batch.z.shape
        at_least(b, 2, "samples", self.card.slug)
        at_least(v, 2, "views of each sample", self.card.slug)
        z = unit(batch.z)
        one, two = torch.triu_indices(v, v, 1, device=z.device)
        positive = (z[:, one] * z[:, two]).sum(-1)  # (B, pairs of views)
        rows = z.flatten(0, 1)
        sample = torch.arange(b, device=z.device).repeat_interleave(v)
        negative = (rows @ rows.T).masked_select(sample[:, None] < sample[None, :])  # (N,)
        loss = pooled(positive.flatten(), negative, self.temperature).view(b, -1).mean(1)
        with torch.no_grad():
            parts = {
                "auc": auc(positive.flatten(), negative),
                "positive": float(positive.mean()),
                "negative": float(negative.mean()),
            }
        return LossOut(loss.mean(), loss.detach(), parts)


def pooled(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Mean over all negatives of softplus((negative - positive) / temperature), for each positive.

    The P*N softplus are never formed. Negatives are sorted into narrow cells; within a cell, softplus is its Taylor
    series about the middle, which needs only the sums of the powers of the negatives' offsets.

    Args:
        positive: (P,) in [-1, 1].
        negative: (N,) in [-1, 1].
        temperature: > 0.
    """
    width = CELL * temperature
    cells = math.ceil(2 / width) + 1
    middle = width * torch.arange(cells, dtype=negative.dtype, device=negative.device) - 1
    cell = ((negative.detach() + 1) / width).round().long().clamp(0, cells - 1)
    offset = (negative - middle[cell]) / temperature
    term, moments = torch.ones_like(offset), []
    for m in range(ORDER + 1):
        moments.append(term.new_zeros(cells).index_add(0, cell, term) / len(negative))
        term = term * offset / (m + 1)

    gap = (middle - positive[:, None]) / temperature  # (P, cells)
    value = nn.functional.softplus(gap)
    s = torch.sigmoid(gap)
    by_power = slopes(term).T @ torch.stack(moments[1:])  # (ORDER, cells)
    series = torch.zeros_like(s)
    for coefficient in by_power.flip(0):
        series = (series + coefficient) * s
    return value @ moments[0] + series.sum(1)


def slopes(like: Tensor) -> Tensor:
    """(ORDER, ORDER) coefficients of s, s^2, ... in the first, second, ... derivative of softplus, s its sigmoid."""
    power = torch.arange(1, ORDER + 1, dtype=like.dtype, device=like.device)
    rows = [(power == 1).to(like.dtype)]
    while len(rows) < ORDER:  # d/dx s^k = k s^k - k s^(k+1)
        step = power * rows[-1]
        rows.append(step - nn.functional.pad(step[:-1], (1, 0)))
    return torch.stack(rows)


def auc(positive: Tensor, negative: Tensor) -> float:
    """Share of the pairs where the positive is above the negative; a tie counts as wrong."""
    not_above = torch.bucketize(negative, positive.sort().values, right=True)
    return 1 - float(not_above.sum()) / (len(positive) * len(negative))
