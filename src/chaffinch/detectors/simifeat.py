"""SimiFeat: neighbours vote, and labels alone tell how many of each class to flag."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.hoc import TRIPLES_UP_TO, posterior_of_label, transition
from ..base.neighbors import Neighbors, nearest
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels

RULES = ("rank", "vote")


class SimiFeat(Detector):
    r"""Near neighbours vote for their labels; how often neighbours' labels differ says how many labels are wrong.

    .. math:: v_{i,c} = \sum_{j \in N_k(i),\,y_j = c} (1 - d_{ij}), \qquad
        s_i = -\log\big(v_{i,y_i} / \|v_i\|_2 + 10^{-8}\big)

    d is one minus the cosine. The sample itself votes too, at distance :math:`2 d_1 - d_2` of its two nearest
    neighbours: as near as a copy of its own kind would be, not nearer. Of each class, the share
    :math:`1 - P(Y = c \mid y = c)` with the largest scores is flagged; `chaffinch.base.hoc` estimates it from the
    labels of neighbours alone.

    The paper encodes each picture 21 times, cropped and mirrored anew, and takes the majority of the decisions; from
    given features there is one pass. Its code moves the share of each class by a random ±.05; here nothing is
    drawn. Votes at negative cosine count nothing. Samples that tie at the cut are not flagged, so that a label all
    voters agree with stays, whatever the share.

    Source: Zhu, Dong, Liu, ICML 2022, arXiv 2110.06283.

    Args:
        rule: ``rank`` flags the estimated share of each class; ``vote`` every label that its neighbours outvote.
        k: number of voters, the sample itself included.
        least: the smallest share of a class that ``rank`` flags. The paper's .05 flags up to one in twenty labels even
            where all are right; 0 believes the estimate, which is close to zero on clean data.
        most: the largest share of a class that ``rank`` flags.
    """

    card = MethodCard(
        slug="simifeat",
        name="SimiFeat",
        paper="Detecting Corrupted Labels Without Training a Model to Predict (Zhu, Dong, Liu; ICML 2022)",
        arxiv="2110.06283",
        year=2022,
        formula=r"s_i = -\log\frac{v_{i,y_i}}{\|v_i\|_2},\quad v_{i,c} = \sum_{j\in N_k(i),\,y_j=c}(1-d_{ij})",
        summary="Neighbours vote for their labels, near ones with more weight; how often labels of neighbours differ "
        "tells how many labels of each class are wrong.",
        fails_when="Neighbours are wrong in the same way, or classes overlap so that neighbours often belong to "
        "different ones: the estimate then takes borders for noise. It flags 5 % of clean data, with overlap more.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, rule: str = "rank", k: int = 10, least: float = 0.05, most: float = 0.95) -> None:
        self.rule = rule
        self.k = k
        self.least = least
        self.most = most

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> SimiFeat:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``neighbors``.
            y: (N,) given labels.
            neighbors: cosine neighbours, at least k - 1 of them and two.

        Raises:
            InputError: an unknown rule, shares out of order, k below 2, or too few neighbours.
        """
        if self.rule not in RULES:
            raise InputError(f"simifeat: rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if not 0 <= self.least <= self.most <= 1:
            raise InputError(f"simifeat: 0 <= least <= most <= 1 must hold, got least {self.least}, most {self.most}")
        if self.k < 2:
            raise InputError(f"simifeat: k must be at least 2, the sample and one neighbour, got {self.k}")
        wanted = max(self.k - 1, 2)
        near = (nearest(X, wanted) if neighbors is None else neighbors).first(wanted, "simifeat")
        n_classes = int(y.max()) + 1
        v = votes(1.0 - near.similarity.astype(np.float64), y[near.indices], y, self.k, n_classes)
        norm = np.linalg.norm(v, axis=1)
        own = v[np.arange(len(y)), y]
        self.scores_ = -np.log(np.divide(own, norm, out=np.zeros_like(own), where=norm > 0) + 1e-8)
        self.suggestions_ = np.where(norm > 0, v.argmax(axis=1), y)
        T, p = transition(np.column_stack([y, y[near.indices[:, :2]]]), n_classes)
        wrong = 1.0 - posterior_of_label(T, p)
        shares = np.clip(wrong, self.least, self.most)
        self.flags_ = top_of_each_class(self.scores_, y, shares) if self.rule == "rank" else self.suggestions_ != y
        self.info_ = {
            "k": self.k,
            "transition": T.tolist(),
            "clean_shares": p.tolist(),
            "wrong_shares": wrong.tolist(),
            "estimated_noise": float(1 - p @ T.diagonal()),
        }
        notes = []
        if n_classes > TRIPLES_UP_TO:
            notes.append(f"with more than {TRIPLES_UP_TO} classes the shares are estimated from pairs only, and rough")
        low = wrong < self.least
        expected = np.sum(wrong * np.bincount(y, minlength=n_classes), where=low)
        flagged = int(self.flags_[low[y]].sum())
        if self.rule == "rank" and flagged > 2 * expected + 1:
            notes.append(
                f"{flagged:,} labels of {low.sum()} classes are flagged though only about {expected:,.0f} seem wrong, "
                f"because up to {self.least:.0%} of a class are in any case; least=0 flags as many as seem wrong"
            )
        if notes:
            self.info_["note"] = "; ".join(notes)
        return self


def votes(distance: Array, theirs: Labels, y: Labels, k: int, n_classes: int) -> Array:
    """Weighted votes (N, C) of the sample itself and its k - 1 nearest neighbours.

    Args:
        distance: (N, K) one minus the cosine, nearest first; K at least k - 1 and 2.
        theirs: (N, K) labels of the neighbours.
        y: (N,) own labels.
        k: number of voters.
        n_classes: C.
    """
    itself = 2 * distance[:, 0] - distance[:, 1]
    weights = np.maximum(1.0 - np.column_stack([itself, distance[:, : k - 1]]), 0.0)
    ballots = np.arange(len(y))[:, None] * n_classes + np.column_stack([y, theirs[:, : k - 1]])
    counted = np.bincount(ballots.ravel(), weights.ravel(), minlength=len(y) * n_classes)
    return np.asarray(counted.reshape(-1, n_classes))


def top_of_each_class(scores: Array, y: Labels, shares: Array) -> Flags:
    """Flags (N,) for the given share (C,) of each class with the largest scores, rounded down; ties at the cut stay."""
    sizes = np.bincount(y, minlength=len(shares))
    top = np.floor(shares * sizes + 1e-9).astype(np.int64)
    ordered = scores[np.lexsort((-scores, y))]
    part = top < sizes  # of the others all samples are flagged, or there are none
    cuts = np.full(len(shares), -np.inf)
    cuts[part] = ordered[(np.cumsum(sizes) - sizes + top)[part]]
    return np.asarray(scores > cuts[y])
