"""How far a two-dimensional map may be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
        queries: how many points to judge; all of them if N is smaller.
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
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:queries])
    intruding = torn = shared = 0.0
    for start in range(0, len(rows), 250):
        some = rows[start : start + 250]
        far_high = -(unit[some] @ unit.T)
        far_low = ((xy[some, None, :] - xy[None]) ** 2).sum(-1)
        rank_high, near_high = _ranks(far_high, some, k)
        rank_low, near_low = _ranks(far_low, some, k)
        intruding += np.maximum(np.take_along_axis(rank_high, near_low, 1) - k, 0).sum()
        torn += np.maximum(np.take_along_axis(rank_low, near_high, 1) - k, 0).sum()
        shared += (np.take_along_axis(rank_low, near_high, 1) <= k).sum()
    worst = len(rows) * k * (2 * n - 3 * k - 1) / 2
    return {
        "trustworthiness": float(1 - intruding / worst),
        "continuity": float(1 - torn / worst),
        "preservation": float(shared / (len(rows) * k)),
    }


def _ranks(
    distance: NDArray[np.float32], own: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank of every sample as a neighbour of each query (nearest = 1, itself last), and the k nearest."""
    distance[np.arange(len(own)), own] = np.inf
    order = distance.argsort(axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, order.shape[1] + 1)[None], axis=1)
    return ranks, order[:, :k]
