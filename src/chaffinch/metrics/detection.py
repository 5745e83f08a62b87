"""How well scores and flags find the noise, where the truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data import CLEAN, MISLABELLED, OOD

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auroc(scores: Array, positive: Flags) -> float | None:
    """Area under the ROC curve: P(a positive scores above a negative), ties count one half.

    Source: Fawcett, Pattern Recognition Letters 2006.

    Args:
        scores: (N,) higher = more suspicious.
        positive: (N,) what should score high.

    Returns:
        0 to 1, or None where one side is empty.
    """
    n, p = len(scores), int(positive.sum())
    if p in (0, n):
        return None
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of each tied group
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


def average_precision(scores: Array, positive: Flags) -> float | None:
    """Area under the precision-recall curve as a step sum; ties enter together.

    Returns:
        0 to 1, or None where nothing is positive.
    """
    p = int(positive.sum())
    if p == 0:
        return None
    hits, seen = _sweep(scores, positive)
    gained = np.diff(hits, prepend=0) / p
    return float(np.sum(gained * hits / seen))


SIDES = ("ood", "mislabelled", "any")
"""What scores can be asked to find: samples of no class, wrong labels, noise of either kind."""


def sides(kind: NDArray[np.int8], find: str) -> tuple[Flags, Flags]:
    """Which samples take part (N,), and which (N,) should score high.

    ``ood``: OOD against the rest; ``mislabelled``: against clean, OOD left out; ``any``: noise against clean.
    """
    everyone = np.ones(len(kind), bool)
    if find == "mislabelled":
        return kind != OOD, kind == MISLABELLED
    return everyone, kind == OOD if find == "ood" else kind != CLEAN


def ranking(scores: Array, kind: NDArray[np.int8]) -> dict[str, float | None]:
    """AUROC and average precision per kind of noise (see `sides`).

    ``auroc_ood_vs_mislabelled``: can it tell the two kinds of noise apart.
    """
    found: dict[str, dict[str, float | None]] = {"auroc": {}, "ap": {}}
    for find in SIDES:
        rows, positive = sides(kind, find)
        found["auroc"][find] = auroc(scores[rows], positive[rows])
        found["ap"][find] = average_precision(scores[rows], positive[rows])
    noisy = kind != CLEAN
    found["auroc"]["ood_vs_mislabelled"] = auroc(scores[noisy], kind[noisy] == OOD)
    return {f"{name}_{find}": value for name, values in found.items() for find, value in values.items()}


def roc_curve(scores: Array, positive: Flags) -> tuple[Array, Array] | None:
    """The ROC curve: share of negatives and of positives above each threshold, from (0, 0) to (1, 1).

    Args:
        scores: (N,) higher = more suspicious.
        positive: (N,) what should score high.

    Returns:
        false and true positive rate (M,), one point a distinct score and the origin, or None where one side is empty.
    """
    n, p = len(scores), int(positive.sum())
    if p in (0, n):
        return None
    hits, seen = _sweep(scores, positive)
    return np.insert((seen - hits) / (n - p), 0, 0.0), np.insert(hits / p, 0, 0.0)


def precision_recall_curve(scores: Array, positive: Flags) -> tuple[Array, Array] | None:
    """The precision-recall curve, one point a distinct score, from the highest down.

    Returns:
        recall and precision (M,), or None where nothing is positive.
    """
    p = int(positive.sum())
    if p == 0:
        return None
    hits, seen = _sweep(scores, positive)
    return hits / p, hits / seen


def _sweep(scores: Array, positive: Flags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positives among the samples down to each distinct score, and how many samples that are; ties enter together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # the last of each tied group
    return hits[last], np.flatnonzero(last) + 1


def thinned(x: Array, y: Array, most: int = 500) -> NDArray[np.int64]:
    """Positions of at most ``most`` points of a curve, both ends among them, evenly along its length |dx| + |dy|.

    So no point that is left out is farther from a kept one than the length of the curve over ``most`` - 1.
    """
    if len(x) <= most:
        return np.arange(len(x))
    along = np.insert(np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))), 0, 0.0)
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], most)).clip(0, len(x) - 1))


def decision(flags: Flags, kind: NDArray[np.int8]) -> dict[str, float | int | None]:
    """Flags against any noise: precision, recall, F1, balanced accuracy, the share of clean samples kept.

    A figure whose denominator is empty is None.
    """
    noisy = kind != CLEAN
    hit, flagged = int((flags & noisy).sum()), int(flags.sum())
    n_noisy, n_clean = int(noisy.sum()), int((~noisy).sum())
    precision = hit / flagged if flagged else None
    recall = hit / n_noisy if n_noisy else None
    kept = 1 - (flagged - hit) / n_clean if n_clean else None
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hit / (flagged + n_noisy) if flagged + n_noisy else None,
        "balanced_accuracy": (recall + kept) / 2 if recall is not None and kept is not None else None,
        "clean_kept": kept,
        "flagged": flagged,
    }
