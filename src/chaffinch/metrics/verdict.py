"""How right a verdict is, and whether its probabilities can be taken at their word, where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import KIND_CODES

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def three_way(proba: Array, kind: NDArray[np.int8]) -> dict[str, Any]:
    """F1 of clean, mislabelled and OOD when each sample is called what is most probable, ties the first of them.

    Source: of the macro-F1 as the mean of the classes' F1, Opitz, Burst 2019, arXiv 1911.03347.

    Args:
        proba: (N, 3) P(clean), P(mislabelled), P(OOD).
        kind: (N,) the truth, codes of `chaffinch.data`.

    Returns:
        ``f1`` by kind, None where the truth holds none of it, and ``macro_f1``, the mean over the kinds that it holds
        (None without samples). What is wrongly called an absent kind still counts: the kind it is of loses recall.
    """
    called = proba.argmax(axis=1)
    f1: dict[str, float | None] = {}
    for name, code in KIND_CODES.items():
        said, true = called == code, kind == code
        f1[name] = float(2 * (said & true).sum() / (said.sum() + true.sum())) if true.any() else None
    present = [value for value in f1.values() if value is not None]
    return {"macro_f1": float(np.mean(present)) if present else None, "f1": f1}


def claims(proba: Array, kind: NDArray[np.int8], find: str | None = None) -> tuple[Array, Flags]:
    """What a verdict claims of each sample, and whether that is so: the arguments of the functions below.

    Args:
        proba: (N, 3) P(clean), P(mislabelled), P(OOD).
        kind: (N,) the truth, codes of `chaffinch.data`.
        find: one kind against the rest: its probability, and whether the sample is of it. None: the probability of
            the most probable kind, and whether it is that.
    """
    if find is None:
        return proba.max(axis=1), proba.argmax(axis=1) == kind
    return proba[:, KIND_CODES[find]], kind == KIND_CODES[find]


def reliability(probability: Array, hit: Flags, bins: int = 10) -> tuple[Array, Array, NDArray[np.int64]]:
    """Claimed probability against the share that came true, in equally wide bins.

    A bin holds what lies from its lower edge to below its upper one, the last bin also 1. Empty bins are left out.

    Args:
        probability: (N,) 0 to 1.
        hit: (N,) whether it came true.
        bins: how many.

    Returns:
        mean probability, share of hits and number of samples of each bin that holds any, from the lowest up.
    """
    place = np.searchsorted(np.arange(1, bins) / bins, probability, side="right")
    count = np.bincount(place, minlength=bins)
    held = count > 0
    said, came = (np.bincount(place, np.asarray(what, float), bins)[held] / count[held] for what in (probability, hit))
    return said, came, count[held]


def calibration_error(probability: Array, hit: Flags, bins: int = 10) -> float | None:
    """Expected calibration error: mean distance of claimed and true share of the bins, weighted by their samples.

    Args:
        probability: (N,) 0 to 1.
        hit: (N,) whether it came true.
        bins: how many equally wide ones, as in `reliability`.

    Returns:
        0 (take it at its word) to 1, or None without samples.
    """
    if len(hit) == 0:
        return None
    said, came, count = reliability(probability, hit, bins)
    return float(np.abs(said - came) @ count / len(hit))
