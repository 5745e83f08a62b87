"""Symmetric cross-entropy: labels judge predictions, and predictions judge labels."""

from __future__ import annotations

import math

import torch

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, check_weights
from .ce import log_probs, mean_of_views


class SymmetricCrossEntropy(ContrastiveLoss):
    r"""Cross-entropy plus the same with label and prediction in exchanged roles.

    With :math:`p = \operatorname{softmax}(z)` and the one-hot label :math:`e_y`, whose log 0 is set to A,

    .. math:: \ell = -\alpha \log p_y - \beta \sum_c p_c \log e_{y,c} = -\alpha \log p_y + \beta |A| (1 - p_y),
        \qquad \frac{\partial \ell}{\partial z} = (\alpha + \beta |A| p_y)(p - e_y)

    The second term is bounded and weighs a picture by how much its label is believed. With several views, the loss
    is the mean over them. Its size acts as a learning rate for optimisers that follow the gradient's length.

    Source: Wang, Ma, Chen, Luo, Yi, Bailey, ICCV 2019, arXiv 1908.06112.

    Args:
        alpha: weight of cross-entropy, 0 or more; it makes a start possible and learns wrong labels by heart.
        beta: weight of the reverse, 0 or more.
        A: what stands for log 0, below 0; log 1e-4 in the authors' program.
    """

    card = MethodCard(
        slug="sce",
        name="Symmetric cross-entropy",
        paper="Symmetric Cross Entropy for Robust Learning with Noisy Labels "
        "(Wang, Ma, Chen, Luo, Yi, Bailey; ICCV 2019)",
        arxiv="1908.06112",
        year=2019,
        formula=r"\ell = -\alpha \log p_y + \beta\,|A|\,(1 - p_y)",
        summary="A classifier learns the given labels by cross-entropy, plus a bounded term in which a picture counts "
        "less, the less its label is believed. Mislabelled pictures pull less than under cross-entropy alone.",
        fails_when="The training is long: the share of plain cross-entropy still learns wrong labels by heart, only "
        "later. The weights need tuning; many classes need more cross-entropy.",
    )
    needs = frozenset({"logits", "y"})
    views = 1

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, A: float = math.log(1e-4)) -> None:
        super().__init__()
        check_weights(alpha=alpha, beta=beta)
        if alpha == beta == 0:
            raise InputError("alpha and beta are both 0: nothing would be learnt; set one of them above 0")
        if not -float("inf") < A < 0:
            raise InputError(f"A must be below 0 and finite, got {A}")
        self.alpha, self.beta, self.A = float(alpha), float(beta), float(A)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, C) logits and (B,) labels."""
        _, log_own = log_probs(batch)
        reverse = self.A * torch.expm1(log_own)  # |A| (1 - p_y)
        return mean_of_views(self.beta * reverse - self.alpha * log_own, log_own)
