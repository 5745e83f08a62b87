"""How far a two-dimensional map may be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORK = 200_000_000
"""Pairs of a query and a sample that are compared at most: all 1,000 queries up to 200,000 samples."""

BLOCK = 25_000_000
"""Such pairs at a time (100 MB for each space)."""


def map_quality(
    X: NDArray[np.floating], xy: NDArray[np.floating], *, k: int = 10, queries: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Trustworthiness, continuity and neighbour preservation of a map, on a sample of query points.

    With r(i, j) the rank of j among i's neighbours in feature space and U the k neighbours on the map,
    trustworthiness is 1 - 2 / (n k (2n - 3k - 1)) Σ_i Σ_{j in U} max(0, r(i, j) - k) (Venna, Kaski 2001): 1 = no
    false neighbour on the map. Continuity exchanges the two spaces: 1 = no neighbour torn away. Preservation is the
    share of the k neighbours in feature space that are also among the k on the map.

    Args:
        X: (N, D) features; compared by cosine.
        xy: (N, 2) map.
        k: size of the neighbourhoods; must be below N / 2.
        queries: how many points to judge; all of them if N is smaller, fewer above ``WORK`` pairs.
        seed: which points.

    Returns:
        ``trustworthiness``, ``continuity``, ``preservation``, each 0 to 1.

    Raises:
        ValueError: k is not below N / 2.
    """
    n = len(X)
    if not 1 <= k < n / 2:
        raise ValueError(f"k must lie between 1 and N/2 = {n / 2}, got {k}")
    unit = np.asarray(X, np.float32) / (np.linalg.norm(X, axis=1, keepdims=True) + 1e-10)
    xy = np.asarray(xy, np.float32)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[: min(queries, max(WORK // n, 1))])
    intruding = torn = shared = 0.0
    step = int(np.clip(BLOCK // n, 1, 250))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        far_high = -(unit[some] @ unit.T)
        far_low = (xy[some, :1] - xy[:, 0]) ** 2 + (xy[some, 1:] - xy[:, 1]) ** 2
        near_high, near_low = _nearest(far_high, some, k), _nearest(far_low, some, k)
        intruding += np.maximum(_ranks(far_high, near_low) - k, 0).sum()
        rank_low = _ranks(far_low, near_high)
        torn += np.maximum(rank_low - k, 0).sum()
        shared += (rank_low <= k).sum()
    worst = len(rows) * k * (2 * n - 3 * k - 1) / 2
    return {
        "trustworthiness": float(1 - intruding / worst),
        "continuity": float(1 - torn / worst),
        "preservation": float(shared / (len(rows) * k)),
    }


def _nearest(distance: NDArray[np.float32], own: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k nearest samples of each query, of equally far ones the first; itself is moved to the far end."""
    distance[np.arange(len(own)), own] = np.inf
    last = np.partition(distance, k - 1, axis=1)[:, k - 1]
    found = np.empty((len(own), k), np.int64)
    for row, (far, most) in enumerate(zip(distance, last, strict=True)):
        among = np.flatnonzero(far <= most)
        found[row] = among[np.argsort(far[among], kind="stable")[:k]]
    return found


def _ranks(distance: NDArray[np.float32], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of some samples (Q, k) as neighbours of each query (nearest = 1; of equally far ones the first)."""
    ranks, order = np.empty_like(columns), np.arange(distance.shape[1])
    for c, place in enumerate(columns.T):
        far = distance[np.arange(len(place)), place][:, None]
        before = np.count_nonzero(distance < far, axis=1)
        ranks[:, c] = 1 + before + np.count_nonzero((distance == far) & (order < place[:, None]), axis=1)
    return ranks
