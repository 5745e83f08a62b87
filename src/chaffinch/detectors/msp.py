"""Maximum softmax probability: how sure is the classifier of anything at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, cut, probabilities


class MaxSoftmax(Detector):
    r"""The probability that the most likely class leaves to all others.

    .. math:: s_i = 1 - \max_c p_{ic} = \sum_{c \ne c_i^*} p_{ic}, \qquad c_i^* = \arg\max_c p_{ic}

    The given label plays no part beyond training the classifier, so wrong labels are not its business. Adding up the
    others keeps the order of very sure samples, whose largest probability rounds to 1. The paper cuts where 95 % of
    clean data pass; without clean data a budget takes that place.

    Source: Hendrycks, Gimpel, ICLR 2017, arXiv 1610.02136.

    Args:
        budget: share of samples that its own rule flags.
    """

    card = MethodCard(
        slug="msp",
        name="Softmax confidence (MSP)",
        paper="A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks "
        "(Hendrycks, Gimpel; ICLR 2017)",
        arxiv="1610.02136",
        year=2017,
        formula=r"s_i = 1 - \max_c p_{ic}",
        summary="A picture that the classifier is sure of under no label may show none of the classes. The simplest "
        "of all tests for foreign pictures.",
        fails_when="Foreign pictures of one kind were all filed under the same label (to the classifier they are that "
        "class), or the classifier has memorised its labels. Clean pictures between two classes look suspicious too.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, budget: float = 0.1) -> None:
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> MaxSoftmax:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``pred_probs``.
            y: (N,) given labels; they only train the probe.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: all samples are alike, or the budget is out of range.
        """
        p = probabilities(X, y, pred_probs)
        others = np.ones(p.shape, bool)
        others[np.arange(len(p)), p.argmax(axis=1)] = False
        self.scores_ = p.sum(axis=1, where=others)
        self.flags_ = most_suspicious(self.scores_, self.budget, "msp")
        self.info_ = {"budget": self.budget}
        return self


def most_suspicious(scores: Array, budget: float, asked_by: str) -> Flags:
    """Flags (N,) of the share ``budget`` with the largest scores, for methods that name no threshold of their own.

    Raises:
        InputError: all scores are equal, or the budget is out of range.
    """
    if scores.min() == scores.max():
        raise InputError(f"{asked_by}: all {len(scores)} samples have the same score, so there is nothing to rank")
    return cut(scores, np.zeros(len(scores), bool), budget=budget)
