"""Nearest neighbours by cosine, computed once and shared by detectors, the map and the metrics."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .threads import cores

if sys.platform == "darwin":  # two OpenMP runtimes in one process abort there
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")


@dataclass(frozen=True)
class Neighbors:
    """The k nearest other samples of each sample, nearest first.

    Attributes:
        indices: (N, k) int64 positions.
        similarity: (N, k) float32 cosine similarity.
    """

    indices: NDArray[np.int64]
    similarity: NDArray[np.float32]

    @property
    def k(self) -> int:
        """How many neighbours each sample has."""
        return int(self.indices.shape[1])

    @property
    def distance(self) -> NDArray[np.float64]:
        """(N, k) Euclidean distance of the unit vectors: d² = 2 - 2 cos, never below 0."""
        return np.sqrt(np.maximum(2.0 - 2.0 * self.similarity.astype(np.float64), 0.0))

    def first(self, k: int, asked_by: str) -> Neighbors:
        """The first k columns.

        Raises:
            InputError: there are fewer; the message names who asked.
        """
        if not 1 <= k <= self.k:
            raise InputError(
                f"{asked_by} needs {k} neighbours of each sample, there are {self.k} "
                f"(the dataset has {len(self.indices)} samples); lower k, or give it more samples"
            )
        return Neighbors(self.indices[:, :k], self.similarity[:, :k])


def unit_rows(X: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1, float32 and contiguous; a zero row stays zero.

    Raises:
        InputError: NaN or infinity, by row.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    if X.ndim != 2:
        raise InputError(f"features must be (N, D), got {X.shape}")
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise InputError(f"features: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / (norms + np.float32(1e-10)), np.float32)


def nearest(X: NDArray[np.floating], k: int) -> Neighbors:
    """Exact cosine neighbours of each row among the other rows.

    The sample itself is left out by position, not by dropping the first column: among duplicates any of
    them may come first.

    Args:
        X: (N, D) features, any scale.
        k: neighbours per sample; cut to N - 1.

    Raises:
        InputError: fewer than two samples, or NaN.
    """
    import faiss

    unit = unit_rows(X)
    n = len(unit)
    if n < 2:
        raise InputError(f"neighbours need at least two samples, got {n}")
    k = min(k, n - 1)
    faiss.omp_set_num_threads(1 if sys.platform == "darwin" else cores())
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    similarity, indices = index.search(unit, k + 1)
    own = indices == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # among many duplicates self may be missing: drop the farthest
    keep = ~own
    return Neighbors(indices[keep].reshape(n, k), similarity[keep].reshape(n, k))


def nearest_in(bank: NDArray[np.floating], queries: NDArray[np.floating], k: int) -> Neighbors:
    """Exact cosine neighbours of each query among the rows of another set.

    Nothing is left out: a query that is itself in the bank finds itself.

    Args:
        bank: (M, D) features to search, any scale.
        queries: (N, D) features, any scale.
        k: neighbours per query; cut to M.

    Returns:
        N rows; the positions are rows of the bank.

    Raises:
        InputError: an empty bank, different widths, or NaN.
    """
    import faiss

    stored, asked = unit_rows(bank), unit_rows(queries)
    if not len(stored):
        raise InputError("neighbours need at least one sample to search among")
    if stored.shape[1] != asked.shape[1]:
        raise InputError(f"features of two sets must be equally wide, got {stored.shape[1]} and {asked.shape[1]}")
    faiss.omp_set_num_threads(1 if sys.platform == "darwin" else cores())
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)
    similarity, indices = index.search(asked, min(k, len(stored)))
    return Neighbors(indices, similarity)
