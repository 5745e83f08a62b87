"""How much simple readers get out of features: neighbours, a linear head, and one straight cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..base.linear import linear_probe
from ..base.neighbors import nearest_in
from .detection import auroc

Features = NDArray[np.floating]
Labels = NDArray[np.int64]


def knn_accuracy(bank: Features, labels: Labels, queries: Features, true: Labels, k: int = 30) -> float:
    """Share of queries whose k nearest neighbours by cosine, each voting with its similarity, name the right class.

    Source: after Wu, Xiong, Yu, Lin, CVPR 2018, arXiv 1805.01978 (there with exp(similarity / 0.07) as the vote).

    Args:
        bank: (M, D) features to search, any scale.
        labels: (M,) the classes that they vote for.
        queries: (N, D) features.
        true: (N,) their classes.
        k: votes; cut to M.

    Raises:
        InputError: an empty bank, different widths, or NaN.
    """
    near = nearest_in(bank, queries, k)
    votes = np.zeros((len(queries), int(max(labels.max(initial=0), true.max(initial=0))) + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[near.indices]), near.similarity)
    return float((votes.argmax(axis=1) == true).mean())


def linear_accuracy(W: Features, b: Features, queries: Features, true: Labels) -> float:
    """Share of queries that a linear head gets right.

    Source: Alain, Bengio 2016, arXiv 1610.01644.

    Args:
        W, b: (C, D) and (C,), trained on other samples.
        queries: (N, D) features.
        true: (N,) their classes.
    """
    return float(((queries @ W.T + b).argmax(axis=1) == true).mean())


def linear_separability(X: Features, positive: NDArray[np.bool_], seed: int = 0) -> float | None:
    """AUROC of the best line between two kinds of sample: a linear probe that is taught them, scored out of fold.

    Source: Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528 (of foreign pictures, in
    contrastive features).

    Args:
        X: (N, D) finite features, any scale.
        positive: (N,) the one kind.
        seed: of the folds.

    Returns:
        0.5 to 1 but for chance, or None where one kind is missing.
    """
    if not 0 < positive.sum() < len(positive):
        return None
    return auroc(linear_probe(X, positive.astype(np.int64), 2, seed=seed).pred_probs[:, 1], positive)
