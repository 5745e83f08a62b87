"""Follows the samples through a training: how their losses go, how hard and whereto they pull."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base.record import Record

WATCHED = 20_000
"""At most so many samples are followed; of larger datasets a random part."""

SHOWN = 3_000
"""At most so many are on the map of an unfinished training."""

TOWARDS = 100
"""With more classes than this, whereto a sample pulls is not kept."""


class Watch:
    """Follows samples through the steps of an epoch.

    Args:
        labels: (N,) given labels.
        classes: C.
        features: F.
        seed: of the choice of samples, where there are too many.
    """

    def __init__(self, labels: NDArray[np.int64], classes: int, features: int, seed: int) -> None:
        n = len(labels)
        rng = np.random.default_rng([seed, 77])
        self.rows = np.arange(n) if n <= WATCHED else np.sort(rng.choice(n, WATCHED, replace=False))
        self.labels, self.classes = labels[self.rows], classes
        self.place = np.full(n + 1, -1)  # the last stands for a sample that is not in the dataset
        self.place[self.rows] = np.arange(len(self.rows))
        self.features = np.zeros((len(self.rows), features), np.float32)
        self.gradients = np.zeros_like(self.features)
        self.losses = np.full(len(self.rows), np.nan)
        self.pulls = np.full(len(self.rows), np.nan)
        self.kept: dict[str, list[NDArray[Any]]] = {"epochs": [], "losses": [], "pulls": [], "towards": []}

    def begin(self) -> None:
        """A new epoch: nothing has been seen yet."""
        self.losses[:] = self.pulls[:] = np.nan

    def step(self, index: Tensor, per_sample: Tensor, h: Tensor, gradient: Tensor) -> None:
        """Take in one step: positions (B,), losses (B,), features and their gradients (B, V, F).

        The gradients are those of the batch's mean loss, and are kept as those of the sum over its samples. So where
        a loss compares samples, a gradient also holds what a sample does to the losses of the others.
        """
        place = self.place[index.cpu().numpy()]
        seen = place >= 0
        place, kept = place[seen], torch.from_numpy(seen).to(h.device)
        h, gradient = h[kept].float(), gradient[kept].float() * len(index)  # of the sum, not of the mean
        self.losses[place] = per_sample[kept].float().cpu().numpy()
        self.pulls[place] = (h.norm(dim=2) * gradient.norm(dim=2)).sum(1).cpu().numpy()
        self.features[place] = h[:, 0].cpu().numpy()
        self.gradients[place] = gradient[:, 0].cpu().numpy()

    def note(self, epoch: int) -> None:
        """Keep what this epoch (from 1) showed."""
        self.kept["epochs"].append(np.array(epoch, np.int64))
        self.kept["losses"].append(_half(self.losses))
        self.kept["pulls"].append(_half(self.pulls))
        self.kept["towards"].append(_half(self._towards()))

    def _towards(self) -> NDArray[np.float64]:
        if self.classes > TOWARDS:
            return np.empty((len(self.rows), 0))
        move = -self.gradients.astype(np.float64)
        move /= np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-12)
        cosines = np.zeros((len(self.rows), self.classes))
        for c in np.unique(self.labels):
            way = self.features[self.labels == c].mean(axis=0) - self.features.astype(np.float64)
            way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-12)
            cosines[:, c] = (move * way).sum(axis=1)
        return cosines

    def picture(self, before: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """A map of some samples: positions (M,) and first two principal components (M, 2) of their features.

        Args:
            before: the map an epoch ago, which this one is turned and mirrored to match; empty if there is none.
        """
        every = max(1, len(self.rows) // SHOWN)
        X = self.features[::every][:SHOWN].astype(np.float64)
        X = X - X.mean(axis=0)
        _, vectors = np.linalg.eigh(X.T @ X)
        xy = X @ vectors[:, :-3:-1]
        xy /= max(float(np.abs(xy).max()), 1e-12)
        if before.shape == xy.shape:
            u, _, v = np.linalg.svd(xy.T @ before)
            xy = xy @ (u @ v)
        return self.rows[::every][:SHOWN], xy.astype(np.float32)

    def stacked(self) -> dict[str, NDArray[Any]]:
        """What was kept so far, one row an epoch; nothing before the first."""
        return {name: np.stack(values) for name, values in self.kept.items() if values}

    def record(self) -> Record:
        """What was kept, once an epoch was noted."""
        return Record(self.rows.astype(np.int64), **self.stacked())

    def restore(self, stacked: dict[str, NDArray[Any]]) -> None:
        """Go on from what an interrupted training had kept."""
        self.kept |= {name: list(values) for name, values in stacked.items()}


def marks(epochs: int) -> frozenset[int]:
    """The epochs (from 1) worth keeping: 1, 2, 5, 10, 20, 50, ... and the last."""
    steps = (m * 10**k for k in range(len(str(epochs))) for m in (1, 2, 5))
    return frozenset({epochs, *(step for step in steps if step < epochs)})


def _half(values: NDArray[np.float64]) -> NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16)
