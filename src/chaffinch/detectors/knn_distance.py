"""Distance to the k-th nearest neighbour: how lonely is a sample?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError, MissingEvidence
from ..base.neighbors import Neighbors, nearest, nearest_in
from ..base.seeds import NEIGHBOURS, seeds
from ..card import MethodCard
from .base import Array, Detector, Labels, cut

BANKS = ("all", "seeds")


class KnnDistance(Detector):
    r"""Euclidean distance of unit features to the k-th nearest other sample.

    .. math:: s_i = \lVert u_i - u_{(k)} \rVert_2, \qquad u_i = x_i / \lVert x_i \rVert

    Labels play no part, so label noise cannot mislead it. The paper keeps a bank of clean training features; here
    the bank is the contaminated set itself, so OOD that is as dense as a class stays hidden. A bank of seeds (in each
    class the 30 % whose 10 nearest neighbours carry the same label most often) sees it, but then labels do play a part:
    foreigners of one kind that were always filed under the same class enter the bank.

    Source: Sun, Ming, Zhu, Li, ICML 2022, arXiv 2204.06507.

    Args:
        k: which neighbour; cut to a quarter of the smallest class (of the bank), so that a small clean class is not
            called lonely.
        budget: share of samples that its own rule flags; the method itself names no threshold without clean data.
        bank: where neighbours are looked for: ``all`` samples or ``seeds``.
    """

    card = MethodCard(
        slug="knn-distance",
        name="Neighbour distance",
        paper="Out-of-Distribution Detection with Deep Nearest Neighbors (Sun, Ming, Zhu, Li; ICML 2022)",
        arxiv="2204.06507",
        year=2022,
        formula=r"s_i = \lVert u_i - u_{(k)}\rVert_2",
        summary="A picture far from all others belongs nowhere. Uses no labels (unless its bank is made of seeds).",
        fails_when="Foreign pictures come in clumps as dense as a class (a thousand bags are not lonely), or a clean "
        "class is small and spread out.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, k: int = 10, budget: float = 0.1, bank: str = "all") -> None:
        self.k = k
        self.budget = budget
        self.bank = bank

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> KnnDistance:
        """Score every sample.

        Args:
            X: (N, D) features; needed without ``neighbors``, and for a bank of seeds.
            y: (N,) given labels; only the size of the smallest class is used, unless they choose the seeds.
            neighbors: cosine neighbours, at least k of them, and 10 for a bank of seeds.

        Raises:
            InputError: fewer than k neighbours, no such bank, or no seeds for it.
        """
        if self.bank not in BANKS:
            raise InputError(f"knn-distance: bank must be one of {', '.join(BANKS)}, got {self.bank!r}")
        rows = np.arange(len(y))
        if self.bank == "seeds":
            if X is None:
                raise MissingEvidence("knn-distance", "features", "give features X (N, D), or take bank='all'")
            rows = seeds(y, nearest(X, NEIGHBOURS) if neighbors is None else neighbors)
        counts = np.bincount(y[rows])
        k = max(1, min(self.k, int(counts[counts > 0].min()) // 4))
        if self.bank == "seeds":
            self.scores_ = distance_to_bank(X, rows, k)
        else:
            near = (nearest(X, k) if neighbors is None else neighbors).first(k, "knn-distance")
            self.scores_ = near.distance[:, -1]
        self.flags_ = cut(self.scores_, self.scores_ > 0, budget=self.budget)
        self.info_ = {"k": k, "budget": self.budget, "bank": len(rows)}
        if k < self.k:
            bank = " of the bank" if self.bank == "seeds" else ""
            self.info_["note"] = f"k was cut from {self.k} to {k}: a quarter of the smallest class{bank}"
        return self


def distance_to_bank(X: NDArray[np.floating], rows: Labels, k: int) -> Array:
    """Distance (N,) of unit features to the k-th nearest of some rows, a sample itself not counted among them.

    Args:
        X: (N, D) features, any scale.
        rows: (n,) positions of the bank, more than k of them.
        k: which neighbour, from 1.
    """
    found = nearest_in(X[rows], X, k + 1)
    own = rows[found.indices] == np.arange(len(X))[:, None]
    own[~own.any(axis=1), -1] = True  # a sample outside the bank (or lost among duplicates) has one too many
    return np.asarray(found.distance[~own].reshape(len(X), k)[:, -1])
