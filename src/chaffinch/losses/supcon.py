"""SupCon: supervised contrastive learning."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, at_least, check_temperature, cosine_rows


class SupCon(ContrastiveLoss):
    r"""Normalised temperature-scaled cross-entropy between everything of one label and all others.

    With unit rows z, :math:`S_{ij} = z_i^\top z_j / \tau` and the self column removed,

    .. math:: \ell_i = -\frac{1}{|P(i)|}\sum_{p \in P(i)} S_{ip} + \log \sum_{a \ne i} e^{S_{ia}}

    where P(i) holds all other rows of the same label, the other views of the picture among them. This is the paper's
    form with the mean over P(i) outside the logarithm; all positives stay in the denominator, so the loss never
    reaches 0 where there are several. The rescaling by a base temperature of the authors' program is left out: it
    only multiplies the gradient. A row without positives (one view, the only one of its label) contributes 0 and
    counts in the mean.

    ``parts["at_collapse"]`` is log(M - 1) of M rows, the value when all rows are equal: only the distance to it can
    be compared between batches of different size.

    Source: Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, NeurIPS 2020, arXiv 2004.11362.

    Args:
        temperature: tau > 0; small values look at the nearest rows only.
    """

    card = MethodCard(
        slug="supcon",
        name="SupCon",
        paper="Supervised Contrastive Learning (Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan; "
        "NeurIPS 2020)",
        arxiv="2004.11362",
        year=2020,
        formula=r"\ell_i = -\frac{1}{|P(i)|}\sum_{p\in P(i)} S_{ip} + \log\sum_{a\neq i} e^{S_{ia}},\qquad"
        r"S_{ij} = z_i^\top z_j/\tau,\qquad P(i) = \{p\neq i : y_p = y_i\}",
        summary="Pictures of one given label attract, all others repel. Wrong labels are used like right ones: early "
        "a mislabelled picture still lies in its true class, later it is pulled over to the wrong one.",
        fails_when="Training goes on until the wrong labels are memorised: then a mislabelled picture looks like any "
        "other of the class that it was given.",
    )
    needs = frozenset({"z", "y"})

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections with labels."""
        assert batch.y is not None
        b, v, _ = batch.z.shape
        z, y = cosine_rows(batch.z), batch.y.repeat(v)  # (M, D), (M,), M = V*B
        at_least(len(z), 2, "views", self.card.slug)
        sim = z @ z.T / self.temperature  # (M, M)
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (y[:, None] == y[None, :]) & ~eye
        count = positive.sum(1)
        attract = sim.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
        repel = torch.logsumexp(sim.masked_fill(eye, -torch.inf), dim=1).masked_fill(count == 0, 0.0)
        loss: Tensor = repel - attract  # (M,)
        per_sample = loss.detach().view(v, b).mean(0)
        parts = {
            "attract": -float(attract.detach().mean()),
            "repel": float(repel.detach().mean()),
            "at_collapse": math.log(len(z) - 1),
        }
        return LossOut(loss.mean(), per_sample, parts)
