"""Multi-positive InfoNCE behind shuffled group whitening (WhitenedCSE)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, unit, wide

WIDTH = 8
"""Channels in a group where the user sets no number of groups."""

EPS = 1e-5
FLOOR = 1e-4
"""An eigenvalue is raised to this share of the largest one of its group, and then by EPS."""


def zca(x: Tensor, eps: float = EPS, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Whiten blocks (..., N, d) over their N rows; the whitening matrix counts as a constant in the gradient.

    The symmetric inverse root turns the axes as little as possible. Differentiating the decomposition would divide
    by differences of eigenvalues, which may be 0.

    Returns:
        The whitened blocks, and the (..., d) share of eigenvalues, 0 or 1 each, that the floor raised.
    """
    x = wide(x)
    x = x - x.mean(-2, keepdim=True)
    with torch.no_grad():
        values, axes = torch.linalg.eigh(x.mT @ x / x.shape[-2])  # ascending
        least = floor * values[..., -1:]
        root = (values.maximum(least) + eps).rsqrt()
        matrix = (axes * root.unsqueeze(-2)) @ axes.mT
    return x @ matrix, (values < least).to(x.dtype)


class Whitened(ContrastiveLoss):
    r"""InfoNCE between three views whose features are whitened in small groups of shuffled channels.

    The features h of one view, B rows of F channels, are shuffled by a permutation of their own, cut into G groups
    of d = F/G channels, and each group is centred and whitened over the batch,
    :math:`Y = X\,U(\Lambda + \epsilon)^{-1/2}U^\top` with :math:`X^\top X/B = U\Lambda U^\top`; then the channels go
    back to their places. A head :math:`z = \tanh(AY + a)` follows, and with unit rows z and view 1 as the anchor

    .. math:: \ell_i = \sum_{v=2}^{V} \Big(-\frac{z_i^{1\top} z_i^v}{\tau}
              + \log\sum_{j=1}^{B} e^{z_i^{1\top} z_j^v/\tau}\Big)

    Every view and step draws a new permutation, so one picture has V differently whitened versions: more diverse
    positives. What the loss sees has no dominant direction. Whitening and head are gone after training, and the map
    shows the plain features, which nothing keeps from having one: in small trainings from scratch they filled fewer
    directions than without whitening, and a trait that lasts over the views, such as brightness, took more of them.
    The paper fine-tunes a pretrained language model instead.

    The paper whitens without safeguards. Here an eigenvalue below 1e-4 of the largest in its group is raised to
    that, 1e-5 is added to all, and a group has at most B/2 channels, so that dead channels and small batches stay
    finite. No gradient passes through the decomposition, as in the authors' code; unlike there, which orders the
    rows by sample and so shuffles the views of a picture alike, every view has its own permutation. The features
    may be scaled by any factor as long as their variance stays far above 1e-5.

    Source: Zhuo, Sun, Wang, Zhu, Yang, ACL 2023, arXiv 2305.17746.

    Args:
        temperature: tau > 0; small values look at the nearest negatives only.
        groups: G, a divisor of the number of features; 0 takes groups of about 8 channels, fewer in small batches.
            More groups whiten less; as many groups as features is batch normalisation.
    """

    card = MethodCard(
        slug="whitened",
        name="Whitened contrast",
        paper="WhitenedCSE: Whitening-based Contrastive Learning of Sentence Embeddings "
        "(Zhuo, Sun, Wang, Zhu, Yang; ACL 2023)",
        arxiv="2305.17746",
        year=2023,
        formula=r"\ell_i = \sum_{v\ge 2}\Big(-s(z_i^1, z_i^v) + \log\sum_j e^{s(z_i^1, z_j^v)}\Big),\qquad "
        r"z^v = \tanh\big(A\,\mathrm{SGW}(h^v) + a\big),\quad s(a, b) = \cos(a, b)/\tau",
        summary="Three views of one picture attract and other pictures repel, after the features have been "
        "decorrelated in small random groups, so that each direction counts alike in the loss. No labels are used, so "
        "wrong labels cannot mislead it.",
        fails_when="Pictures differ strongly in a trait that augmentation leaves, such as brightness: whitening hides "
        "its size from the loss, and it may stretch the map. Directions of mere noise are amplified, small batches "
        "make the covariances guesses, and foreign pictures enter them too.",
    )
    needs = frozenset({"h", "rng"})
    views = 3

    head: nn.Linear

    def __init__(self, temperature: float = 0.05, groups: int = 0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if groups < 0:
            raise InputError(f"groups must be 0 or more, got {groups}")
        self.groups = int(groups)

    def setup(self, sizes: Sizes) -> None:
        """Make the head; the features must fall into the groups evenly."""
        if self.groups and sizes.features % self.groups:
            raise InputError(f"groups must divide the {sizes.features} features evenly, got {self.groups}")
        self.head = nn.Linear(sizes.features, sizes.features)

    def width(self, b: int, features: int) -> int:
        """Channels in a group, at most half the batch of b: a covariance of more would be nearly singular."""
        if not self.groups:
            divisors = [d for d in range(1, b // 2 + 1) if features % d == 0]
            return min(divisors, key=lambda d: abs(math.log(d / WIDTH)))
        width = features // self.groups
        if width > b / 2:
            raise InputError(
                f"groups is {self.groups}, so {width} channels are whitened together; a batch of {b} allows at "
                f"most {b // 2}: set more groups, 0 for a fitting number, or a larger batch"
            )
        return width

    def whiten(self, h: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Shuffled group whitening of (B, V, F) features: (V, B, F), and which eigenvalues were raised."""
        b, v, features = h.shape
        orders = [torch.randperm(features, generator=rng, device=h.device) for _ in range(v)]
        order = torch.stack(orders)[:, None].expand(v, b, features)
        shuffled = h.transpose(0, 1).gather(2, order)  # (V, B, F)
        blocks, raised = zca(shuffled.reshape(v, b, -1, self.width(b, features)).transpose(1, 2))  # (V, G, B, d)
        return blocks.transpose(1, 2).flatten(2).gather(2, order.argsort(2)), raised

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, F) features, V >= 2; view 1 is the anchor; needs no labels."""
        h, rng = batch.h, batch.rng
        if h is None or rng is None:
            raise ValueError("whitened needs the features h and a generator rng in its batch")
        b, v, _ = h.shape
        if v < 2:
            raise ValueError(f"whitened needs at least two views of each sample, got {v}")
        at_least(b, 2, "samples", "whitened")
        y, raised = self.whiten(h, rng)
        z = unit(torch.tanh(self.head(y.to(self.head.weight.dtype))))  # (V, B, F)
        sim = z[:1] @ z[1:].mT / self.temperature  # (V-1, B, B)
        attract = sim.diagonal(dim1=1, dim2=2)
        repel = torch.logsumexp(sim, dim=2)
        loss: Tensor = (repel - attract).sum(0)
        return LossOut(
            loss.mean(),
            loss.detach(),
            {
                "attract": -float(attract.detach().sum(0).mean()),
                "repel": float(repel.detach().sum(0).mean()),
                "directions": float(directions(h[:, 0])),
                "raised": float(raised.mean()),
            },
        )


@torch.no_grad()
def directions(h: Tensor) -> Tensor:
    """How many directions the rows (B, F) fill, 1 to F, 0 for equal rows: (sum of eigenvalues)^2 / sum of squares."""
    x = wide(h)
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    return covariance.trace().square() / covariance.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
