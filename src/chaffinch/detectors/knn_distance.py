"""Distance to the k-th nearest neighbour: how lonely is a sample?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.neighbors import Neighbors, nearest
from ..card import MethodCard
from .base import Detector, Labels, cut


class KnnDistance(Detector):
    r"""Euclidean distance of unit features to the k-th nearest other sample.

    .. math:: s_i = \lVert u_i - u_{(k)} \rVert_2, \qquad u_i = x_i / \lVert x_i \rVert

    Labels play no part, so label noise cannot mislead it. The paper keeps a bank of clean training features; here
    the bank is the contaminated set itself, so OOD that is as dense as a class stays hidden.

    Source: Sun, Ming, Zhu, Li, ICML 2022, arXiv 2204.06507.

    Args:
        k: which neighbour; cut to a quarter of the smallest class, so that a small clean class is not called lonely.
        budget: share of samples that its own rule flags; the method itself names no threshold without clean data.
    """

    card = MethodCard(
        slug="knn-distance",
        name="Neighbour distance",
        paper="Out-of-Distribution Detection with Deep Nearest Neighbors (Sun, Ming, Zhu, Li; ICML 2022)",
        arxiv="2204.06507",
        year=2022,
        formula=r"s_i = \lVert u_i - u_{(k)}\rVert_2",
        summary="A picture far from all others belongs nowhere. Uses no labels at all.",
        fails_when="Foreign pictures come in clumps as dense as a class (a thousand bags are not lonely), or a clean "
        "class is small and spread out.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, k: int = 10, budget: float = 0.1) -> None:
        self.k = k
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> KnnDistance:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``neighbors``.
            y: (N,) given labels; only the size of the smallest class is used.
            neighbors: cosine neighbours, at least k of them.

        Raises:
            InputError: fewer than k neighbours.
        """
        counts = np.bincount(y)
        k = max(1, min(self.k, int(counts[counts > 0].min()) // 4))
        near = (nearest(X, k) if neighbors is None else neighbors).first(k, "knn-distance")
        self.scores_ = near.distance[:, -1]
        self.flags_ = cut(self.scores_, self.scores_ > 0, budget=self.budget)
        self.info_ = {"k": k, "budget": self.budget}
        if k < self.k:
            self.info_["note"] = f"k was cut from {self.k} to {k}: a quarter of the smallest class"
        return self
