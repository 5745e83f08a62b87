"""Symile: a picture, its edge map and its given label, contrasted as whole triples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, unit, wide

Triple = tuple[Tensor, Tensor, Tensor]

NEGATIVES = ("n", "n_squared")


class Symile(ContrastiveLoss):
    r"""Picture, edge map and given label of a sample must fit better than triples put together from several samples.

    With unit rows p (linear map of the features), e (small network on the Sobel magnitudes of the same view) and l
    (embedding of the given label), a learnt scale :math:`s` and :math:`\langle p, e, l\rangle = \sum_d p_d e_d l_d`,

    .. math:: \ell_i = \frac13 \Big(\ell_i^p + \ell_i^e
        - \log \frac{\pi_{y_i} e^{s\langle p_i, e_i, l_{y_i}\rangle}}{\sum_c \pi_c e^{s\langle p_i, e_i, l_c\rangle}}
        \Big), \qquad \ell_i^m = -\log \frac{e^{s\langle p_i, e_i, l_{y_i}\rangle}}
        {e^{s\langle p_i, e_i, l_{y_i}\rangle} + \sum_{q \in N_m(i)} e^{s q}}

    where :math:`N_m(i)` keeps modality m of sample i and takes the other two from anywhere in the batch: from one
    random permutation each (``n``: B-1 negatives, drawn anew for each m) or in all combinations (``n_squared``: all
    :math:`B^2`). At the optimum the score is :math:`\log p(c \mid p, e) / p(c)` but for a term that no label changes.

    The paper takes all modalities to be as rich as pictures. Labels have C values, hence two changes. Triples of
    one sample's picture and edges with its label, wherever in the batch the label was taken from, are right, so they
    are left out of the negatives; a right picture with a wrong label, or with other edges, stays. And where the
    paper takes the label as the third anchor :math:`\ell^l`, all C labels are candidates for the pair of picture and
    edges, weighted with their shares :math:`\pi_c` in the batch: a third anchor would mostly compare pairs that do
    not belong together, which teaches little about labels. Both kinds have the same optimum; ``label_anchor``
    brings the paper's back. In ``n_squared``, equal labels are counted, not listed: B x B x C scores in place of
    three times :math:`B^3`.

    Source: Saporta, Puli, Goldstein, Ranganath, NeurIPS 2024, arXiv 2411.01053; the modalities are ours.

    Args:
        negatives: ``n`` or ``n_squared``. The latter is exact and draws nothing, but keeps C*B*B numbers: for few
            classes or small batches. With ``n`` the loss of a sample depends on the order of the batch.
        label_anchor: contrast the label with B pairs of pictures and edges, as the paper would, and not the pair with
            C labels.
        dim: D, shared by the three modalities.
        log_scale: logarithm of s at the start; products of three unit rows are small, so it is large.
    """

    card = MethodCard(
        slug="symile",
        name="Symile",
        paper="Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities "
        "(Saporta, Puli, Goldstein, Ranganath; NeurIPS 2024)",
        arxiv="2411.01053",
        year=2024,
        formula=r"\ell_i^m = -\log\frac{e^{s\langle p_i,e_i,l_{y_i}\rangle}}"
        r"{e^{s\langle p_i,e_i,l_{y_i}\rangle}+\sum_{q\in N_m(i)} e^{s q}},\qquad "
        r"\langle p,e,l\rangle=\sum_d p_d\,e_d\,l_d",
        summary="Picture, edge map and given label of a sample attract as a triple; triples mixed from several "
        "samples repel. The given labels are used: a wrong label pulls its picture towards the wrong class, and "
        "the joint score tells how badly the two fit.",
        fails_when="It is trained long enough to learn wrong labels by heart; or the edge map alone gives the picture "
        "away, so that little is left to learn from the label.",
    )
    needs = frozenset({"h", "x", "y", "rng"})
    views = 1
    outputs = ("joint",)

    picture: nn.Linear
    edges: nn.Sequential
    label: nn.Embedding

    def __init__(self, negatives: str = "n", label_anchor: bool = False, dim: int = 64, log_scale: float = 3.0) -> None:
        super().__init__()
        if negatives not in NEGATIVES:
            raise InputError(f"negatives must be one of {', '.join(NEGATIVES)}, got {negatives!r}")
        if dim < 1:
            raise InputError(f"dim must be at least 1, got {dim}")
        if not math.isfinite(log_scale):
            raise InputError(f"log_scale must be finite, got {log_scale}")
        self.negatives, self.label_anchor, self.dim = negatives, label_anchor, dim
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))

    def setup(self, sizes: Sizes) -> None:
        """Build the three maps to D numbers."""
        self.picture = nn.Linear(sizes.features, self.dim)
        self.edges = edge_network(sizes.shape[1:], self.dim)
        self.label = nn.Embedding(sizes.classes, self.dim)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of one view each: features h (B, 1, F), pictures x (B, 1, channels, height, width), labels y (B,)."""
        h, x, y = batch.h, batch.x, batch.y
        assert h is not None  # named in needs, as the next two
        assert x is not None
        assert y is not None
        at_least(len(y), 2, "samples", "symile")
        picture, edges, labels = self._encode(h[:, 0], x[:, 0])
        scale = self.log_scale.exp()
        if self.negatives == "n":
            loss = permuted((picture, edges, labels[y]), y, scale, batch.rng)  # (3, B)
        else:
            loss = combined(picture, edges, labels, y, scale)
        share = torch.bincount(y, minlength=len(labels)).to(scale.dtype) / len(y)
        fits = scale * (picture * edges) @ labels.T + share.log()  # (B, C), -inf where the batch has no such label
        if not self.label_anchor:
            loss = torch.stack([*loss[:2], F.cross_entropy(fits, y, reduction="none")])
        parts = dict(zip(("picture", "edges", "label"), loss.detach().mean(1).tolist(), strict=True))
        parts |= {"scale": float(scale.detach()), "label_fits_best": float((fits.argmax(1) == y).float().mean())}
        return LossOut(loss.mean(), loss.detach().mean(0), parts)

    def output(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """``joint``: (B, C) how well each label fits a picture and its edges, as a log ratio to the label's share."""
        if name not in self.outputs:
            return super().output(name, h, x)
        picture, edges, labels = self._encode(h, x)
        return self.log_scale.exp() * (picture * edges) @ labels.T

    def _encode(self, h: Tensor, x: Tensor) -> Triple:
        """Unit rows of pictures (B, D), edge maps (B, D) and all labels (C, D)."""
        return unit(self.picture(wide(h))), unit(self.edges(sobel(wide(x)))), unit(self.label.weight)


def permuted(rows: Triple, y: Tensor, scale: Tensor, rng: torch.Generator | None) -> Tensor:
    """(3, B) losses by anchor, each against B-1 triples of two random permutations; rows (B, D) by modality."""
    losses = []
    for anchor in range(3):
        # an order for each: with a common one, the "negatives" would be right triples of other samples
        first, second = (torch.randperm(len(y), generator=rng, device=y.device) for _ in range(2))
        losses.append(against(rows, anchor, (first, second), false_negatives(anchor, (first, second), y), scale))
    return torch.stack(losses)


def against(rows: Triple, anchor: int, orders: tuple[Tensor, Tensor], skip: Tensor, scale: Tensor) -> Tensor:
    """(B,) losses of one anchor against the columns that two orders make.

    Args:
        rows: (B, D) of picture, edges and label.
        anchor: the modality that is kept, 0 to 2.
        orders: (B,) each; which rows the other two take, in turn.
        skip: (B, B) columns that are no negatives of a row. The diagonal never is: there the true triple stands.
        scale: of the scores.
    """
    picture, edges, label = rows
    positive = scale * (picture * edges * label).sum(1)
    one, two = (other for m, other in enumerate(rows) if m != anchor)
    columns = one[orders[0]] * two[orders[1]]
    skip = skip | torch.eye(len(positive), dtype=torch.bool, device=skip.device)
    negative = (scale * rows[anchor] @ columns.T).masked_fill(skip, -torch.inf)
    return torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive


def false_negatives(anchor: int, orders: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """(B, B): is the triple of row and column right, that is, picture and edges of one sample, and its label?"""
    places = [order[None] for order in orders]
    places.insert(anchor, torch.arange(len(y), device=y.device)[:, None])
    picture, edges, label = places
    return (picture == edges) & (y[picture] == y[label])


def combined(picture: Tensor, edges: Tensor, labels: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """(3, B) losses by anchor, against all B*B triples; labels (C, D) by class, so that equal ones are counted."""
    score = scale * (labels[:, None] * picture) @ edges.T  # (C, B, B): class, picture, edges
    own = torch.arange(len(y), device=y.device)
    positive = score[y, own, own]
    score = score.index_put((y, own, own), score.new_tensor(-torch.inf))  # all right triples: negatives remain
    count = torch.bincount(y, minlength=len(labels)).to(score.dtype).log()[:, None]  # -inf: nobody carries it
    over_edges, over_pictures = score.logsumexp(2), score.logsumexp(1)  # (C, B)
    by_picture, by_edges = (count + over_edges).logsumexp(0), (count + over_pictures).logsumexp(0)
    by_label = over_edges.logsumexp(1)[y]
    return F.softplus(torch.stack([by_picture, by_edges, by_label]) - positive)


def sobel(x: Tensor) -> Tensor:
    """(B, 1, H, W) length of the grey gradient of pictures (B, channels, H, W); a step from 0 to 1 gives 1."""
    smooth, slope = x.new_tensor([1, 2, 1]) / 4, x.new_tensor([-1, 0, 1])
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]  # (2, 1, 3, 3)
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")  # no edge where the picture ends
    return F.conv2d(grey, kernels).square().sum(1, keepdim=True).sqrt()


def edge_network(shape: tuple[int, int], dim: int) -> nn.Sequential:
    """(B, 1, H, W) -> (B, D): convolutions that halve the map until it is at most 7 wide, then a linear map."""
    layers: list[nn.Module] = []
    (height, width), inside, outside = shape, 1, 16
    while max(height, width) > 7:
        layers += [nn.Conv2d(inside, outside, 3, 2, 1), nn.ReLU()]
        height, width, inside, outside = (height + 1) // 2, (width + 1) // 2, outside, 32
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside * height * width, dim))
