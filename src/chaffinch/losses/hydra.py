"""Hydra, later SimLAP: any two classes may be a positive pair, in a sub-space of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, cosine_rows

PARTNERS = ("arbitrary", "distinct", "identical")


class Hydra(ContrastiveLoss):
    r"""Pictures of two arbitrary classes attract in the dimensions that a learned gate opens for this pair of classes.

    Row i with label y_i draws a partner class y'_i. The gate of the two, :math:`g_i = \sigma(\mathrm{MLP}(
    (e_{y_i} + e_{y'_i})/2)) \in (0,1)^D`, filters the anchor and all that it is compared with:

    .. math:: c_{in} = \cos(z_i \odot g_i,\; z_n \odot g_i),\qquad
        \ell_{ip} = -\frac{c_{ip}}{\tau} + \log\Big(e^{c_{ip}/\tau} + \sum_{n \in N(i)} e^{c_{in}/\tau}\Big)

    Positives p are the other rows of class y'_i, each alone against the negatives N(i), the rows of neither class;
    the rest of y_i's own class is left out. The loss is the mean over all positive pairs of the batch, and that of a
    sample is its pairs' share of it, times B: 0 where the partner class or a negative is missing, more where the
    partner class is large. The gate is symmetric in its two classes, and its scale does not matter.

    What differs from the authors' code: LayerNorm in place of BatchNorm in the gate, whose input is a handful of
    label embeddings; a row is never its own positive; no LayerNorm at the end of the projection; no linear
    classifier beside it. The partners are random, so the loss of a sample depends on its place in the batch.

    Source: Wu, Mo, Feng, Atito, Kittler, Awais, 2024, arXiv 2410.18200 (version 2 calls it SimLAP).

    Args:
        temperature: tau > 0, in units of the cosine; small values look at the nearest negatives only.
        partner: the partner class of a row: ``arbitrary``, the label of a random row of the batch; ``distinct``, any
            other class; ``identical``, its own, which leaves a class-wise contrast.
        width: length of a label embedding; the gate's hidden layer is twice as wide.
    """

    card = MethodCard(
        slug="hydra",
        name="Hydra / SimLAP",
        paper="Rethinking Positive Pairs in Contrastive Learning (Wu, Mo, Feng, Atito, Kittler, Awais; preprint 2024)",
        arxiv="2410.18200",
        year=2024,
        formula=r"\ell_{ip} = -\tfrac{c_{ip}}{\tau} + \log\Big(e^{c_{ip}/\tau} + \sum_{n:\,y_n\notin\{y_i,y'_i\}}"
        r"e^{c_{in}/\tau}\Big),\qquad c_{in} = \cos(z_i\odot g_i,\, z_n\odot g_i),\quad y_p = y'_i",
        summary="Each picture attracts those of a randomly chosen class, also an unrelated one, but only in the "
        "dimensions that a learned gate opens for the two labels; pictures of all other classes repel there. Labels "
        "choose the gate and the pairs, so a wrong label pulls its picture into the wrong sub-spaces.",
        fails_when="Many labels are wrong: gates are then learnt for pairs of classes that are not in the pictures. "
        "With two classes there is a negative only when both partners are of one class.",
    )
    needs = frozenset({"z", "y", "rng"})
    views = 1

    def __init__(self, temperature: float = 0.1, partner: str = "arbitrary", width: int = 512) -> None:
        super().__init__()
        if partner not in PARTNERS:
            raise InputError(f"partner must be one of {', '.join(PARTNERS)}, got {partner!r}")
        if width < 1:
            raise InputError(f"width must be at least 1, got {width}")
        self.temperature, self.partner, self.width = check_temperature(temperature), partner, width

    def setup(self, sizes: Sizes) -> None:
        """Build the label embeddings and the network of the gate."""
        self.embedding = nn.Embedding(sizes.classes, self.width)
        self.network = nn.Sequential(
            nn.ReLU(),
            nn.LayerNorm(self.width),
            nn.Linear(self.width, 2 * self.width),
            nn.ReLU(),
            nn.LayerNorm(2 * self.width),
            nn.Linear(2 * self.width, sizes.projection),
        )

    def gate(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits (n, D) of the gates of n pairs of classes."""
        out: Tensor = self.network((self.embedding(a) + self.embedding(b)) / 2)
        return out

    def partners(self, y: Tensor, rng: torch.Generator | None) -> Tensor:
        """The partner class of each row."""
        if self.partner == "identical":
            return y
        if self.partner == "arbitrary":
            return y[torch.randperm(len(y), generator=rng, device=y.device)]
        classes = self.embedding.num_embeddings
        return (y + torch.randint(1, max(classes, 2), y.shape, generator=rng, device=y.device)) % classes

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, V >= 1, with labels; views of one sample are rows of one class."""
        assert batch.y is not None
        b, v, _ = batch.z.shape
        at_least(b, 3, "samples", self.card.slug)
        z, y = cosine_rows(batch.z), batch.y.repeat(v)
        partner = self.partners(y, batch.rng)
        # few distinct pairs of classes meet in a batch: the gate of each is computed once
        classes = self.embedding.num_embeddings
        pairs, which = torch.unique(
            torch.minimum(y, partner) * classes + torch.maximum(y, partner), return_inverse=True
        )
        logits = self.gate(pairs // classes, pairs % classes).to(z.dtype)
        gates = logits.sigmoid()
        loss, count = pair_losses(gated_cosines(z, gates[which]) / self.temperature, y, partner)
        per_sample = loss.detach().view(v, b).sum(0) * (b / count)
        entropy = F.binary_cross_entropy_with_logits(logits, gates, reduction="none")
        parts = {
            "gate": float(gates.detach().mean(1)[which].mean()),
            "gate_entropy": float(entropy.detach().mean(1)[which].mean()),
        }
        return LossOut(loss.sum() / count, per_sample, parts)


def gated_cosines(z: Tensor, gates: Tensor) -> Tensor:
    """Cosine (M, M) between rows i and n of z (M, D), both filtered by gate i (M, D); 0 where nothing passes."""
    square = gates.square()
    # squared lengths of all rows under all gates; the floor keeps the gradient finite where a gate lets nothing through
    length = (square @ z.square().T).clamp(min=1e-12)
    return (z * square) @ z.T * length.rsqrt() * length.diagonal().rsqrt()[:, None]


def pair_losses(sim: Tensor, y: Tensor, partner: Tensor) -> tuple[Tensor, int]:
    """Sum over the positives of each row (M,), and how many positive pairs there are, at least 1.

    Args:
        sim: (M, M) similarities over temperature.
        y: (M,) labels.
        partner: (M,) partner classes.
    """
    own, positive = y[:, None] == y, partner[:, None] == y
    negative = ~(own | positive)
    positive = positive.clone().fill_diagonal_(False)
    some = negative.any(1, keepdim=True)
    # a row without negatives is masked as a whole below; its log-sum-exp must not be one of nothing
    repel = torch.logsumexp(sim.masked_fill(~negative & some, -torch.inf), dim=1, keepdim=True)
    loss = F.softplus(repel - sim).masked_fill(~(positive & some), 0.0)
    return loss.sum(1), max(int(positive.sum()), 1)
