"""Noise models: ways to make labels wrong and pictures foreign, with their truth.

Rates are exact: a rate of 0.15 on 12,000 samples changes 1,800 of them (rounded to the nearest whole number).
Every function takes a Generator, so the same seed gives the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError

Labels = NDArray[np.int64]


def transition_flips(labels: Labels, transition: NDArray[np.float64], rate: float, rng: np.random.Generator) -> Labels:
    """Flip a share ``rate`` of the labels; a flipped label of class i becomes j with probability T_ij.

    Args:
        labels: (N,) true labels.
        transition: (C, C), rows sum to 1, zero diagonal: where a wrong label goes.
        rate: share of all labels to flip, 0 to 1; the flipped samples are drawn uniformly.
        rng: source of randomness.

    Returns:
        (N,) noisy labels; exactly ``round(rate * N)`` differ.
    """
    check_rate(rate, "rate")
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: round(rate * len(labels))]
    cumulative = np.cumsum(transition, axis=1)
    draws = rng.random(len(chosen)) * cumulative[labels[chosen], -1]
    noisy[chosen] = (draws[:, None] >= cumulative[labels[chosen]]).sum(axis=1)
    return noisy


def symmetric(labels: Labels, rate: float, n_classes: int, rng: np.random.Generator) -> Labels:
    """Symmetric noise: a wrong label is uniform over the other classes. Arguments as `transition_flips`."""
    _check_classes(n_classes)
    off_diagonal = (1 - np.eye(n_classes)) / (n_classes - 1)
    return transition_flips(labels, off_diagonal, rate, rng)


def asymmetric(
    labels: Labels,
    rate: float,
    n_classes: int,
    rng: np.random.Generator,
    becomes: Sequence[int] | None = None,
) -> Labels:
    """Asymmetric noise: a wrong label of class i is always ``becomes[i]`` (default: the next class)."""
    target = (np.arange(n_classes) + 1) % n_classes if becomes is None else np.asarray(becomes)
    if (target == np.arange(n_classes)).any():
        raise InputError("asymmetric noise: a class cannot become itself")
    return transition_flips(labels, np.eye(n_classes)[target], rate, rng)


def instance_dependent(
    X: NDArray[Any],
    labels: Labels,
    rate: float,
    n_classes: int,
    rng: np.random.Generator,
    spread: float = 0.1,
) -> Labels:
    """Instance-dependent noise: what a sample looks like decides what its label becomes.

    Flip probabilities are drawn per sample, whatever it looks like, from a normal distribution around ``rate``
    (sd ``spread``, cut to [0, 1]); the wrong label follows ``softmax(x W_y)`` over the other classes, with a random
    projection ``W_y`` per true class (Xia et al., Part-dependent Label Noise, NeurIPS 2020, arXiv 2006.07836,
    appendix).
    Which samples flip is drawn without replacement in proportion to those probabilities, so that the rate is exact.

    Args:
        X: (N, D) features or flattened pictures; standardised here.
        labels: (N,) true labels.
        rate: share of all labels to flip.
        n_classes: number of classes.
        rng: source of randomness.
        spread: standard deviation of the flip probabilities.
    """
    check_rate(rate, "rate")
    _check_classes(n_classes)
    X = np.asarray(X, np.float64).reshape(len(X), -1)
    X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9)
    flip = np.clip(rng.normal(rate, spread, len(X)), 1e-6, 1.0)
    # Gumbel keys: the largest n of log(weight) + Gumbel noise is a weighted draw without replacement
    keys = np.log(flip) + rng.gumbel(size=len(X))
    chosen = np.argsort(-keys, kind="stable")[: round(rate * len(labels))]
    projections = rng.standard_normal((n_classes, X.shape[1], n_classes)) / np.sqrt(X.shape[1])
    noisy = labels.copy()
    for c in range(n_classes):
        rows = chosen[labels[chosen] == c]
        logits = X[rows] @ projections[c] * 3.0
        logits[:, c] = -np.inf
        noisy[rows] = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    return noisy


def ood_replacement(n: int, rate: float, pool: int, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """OOD replacement: which of ``n`` places receive a foreign picture, and which one.

    Args:
        n: size of the dataset.
        rate: share of places to replace.
        pool: number of foreign pictures to draw from, each used at most once.
        rng: source of randomness.

    Returns:
        places (M,) and picks (M,), positions in the dataset and in the pool, M = round(rate * n).

    Raises:
        InputError: the pool is too small.
    """
    check_rate(rate, "rate")
    wanted = round(rate * n)
    if wanted > pool:
        raise InputError(
            f"{wanted} out-of-distribution pictures are wanted, the pool has {pool}; lower n, noise or ood"
        )
    return rng.permutation(n)[:wanted], rng.permutation(pool)[:wanted]


def _check_classes(n_classes: int) -> None:
    if n_classes < 2:
        raise InputError(f"wrong labels need at least two classes, there is {n_classes}")


def check_rate(rate: float, name: str) -> None:
    """Raise InputError unless ``rate`` lies in [0, 1]."""
    if not 0 <= rate <= 1:
        raise InputError(f"{name} must lie between 0 and 1, got {rate}")
