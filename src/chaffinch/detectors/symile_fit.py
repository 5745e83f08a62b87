"""Does the given label fit the picture and its edges worse than another, by the scores of a Symile encoder?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError, MissingEvidence
from ..card import MethodCard
from .base import Array, Detector, Labels
from .max_logit import log_sum_exp

BY_HEART = 0.98
"""Share of given labels that fit best, above which the encoder has probably learnt the wrong ones as well."""


class SymileFit(Detector):
    r"""A given label is suspicious where the joint score of picture, edges and label is larger for other labels.

    With the joint scores :math:`J_{ic}` of sample i with label c, and :math:`\pi_c` the share of the label,

    .. math:: a_{ic} = J_{ic} + \log \pi_c, \qquad s_i = \log \sum_{c \ne y_i} e^{a_{ic}} - a_{i y_i}, \qquad
        \text{flag}_i = [\max_{c \ne y_i} a_{ic} - a_{i y_i} > \log o]

    At the optimum of Symile's loss, J is the log of :math:`p(c \mid \text{picture}, \text{edges}) / \pi_c` but for
    a constant of the sample: with the shares put back, the softmax of a is the probability of each label, s the log
    odds against the given one, and the suggestion the likeliest label. The paper compares candidates by J alone, for
    retrieval; a rare class would then fit too often. A doubtful picture is not flagged for a label that fits only a
    little better: it must be o times as likely.

    Source: the zero-shot score of Saporta, Puli, Goldstein, Ranganath, NeurIPS 2024, arXiv 2411.01053; its use on
    given labels is ours.

    Args:
        odds: o >= 1, how many times as likely another label must be. 1 flags whatever is not the likeliest.
    """

    card = MethodCard(
        slug="symile-fit",
        name="Symile fit",
        paper="Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities "
        "(Saporta, Puli, Goldstein, Ranganath; NeurIPS 2024)",
        arxiv="2411.01053",
        year=2024,
        formula=r"s_i = \log\sum_{c\neq y_i} e^{a_{ic}} - a_{iy_i},\quad a_{ic} = J_{ic} + \log\pi_c",
        summary="Picture, edges and given label should fit together. Where another label fits better, the given one "
        "is probably wrong, and the better one is suggested.",
        fails_when="The encoder was trained on these very labels, so after many epochs wrong ones fit too, learnt by "
        "heart; it cannot tell foreign pictures from wrong labels.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, odds: float = 2.0) -> None:
        self.odds = odds

    def fit(self, X: Any, y: Labels, *, joint: Array | None = None) -> SymileFit:
        """Score every sample.

        Args:
            X: not used.
            y: (N,) given labels.
            joint: (N, C) joint scores of an encoder trained with Symile, as natural logarithms.

        Raises:
            MissingEvidence: no joint scores.
            InputError: joint scores that do not fit the labels or are equal for all labels, one class, or odds
                below 1.
        """
        if joint is None:
            raise MissingEvidence(
                "symile-fit",
                "joint",
                "choose an encoder trained with Symile: chaffinch train-encoder DATASET --loss symile",
            )
        if not 1 <= self.odds < np.inf:
            raise InputError(f"symile-fit: odds must be at least 1 and finite, got {self.odds}")
        fits = np.array(_checked(joint, y), np.float64)
        n, classes = fits.shape
        share = (np.bincount(y, minlength=classes) + 0.5) / (n + classes / 2)  # half a sample more: none is 0
        fits += np.log(share)
        rows = np.arange(n)
        self.suggestions_ = fits.argmax(axis=1)
        own = fits[rows, y]
        fits[rows, y] = -np.inf
        self.scores_ = log_sum_exp(fits) - own
        self.flags_ = fits.max(axis=1) - own > np.log(self.odds)
        agreement = float((self.suggestions_ == y).mean())
        self.info_ = {"odds": float(self.odds), "shares": share.tolist(), "agreement": agreement}
        if agreement > BY_HEART:
            self.info_["note"] = (
                f"{agreement:.1%} of the given labels fit best: the encoder has probably learnt wrong ones by heart; "
                "train it for fewer epochs, or go by the scores"
            )
        return self


def _checked(given: Any, y: Labels) -> Array:
    """Joint scores that can be used.

    Raises:
        InputError: they cannot; says why.
    """
    joint: Array = np.asarray(given)
    if joint.ndim != 2 or len(joint) != len(y) or joint.shape[1] <= y.max() or joint.dtype.kind not in "fiu":
        raise InputError(
            f"symile-fit: joint must be numbers ({len(y)}, C) with C > {y.max()} as the labels need, got {joint.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(joint).all(axis=1))
    if len(bad):
        raise InputError(f"symile-fit: joint: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
    if joint.shape[1] < 2:
        raise InputError("symile-fit: there is only one class; another label cannot fit better")
    if (joint == joint[:, :1]).all():
        raise InputError("symile-fit: in joint, all labels fit every sample equally well; train the encoder longer")
    return joint
