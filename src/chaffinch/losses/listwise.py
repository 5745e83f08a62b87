"""List-wise training with grades of relevance (SyCL)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, cosine_rows, unit, wide

REGROUP = frozenset({5, 10, 20})
"""Epochs (from 0) before which the super-classes are found anew."""
BLOCK = 64
"""Most anchors in one Gaussian of ``ws2``: singular values of 16 matrices of 64 cost 1/100 of those of one of 1024."""


class Listwise(ContrastiveLoss):
    r"""The similarities of an anchor to all others fall in steps: own picture, own class, near class, the rest.

    Every other view a in the batch has a grade for anchor i: 3 for a view of the same picture, 2 for the same label,
    1 for the same super-class, 0 for any other. Scores and grades become distributions over the candidates,

    .. math:: P_i = \mathrm{softmax}(z_i^\top z_a/\tau)_{a \ne i},\qquad Q_i = \mathrm{softmax}(s\, g_{ia})_{a \ne i}

    and the loss is a distance between them. ``kl``: :math:`\mathrm{KL}(Q_i \| P_i)`; ``row_l2``:
    :math:`\|P_i - Q_i\|^2`; ``ws2``, the authors' form, takes the rows of P and those of Q for samples of two
    Gaussians:

    .. math:: \|\mu_P - \mu_Q\|^2 + \|A\|_F^2 + \|C\|_F^2 - 2\,\|A C^\top\|_*
        \qquad A = \frac{P - \mu_P}{\sqrt{m-1}},\; C = \frac{Q - \mu_Q}{\sqrt{m-1}}

    for m anchors, the squared 2-Wasserstein distance of the Gaussians (there is no distance between ranks or
    candidates in it). It compares the clouds of rows, not row with row: a target given to the wrong anchor costs
    nothing, hence ``kl`` is the default here. ``ws2`` is computed on blocks of at most 64 anchors in the order of the
    batch, so with more views than that it depends on the order; the loss of a sample is its distance to the cloud's
    best rotation onto P, which says little about its own label.

    What differs from the paper: pictures, labels and super-classes in place of generated texts; the grades are scaled,
    without which the many candidates of grade 0 would hold most of the target; cosines and a temperature in place of
    plain products. Super-classes are about sqrt(C) groups of classes whose mean features are near, found before
    epochs 5, 10 and 20 by average linkage; until then no pair has grade 1.

    Source: Esfandiarpoor, Zerveas, Zhang, Mgonzo, Eickhoff, Bach, Findings of EMNLP 2025, arXiv 2503.23239.

    Args:
        temperature: tau > 0, in units of the cosine.
        mode: ``kl``, ``row_l2`` or ``ws2``.
        grade_scale: s > 0, log-ratio of the target between neighbouring grades; s * tau is the step of the cosine
            from grade to grade, so it must not be much above 0.5.
    """

    card = MethodCard(
        slug="listwise",
        name="List-wise (SyCL)",
        paper="Beyond Contrastive Learning: Synthetic Data Enables List-wise Training with Multiple Levels of "
        "Relevance (Esfandiarpoor, Zerveas, Zhang, Mgonzo, Eickhoff, Bach; Findings of EMNLP 2025)",
        arxiv="2503.23239",
        year=2025,
        formula=r"\ell_i = d(P_i, Q_i),\qquad P_i = \mathrm{softmax}_{a\neq i}(z_i^\top z_a/\tau),\qquad"
        r"Q_i = \mathrm{softmax}_{a\neq i}(s\,g_{ia}),\qquad g_{ia}\in\{3,2,1,0\}",
        summary="Attraction in grades: most to the other view of the same picture, then to pictures of the same label, "
        "then to those of near classes; the rest repels. Labels are used: a wrong one gives its picture the "
        "grades of the wrong class, and only the second view of the picture itself still counts for more.",
        fails_when="Most labels are wrong: the near classes are found from the given labels too. The mode ws2 cannot "
        "tell which picture a target belongs to.",
    )
    needs = frozenset({"z", "y"})
    super_class: Tensor

    def __init__(self, temperature: float = 0.1, mode: str = "kl", grade_scale: float = 3.0) -> None:
        super().__init__()
        if mode not in DISTANCES:
            raise InputError(f"mode must be one of {', '.join(DISTANCES)}, got {mode!r}")
        self.temperature, self.mode = check_temperature(temperature), mode
        self.grade_scale = check_temperature(grade_scale, "grade_scale")

    def setup(self, sizes: Sizes) -> None:
        """Every class is a super-class of its own until some are found to be near."""
        self.register_buffer("super_class", torch.arange(sizes.classes))

    def wants_epoch(self, epoch: int) -> bool:
        """Before a few early epochs."""
        return epoch in REGROUP

    def on_epoch(self, features: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> None:
        """Group the classes whose mean features of length 1 are near; a class without samples stays alone."""
        features, there = unit(features), torch.unique(y)
        centres = torch.stack([features[y == c].mean(0) for c in there])
        self.super_class[there] = there[average_linkage(centres, math.ceil(math.sqrt(len(there))))]

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections with labels."""
        assert batch.y is not None
        b, v, _ = batch.z.shape
        at_least(b, 2, "samples", self.card.slug)
        z, y = cosine_rows(batch.z), batch.y.repeat(v)  # (M, D), (M,), M = V*B
        nested = torch.stack([torch.arange(b, device=z.device).repeat(v), y, self.super_class[y]])
        grade = (nested[:, :, None] == nested[:, None]).sum(0).to(z.dtype)  # (M, M)
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_p = (z @ z.T / self.temperature).masked_fill(eye, -torch.inf).log_softmax(1)
        log_q = (self.grade_scale * grade).masked_fill(eye, -torch.inf).log_softmax(1)
        loss = DISTANCES[self.mode](log_p, log_q)  # (M,)
        per_sample = loss.detach().view(v, b).mean(0)
        p, q = log_p.detach().exp(), log_q.exp()
        names = ("other", "super_class", "label", "picture")
        parts = {name: float((p * (grade == g)).sum(1).mean()) for g, name in enumerate(names)}
        return LossOut(loss.mean(), per_sample, {**parts, "target_other": float((q * (grade == 0)).sum(1).mean())})


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(Q || P) of each row (M,); a candidate at -inf in both does not count."""
    none = log_q.isneginf()
    return (log_q.exp() * (log_q - log_p).masked_fill(none, 0.0)).sum(1)


def row_l2(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Squared distance of P and Q of each row (M,)."""
    return (log_p.exp() - log_q.exp()).square().sum(1)


def ws2(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Share of each row (M,) in the squared 2-Wasserstein distance of the Gaussians fitted to blocks of rows.

    With A C^T = U S V^T and the rotation R = U V^T, the nuclear norm is tr(R^T A C^T), hence
    |A|^2 + |C|^2 - 2 |A C^T|_* = |A - R C|^2, a sum over rows. R makes that least, so the gradient is the one with R
    held fixed: singular values are never differentiated, whose vectors have no finite derivative where two of them
    meet or vanish (one of A C^T always does).
    """
    shares = []
    for p, q in zip(*(log.exp().tensor_split(math.ceil(len(log) / BLOCK)) for log in (log_p, log_q)), strict=True):
        m = len(p)
        scale = max(m - 1, 1) ** -0.5
        a, c = (p - p.mean(0)) * scale, (q - q.mean(0)) * scale
        u, _, vh = torch.linalg.svd(a.detach() @ c.T)
        shares.append((p.mean(0) - q.mean(0)).square().sum() + m * (a - u @ (vh @ c)).square().sum(1))
    return torch.cat(shares)


DISTANCES = {"kl": kl, "row_l2": row_l2, "ws2": ws2}


def average_linkage(points: Tensor, groups: int) -> Tensor:
    """Merge the two groups of least mean distance until so many are left; (k, F) points -> (k,) a member's position."""
    k = len(points)
    distance = torch.cdist(wide(points), wide(points), compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    group, size = torch.arange(k, device=points.device), torch.ones(k, device=points.device)
    for _ in range(k - groups):
        a, b = divmod(int(distance.argmin()), k)
        distance[a] = distance[:, a] = (size[a] * distance[a] + size[b] * distance[b]) / (size[a] + size[b])
        distance[b] = distance[:, b] = torch.inf
        size[a] += size[b]
        group[group == b] = a
    return group
