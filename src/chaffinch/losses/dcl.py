"""DCL: decoupled contrastive learning."""

from __future__ import annotations

import torch
from torch import Tensor

from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, at_least, check_temperature, cosine_rows


class DCL(ContrastiveLoss):
    r"""SimCLR's loss without the positives in the denominator.

    With unit rows z, :math:`S_{ij} = z_i^\top z_j / \tau` and P(i) the other views of the same picture,

    .. math:: \ell_i = -\frac{1}{|P(i)|}\sum_{p \in P(i)} S_{ip} + \log U_i,\qquad
              U_i = \sum_{j \notin P(i) \cup \{i\}} e^{S_{ij}}

    so the negatives are all views of all other pictures. ``parts["q"]`` is the mean of the factor by which SimCLR
    shrinks this gradient, :math:`q_i = U_i / (U_i + \sum_{p \in P(i)} e^{S_{ip}})`: it falls when the positives are
    easy or the batch is small. SimCLR's loss is :math:`\ell_i - \log q_i`. Values below 0 are normal.

    The paper writes a sum and two views; here it is the mean over rows, and with more views the mean over positives.

    Source: Yeh, Hong, Hsu, Liu, Chen, LeCun, ECCV 2022, arXiv 2110.06848.

    Args:
        temperature: tau > 0; small values look at the nearest negatives only.
    """

    card = MethodCard(
        slug="dcl",
        name="DCL",
        paper="Decoupled Contrastive Learning (Yeh, Hong, Hsu, Liu, Chen, LeCun; ECCV 2022)",
        arxiv="2110.06848",
        year=2022,
        formula=r"\ell_i = -S_{i,p(i)} + \log\sum_{j\notin\{i,p(i)\}} e^{S_{ij}},\qquad S_{ij} = z_i^\top z_j/\tau",
        summary="Two views of one picture attract with a force that never fades, all other pictures repel. No labels "
        "are used, so wrong labels cannot mislead it. Made for small batches.",
        fails_when="The temperature is very small: views that agree already are drawn together without end. Pictures "
        "of one class are pushed apart too (false negatives).",
    )

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, B >= 2, V >= 2; needs no labels."""
        attract, repel, q = decoupled(batch.z, self.temperature, self.card.slug)
        loss = repel - attract  # (V, B)
        parts = {"attract": -float(attract.detach().mean()), "repel": float(repel.detach().mean()), "q": q}
        return LossOut(loss.mean(), loss.detach().mean(0), parts)


def decoupled(z: Tensor, temperature: float, slug: str) -> tuple[Tensor, Tensor, float]:
    """What draws each view of (B, V, D) projections and what pushes it.

    Returns:
        (V, B) mean similarity over temperature to the other views of the picture; (V, B) log U, the log-sum-exp over
        all views of the other pictures; the mean of q.
    """
    b, v, _ = z.shape
    at_least(b, 2, "samples", slug)
    at_least(v, 2, "views of each sample", slug)
    rows = cosine_rows(z)  # (V*B, D)
    sim = rows @ rows.T / temperature  # (V*B, V*B)
    eye = torch.eye(len(rows), dtype=torch.bool, device=z.device)
    sample = torch.arange(b, device=z.device).repeat(v)
    same = sample[:, None] == sample[None, :]
    attract = sim.masked_fill(~same | eye, 0.0).sum(1) / (v - 1)
    repel = torch.logsumexp(sim.masked_fill(same, -torch.inf), dim=1)
    easy = torch.logsumexp(sim.detach().masked_fill(~same | eye, -torch.inf), dim=1)
    q = float(torch.sigmoid(repel.detach() - easy).mean())
    return attract.view(v, b), repel.view(v, b), q
