"""SimCLR's NT-Xent loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, check_temperature, cosine_rows


class NTXent(ContrastiveLoss):
    r"""Normalised temperature-scaled cross-entropy between the views of one picture and all others.

    With unit rows z, :math:`S_{ij} = z_i^\top z_j / \tau` and the self column removed,

    .. math:: \ell_i = -\frac{1}{|P(i)|}\sum_{p \in P(i)} S_{ip} + \log \sum_{a \ne i} e^{S_{ia}}

    where P(i) holds the other views of the same picture. The positive stays in the denominator and both
    directions are averaged. With two views this is SimCLR exactly; with more it is the usual mean over positives.

    Source: Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709.

    Args:
        temperature: tau > 0; small values look at the nearest negatives only. The paper has 0.5 for small pictures.
    """

    card = MethodCard(
        slug="simclr",
        name="SimCLR",
        paper="A Simple Framework for Contrastive Learning of Visual Representations "
        "(Chen, Kornblith, Norouzi, Hinton; ICML 2020)",
        arxiv="2002.05709",
        year=2020,
        formula=r"\ell_i = -S_{i,p(i)} + \log\sum_{a\neq i} e^{S_{ia}},\qquad S_{ij} = z_i^\top z_j/\tau",
        summary="Two views of one picture attract, all other pictures repel. No labels are used, so wrong labels "
        "cannot mislead it.",
        fails_when="Pictures of one class are pushed apart too (false negatives); with few classes this is a "
        "large share of all negatives.",
    )

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, V >= 2; needs no labels."""
        b, v, _ = batch.z.shape
        if v < 2:
            raise ValueError(f"SimCLR needs at least two views of each sample, got {v}")
        z = cosine_rows(batch.z)  # (V*B, D)
        sim = z @ z.T / self.temperature  # (V*B, V*B)
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
        sample = torch.arange(b, device=z.device).repeat(v)
        positive = (sample[:, None] == sample[None, :]) & ~eye
        attract = sim.masked_fill(~positive, 0.0).sum(1) / (v - 1)
        repel = torch.logsumexp(sim.masked_fill(eye, -torch.inf), dim=1)
        loss: Tensor = repel - attract  # (V*B,)
        per_sample = loss.detach().view(v, b).mean(0)
        parts = {"attract": -float(attract.detach().mean()), "repel": float(repel.detach().mean())}
        return LossOut(loss.mean(), per_sample, parts)
