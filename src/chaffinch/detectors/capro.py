"""CAPro's cleaning: classifier and class prototypes decide together to keep, relabel or drop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.neighbors import Neighbors, nearest, unit_rows
from ..base.threads import blas_threads
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, probabilities

SHARE = 0.25
"""At most this share of a class are anchors."""

BLOCK = 8192
"""Samples compared with the prototypes at a time."""

DROPPED = -1


class CaPro(Detector):
    r"""Prototypes that grow from the most trustworthy samples of each class check labels together with the classifier.

    .. math:: q_i = \alpha\,p_i + (1 - \alpha)\,\mathrm{softmax}_c\big(\cos(x_i, z_c) / \tau\big), \qquad
        s_i = 1 - q_{i,y_i}

    A label becomes :math:`\arg\max q_i` where :math:`\max q_i \ge T`; else it is kept where :math:`q_{i,y_i} \ge 1/C`;
    else the sample is dropped as foreign. Anchors are always kept. Relabelled and dropped samples are flagged.

    The paper finds its anchors by the text around a picture. Without text, anchors are the samples of each class whose
    neighbours agree most with their label, each agreement weighted by its cosine: a core that stays pure where
    the mean of all samples with that label has long drifted. It needs wrong samples to lie where another label is more
    common. Prototypes start as mean of the anchors; then, per round, the paper moves them sample by sample,
    :math:`z_c \leftarrow m z_c + (1 - m) x`, in an order that matters. Here all n samples of a round move them at once,
    with the weights that n such steps give to start and samples together: :math:`m^n` and :math:`1 - m^n`. Both,
    classifier and features, are given and not trained, so samples are cleaned from the first round on.

    Source: Qin, Chen, Shen, Fu, Gu, Li, Sun, Ji, NeurIPS 2023, arXiv 2310.09761.

    Args:
        anchors: number of anchors of a class, cut to a quarter of it.
        k: neighbours whose agreement makes an anchor.
        alpha: weight of the classifier.
        tau: temperature of the cosine to prototypes.
        threshold: T, from which on a label is replaced.
        momentum: m.
        rounds: how often prototypes are moved; 0 leaves them at the anchors.
    """

    card = MethodCard(
        slug="capro",
        name="Prototypes (CAPro)",
        paper="CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes "
        "(Qin, Chen, Shen, Fu, Gu, Li, Sun, Ji; NeurIPS 2023)",
        arxiv="2310.09761",
        year=2023,
        formula=r"s_i = 1 - q_{i,y_i},\quad "
        r"q_i = \alpha\,p_i + (1-\alpha)\,\mathrm{softmax}_c\big(\cos(x_i, z_c)/\tau\big)",
        summary="Builds each class from its most trustworthy pictures, then keeps, replaces or drops every label as "
        "classifier and class prototypes together say.",
        fails_when="A class has several looks, which one prototype cannot hold; with many classes a kept label needs "
        "little support; if most pictures of a class are wrong in a way of their own, they become its anchors.",
        finds={"mislabelled", "ood"},
    )

    def __init__(
        self,
        anchors: int = 50,
        k: int = 20,
        alpha: float = 0.5,
        tau: float = 0.1,
        threshold: float = 0.6,
        momentum: float = 0.999,
        rounds: int = 3,
    ) -> None:
        self.anchors = anchors
        self.k = k
        self.alpha = alpha
        self.tau = tau
        self.threshold = threshold
        self.momentum = momentum
        self.rounds = rounds

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None, pred_probs: Array | None = None) -> CaPro:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            neighbors: cosine neighbours; where there are fewer than k, all of them are used.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: a parameter is out of range.
        """
        self._check()
        p = probabilities(X, y, pred_probs)
        n_classes = p.shape[1]
        near = nearest(X, self.k) if neighbors is None else neighbors
        near = near.first(min(self.k, near.k), "capro")
        unit = unit_rows(X)
        sizes = np.bincount(y, minlength=n_classes)
        anchor = most_agreed(near, y, sizes, self.anchors)
        alone = (sizes > 0) & (np.bincount(y[anchor], minlength=n_classes) == 0)
        sums, counts = class_sums(unit, np.where(anchor | alone[y], y, DROPPED), n_classes)
        prototypes = unit_length(sums / np.maximum(counts, 1)[:, None])

        own, best, cleaned = self._judge(unit, p, y, prototypes, anchor)
        for _ in range(self.rounds):
            prototypes = move(prototypes, *class_sums(unit, cleaned, n_classes), self.momentum)
            own, best, cleaned = self._judge(unit, p, y, prototypes, anchor)
        self.scores_ = 1.0 - own
        self.flags_ = cleaned != y
        dropped = cleaned == DROPPED
        self.suggestions_ = np.where(dropped, best, cleaned)
        self.info_ = {
            "kept": int(np.sum(cleaned == y)),
            "relabelled": int(np.sum(self.flags_ & ~dropped)),
            "dropped": int(dropped.sum()),
            "anchors": np.bincount(y[anchor], minlength=n_classes).tolist(),
        }
        if alone.any():
            self.info_["note"] = (
                f"no sample of {alone.sum()} of the {n_classes} classes has a neighbour of the same label, so their "
                "prototypes start from all of their samples"
            )
        return self

    def _check(self) -> None:
        for name, value, least in (("anchors", self.anchors, 1), ("k", self.k, 1), ("rounds", self.rounds, 0)):
            if value < least:
                raise InputError(f"capro: {name} must be at least {least}, got {value}")
        for name in ("alpha", "threshold", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"capro: {name} must be between 0 and 1, got {getattr(self, name)}")
        if not self.tau > 0:
            raise InputError(f"capro: tau must be positive, got {self.tau}; the paper's is 0.1")

    def _judge(
        self, unit: NDArray[np.float32], p: Array, y: Labels, prototypes: Array, anchor: Flags
    ) -> tuple[Array, Labels, Labels]:
        """Support of the given label, label with most support, label after cleaning or `DROPPED`; each (N,)."""
        own, best, cleaned = np.empty(len(y)), np.empty_like(y), np.empty_like(y)
        present = np.bincount(y, minlength=p.shape[1]) > 0
        with blas_threads(1):
            for start in range(0, len(y), BLOCK):
                rows = slice(start, start + BLOCK)
                cosine = np.where(present, unit[rows].astype(np.float64) @ prototypes.T, -np.inf)
                q = support(p[rows], cosine, self.alpha, self.tau)
                own[rows] = q[np.arange(len(q)), y[rows]]
                best[rows] = q.argmax(axis=1)
                cleaned[rows] = clean(q, y[rows], self.threshold)
        cleaned[anchor] = y[anchor]
        return own, best, cleaned


def support(p: Array, cosine: Array, alpha: float, tau: float) -> Array:
    """Mean of classifier and softmax of the cosines to prototypes, (N, C); -inf is a class without prototype."""
    e = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / tau)
    return np.asarray(alpha * p + (1 - alpha) * e / e.sum(axis=1, keepdims=True))


def clean(q: Array, y: Labels, threshold: float) -> Labels:
    """Labels (N,) after cleaning: the most supported where sure, else the given one, else `DROPPED`."""
    kept = np.where(q[np.arange(len(y)), y] >= 1 / q.shape[1], y, DROPPED)
    return np.asarray(np.where(q.max(axis=1) >= threshold, q.argmax(axis=1), kept), np.int64)


def most_agreed(near: Neighbors, y: Labels, sizes: NDArray[np.integer], wanted: int) -> Flags:
    """Anchors (N,): the ``wanted`` samples of each class, or `SHARE` of it, whose neighbours agree most; ties all."""
    agreeing = np.where(y[near.indices] == y[:, None], np.maximum(near.similarity, 0), 0)
    agreement: Array = agreeing.sum(axis=1, dtype=np.float64)
    top = np.minimum(wanted, np.ceil(SHARE * sizes).astype(np.int64))
    ordered = agreement[np.lexsort((-agreement, y))]
    last = (np.cumsum(sizes) - sizes + top - 1)[y]
    return np.asarray((agreement >= ordered[last]) & (agreement > 0))


def class_sums(unit: NDArray[np.float32], labels: Labels, n_classes: int) -> tuple[Array, NDArray[np.int64]]:
    """Sum (C, D) and number (C,) of the samples of each class, dropped ones left out."""
    from scipy.sparse import csr_array

    sums = np.zeros((n_classes, unit.shape[1]))
    for start in range(0, len(unit), BLOCK):
        part = labels[start : start + BLOCK]
        rows = np.flatnonzero(part != DROPPED)
        member = csr_array((np.ones(len(rows)), (part[rows], rows)), (n_classes, len(part)))
        sums += member @ unit[start : start + BLOCK].astype(np.float64)
    return sums, np.bincount(labels[labels != DROPPED], minlength=n_classes)


def move(prototypes: Array, sums: Array, counts: NDArray[np.integer], momentum: float) -> Array:
    """Prototypes (C, D) after as many steps of the moving average as there are samples, all at once."""
    stay = momentum ** counts[:, None]
    return unit_length(stay * prototypes + (1 - stay) * sums / np.maximum(counts, 1)[:, None])


def unit_length(vectors: Array) -> Array:
    """Rows of length 1; a zero row stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
