"""DCLW: decoupled contrastive learning with weighted positives."""

from __future__ import annotations

from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, check_temperature
from .dcl import decoupled


class DCLW(ContrastiveLoss):
    r"""DCL with a weight on the attraction, high where the views of a picture disagree.

    With unit rows z, :math:`S_{ij} = z_i^\top z_j / \tau`, the other view p(i) and the cosine :math:`c_k` between the
    views of picture k,

    .. math:: \ell_i = -w_i S_{i,p(i)} + \log \sum_{j \notin \{i, p(i)\}} e^{S_{ij}},\qquad
              w_k = 2 - B\, \mathrm{softmax}_k(c_k / \sigma)

    The weights of a batch have mean 1. They are above 1 for pictures whose views disagree and may be negative for
    pictures whose views agree far better than the others': those are pushed apart. They carry no gradient; the paper
    does not say. With more than two views both means run over all pairs of views of a picture.

    ``parts["w_min"]`` and ``parts["w_max"]`` are the extremes of the weights, ``parts["q"]`` is as in DCL.

    Source: Yeh, Hong, Hsu, Liu, Chen, LeCun, ECCV 2022, arXiv 2110.06848.

    Args:
        temperature: tau > 0; small values look at the nearest negatives only.
        sigma: > 0, in units of the cosine; the smaller, the further the weights are apart.
    """

    card = MethodCard(
        slug="dclw",
        name="DCLW",
        paper="Decoupled Contrastive Learning (Yeh, Hong, Hsu, Liu, Chen, LeCun; ECCV 2022)",
        arxiv="2110.06848",
        year=2022,
        formula=r"\ell_i = -w_i S_{i,p(i)} + \log\sum_{j\notin\{i,p(i)\}} e^{S_{ij}},\qquad"
        r"w_i = 2 - B\,\mathrm{softmax}_i(z_i^\top z_{p(i)}/\sigma),\qquad S_{ij} = z_i^\top z_j/\tau",
        summary="Like DCL, but pictures whose views disagree attract more strongly than those whose views agree. No "
        "labels are used. Odd pictures, often out-of-distribution ones, get more of the training.",
        fails_when="Many pictures are damaged or not of the data: they get the largest weights. Often no better than "
        "DCL.",
    )

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.sigma = check_temperature(temperature), check_temperature(sigma, "sigma")

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, B >= 2, V >= 2; needs no labels."""
        attract, repel, q = decoupled(batch.z, self.temperature, self.card.slug)
        cosine = attract.detach().mean(0) * self.temperature  # (B,)
        weight = 2 - len(cosine) * (cosine / self.sigma).softmax(0)
        attract = weight * attract
        loss = repel - attract  # (V, B)
        parts = {
            "attract": -float(attract.detach().mean()),
            "repel": float(repel.detach().mean()),
            "q": q,
            "w_min": float(weight.min()),
            "w_max": float(weight.max()),
        }
        return LossOut(loss.mean(), loss.detach().mean(0), parts)
