"""Two-dimensional maps: PCA at once, UMAP on the shared neighbours."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.neighbors import Neighbors, unit_rows
from .base.threads import cores

_ONE_FIT = threading.Lock()  # two numba fits at once can abort the process
SMALLEST = 50  # below this UMAP's start fails; PCA is used


def pca(X: NDArray[np.floating]) -> NDArray[np.float32]:
    """The first two principal components of unit features, (N, 2), each sign fixed so that the map never flips.

    Raises:
        InputError: NaN features.
    """
    unit = unit_rows(X).astype(np.float64)
    unit -= unit.mean(axis=0)
    _, vectors = np.linalg.eigh(unit.T @ unit)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    xy = unit @ axes
    if xy.shape[1] < 2:
        xy = np.column_stack([xy, np.zeros(len(xy))])
    return _fitted(xy)


def umap(
    X: NDArray[np.floating],
    neighbors: Neighbors,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    epochs: int = 200,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """UMAP (McInnes, Healy, Melville 2018, arXiv 1802.03426) of cosine neighbours, (N, 2), about [-10, 10].

    The same seed gives the same bits. Fewer than 50 samples are drawn by PCA.

    Args:
        X: (N, D) features, for the start.
        neighbors: at least ``n_neighbors - 1`` neighbours (UMAP counts the sample itself).
        n_neighbors, min_dist, epochs: as in UMAP.
        seed: of the layout.
        progress: called with the share done, 0 to 1.

    Raises:
        InputError: too few neighbours.
    """
    if len(X) < SMALLEST:
        return pca(X)
    near = neighbors.first(n_neighbors - 1, "the map")
    own = np.arange(len(X))[:, None]
    indices = np.hstack([own, near.indices]).astype(np.int32)
    distances = np.hstack([np.zeros_like(own), 1 - near.similarity]).clip(min=0).astype(np.float32)

    with warnings.catch_warnings(), _ONE_FIT:
        warnings.simplefilter("ignore")  # TensorFlow is not wanted; precomputed_knn is known to forbid transform
        import numba
        import umap as library

        numba.set_num_threads(min(cores(), numba.get_num_threads()))
        model = library.UMAP(
            n_neighbors=n_neighbors,
            min_dist=min_dist,
            metric="cosine",
            init="pca",
            n_epochs=epochs,
            precomputed_knn=(indices, distances),
            random_state=seed,
            n_jobs=1,
            verbose=False,  # it would print on standard output
            tqdm_kwds={
                "file": _Meter(progress),
                "bar_format": "{n}/{total}",
                "disable": progress is None,
                "mininterval": 0,  # every epoch is told, in this thread: by default a layout of less than 0.1 s
                "miniters": 1,  # tells nothing between 0 and 1, and a slow first epoch holds back the rest
            },
        )
        xy = model.fit_transform(unit_rows(X))
    if not np.isfinite(xy).all():
        raise InputError("UMAP gave no finite map for these features; use the PCA map")
    return _fitted(xy)


def _fitted(xy: NDArray[Any]) -> NDArray[np.float32]:
    """Centred, with the largest extent scaled to 20, so that maps of any origin look alike."""
    xy = xy - (xy.max(axis=0) + xy.min(axis=0)) / 2
    extent = float(np.ptp(xy, axis=0).max())
    return np.asarray(xy * (20 / extent if extent else 1), np.float32)


class _Meter(io.StringIO):
    """Reads "epochs done/total" off the library's progress bar."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        super().__init__()
        self.progress = progress

    def write(self, text: str) -> int:
        found = re.search(r"(\d+)/(\d+)", text)
        if found and self.progress and int(found[2]):
            self.progress(int(found[1]) / int(found[2]))
        return len(text)
