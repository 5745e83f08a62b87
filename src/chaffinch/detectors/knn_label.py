"""Disagreement with the labels of the nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.neighbors import Neighbors, nearest
from ..card import MethodCard
from .base import Detector, Labels


class KnnLabel(Detector):
    r"""The share of a sample's k nearest neighbours that carry another label.

    .. math:: s_i = \tfrac1k \sum_{j \in N_k(i)} [y_j \ne y_i], \qquad \text{flag}_i = [s_i > t]

    Cosine neighbours, the sample itself left out. The suggestion is the neighbours' most frequent label.

    Source: the plain vote that SimiFeat refines (Zhu, Dong, Liu, ICML 2022, arXiv 2110.06283).

    Args:
        k: number of neighbours.
        threshold: share of disagreeing neighbours above which a sample is flagged.
    """

    card = MethodCard(
        slug="knn-label",
        name="Neighbour labels",
        paper="Detecting Corrupted Labels Without Training a Model to Predict (Zhu, Dong, Liu; ICML 2022)",
        arxiv="2110.06283",
        year=2022,
        formula=r"s_i = \tfrac{1}{k}\sum_{j\in N_k(i)} [y_j \neq y_i]",
        summary="Pictures that look alike should carry the same label. Needs no training and is easy to explain: the "
        "inspector shows the neighbours that voted.",
        fails_when="Noise is so heavy, or so consistent, that wrong neighbours outvote right ones; at the border of "
        "two classes; for rare classes with fewer members than k.",
        finds={"mislabelled", "ood"},
    )
    uses_features = False

    def __init__(self, k: int = 10, threshold: float = 0.5) -> None:
        self.k = k
        self.threshold = threshold

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> KnnLabel:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``neighbors``.
            y: (N,) given labels.
            neighbors: cosine neighbours, at least k of them.

        Raises:
            InputError: fewer than k neighbours, or k below 1.
        """
        if self.k < 1:
            raise InputError(f"knn-label: k must be at least 1, got {self.k}")
        near = (nearest(X, self.k) if neighbors is None else neighbors).first(self.k, "knn-label")
        theirs = y[near.indices]  # (N, k)
        self.scores_ = (theirs != y[:, None]).mean(axis=1)
        self.flags_ = self.scores_ > self.threshold
        votes = np.zeros((len(y), int(y.max()) + 1), np.int32)
        np.add.at(votes, (np.repeat(np.arange(len(y)), self.k), theirs.ravel()), 1)
        self.suggestions_ = votes.argmax(axis=1)
        self.info_ = {"threshold": self.threshold, "k": self.k}
        return self
