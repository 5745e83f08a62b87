"""How features use their space: figures that need no labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def alignment(one: Features, other: Features) -> float:
    """Mean squared distance of the unit features of two views of the same pictures; 0 = the views are one point.

    Source: Wang, Isola, ICML 2020, arXiv 2005.10242 (alpha = 2).

    Args:
        one, other: (N, D) features of the two views, row by row.
    """
    return float(np.square(_unit(one) - _unit(other)).sum(axis=1).mean())


def uniformity(X: Features, *, samples: int = 2_000, seed: int = 0) -> float:
    """log of the mean of exp(-2 ||x - y||^2) over pairs of unit features; lower = spread more evenly.

    0 when all are one point; about -4 + 8/D on an even sphere of many dimensions.
    Source: Wang, Isola, ICML 2020, arXiv 2005.10242 (t = 2).

    Args:
        X: (N, D) features, N >= 2.
        samples: of larger N, so many are drawn; all their pairs count.
        seed: of the draw.
    """
    X = _unit(_drawn(X, samples, seed))
    one, other = np.triu_indices(len(X), 1)
    cosines = (X @ X.T)[one, other]
    return float(np.log(np.exp(-4 * (1 - cosines)).mean()))


def effective_rank(X: Features) -> float:
    """exp of the entropy of the singular values, as shares of their sum: how many dimensions carry the features.

    Source: Roy, Vetterli, EUSIPCO 2007; as a figure of self-supervised features Garrido et al., ICML 2023,
    arXiv 2210.02885.

    Args:
        X: (N, D) features.

    Returns:
        1 (all rows on one line) to min(N, D); 0 if all are zero.
    """
    X = np.asarray(X, np.float64)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(X.T @ X), 0))
    if not values.sum():
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def isotropy(X: Features) -> float:
    """Smallest over largest partition function Z(c) = sum_i exp(c . x_i) over the principal directions c, both ways.

    The features are centred and scaled to a mean square length of 1, so that the figure does not depend on their
    scale. Source: Mu, Viswanath, ICLR 2018, arXiv 1702.01417 (there on raw word vectors).

    Args:
        X: (N, D) features.

    Returns:
        0 to 1; 1 = no direction stands out.
    """
    X = np.asarray(X, np.float64)
    X = X - X.mean(axis=0)
    X = X / max(float(np.sqrt(np.square(X).sum(axis=1).mean())), 1e-12)
    _, directions = np.linalg.eigh(X.T @ X)
    along = X @ directions
    Z = np.concatenate([np.exp(along).mean(axis=0), np.exp(-along).mean(axis=0)])
    return float(Z.min() / Z.max())


def _unit(X: Features) -> NDArray[np.float64]:
    rows = np.asarray(X, np.float64)
    unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _drawn(X: Features, samples: int, seed: int) -> Features:
    if len(X) <= samples:
        return X
    return X[np.random.default_rng(seed).permutation(len(X))[:samples]]
