"""Generalised entropy of the predicted probabilities (GEN)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..card import MethodCard
from .base import Array, Detector, Labels, probabilities
from .msp import most_suspicious

BLOCK = 65_536
"""Samples worked on at a time."""


class GeneralisedEntropy(Detector):
    r"""An entropy with a small exponent, so that even tiny departures from full certainty count.

    .. math:: s_i = \sum_{c \in \mathrm{top}_M(p_i)} p_{ic}^\gamma\, (1 - p_{ic})^\gamma

    With :math:`\gamma = 1` and all classes it is the Gini impurity. The paper returns -s. The :math:`1 - p` of the
    most likely class is taken as the sum of the others: rounded to 0 it would drop a term that is far from 0
    (:math:`(10^{-9})^{0.1} = 0.13`). The paper cuts where 95 % of clean data pass; here a budget takes that place.

    Source: Liu, Lochman, Zach, CVPR 2023 (no arXiv version).

    Args:
        gamma: exponent, above 0; small values look at the tail, towards 0 every sample gets the same score.
        top: M, how many of the most likely classes count; all of them where there are fewer.
        budget: share of samples that its own rule flags.
    """

    card = MethodCard(
        slug="gen",
        name="Generalised entropy (GEN)",
        paper="GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection (Liu, Lochman, Zach; CVPR 2023)",
        year=2023,
        formula=r"s_i = \sum_{c\in\mathrm{top}_M(p_i)} p_{ic}^{\gamma}\,(1-p_{ic})^{\gamma}",
        summary="How widely the classifier spreads its belief over the classes, with weight on the unlikely ones. "
        "Needs only probabilities.",
        fails_when="Foreign pictures of one kind were all filed under the same label, or the classifier has memorised "
        "its labels. With probabilities rounded to a few digits its attention to the tail is lost.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, gamma: float = 0.1, top: int = 100, budget: float = 0.1) -> None:
        self.gamma = gamma
        self.top = top
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> GeneralisedEntropy:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``pred_probs``.
            y: (N,) given labels; they only train the probe.
            pred_probs: (N, C) out-of-sample probabilities, not rounded or clipped.

        Raises:
            InputError: a parameter is out of range, or all samples are alike.
        """
        if not 0 < self.gamma < np.inf:
            raise InputError(f"gen: gamma must be above 0, got {self.gamma}; the paper's is 0.1")
        if self.top < 1:
            raise InputError(f"gen: top must be at least 1 class, got {self.top}; the paper's is 100")
        p = probabilities(X, y, pred_probs)
        top = min(self.top, p.shape[1])
        self.scores_ = np.concatenate(
            [generalised_entropy(p[a : a + BLOCK], self.gamma, top) for a in range(0, len(p), BLOCK)]
        )
        self.flags_ = most_suspicious(self.scores_, self.budget, "gen")
        self.info_ = {"budget": self.budget, "gamma": self.gamma, "top": top}
        return self


def generalised_entropy(p: Array, gamma: float, top: int) -> Array:
    """(N,) sum of (p (1-p))^gamma over the ``top`` most likely classes of each row of p (N, C)."""
    first = np.arange(len(p)), p.argmax(axis=1)
    others = np.ones(p.shape, bool)
    others[first] = False
    rest = 1.0 - p
    rest[first] = p.sum(axis=1, where=others)
    terms = p * rest
    if top < p.shape[1]:
        likely = np.argpartition(p, -top, axis=1)[:, -top:]
        terms = np.take_along_axis(terms, likely, axis=1)
    return np.asarray((terms**gamma).sum(axis=1))
