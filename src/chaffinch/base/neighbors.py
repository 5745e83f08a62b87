"""Nearest neighbours by cosine, computed once and shared by detectors, the map and the metrics."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .threads import cores

if sys.platform == "darwin":  # two OpenMP runtimes in one process abort there
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")

LARGE = 100_000
"""From so many samples on each is compared with those of near-by cells only, if that finds nearly all neighbours."""

RECALL = 0.97
"""Share of the ten nearest that near-by cells must hold."""

JUDGES = 2000
"""Samples searched exactly: half of them choose how many cells are near by, the others tell what that finds."""

BLOCK = 2048
"""Queries that are searched at a time."""

ROUNDING = 1e-6
"""Cosines in single precision that differ by less than this do not differ."""

KERNELS = {"SkylakeX": {"SkylakeX", "Cooperlake", "SapphireRapids"}, "Zen": {"Zen"}, "Haswell": {"Haswell"}}
"""Kernels that the library's OpenBLAS has -> what numpy's calls the processors that can run them."""

Single = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbors:
    """The k nearest other samples of each sample, nearest first.

    Attributes:
        indices: (N, k) int64 positions.
        similarity: (N, k) float32 cosine similarity.
        recall: share of the ten nearest that the search finds; 1 = it was exact.
    """

    indices: NDArray[np.int64]
    similarity: NDArray[np.float32]
    recall: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "recall", float(self.recall))  # from a store it comes as an array

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
        return Neighbors(self.indices[:, :k], self.similarity[:, :k], self.recall)


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


@cache
def load_faiss() -> Any:
    """The search library, told which matrix products this processor can do.

    Its wheel brings an OpenBLAS of its own, so old that it takes new processors for a Pentium 4: exact search of
    50,000 x 512 was measured 5 times slower for it. numpy's OpenBLAS knows better, so its choice is passed on. And
    the library leaves fewer than some thousand queries to a loop that was measured 4 times slower than a product.
    """
    from threadpoolctl import threadpool_info

    kernels = {pool.get("architecture") for pool in threadpool_info() if pool["internal_api"] == "openblas"}
    best = next((theirs for theirs, ours in KERNELS.items() if kernels & ours), None)
    if best and "OPENBLAS_CORETYPE" not in os.environ:
        os.environ["OPENBLAS_CORETYPE"] = best
        try:
            import faiss
        finally:
            del os.environ["OPENBLAS_CORETYPE"]
    else:
        import faiss
    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss


def nearest(X: NDArray[np.floating], k: int) -> Neighbors:
    """Cosine neighbours of each row among the other rows.

    The sample itself is left out by position, not by dropping the first column: among duplicates any of
    them may come first.

    Exact below ``LARGE`` rows. From there on an inverted file: rows are sorted into 4 sqrt(N) cells (spherical k-means,
    fixed seed), and each is compared with those of the cells nearest to it: of so many cells as hold ``RECALL`` of the
    ten nearest neighbours of some rows searched exactly. Where that would save little, the search is exact again.

    Args:
        X: (N, D) features, any scale.
        k: neighbours per sample; cut to N - 1.

    Raises:
        InputError: fewer than two samples, or NaN.
    """
    faiss = load_faiss()
    unit = unit_rows(X)
    n = len(unit)
    if n < 2:
        raise InputError(f"neighbours need at least two samples, got {n}")
    k = min(k, n - 1)
    found = _in_cells(faiss, unit, k) if n >= LARGE else None
    similarity, indices, recall = found or (*_exact(faiss, unit, unit, k + 1), 1.0)
    own = indices == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # among many duplicates self may be missing: drop the farthest
    keep = ~own
    return Neighbors(indices[keep].reshape(n, k), similarity[keep].reshape(n, k), recall)


def _each(faiss: Any, work: Callable[[int], None], tasks: Iterable[int]) -> None:
    """Do all tasks, as many at a time as there are cores.

    The library's own threads wait for each other at every block; on a busy machine that was measured 10 times slower.
    """
    faiss.omp_set_num_threads(1)
    workers = 1 if sys.platform == "darwin" else cores()
    with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, tasks))


def _exact(faiss: Any, stored: Single, asked: Single, k: int) -> tuple[Single, Rows]:
    similarity, indices = np.empty((len(asked), k), np.float32), np.empty((len(asked), k), np.int64)

    def search(start: int) -> None:
        rows = slice(start, start + BLOCK)
        found = faiss.knn(asked[rows], stored, k, metric=faiss.METRIC_INNER_PRODUCT)
        similarity[rows], indices[rows] = found

    _each(faiss, search, range(0, len(asked), BLOCK))
    return similarity, indices


def _in_cells(faiss: Any, unit: Single, k: int) -> tuple[Single, Rows, float] | None:
    """Similarity and positions (N, k + 1), the row itself among them, and the recall; None = not worth it.

    Of 300,000 x 128 at a recall of .97, asked cell by cell as here, it takes about 50 s of one core; in any order 75 s,
    a graph (HNSW, 16 links) 84 s, which gives other neighbours with every number of threads.
    """
    n, rng = len(unit), np.random.default_rng(0)
    faiss.omp_set_num_threads(1)  # so that the means do not depend on the number of cores
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(unit.shape[1]), unit.shape[1], int(4 * np.sqrt(n)), faiss.METRIC_INNER_PRODUCT
    )
    means = index.cp
    means.niter, means.seed, means.spherical = 5, 0, True
    means.max_points_per_centroid, means.min_points_per_centroid = 50, 1
    index.train(unit)
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    cell = _exact(faiss, centroids, unit, 1)[1][:, 0]

    judges = rng.choice(n, min(n, JUDGES), replace=False)
    truth = _exact(faiss, unit, unit[judges], min(k, 10) + 1)[1]
    order = _exact(faiss, centroids, unit[judges], index.nlist)[1]
    place = np.empty_like(order)  # how near, as a rank, is cell j to judge i?
    np.put_along_axis(place, order, np.arange(index.nlist)[None, :], axis=1)
    farther = np.take_along_axis(place, cell[truth], axis=1).astype(np.float64)
    farther[truth == judges[:, None]] = np.nan  # the sample itself
    wanted = int(np.nanquantile(farther[::2], RECALL)) + 1
    if wanted > index.nlist // 3:
        return None
    told = farther[1::2]
    recall = float((told < wanted).sum() / np.isfinite(told).sum())

    index.add_core(n, faiss.swig_ptr(unit), None, faiss.swig_ptr(cell))
    similarity, indices = np.empty((n, k + 1), np.float32), np.full((n, k + 1), -1, np.int64)
    left = np.argsort(cell, kind="stable")  # those of one cell look into the same cells, which then are in the cache
    while len(left):  # at the first turn all; then those whose cells hold fewer than k + 1
        index.nprobe = wanted

        def search(start: int, asked: Rows = left) -> None:
            rows = asked[start : start + BLOCK]
            similarity[rows], indices[rows] = index.search(unit[rows], k + 1)

        _each(faiss, search, range(0, len(left), BLOCK))
        left = left[indices[left, -1] < 0]
        wanted = min(2 * wanted, index.nlist)
    return similarity, indices, recall


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
    faiss = load_faiss()
    stored, asked = unit_rows(bank), unit_rows(queries)
    if not len(stored):
        raise InputError("neighbours need at least one sample to search among")
    if stored.shape[1] != asked.shape[1]:
        raise InputError(f"features of two sets must be equally wide, got {stored.shape[1]} and {asked.shape[1]}")
    similarity, indices = _exact(faiss, stored, asked, min(k, len(stored)))
    return Neighbors(indices, similarity)


def near_duplicates(neighbors: Neighbors, threshold: float = 0.13) -> Rows:
    """Pairs of samples that lie far closer together than neighbours usually do.

    Two samples are near duplicates if their cosine distance is below ``threshold`` times the median distance to the
    nearest neighbour (the rule of cleanlab's Datalab). Copies of which there are more than k are not all paired, but
    each of them is in some pair.

    Args:
        neighbors: cosine neighbours.
        threshold: share of the median.

    Returns:
        (M, 2) positions, i < j in each pair, sorted.

    Raises:
        InputError: a negative threshold.
    """
    if not threshold >= 0:
        raise InputError(f"near duplicates: threshold must be a share from 0, got {threshold}")
    distance = 1.0 - neighbors.similarity.astype(np.float64)
    n = len(distance)
    row, column = np.nonzero(distance < max(threshold * float(np.median(distance[:, 0])), ROUNDING))
    other = neighbors.indices[row, column]
    keys = np.unique(np.minimum(row, other) * n + np.maximum(row, other))
    return np.column_stack(np.divmod(keys, n))
