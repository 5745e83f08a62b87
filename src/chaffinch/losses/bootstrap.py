"""Bootstrapping: the target is partly what the network itself says."""

from __future__ import annotations

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut
from .ce import log_probs, mean_of_views

BETA = {False: 0.95, True: 0.8}
"""The paper's weight of the given label, soft and hard."""


class Bootstrap(ContrastiveLoss):
    r"""Cross-entropy against a mix of the given label and the network's own prediction.

    With :math:`p = \operatorname{softmax}(z)`, soft and hard,

    .. math:: \ell = -\sum_c \big(\beta e_y + (1-\beta)\,p\big)_c \log p_c, \qquad
        \ell = -\beta \log p_y - (1-\beta) \log \max_c p_c

    In the soft loss the gradient flows through the p of the target too:
    :math:`\beta(p - e_y) - (1-\beta)\, p \odot (\log p + H)`, H the entropy of p. Held constant, that p would cancel
    and leave cross-entropy with a smaller step. With several views, the loss is the mean over them.

    Source: Reed, Lee, Anguelov, Szegedy, Erhan, Rabinovich, ICLR workshop 2015, arXiv 1412.6596.

    Args:
        hard: the network's part of the target is its most likely class, not its probabilities.
        beta: weight of the given label, above 0 to 1 (cross-entropy); 0 takes the paper's, 0.95 soft and 0.8 hard.
    """

    card = MethodCard(
        slug="bootstrap",
        name="Bootstrapping",
        paper="Training Deep Neural Networks on Noisy Labels with Bootstrapping "
        "(Reed, Lee, Anguelov, Szegedy, Erhan, Rabinovich; ICLR workshop 2015)",
        arxiv="1412.6596",
        year=2015,
        formula=r"\ell = -\sum_c \big(\beta e_y + (1-\beta)\,p\big)_c \log p_c\ \text{(soft)},\qquad"
        r" \ell = -\beta \log p_y - (1-\beta)\log \max_c p_c\ \text{(hard)}",
        summary="A classifier learns the given labels and, to a small part, what it predicts itself; a mislabelled "
        "picture is pulled a little less towards its wrong label.",
        fails_when="The training is long: wrong labels are still learnt by heart, as with cross-entropy. With a small "
        "beta the network confirms its own errors.",
    )
    needs = frozenset({"logits", "y"})
    views = 1

    def __init__(self, hard: bool = False, beta: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise InputError(f"beta must be from 0 to 1, got {beta}; 0 takes the paper's")
        self.hard = bool(hard)
        self.beta = float(beta) or BETA[self.hard]

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, C) logits and (B,) labels."""
        log_p, log_own = log_probs(batch)
        self_taught = log_p.max(-1).values if self.hard else (log_p.exp() * log_p).sum(-1)
        return mean_of_views(-self.beta * log_own - (1 - self.beta) * self_taught, log_own)
