"""Generalised cross-entropy: between cross-entropy and the mean absolute error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes
from .ce import log_probs, mean_of_views


class GeneralisedCrossEntropy(ContrastiveLoss):
    r"""Cross-entropy in which a picture counts less, the less its label is believed.

    With the probability :math:`p_y` of the given label,

    .. math:: \ell = \frac{1 - p_y^q}{q}, \qquad \frac{\partial \ell}{\partial z} = p_y^q\,(p - e_y)

    which is cross-entropy for q → 0 and half the absolute error :math:`\sum_c |e_y - p|_c` for q = 1. Truncated, a
    picture with :math:`p_y \le k` has the constant loss :math:`(1 - k^q)/q` and no pull of its own. With several
    views, the loss is the mean over them.

    Differs from the paper: which pictures are cut is decided anew at every visit, by what the network says of the
    very view it is trained on, and not now and then for all of them by a stored network. An untrained network gives
    no label a probability above k, so that nothing could start: pictures are cut only after ``start`` epochs,
    counted by pictures seen (`forward` in training mode).

    Source: Zhang, Sabuncu, NeurIPS 2018, arXiv 1805.07836.

    Args:
        q: above 0 to 1; how much less an unlikely label counts.
        k: pictures whose label is no more likely than this are cut, 0 to below 1; 0 cuts none, the paper's is 0.5.
        start: epochs before any picture is cut, 0 or more.
    """

    card = MethodCard(
        slug="gce",
        name="Generalised cross-entropy",
        paper="Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels "
        "(Zhang, Sabuncu; NeurIPS 2018)",
        arxiv="1805.07836",
        year=2018,
        formula=r"\ell = \frac{1 - p_y^{\,q}}{q},\qquad \frac{\partial \ell}{\partial z} = p_y^{\,q}\,(p - e_y)",
        summary="A classifier learns the given labels, but a picture whose label it does not believe hardly pulls. "
        "Mislabelled pictures therefore tend to stay with those of their true class.",
        fails_when="There are many classes or the network starts slowly: at first no label is believed, and some "
        "classes may never be learnt. Hard but correctly labelled pictures are ignored as well.",
    )
    needs = frozenset({"logits", "y"})
    views = 1

    seen: Tensor

    def __init__(self, q: float = 0.7, k: float = 0.0, start: int = 20) -> None:
        super().__init__()
        if not 0 < q <= 1:
            raise InputError(f"q must be above 0 and at most 1, got {q}")
        if not 0 <= k < 1:
            raise InputError(f"k must be from 0 to below 1, got {k}")
        if start < 0:
            raise InputError(f"start must be 0 or more, got {start}")
        self.q, self.k, self.start = float(q), float(k), int(start)
        self.samples = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def setup(self, sizes: Sizes) -> None:
        """Remember how many pictures an epoch has."""
        self.samples = sizes.samples

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, C) logits and (B,) labels."""
        _, log_own = log_probs(batch)
        loss = self.value(log_own)
        if self.k:
            cut = (log_own <= math.log(self.k)) & (self.seen >= self.start * self.samples)
            loss = torch.where(cut, self.value(log_own.new_tensor(math.log(self.k))), loss)
        if self.training:
            self.seen += len(log_own)
        return mean_of_views(loss, log_own)

    def value(self, log_own: Tensor) -> Tensor:
        """(1 - p^q) / q from log p: a power of p has an infinite slope where p is rounded to 0."""
        return -torch.expm1(self.q * log_own) / self.q
