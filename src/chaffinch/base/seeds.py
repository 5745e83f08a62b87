"""Which samples to fit on where the set is contaminated: the ones that their neighbours confirm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .neighbors import Neighbors

NEIGHBOURS = 10
"""Neighbours that vote on a sample."""

SHARE = 0.3
"""Share of each class that is kept; it must not exceed the clean share of the set."""


def seeds(y: NDArray[np.int64], near: Neighbors, h: float = SHARE) -> NDArray[np.int64]:
    """Positions (n,) of the samples that are most likely to carry the right label, sorted.

    Within each given label the share ``h`` with the most of the 10 nearest neighbours under the same label is kept;
    of equal votes, the one whose 10th neighbour is nearer.

    Args:
        y: (N,) given labels.
        near: cosine neighbours, at least 10 of them (all others where N is smaller).
        h: share of each class to keep.

    Raises:
        InputError: too few neighbours, h is out of range, or no class has two samples.
    """
    near = near.first(min(NEIGHBOURS, len(y) - 1), "the choice of seeds")
    votes = (y[near.indices] == y[:, None]).sum(axis=1)
    # Rounded, because copies of one picture have equal distances but for the last bits.
    closeness = np.round(near.similarity[:, -1].astype(np.float64), 6)
    found = lowest(-(votes + (1 + closeness) / 4), y, h)
    if not len(found):
        raise InputError("no class has two samples, so there are no seeds")
    return found


def lowest(keys: NDArray[np.float64], y: NDArray[np.int64], h: float) -> NDArray[np.int64]:
    """Positions (n,) of the share ``h`` with the lowest keys within each class, sorted; at least two of a class.

    Ties at the cut all come in, so that row order decides nothing. A class of one sample gives none: nothing could
    contradict it.

    Raises:
        InputError: h is not a share.
    """
    if not 0 < h <= 1:
        raise InputError(f"h must be a share above 0 and up to 1, got {h}")
    counts = np.bincount(y)
    order = np.lexsort((keys, y))
    kept = np.maximum(np.rint(h * counts).astype(np.int64), 2)
    last = np.cumsum(counts) - counts + kept - 1  # where, in this order, the last one kept of each class stands
    cut = np.full(len(counts), -np.inf)
    enough = counts > 1
    cut[enough] = keys[order[last[enough]]]
    return np.flatnonzero(keys <= cut[y])
