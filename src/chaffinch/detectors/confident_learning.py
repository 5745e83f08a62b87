"""Confident learning: count confident disagreements, then prune as many."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, probabilities

RULES = ("prune-by-noise-rate", "prune-by-class", "both", "off-diagonal")
Counts = NDArray[np.int64]


class ConfidentLearning(Detector):
    r"""Class-wise thresholds make a confident joint of given and likely labels; it says how many to flag, and which.

    With :math:`t_j` = mean of :math:`p_j` over samples labelled j, a sample is confidently class j if :math:`p_j`
    is the largest among the classes with :math:`p_j \ge t_j`. :math:`C_{ij}` counts samples labelled i and
    confidently j. The score is the self-confidence :math:`s_i = 1 - p_{i,y_i}`.

    Only classes above their own threshold are candidates for the confident class (the library takes the overall
    largest probability, which may lie below its threshold).

    Source: Northcutt, Jiang, Chuang, JAIR 2021, arXiv 1911.00068.

    Args:
        rule: ``prune-by-noise-rate`` flags, for each pair i ≠ j, the C_ij samples of label i with the largest
            p_j - p_i; ``prune-by-class`` the lowest self-confidences of each class; ``both`` what both flag;
            ``off-diagonal`` the confident disagreements themselves.
    """

    card = MethodCard(
        slug="confident-learning",
        name="Confident learning",
        paper="Confident Learning: Estimating Uncertainty in Dataset Labels (Northcutt, Jiang, Chuang; JAIR 2021)",
        arxiv="1911.00068",
        year=2021,
        formula=r"s_i = 1 - p_{i,y_i},\quad C_{ij} = \big|\{x : y=i,\ j=\arg\max_{l:\,p_l\ge t_l} p_l\}\big|",
        summary="Counts how often a confident prediction contradicts the given label and flags about as many samples.",
        fails_when="Probabilities are not out-of-sample; foreign pictures get no confident class of their own and "
        "are counted as one of the known ones.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, rule: str = "prune-by-noise-rate") -> None:
        self.rule = rule

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> ConfidentLearning:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``pred_probs``.
            y: (N,) given labels.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: an unknown rule.
        """
        if self.rule not in RULES:
            raise InputError(f"confident-learning: rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        p = probabilities(X, y, pred_probs)
        thresholds, joint, off = confident_joint(p, y)
        counts = calibrate(joint, y)
        self.scores_ = 1.0 - p[np.arange(len(y)), y]
        self.suggestions_ = p.argmax(axis=1)
        self.flags_ = prune(p, y, counts, off, self.rule) & (self.suggestions_ != y)
        self.info_ = {
            "class_thresholds": [t if np.isfinite(t) else None for t in thresholds.tolist()],
            "joint": (counts / counts.sum()).tolist(),
            "estimated_noise": float(1 - np.trace(counts) / counts.sum()),
        }
        return self


def confident_joint(p: Array, y: Labels) -> tuple[Array, Counts, Flags]:
    """Thresholds (C,), raw confident joint (C, C) with a diagonal of at least 1, confident disagreements (N,)."""
    n, n_classes = p.shape
    sizes = np.bincount(y, minlength=n_classes)
    sums = np.bincount(y, weights=p[np.arange(n), y], minlength=n_classes)
    # a class nobody carries has no threshold to pass
    thresholds = np.where(sizes > 0, np.maximum(sums / np.maximum(sizes, 1), 2e-6), np.inf)
    above = p >= thresholds - 1e-6
    confident = np.where(above, p, -1.0).argmax(axis=1)
    sure = above.any(axis=1)
    joint = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(joint, (y[sure], confident[sure]), 1)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    return thresholds, joint, sure & (confident != y)


def calibrate(joint: Counts, y: Labels) -> Counts:
    """Rows scaled to the number of samples with that label, in whole numbers that keep the row sums."""
    sizes = np.bincount(y, minlength=len(joint))
    exact = joint / joint.sum(axis=1, keepdims=True) * sizes[:, None]
    counts: Counts = np.floor(exact + 1e-9).astype(np.int64)
    for row, missing in enumerate(sizes - counts.sum(axis=1)):
        largest = np.argsort(-(exact[row] - counts[row]), kind="stable")[:missing]
        counts[row, largest] += 1
    return counts


def prune(p: Array, y: Labels, counts: Counts, off_diagonal: Flags, rule: str) -> Flags:
    """Flags (N,) of one rule, before predictions that agree with the label are taken out."""
    if rule == "off-diagonal":
        return off_diagonal
    n_classes = len(counts)
    by_rate, by_class = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for i in range(n_classes):
        rows = np.flatnonzero(y == i)
        if rule != "prune-by-class":
            for j in range(n_classes):
                if j != i and counts[i, j]:
                    margin = p[rows, j] - p[rows, i]
                    by_rate[rows[np.argsort(-margin, kind="stable")[: counts[i, j]]]] = True
        if rule != "prune-by-noise-rate":
            by_class[rows[np.argsort(p[rows, i], kind="stable")[: len(rows) - counts[i, i]]]] = True
    return {"prune-by-noise-rate": by_rate, "prune-by-class": by_class, "both": by_rate & by_class}[rule]
