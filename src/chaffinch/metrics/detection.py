"""How well scores and flags find the noise, where the truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data import CLEAN, MISLABELLED, OOD

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auroc(scores: Array, positive: Flags) -> float | None:
    """Area under the ROC curve: P(a positive scores above a negative), ties count one half.

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
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # the last of each tied group
    hits, seen = hits[last], np.flatnonzero(last) + 1
    gained = np.diff(hits, prepend=0) / p
    return float(np.sum(gained * hits / seen))


def ranking(scores: Array, kind: NDArray[np.int8]) -> dict[str, float | None]:
    """AUROC and average precision per kind of noise.

    ``ood``: OOD against the rest; ``mislabelled``: against clean, OOD left out; ``any``: noise against clean;
    ``ood_vs_mislabelled``: can it tell the two kinds of noise apart.
    """
    ood, wrong, noisy = kind == OOD, kind == MISLABELLED, kind != CLEAN
    inside = ~ood
    return {
        "auroc_ood": auroc(scores, ood),
        "auroc_mislabelled": auroc(scores[inside], wrong[inside]),
        "auroc_any": auroc(scores, noisy),
        "auroc_ood_vs_mislabelled": auroc(scores[noisy], ood[noisy]),
        "ap_ood": average_precision(scores, ood),
        "ap_mislabelled": average_precision(scores[inside], wrong[inside]),
        "ap_any": average_precision(scores, noisy),
    }


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
