"""How often which class gets which label: a transition matrix from labels of neighbours alone (HOC).

A sample and its two nearest neighbours mostly share one true class, and their labels go wrong independently. How
often each label, each pair and each triple of labels occurs then tells how labels go wrong, without a clean one:

    c1_i   = sum_k p_k T_ki
    c2_ij  = sum_k p_k T_ki T_kj
    c3_ijl = sum_k p_k T_ki T_kj T_kl

T and p minimise the sum of the three Frobenius norms of counted less modelled shares.

Source: Zhu, Song, Liu, Clusterability as an Alternative to Anchor Points When Learning with Noisy Labels, ICML 2021,
arXiv 2102.05291.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .threads import blas_threads

Floats = NDArray[np.float64]

TRIPLES_UP_TO = 100
"""Classes up to which triples are used: a step costs C^4, 400 steps at C = 100 about 8 seconds."""

Statistics = tuple[Floats, Floats, Floats | None]
"""c1 (C,), c2 (C, C) and c3 (C, C, C), the latter two symmetric; c3 is None above `TRIPLES_UP_TO`."""


def transition(
    labels_of_triples: ArrayLike, n_classes: int, *, steps: int = 400, learning_rate: float = 0.1
) -> tuple[Floats, Floats]:
    """Transition matrix and clean class shares from the labels of samples and their two nearest neighbours.

    All samples are counted once, which is what averages over random draws of samples tend to; nothing is drawn. The
    order of a triple means nothing to the model, so counts are averaged over it. With more than `TRIPLES_UP_TO`
    classes only single labels and pairs are used; they alone do not settle T, the start near the identity decides.

    Args:
        labels_of_triples: (N, 3) given labels of sample, nearest and second nearest neighbour.
        n_classes: C.
        steps: of Adam, from T = row-softmax(5 I - 1) and equal p.
        learning_rate: of the first step; falls to zero along a cosine.

    Returns:
        T (C, C), rows true classes, columns given labels, rows sum to 1; p (C,) shares of the true classes.

    Raises:
        InputError: labels are not (N, 3) whole numbers from 0 to C-1.
    """
    labels = np.asarray(labels_of_triples)
    if labels.ndim != 2 or labels.shape[1] != 3 or not len(labels) or labels.dtype.kind not in "iu":
        raise InputError(f"labels of triples must be (N, 3) whole numbers, got {labels.shape} {labels.dtype}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise InputError(
            f"labels of triples must be 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}; raise n_classes"
        )
    with blas_threads(1):
        return _minimise(statistics(labels, n_classes), steps, learning_rate)


def posterior_of_label(T: Floats, p: Floats) -> Floats:
    """P(true class is i | given label is i), shape (C,); 1 for a label that never occurs."""
    given = p @ T
    return np.divide(T.diagonal() * p, given, out=np.ones_like(given), where=given > 0)


def statistics(labels: NDArray[np.integer], n_classes: int) -> Statistics:
    """Shares of single labels, pairs and triples, averaged over the order within pairs and triples."""
    own, first, second = labels.T.astype(np.int64)
    n, c = len(labels), n_classes
    c1 = np.bincount(own, minlength=c) / n
    pairs = np.bincount(own * c + first, minlength=c**2).reshape(c, c) / n
    if c > TRIPLES_UP_TO:
        return c1, (pairs + pairs.T) / 2, None
    triples = np.bincount((own * c + first) * c + second, minlength=c**3).reshape(c, c, c)
    c3 = sum(triples.transpose(order) for order in permutations(range(3))) / (6 * n)
    return c1, (pairs + pairs.T) / 2, np.asarray(c3)


def _minimise(counted: Statistics, steps: int, learning_rate: float) -> tuple[Floats, Floats]:
    """Adam; the best of all steps counts."""
    c = len(counted[0])
    at = np.concatenate([5 * np.eye(c) - 1, np.zeros((1, c))])  # logits of T, and of p in the last row
    mean, square = np.zeros_like(at), np.zeros_like(at)
    lowest, best = np.inf, at
    for step in range(1, steps + 1):
        value, gradient = _objective(at, counted)
        if value < lowest:
            lowest, best = value, at
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        rate = learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
        at = at - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    both = _softmax(best)
    return both[:-1], both[-1]


def _objective(logits: Floats, counted: Statistics) -> tuple[float, Floats]:
    """Sum of the norms, and its gradient in the logits (C+1, C)."""
    c1, c2, c3 = counted
    both = _softmax(logits)
    T, p = both[:-1], both[-1]
    joint = p[:, None] * T
    value, slope = 0.0, np.zeros_like(both)

    def add(residual: Floats, order: int, folded: Floats) -> None:
        """Account for one norm; ``folded`` (C, C) is its residual summed against T over all indices but one."""
        nonlocal value
        norm = float(np.linalg.norm(residual))
        value += norm
        if norm > 0:
            slope[:-1] += order / norm * p[:, None] * folded
            slope[-1] += (folded * T).sum(axis=1) / norm

    residual = joint.sum(axis=0) - c1
    add(residual, 1, np.broadcast_to(residual, T.shape))
    residual = joint.T @ T - c2
    add(residual, 2, T @ residual)
    if c3 is not None:
        first, second = np.triu_indices(len(T))
        weight = np.where(first == second, 1, np.sqrt(2))  # the other half is the same
        squares = T[:, first] * T[:, second] * weight
        residual = joint.T @ squares - c3[:, first, second] * weight
        add(residual, 3, squares @ residual.T)
    return value, both * (slope - (slope * both).sum(axis=1, keepdims=True))


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
