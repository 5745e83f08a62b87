"""RRL's label cleaning: soft labels, refreshed by those of the neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.neighbors import Neighbors, nearest
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, probabilities

FEWEST = 10
"""Neighbours that a sample of the smallest class still listens to."""

BLOCK = 8192
"""Samples whose neighbours are weighted at a time."""


class RobustRepresentation(Detector):
    r"""A label that neither the classifier nor the neighbours' soft labels support is suspicious.

    .. math:: q_i = \tfrac12 \Big( p_i + \sum_{j \in N_k(i)} w_{ij} q_j \Big), \quad
        w_{ij} = \frac{e^{\cos(i,j)/\tau}}{\sum_{l \in N_k(i)} e^{\cos(i,l)/\tau}}, \qquad s_i = 1 - q_{i,y_i}

    Soft labels q start from p. Wherever :math:`q_{i,y_i} > \eta_{low}` the given label is kept and q becomes
    one-hot before anyone listens to it; all other labels are flagged. All samples change at once, from what q was
    before. The score is taken before q becomes one-hot, so that kept labels are ranked too.

    The paper repeats this in every epoch with p and the features of a network that learns in between; here both stay,
    so one round says nearly all. A sample listens to at most half as many neighbours as its given class
    has samples (but to 10), because 200 neighbours would outvote every small class.

    Source: Li, Xiong, Hoi, Learning from Noisy Data with Robust Representation Learning, ICCV 2021.

    Args:
        k: number of neighbours.
        tau: temperature of the cosine.
        rounds: how often soft labels are refreshed.
        eta_low: a given label is kept above this. The paper sets it for each dataset, 0.02 to 0.4, and the smaller
            the more classes there are; None takes 2/C, at most 0.4.
        eta_high: a label that was not kept is replaced where q is above this for another, else open; only counted.
    """

    card = MethodCard(
        slug="rrl",
        name="Neighbours' soft labels (RRL)",
        paper="Learning from Noisy Data with Robust Representation Learning (Li, Xiong, Hoi; ICCV 2021)",
        year=2021,
        formula=r"s_i = 1 - q_{i,y_i},\quad q_i = \tfrac12\Big(p_i + \sum_{j\in N_k(i)} w_{ij} q_j\Big),\quad "
        r"w_{ij}\propto e^{\cos(i,j)/\tau}",
        summary="Averages what the classifier says about a picture with the soft labels of its neighbours. A label "
        "with little support is flagged, and another suggested.",
        fails_when="Classifier and neighbours err together, as with noise that follows the look of pictures; foreign "
        "pictures that resemble the class they were filed under.",
        finds={"mislabelled", "ood"},
    )
    uses_features = False

    def __init__(
        self,
        k: int = 200,
        tau: float = 0.3,
        rounds: int = 1,
        eta_low: float | None = None,
        eta_high: float = 0.9,
    ) -> None:
        self.k = k
        self.tau = tau
        self.rounds = rounds
        self.eta_low = eta_low
        self.eta_high = eta_high

    def fit(
        self, X: Any, y: Labels, *, neighbors: Neighbors | None = None, pred_probs: Array | None = None
    ) -> RobustRepresentation:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without the evidence.
            y: (N,) given labels.
            neighbors: cosine neighbours; where there are fewer than wanted, all of them are used.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: a parameter is out of range.
        """
        if self.k < 1 or self.rounds < 1:
            raise InputError(f"rrl: k and rounds must be at least 1, got k {self.k}, rounds {self.rounds}")
        if not self.tau > 0:
            raise InputError(f"rrl: tau must be positive, got {self.tau}; the paper's is 0.3")
        p = probabilities(X, y, pred_probs)
        eta_low = min(0.4, 2 / p.shape[1]) if self.eta_low is None else self.eta_low
        if not (0 <= eta_low < 1 and 0 <= self.eta_high < 1):
            raise InputError(
                f"rrl: eta_low and eta_high must be at least 0 and below 1, got {eta_low} and {self.eta_high}"
            )
        asked = np.minimum(self.k, np.maximum(FEWEST, np.bincount(y) // 2))[y]  # (N,) neighbours each listens to
        near = nearest(X, int(asked.max())) if neighbors is None else neighbors
        near = near.first(min(int(asked.max()), near.k), "rrl")
        asked = np.minimum(asked, near.k)

        q = p.copy()
        settle(q, y, eta_low)
        for _ in range(self.rounds):
            q = (p + listen(q, near, asked, self.tau)) / 2
            own, self.suggestions_, sure = q[np.arange(len(y)), y], q.argmax(axis=1), q.max(axis=1)
            kept = settle(q, y, eta_low)
        self.scores_ = 1.0 - own
        self.flags_ = ~kept
        replaced = int(np.sum(~kept & (sure > self.eta_high)))
        self.info_ = {
            "threshold": 1 - eta_low,
            "kept": int(kept.sum()),
            "replaced": replaced,
            "open": int(len(y) - kept.sum() - replaced),
        }
        if (asked < self.k).any():
            self.info_["note"] = (
                f"{np.mean(asked < self.k):.0%} of the samples listened to fewer than {self.k} neighbours, the fewest "
                f"to {asked.min()}: at most half the size of their class, and as many as there are"
            )
        return self


def listen(q: Array, near: Neighbors, asked: NDArray[np.integer], tau: float) -> Array:
    """Mean soft label (N, C) of each sample's neighbours, weighted by exp(cosine / tau).

    Args:
        q: (N, C) soft labels.
        near: neighbours.
        asked: (N,) how many of them, nearest first, each sample listens to.
        tau: temperature.
    """
    from scipy.sparse import csr_array

    mean = np.empty_like(q)
    for start in range(0, len(q), BLOCK):
        rows = slice(start, start + BLOCK)
        cosine = near.similarity[rows].astype(np.float64)
        weights = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / tau)
        weights[np.arange(near.k) >= asked[rows, None]] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        ends = np.arange(len(weights) + 1) * near.k
        mean[rows] = csr_array((weights.ravel(), near.indices[rows].ravel(), ends), (len(weights), len(q))) @ q
    return mean


def settle(q: Array, y: Labels, eta_low: float) -> Flags:
    """Which given labels are kept (N,); their rows of q become one-hot, in place."""
    kept = q[np.arange(len(y)), y] > eta_low
    q[kept] = 0
    q[kept, y[kept]] = 1
    return np.asarray(kept)
