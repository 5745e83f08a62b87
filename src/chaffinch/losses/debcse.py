"""Pairs by inverse propensity: surface similarity is taken out of what counts as near (DebCSE-style)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, cosine_rows, unit, wide

LEAST = 0.01
"""Smallest propensity: what is less likely counts as this likely, or few pairs would outweigh all others."""

NEIGHBOURS = 10
"""Semantic neighbours in the batch that may become positives."""

TOO_ALIKE = 0.9
"""Correlation above which surface and semantic similarity are one thing, and their ratio is noise."""


class DebCSE(ContrastiveLoss):
    r"""InfoNCE whose negatives look alike but mean something else, and whose extra positives are the other way round.

    With unit rows z, :math:`S_{ij} = z_i^\top z_j / \tau`, ``surf`` the cosine of small grey versions of the views
    (4x4 cells, each standardised over the batch, so that brightness counts), ``sem`` the cosine of remembered, centred
    features and n = V(B-1) views of other samples,

    .. math:: \ell_i = -(1-\beta) S_{i,p(i)} - \beta \sum_j p^+_{ij} S_{ij}
        + \log\Big(e^{S_{i,p(i)}} + n \sum_j \bar p^-_{ij} e^{S_{ij}}\Big)

    .. math:: p^-_{ij} \propto (1 - \mathrm{sem}_{ij})\, e^{\mathrm{surf}_{ij}/T}\ [\mathrm{sem}_{ij} < c],\qquad
        p^+_{ij} \propto \frac{\max(\mathrm{sem}_{ij}, 0)}{e_{ij}},\qquad
        e_{ij} = \mathrm{softmax}_j(\mathrm{surf}_{ij}/T)

    with :math:`\bar p^- = (1-u)\,p^- + u/n`: the uniform share u keeps true hard negatives that the cut took for
    false ones. p+ runs over the nearest semantic neighbours in the batch. Until features are remembered it is plain
    InfoNCE; :math:`p^- = 1/n` and :math:`\beta = 0` give NT-Xent exactly.

    The abstract of the paper says that pairs are sampled by inverse propensity from both similarities; the formulas
    are reconstructed, so this is DebCSE-style, not DebCSE. Pairs are weighted with their probability in place of
    being drawn: the sums are the expected values over n negatives and one positive. The propensity is in the
    probability already, so nothing is divided by it a second time. Remembered features are those of the encoder
    some epochs ago, centred because features behind a ReLU are all alike otherwise. A batch in which the two
    similarities correlate above 0.9 falls back to plain InfoNCE; ``similarity_correlation`` shows the correlation.

    Source: Miao, Du, Zhang, CIKM 2023, arXiv 2309.07396.

    Args:
        temperature: tau > 0. 0.05 is usual for sentences; 0.2 is that of SimCLR here, so that the two compare.
        surface_temperature: T > 0; small values weight only what looks nearly the same.
        cut: c, semantic similarity from which a pair is a false negative.
        uniform_share: u, share of the negatives' weight that is the same for all.
        neighbour_share: beta, share of the attraction that goes to semantic neighbours, 0 to 1.
        start: first epoch (from 0) with remembered features.
        refresh: epochs until they are remembered anew.
    """

    card = MethodCard(
        slug="debcse",
        name="DebCSE-style",
        paper="DebCSE: Rethinking Unsupervised Contrastive Sentence Embedding Learning in the Debiasing Perspective "
        "(Miao, Du, Zhang; CIKM 2023)",
        arxiv="2309.07396",
        year=2023,
        formula=r"p^-_{ij}\propto(1-\mathrm{sem}_{ij})\,e^{\mathrm{surf}_{ij}/T}[\mathrm{sem}_{ij}<c],\quad "
        r"p^+_{ij}\propto\frac{\max(\mathrm{sem}_{ij},0)}{\mathrm{softmax}_j(\mathrm{surf}_{ij}/T)}",
        summary="Two views of one picture attract, and so do pictures that mean the same but look different; pictures "
        "that look the same but mean something else repel most. No labels are used, so wrong labels cannot "
        "mislead it.",
        fails_when="What looks alike also means the same (centred digits): the two similarities are then one thing. "
        "A bad early encoder chooses bad pairs, which keep it bad.",
    )
    needs = frozenset({"x", "index", "z"})

    remembered: Tensor
    filled: Tensor

    def __init__(
        self,
        temperature: float = 0.2,
        surface_temperature: float = 0.2,
        cut: float = 0.9,
        uniform_share: float = 0.2,
        neighbour_share: float = 0.2,
        start: int = 5,
        refresh: int = 5,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.surface_temperature = check_temperature(surface_temperature, "surface_temperature")
        if not -1 <= cut <= 1:
            raise InputError(f"cut must be a cosine between -1 and 1, got {cut}")
        for name, share in (("uniform_share", uniform_share), ("neighbour_share", neighbour_share)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be a share between 0 and 1, got {share}")
        if start < 0:
            raise InputError(f"start must be at least 0, got {start}")
        if refresh < 1:
            raise InputError(f"refresh must be at least 1, got {refresh}")
        self.cut, self.uniform_share, self.neighbour_share = cut, uniform_share, neighbour_share
        self.start, self.refresh = start, refresh

    def setup(self, sizes: Sizes) -> None:
        """Make room for the features of all samples."""
        self.register_buffer("remembered", torch.zeros(sizes.samples, sizes.features))
        self.register_buffer("filled", torch.tensor(False))

    def wants_epoch(self, epoch: int) -> bool:
        """From ``start`` on, every ``refresh`` epochs."""
        return epoch >= self.start and (epoch - self.start) % self.refresh == 0

    def on_epoch(self, features: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> None:
        """Remember the features, centred and of length 1; labels are not used."""
        wide_features = wide(features)
        self.remembered.copy_(unit(wide_features - wide_features.mean(0)))
        self.filled.fill_(True)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections, V >= 2; needs the views and the positions of the samples."""
        b, v, _ = batch.z.shape
        at_least(v, 2, "views of each sample", "debcse")
        z = cosine_rows(batch.z)  # (V*B, D)
        sim = z @ z.T / self.temperature
        sample = torch.arange(b, device=z.device).repeat(v)
        others = sample[:, None] != sample
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
        attract = sim.masked_fill(others | eye, 0.0).sum(1) / (v - 1)
        log_weight = torch.zeros_like(sim).masked_fill(eye, -torch.inf)
        parts = {}
        if b > 1 and self.filled:
            surf, sem = self.similarities(batch)
            near = nearest(sem, min(NEIGHBOURS, b - 1)).repeat(v, v)
            sem = sem.repeat(v, v)
            parts["similarity_correlation"] = correlation(surf, sem, others)
            if parts["similarity_correlation"] <= TOO_ALIKE:
                negative = negative_probability(surf, sem, self.surface_temperature, self.cut, others)
                weight = v * (b - 1) * keep_uniform(negative, others, self.uniform_share)
                log_weight = torch.where(others, weight.log(), log_weight)
                chosen = positive_probability(surf, sem, self.surface_temperature, LEAST, near)
                share = self.neighbour_share * chosen.sum(1)  # 0 where no neighbour has anything in common
                attract = (1 - share) * attract + self.neighbour_share * (chosen * sim).sum(1)
                parts["effective_negatives"] = float(effective_size(weight).mean())
                parts["positive_surface"] = float((chosen * surf).sum(1).mean())
        repel = torch.logsumexp(sim + log_weight, dim=1)
        loss: Tensor = repel - attract  # (V*B,)
        parts |= {"attract": -float(attract.detach().mean()), "repel": float(repel.detach().mean())}
        return LossOut(loss.mean(), loss.detach().view(v, b).mean(0), parts)

    @torch.no_grad()
    def similarities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Surface similarity (V*B, V*B) of all views, row v*B + b is view v of sample b; semantic one (B, B)."""
        assert batch.x is not None  # named in needs, as the next
        assert batch.index is not None
        looks = surface(batch.x.transpose(0, 1).flatten(0, 1))
        known = self.remembered[batch.index.clamp_min(0)] * (batch.index >= 0)[:, None]  # else: like nothing
        dtype = wide(batch.z).dtype
        return (looks @ looks.T).to(dtype), (known @ known.T).to(dtype)


def surface(x: Tensor) -> Tensor:
    """Unit rows (B, cells) of what is seen at a glance: grey means of 4x4 cells, standardised over the batch."""
    grey = wide(x).mean(1, keepdim=True)
    cells = F.avg_pool2d(grey, [max(side // 4, 1) for side in x.shape[2:]]).flatten(1)
    spread = cells.std(0, correction=0).clamp_min(1e-3)  # of values in [0, 1]: less is rounding
    return unit((cells - cells.mean(0)) / spread)


def propensity(surf: Tensor, temperature: float, least: float, allow: Tensor | None = None) -> Tensor:
    """Probability that looks alone choose each candidate, softmax of surf / T by row, at least ``least``.

    Args:
        surf: (B, C) surface similarity.
        temperature: T.
        least: smallest propensity.
        allow: (B, C) candidates; default: all.
    """
    return _share(surf / temperature, allow).clamp(least, 1.0)


def positive_probability(
    surf: Tensor, sem: Tensor, temperature: float, least: float, allow: Tensor | None = None
) -> Tensor:
    """(B, C) p+: means the same, looks different. A row without anything in common is 0."""
    ratio = sem.clamp_min(0) / propensity(surf, temperature, least, allow)
    if allow is not None:
        ratio = ratio * allow
    return ratio / ratio.sum(1, keepdim=True).clamp_min(torch.finfo(ratio.dtype).tiny)


def negative_probability(
    surf: Tensor, sem: Tensor, temperature: float, cut: float, allow: Tensor | None = None
) -> Tensor:
    """(B, C) p-: looks the same, means something else; 0 from the cut on. A row with nothing below the cut is 0."""
    below = sem < cut if allow is None else (sem < cut) & allow
    return _share(surf / temperature + (1 - sem).clamp_min(0).log(), below)


def keep_uniform(probability: Tensor, allow: Tensor, share: float) -> Tensor:
    """The probability with this share of it spread evenly over the candidates; all of it where a row is 0."""
    even = allow.to(probability.dtype) / allow.sum(1, keepdim=True)
    return torch.where(probability.sum(1, keepdim=True) > 0, torch.lerp(probability, even, share), even)


def effective_size(weight: Tensor) -> Tensor:
    """(B,) how many equal weights would be as precise: (sum w)^2 / sum w^2."""
    return weight.sum(1) ** 2 / (weight**2).sum(1)


def nearest(sem: Tensor, k: int) -> Tensor:
    """(B, B) mask of the k most similar others of each row."""
    eye = torch.eye(len(sem), dtype=torch.bool, device=sem.device)
    return torch.zeros_like(eye).scatter_(1, sem.masked_fill(eye, -torch.inf).topk(k, dim=1).indices, True)


def correlation(surf: Tensor, sem: Tensor, allow: Tensor) -> float:
    """Of the two similarities over the candidates; 0 where one of them is constant."""
    a, b = ((s - s.masked_fill(~allow, 0).sum() / allow.sum()).masked_fill(~allow, 0) for s in (surf, sem))
    return float(((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).nan_to_num())


def _share(logits: Tensor, allow: Tensor | None) -> Tensor:
    """Softmax by row over the candidates; 0 where there are none."""
    if allow is not None:
        logits = logits.masked_fill(~allow, -torch.inf)
    return logits.softmax(1).nan_to_num()
